"""What the servers of this package share: the arena, and an oracle behind HTTP."""
