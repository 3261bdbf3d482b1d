"""Oracles that compute with a policy: one of the run, by the part that it plays there, or any other, by its own settings.

A section of an oracle that has a field ``policy: OraclePolicy`` computes with a policy. The names `current` and `base` stand
for policies that only a run knows; :func:`in_run` puts these policies' settings in the place of the names, whatever the section
stands in, so that an oracle is loaded the same way inside of a run and outside.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from sppo.recipe.inputs import Policy
from sppo.recipe.oracle import OracleSection
from sppo.recipe.sampling import Sampling

RunPolicy = Literal["current", "base"]
"""A policy of a run: `current` is pi_t, which draws the responses of iteration t; `base` is pi_1."""


def _as_policy(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) and value not in ("current", "base") else value


OraclePolicy = Annotated[RunPolicy | Policy, BeforeValidator(_as_policy)]
"""A policy that an oracle computes with: a name of the run's, a folder or hub name, or a mapping with the keys of `policy:`."""


def run_policies(oracle: OracleSection | None) -> frozenset[RunPolicy]:
    """The policies of the run that an oracle computes with, itself or by the oracles inside it."""
    names = (getattr(section, "policy", None) for section in _sections(oracle) if oracle is not None)
    return frozenset(name for name in names if isinstance(name, str))  # type: ignore[misc]


def in_run(oracle: OracleSection, policies: Mapping[RunPolicy, Policy], sampling: Sampling) -> OracleSection:
    """The oracle as it is loaded within a run.

    Args:
        oracle: the recipe's section.
        policies: the policies that the names stand for; at least those of :func:`run_policies`.
        sampling: the run's own, for oracles that draw with a policy and name no engine.

    Raises:
        ValueError: the run's engine cannot give what an oracle needs.
    """
    return _replaced(oracle, policies, sampling)  # type: ignore[no-any-return]


def check(oracle: OracleSection) -> None:
    """Refuse, before anything is computed, what an oracle or the oracles inside it lack (:meth:`OracleSection.check`)."""
    for section in _sections(oracle):
        section.check()


def policy_of_run(policy: Policy, folder: Path) -> Policy:
    """The recipe's settings of all policies of a run, with the folder of one of them."""
    return policy.model_copy(update={"model": str(folder), "revision": None})


def _sections(value: Any) -> Iterator[OracleSection]:
    """A section, and all sections inside it."""
    if isinstance(value, list):
        for item in value:
            yield from _sections(item)
    elif isinstance(value, OracleSection):
        yield value
        for name in type(value).model_fields:
            yield from _sections(getattr(value, name))


def _replaced(value: Any, policies: Mapping[RunPolicy, Policy], sampling: Sampling) -> Any:
    if isinstance(value, list):
        return [_replaced(item, policies, sampling) for item in value]
    if not isinstance(value, OracleSection):
        return value
    changed = {name: _replaced(getattr(value, name), policies, sampling) for name in type(value).model_fields}
    policy = changed.get("policy")
    if isinstance(policy, str):
        changed["policy"] = policies[policy]  # type: ignore[index]
    if "sampling" in changed and changed["sampling"] is None:
        changed["sampling"] = sampling
    replaced = value.model_copy(update=changed)
    replaced.refuse_engine()
    return replaced
