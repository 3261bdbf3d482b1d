"""What libraries say is not shown where this package does itself what they ask for."""

import json
import logging
import subprocess
import sys

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from sppo import oracle
from sppo.policy import chat_format
from sppo.policy import load as policies
from sppo.policy.saving import save_merged


@pytest.fixture
def said():
    """What loggers of libraries write while the test runs."""
    records = []

    class Kept(logging.Handler):
        def emit(self, record):
            if not record.name.startswith("sppo"):
                records.append(f"{record.name}: {record.getMessage()}")

    handler = Kept(logging.INFO)
    loggers = [logging.getLogger()]
    if not logging.getLogger(
        "transformers"
    ).propagate:  # where the variable CI is set, it hands its records on
        loggers.append(logging.getLogger("transformers"))
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture(params=["llama-3", "gemma-2", "qwen2"])
def folder(request, tmp_path):
    """A policy whose tokenizer takes eight tokens."""
    folder = tiny_models.make(request.param, tmp_path / "model")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 8}))
    return folder


LONG = "A long prompt about the sea. " * 40


def test_the_fixture_sees_what_a_library_says(folder, said):
    from transformers import AutoTokenizer
    from transformers.utils import logging as library

    AutoTokenizer.from_pretrained(folder)(LONG)
    assert not said
    library.get_logger("transformers.tokenization_utils_base").warning("something else")
    assert said == ["transformers.tokenization_utils_base: something else"]


def test_texts_that_are_too_long_are_no_ones_business_but_ours(folder, said, capfd):
    chat = chat_format.load(str(folder))
    rendered = chat.render([{"role": "user", "content": LONG}])
    assert len(rendered.token_ids) > 8
    assert not said and capfd.readouterr() == ("", "")


def test_weights_that_a_model_does_not_contain_and_bars_are_not_shown(folder, said, capfd, tmp_path):
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | {"value_head.weight": torch.randn(2, 32)}, folder / "model.safetensors", {"format": "pt"}
    )
    model = oracle.load({"type": "general_preference", "model": str(folder), "max_tokens": 8})
    model.compare([LONG], [[LONG, "a"]])
    policies.load(folder, dtype="float32", device="cpu")
    save_merged(folder, tmp_path / "out", dtype="float32")
    assert not said and capfd.readouterr() == ("", "")


def test_bitsandbytes_does_not_ask_for_a_kernel():
    pytest.importorskip("bitsandbytes")
    command = [sys.executable, "-c", "import sppo.policy.load, bitsandbytes"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
