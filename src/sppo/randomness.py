"""Random numbers that are keyed by their purpose, never by a position in a stream.

The draw for (seed, iteration, prompt, k) is the same whichever worker makes it, in whatever order, and
after any number of interruptions.
"""

import hashlib

import numpy as np


def digest(*key: str | int | float) -> bytes:
    """32 bytes that depend on every part of the key and on the boundaries between the parts."""
    # The separator is doubled within a part, so that no two keys are joined to the same text.
    parts = (f"{type(part).__name__}:{part}".replace("\x1f", "\x1f\x1f") for part in key)
    return hashlib.sha256("\x1f".join(parts).encode()).digest()


def generator(*key: str | int) -> np.random.Generator:
    """The key's own counter-based generator (Philox)."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest(*key)[:16], "big")))


def seed(*key: str | int) -> int:
    """A 31-bit seed for libraries that take one."""
    return int.from_bytes(digest(*key)[:4], "big") >> 1


def wide_seed(*key: str | int) -> int:
    """A 62-bit seed; with near certainty, the K numbers that follow it are not used for another key."""
    return int.from_bytes(digest(*key)[:8], "big") >> 2
