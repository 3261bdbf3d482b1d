"""IFEval: instructions whose keeping a program can check."""
