"""The policies and output files to evaluate: policies, the policies of runs, and files of outputs made elsewhere."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sppo.benchmarks.outputs import ENDINGS
from sppo.policy.opening import OpenPolicy, open_policy
from sppo.rundir import storage
from sppo.rundir.folder import RunError
from sppo.rundir.reader import RunReader, is_run, run_and_iteration
from sppo.rundir.shards import file_digest


@dataclass(frozen=True)
class Participant:
    """A policy, or a file of outputs, that a benchmark evaluates.

    Attributes:
        name: its name in tables and files.
        path: the policy's folder, or the file of outputs.
        policy: the policy; None for a file of outputs.
    """

    name: str
    path: Path
    policy: OpenPolicy | None = None

    @property
    def is_policy(self) -> bool:
        """Whether it can respond; a file of outputs has no responses but those in it."""
        return self.policy is not None

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of what the responses depend on: the policy and its settings, or the file."""
        return file_digest(self.path) if self.policy is None else self.policy.digest

    @property
    def file_name(self) -> str:
        """The name as a part of a path."""
        return file_name(self.name)

    def record(self) -> dict[str, str]:
        """The participant's entry in a result."""
        return {"path": str(self.path), "fingerprint": self.fingerprint}


def resolve(
    arguments: Sequence[str], *, every_iteration: bool = False, overrides: Mapping[str, Any] | None = None
) -> list[Participant]:
    """The participants that a command line names.

    An argument is a policy's folder or hub name, a run's folder (its last accepted policy), or a file of outputs;
    ``NAME=...`` before it gives the participant a name of its own.

    Args:
        arguments: the arguments of the command line.
        every_iteration: whether a run's folder stands for its base policy and the policy of each iteration.
        overrides: how policies are opened, as in :func:`sppo.policy.opening.open_policy`.

    Raises:
        RunError: there is no such policy, run or file, or two have the same name.
        sppo.policy.load.PolicyError: what is no path is no model of the hub either.
    """
    participants = [
        participant
        for argument in arguments
        for participant in _participants(argument, every_iteration, overrides)
    ]
    names = [participant.name for participant in participants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RunError(f"two policies are called {twice!r}; tell them apart with NAME=PATH")
    return participants


def run_of(argument: str) -> Path | None:
    """The run's folder that an argument names; None where it names none."""
    _, path = _name_and_path(argument)
    return path if is_run(path) else None


def held_out_prompts(run: Path) -> list[str]:
    """The texts of the prompts that a run holds out.

    Raises:
        RunError: the run has not read its prompts yet, or they are conversations of several messages.
    """
    conversations = [row.messages for row in RunReader(run).held_out_prompts()]
    if any(len(messages) > 1 for messages in conversations):
        raise RunError(
            f"{run}: its held-out prompts are conversations, which `sppo game policies` compares; or name others with"
            " --prompts"
        )
    return [messages[0]["content"] for messages in conversations]


def file_name(name: str) -> str:
    """A name with everything but letters, digits, dots, dashes and underscores replaced."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def _participants(
    argument: str, every_iteration: bool, overrides: Mapping[str, Any] | None
) -> list[Participant]:
    name, path = _name_and_path(argument)
    if every_iteration and is_run(path):
        prefix = name or path.resolve().name
        policies = RunReader(path).policies()
        return [
            Participant(f"{prefix}-{policy.name}", opened.folder, opened)
            for policy in policies
            for opened in [open_policy(policy.folder, overrides, run=path)]
        ]
    if path.is_file():
        if path.suffix.lower() not in ENDINGS:
            raise RunError(f"{path}: outputs are read from {', '.join(ENDINGS)} files")
        return [Participant(name or path.stem, path)]
    if path.suffix.lower() in ENDINGS:
        raise RunError(f"{path}: there is no such file")
    opened = open_policy(path, overrides)
    return [Participant(name or _policy_name(path), opened.folder, opened)]


def _name_and_path(argument: str) -> tuple[str | None, Path]:
    name, equals, path = argument.partition("=")
    # a path may have an equals sign in it: then it exists as it stands
    named = equals and name and not Path(argument).exists()
    return name if named else None, storage.located(Path(path if named else argument))


def _policy_name(path: Path) -> str:
    place = run_and_iteration(path.resolve() if path.is_dir() else path)
    if place is not None:
        return f"{place[0].name}-iter-{place[1]}"
    return (path.resolve() if path.is_dir() else path).name or str(path)
