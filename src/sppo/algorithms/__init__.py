"""The algorithms, one per file: each computes a loss per prompt from the log-ratios of the prompt's responses.

Each file holds one class with the recipe's `algorithm:` section, the algorithm's requirements, and its loss
(:class:`sppo.recipe.algorithm.Algorithm`). :mod:`sppo.recipe.registry` finds the classes by name.
"""
