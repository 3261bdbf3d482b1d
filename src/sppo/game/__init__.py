"""The two-player game that SPPO plays, as tables: exact solutions, measures and learning dynamics."""

from sppo.game.blackwell import BlackwellWinner, blackwell_winner, worst_win_rate
from sppo.game.bradley_terry import bradley_terry, bradley_terry_divergence, nearest_bradley_terry
from sppo.game.empirical_game import EmpiricalGame, empirical_game
from sppo.game.exploitability import (
    best_responses,
    duality_gap,
    exploitability,
    preference,
    regularised_exploitability,
    win_rates_against,
)
from sppo.game.intransitivity import Hodge, Intransitivity, cyclic_triples, hodge, intransitivity
from sppo.game.nash import Solution, nash, solve
from sppo.game.preference_games import (
    GameError,
    bradley_terry_game,
    cyclic_game,
    majority_game,
    policy_weights,
    preference_game,
    random_game,
    rock_paper_scissors,
)
from sppo.game.social_choice import (
    borda_scores,
    borda_winners,
    condorcet_winner,
    copeland_scores,
    copeland_winners,
    smith_set,
)
from sppo.game.tables import Table, read_table, write_table

__all__ = [
    "BlackwellWinner",
    "EmpiricalGame",
    "GameError",
    "Hodge",
    "Intransitivity",
    "Solution",
    "Table",
    "best_responses",
    "blackwell_winner",
    "borda_scores",
    "borda_winners",
    "bradley_terry",
    "bradley_terry_divergence",
    "bradley_terry_game",
    "condorcet_winner",
    "copeland_scores",
    "copeland_winners",
    "cyclic_game",
    "cyclic_triples",
    "duality_gap",
    "empirical_game",
    "exploitability",
    "hodge",
    "intransitivity",
    "majority_game",
    "nash",
    "nearest_bradley_terry",
    "policy_weights",
    "preference",
    "preference_game",
    "random_game",
    "read_table",
    "regularised_exploitability",
    "rock_paper_scissors",
    "smith_set",
    "solve",
    "win_rates_against",
    "worst_win_rate",
    "write_table",
]
