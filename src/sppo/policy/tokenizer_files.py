"""The small files of a policy that are not weights: tokenizer, chat template, configuration."""

import shutil
from pathlib import Path

from sppo.policy import adapter as adapters
from sppo.policy import load as policies


def copy_tokenizer(source: Path, target: Path, chat_template: str | None) -> None:
    """Give a saved policy the tokenizer, chat template and other small files of the one it came from.

    Args:
        source: the folder to copy from, pi_t's.
        target: the folder to copy to, pi_{t+1}'s; files that are there already stay as they are.
        chat_template: a file that is used instead of the source's template.
    """
    if chat_template is not None:
        shutil.copyfile(chat_template, target / "chat_template.jinja")
    own = list(source.iterdir())
    if adapters.is_adapter(source):  # which may have no more than its weights
        base = policies.base_folder(source)
        whole = policies.tokenizer_folder(source) != source
        own += [
            file for file in base.iterdir() if whole or file.name in ("config.json", "generation_config.json")
        ]
    for file in own:
        weights = (
            file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf") or ".safetensors." in file.name
        )
        if (
            file.is_file()
            and not weights
            and not file.name.startswith(".")
            and file.name not in (adapters.CONFIG, adapters.BASE)
            and not (target / file.name).exists()
        ):
            shutil.copyfile(file, target / file.name)
