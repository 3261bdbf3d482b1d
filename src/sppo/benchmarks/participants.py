"""Whom a benchmark is about: policies, the policies of runs, and files of outputs that were made elsewhere."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sppo.benchmarks.outputs import ENDINGS
from sppo.policy import load as policies
from sppo.policy.locate import policy_of
from sppo.rundir import storage
from sppo.rundir.folder import RunError
from sppo.rundir.reader import read_summary
from sppo.rundir.shards import file_digest, read_shard


@dataclass(frozen=True)
class Participant:
    """One that takes part.

    Attributes:
        name: in tables and files.
        path: a policy's folder, or a file of outputs.
    """

    name: str
    path: Path

    @property
    def is_policy(self) -> bool:
        """Whether it can be asked; a file has said all it has to say."""
        return self.path.is_dir()

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights and tokenizer, or of the file."""
        return policies.digest(self.path) if self.is_policy else file_digest(self.path)

    @property
    def file_name(self) -> str:
        """Its name as a part of a path."""
        return file_name(self.name)


def resolve(arguments: Sequence[str], *, every_iteration: bool = False) -> list[Participant]:
    """The participants that a command line names.

    An argument is a policy's folder or hub name, a run's folder (its last accepted policy), or a file of outputs;
    ``NAME=...`` before it is the name that it gets.

    Args:
        arguments: of the command line.
        every_iteration: a run's folder stands for its base policy and for that of each iteration.

    Raises:
        RunError: there is no such policy, run or file, or two have the same name.
        sppo.policy.load.PolicyError: what is no path is no model of the hub either.
    """
    found = [one for argument in arguments for one in _participants(argument, every_iteration)]
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RunError(f"two policies are called {twice!r}; tell them apart with NAME=PATH")
    return found


def run_of(argument: str) -> Path | None:
    """The run's folder that an argument names, if it names one."""
    _, path = _parts(argument)
    return Path(path) if (Path(path) / "recipe.yaml").is_file() else None


def held_out_prompts(run: Path) -> list[str]:
    """The prompts that a run sets aside.

    Raises:
        RunError: it has not read its prompts yet, or they are conversations of several messages.
    """
    shards = sorted((run / "iter-0" / "prompts").glob("part-*.parquet"))
    found = [
        row["messages"] for shard in shards for row in read_shard(shard, columns=["messages"]).to_pylist()
    ]
    if not found:
        raise RunError(f"{run}: it has no held-out prompts yet; name others with --prompts")
    if any(len(messages) > 1 for messages in found):
        raise RunError(
            f"{run}: its held-out prompts are conversations, which `sppo game policies` compares; or name others with"
            " --prompts"
        )
    return [messages[0]["content"] for messages in found]


def file_name(name: str) -> str:
    """A name with everything but letters, digits, dots, dashes and underscores replaced."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def _participants(argument: str, every_iteration: bool) -> list[Participant]:
    name, text = _parts(argument)
    path = Path(text)
    run = run_of(argument)
    if run is not None:
        if not every_iteration:
            return [Participant(name or run.resolve().name, policy_of(run))]
        prefix = name or run.resolve().name
        return [Participant(f"{prefix}-{label}", folder) for label, folder in _policies(run)]
    if path.is_file():
        if path.suffix.lower() not in ENDINGS:
            raise RunError(f"{path}: outputs are read from {', '.join(ENDINGS)} files")
        return [Participant(name or path.stem, path)]
    if path.suffix.lower() in ENDINGS:
        raise RunError(f"{path}: there is no such file")
    return [Participant(name or _policy_name(path), policies.folder(text))]


def _parts(argument: str) -> tuple[str | None, str]:
    name, equals, path = argument.partition("=")
    # a path may have an equals sign in it: then it exists as it stands
    named = equals and name and not Path(argument).exists()
    return name if named else None, str(storage.located(Path(path if named else argument)))


def _policies(run: Path) -> list[tuple[str, Path]]:
    found = read_summary(run)
    if found is None:
        raise RunError(f"{run}: no iteration of it is finished")
    trained = [run / f"iter-{row['iteration']}" / "policy" for row in found["iterations"]]
    base = [("base", Path(found["base"]["policy"]))]
    return base + [(folder.parent.name, folder) for folder in trained if folder.is_dir()]


def _policy_name(path: Path) -> str:
    parts = path.resolve().parts if path.is_dir() else path.parts
    if len(parts) > 2 and parts[-1] == "policy" and parts[-2].startswith("iter-"):
        return f"{parts[-3]}-{parts[-2]}"
    return parts[-1] if parts else str(path)
