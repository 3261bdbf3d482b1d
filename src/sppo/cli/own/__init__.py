"""What `sppo init` writes: a recipe and an oracle to start from, on the embedded world or on a model of one's own."""
