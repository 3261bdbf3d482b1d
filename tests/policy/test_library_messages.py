"""Messages of libraries about what this package does itself."""

import logging

import pytest

from sppo.policy.library_messages import hide_needless


@pytest.mark.parametrize(
    ("name", "needless"),
    [
        ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community"),
        ("transformers.modeling_utils", "LlamaModel LOAD REPORT from: somewhere"),
        ("transformers.tokenization_utils_base", "Token indices sequence length is longer than 512"),
    ],
)
def test_a_needless_message_is_hidden_and_another_is_not(name, needless, monkeypatch):
    shown = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", shown.append)
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    hide_needless()
    try:
        logger.error(needless)
        logger.error("the disk is on fire")
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in shown] == ["the disk is on fire"]
