"""Learning dynamics of self-play on preference games: one file for each, and one protocol for all.

Every file has a pure function `update(policy, payoff, ...)` and its dynamic as a frozen dataclass, and names the loss
over a finite set of responses whose exact minimiser the update is.
"""

from sppo.game.dynamics.blackwell import Blackwell
from sppo.game.dynamics.comal import COMAL
from sppo.game.dynamics.dpo import DPOSelfPlay
from sppo.game.dynamics.dynamic import Dynamic, Iterate
from sppo.game.dynamics.egpo import Extragradient
from sppo.game.dynamics.inpo import INPO
from sppo.game.dynamics.ipo import IPOSelfPlay
from sppo.game.dynamics.magnetic_mirror_descent import MagneticMirrorDescent
from sppo.game.dynamics.mnpo import MNPO
from sppo.game.dynamics.multiplicative_weights import MultiplicativeWeights
from sppo.game.dynamics.nash_md import NashMD
from sppo.game.dynamics.nash_prox import NashProx
from sppo.game.dynamics.onpo import OptimisticMultiplicativeWeights
from sppo.game.dynamics.policies import Policy, as_policy, normalised
from sppo.game.dynamics.rebel import REBEL
from sppo.game.dynamics.rspo import RSPO
from sppo.game.dynamics.rspo_released import RSPOReleased
from sppo.game.dynamics.sampled import SampledMultiplicativeWeights
from sppo.game.dynamics.sppo import SPPO
from sppo.game.dynamics.trajectory import Trajectory, log_spaced, play

__all__ = [
    "COMAL",
    "INPO",
    "MNPO",
    "REBEL",
    "RSPO",
    "SPPO",
    "Blackwell",
    "DPOSelfPlay",
    "Dynamic",
    "Extragradient",
    "IPOSelfPlay",
    "Iterate",
    "MagneticMirrorDescent",
    "MultiplicativeWeights",
    "NashMD",
    "NashProx",
    "OptimisticMultiplicativeWeights",
    "Policy",
    "RSPOReleased",
    "SampledMultiplicativeWeights",
    "Trajectory",
    "as_policy",
    "log_spaced",
    "normalised",
    "play",
]
