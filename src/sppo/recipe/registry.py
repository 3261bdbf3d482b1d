"""The names that a recipe or a command may use for algorithms, oracles, samplers, executors and benchmarks.

A name stands for a class or a factory, written as ``module:attribute`` and imported only when it is used. Installed
packages add names by entry points, one group for each kind::

    [project.entry-points."sppo.oracles"]
    shorter = "my_package.shorter:Shorter"

docs/extending.md has a worked example of each kind.
"""

import difflib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

Kind = Literal["algorithms", "oracles", "samplers", "executors", "benchmarks"]

BUILT_IN: dict[Kind, dict[str, str]] = {
    "algorithms": {
        "sppo": "sppo.algorithms.sppo:SPPO",
        "dpo": "sppo.algorithms.dpo:DPO",
        "ipo": "sppo.algorithms.ipo:IPO",
        "spin": "sppo.algorithms.spin:SPIN",
        "sft": "sppo.algorithms.sft:SFT",
        "rspo": "sppo.algorithms.rspo:RSPO",
        "rspo_released": "sppo.algorithms.rspo_released:RSPOReleased",
        "inpo": "sppo.algorithms.inpo:INPO",
        "comal": "sppo.algorithms.comal:COMAL",
        "onpo": "sppo.algorithms.onpo:ONPO",
        "egpo": "sppo.algorithms.egpo:EGPO",
        "egpo_released": "sppo.algorithms.egpo_released:EGPOReleased",
        "nash_prox": "sppo.algorithms.nash_prox:NashProx",
        "mnpo": "sppo.algorithms.mnpo:MNPO",
        "blackwell": "sppo.algorithms.blackwell:Blackwell",
        "nash_md": "sppo.algorithms.nash_md:NashMD",
        "rlhf": "sppo.algorithms.rlhf:RLHF",
        "rebel": "sppo.algorithms.rebel:REBEL",
        "dno": "sppo.algorithms.dno:DNO",
        "grpo": "sppo.algorithms.grpo:GRPO",
    },
    "oracles": {
        "function": "sppo.oracle.function:FunctionOracle",
        "panel": "sppo.oracle.panel:PanelOracle",
        "pairrm": "sppo.oracle.pairrm:PairRMOracle",
        "reward_model": "sppo.oracle.reward_model:RewardModelOracle",
        "general_preference": "sppo.oracle.general_preference:GeneralPreferenceOracle",
        "judge": "sppo.oracle.judge:JudgeOracle",
        "policy_judge": "sppo.oracle.policy_judge:PolicyJudgeOracle",
        "verifiable": "sppo.oracle.verifiable:VerifiableOracle",
        "length_controlled": "sppo.oracle.wrappers:LengthControlledOracle",
        "length_matched": "sppo.oracle.wrappers:LengthMatchedOracle",
        "near_tie": "sppo.oracle.wrappers:NearTieOracle",
        "similarity": "sppo.oracle.wrappers:SimilarityOracle",
        "fixed_opponent": "sppo.oracle.fixed_opponent:FixedOpponentOracle",
    },
    "samplers": {
        "transformers": "sppo.sampling.transformers:TransformersSampling",
        "vllm": "sppo.sampling.vllm:VllmSampling",
        "openai": "sppo.sampling.served:ServedSampling",
    },
    "executors": {
        "local": "sppo.executors.local:Local",
        "ray": "sppo.executors.ray:RayCluster",
    },
    "benchmarks": {
        "head-to-head": "sppo.benchmarks.head_to_head.command:HeadToHead",
        "alpaca-eval": "sppo.benchmarks.alpaca_eval.command:AlpacaEval",
        "arena-hard": "sppo.benchmarks.arena_hard.command:ArenaHard",
        "mt-bench": "sppo.benchmarks.mt_bench.command:MtBench",
        "open-llm": "sppo.benchmarks.open_llm.command:OpenLlm",
        "ifeval": "sppo.benchmarks.ifeval.command:IFEval",
    },
}
"""The names that come with this package, in the order in which they are listed to people."""


class UnknownName(ValueError):
    """A name that nothing is registered under; the message names the nearest and lists the known ones."""


class BrokenPlugin(ValueError):
    """An installed package's entry point that cannot be used; the message names the package."""


def names(kind: Kind) -> list[str]:
    """All known names of a kind: the built-in ones, then those of installed packages in alphabetical order."""
    return list(dict.fromkeys([*BUILT_IN[kind], *sorted(entry_points(group=f"sppo.{kind}").names)]))


def load(kind: Kind, name: str) -> Any:
    """The class or factory that a name stands for.

    Raises:
        UnknownName: neither this package nor an installed one has the name.
        BrokenPlugin: two packages claim the name, or the one that has it cannot be imported.
    """
    if name in BUILT_IN[kind]:
        return EntryPoint(name, BUILT_IN[kind][name], f"sppo.{kind}").load()
    claims = {point.value: point for point in entry_points(group=f"sppo.{kind}", name=name)}
    if not claims:
        raise UnknownName(unknown(name, names(kind)))
    if len(claims) > 1:
        raise BrokenPlugin(
            f"{name!r} is claimed by {' and '.join(map(_source, claims.values()))}; uninstall one of them"
        )
    (point,) = claims.values()
    try:
        return point.load()
    except Exception as error:  # a package is a program: it may raise anything
        raise BrokenPlugin(
            f"{name!r}, from {_source(point)}, cannot be imported: {type(error).__name__}: {error}; repair or"
            " uninstall that package"
        ) from error


def unknown(name: str, known: Iterable[str]) -> str:
    """Says that a name is unknown, which known name is nearest, and which are known."""
    known = list(known)
    near = nearest(name, known)
    question = "" if near is None else f"did you mean {near!r}? "
    return f"{name!r} is unknown; {question}Known: {', '.join(known)}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like the given one; None where none is alike."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.6)), None)


def _source(point: EntryPoint) -> str:
    distribution = point.dist
    package = "an installed package" if distribution is None else f"the package {distribution.name}"
    return f"{package} ({point.value})"
