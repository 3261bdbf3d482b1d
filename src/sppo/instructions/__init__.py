"""A real preference that a program can check: prompts with verifiable constraints, and the model that is trained on them."""

from pathlib import Path

INPUTS = Path("runs/real-inputs")
"""Where `sppo inputs` writes the model and the prompts, and where the recipe `real` looks for them."""
