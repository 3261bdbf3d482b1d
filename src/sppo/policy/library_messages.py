"""Messages and bars of libraries that users need not see, because this package does itself what they ask for."""

import contextlib
import logging
from collections.abc import Iterator

_NEEDLESS = {
    # Texts that are too long for a model are counted and refused, or truncated and counted, wherever texts are read.
    "transformers.tokenization_utils_base": "Token indices sequence length is longer than",
    # Missing weights are refused, and weights that the model does not contain are named.
    "transformers.modeling_utils": "LOAD REPORT",
    # On CPUs with bfloat16 products, a kernel for 4-bit inference could be downloaded; it is not used here.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}
"""Parts of the messages, by the name of the logger that writes them."""


def hide_needless() -> None:
    """Hide the messages in this process, those of libraries that have not been imported yet included."""
    for name in _NEEDLESS:
        logging.getLogger(name).addFilter(_is_needed)


def _is_needed(record: logging.LogRecord) -> bool:
    return _NEEDLESS[record.name] not in record.getMessage()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars, which would interfere with those of this package."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
