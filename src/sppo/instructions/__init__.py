"""A real preference that a program can check: prompts with verifiable constraints, and the model that is trained on them."""
