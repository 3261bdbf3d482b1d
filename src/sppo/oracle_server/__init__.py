"""`sppo oracle serve`: an oracle behind HTTP, for trainers and programs elsewhere."""
