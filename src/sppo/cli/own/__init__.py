"""The files that `sppo init` writes: a recipe and an oracle to start from."""
