"""The stages of an iteration, one file each."""
