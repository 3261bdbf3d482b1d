"""What one optimiser step minimises: a loss for each prompt from its responses' log-ratios, one file per algorithm.

Each file holds one class: the recipe's `algorithm:` section, what the algorithm needs, and its loss
(:class:`sppo.recipe.algorithm.Algorithm`). Names are found through :mod:`sppo.recipe.registry`.
"""
