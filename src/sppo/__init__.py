"""Self-play preference optimisation of language models (SPPO, arXiv:2405.00675)."""

__version__ = "0.1.0.dev0"
