"""Copy the files of a policy that are not weights: tokenizer, chat template, generation settings."""

import shutil
from pathlib import Path

from sppo.policy import adapter as adapters
from sppo.policy import load as policies


def copy_tokenizer(source: Path, target: Path, chat_template: str | None) -> None:
    """Copy the tokenizer, the chat template and other small files of a policy to one that was made from it.

    Args:
        source: the folder to copy from, such as pi_t's.
        target: the folder to copy to, such as pi_{t+1}'s; files that exist there are not replaced.
        chat_template: a file to use instead of the source's chat template.
    """
    if chat_template is not None:
        shutil.copyfile(chat_template, target / "chat_template.jinja")
    own = list(source.iterdir())
    if adapters.is_adapter(source):  # its folder can lack a tokenizer
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
