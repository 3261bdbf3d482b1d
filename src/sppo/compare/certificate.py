"""`sppo game certify`: how far the policies of a run are from equilibrium, by best responses that are trained against them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sppo import selfplay
from sppo.benchmarks.head_to_head.score import across
from sppo.compare.game import held_out_responses, oracle_of
from sppo.game.certificate import LowerBound, best_of, lower_bound
from sppo.game.preference_games import Array
from sppo.oracle.check import shown_prompts
from sppo.progress import Terminal, counted_text
from sppo.recipe import Recipe, parse
from sppo.rundir.folder import RunError, RunFolder, write_json
from sppo.rundir.reader import RunReader, label, with_run_policies
from sppo.stages.single import run_stage
from sppo.training.examples import TrainingError

FOLDER, FILE = "certificate", "certificate.json"
Target = Literal["last", "averaged"]
_AT_ONCE = 16
_OPPONENTS = 8
"""About how many of the opponent's recorded responses to a held-out prompt take part."""


@dataclass(frozen=True)
class Effort:
    """The effort that is spent on best responses.

    Attributes:
        seeds: the number of seeds.
        rates: multiples of the recipe's learning rate.
        iterations: iterations of each training.
        prompts: the largest number of training prompts.
        responses: the number of the opponent's responses to each training prompt.
        adapter_rank: train an adapter of this rank as the best response to whole weights; None: train the weights. The best
            response to an adapter is always that adapter, trained further.
    """

    seeds: int
    rates: Sequence[float]
    iterations: int
    prompts: int
    responses: int
    adapter_rank: int | None = None


@dataclass(frozen=True)
class Certificate:
    """The lower bound of one policy's exploitability.

    Attributes:
        target: the last policy, or the averaged one.
        candidates: the names of the responses to it.
        bound: the best of them.
        diverged: the names of the trainings that failed, with the reason.
    """

    target: Target
    candidates: Sequence[str]
    bound: LowerBound
    diverged: Mapping[str, str]

    @property
    def sentence(self) -> str:
        """What the bound means, in one sentence."""
        of, name = self.bound.measured, self.candidates[self.bound.best]
        subject = "the last policy" if self.target == "last" else "the average of the policies"
        found = f"{name} is preferred to {subject} {0.5 + of.mean:.1%} of the time ({0.5 + of.low:.1%} to {0.5 + of.high:.1%})"
        if of.low <= 0:
            return f"No response was found that beats {subject} beyond doubt: the best, {found}."
        return f"{found[0].upper()}{found[1:]}, so {subject} is exploitable by at least {of.low:.3f}."

    def record(self) -> dict[str, Any]:
        """The values, for a file."""
        return {
            "best_response": self.candidates[self.bound.best],
            **asdict(self.bound.measured),
            "chosen_by": self.bound.chosen_by,
            "candidates": list(self.candidates),
            "diverged": dict(self.diverged),
            "sentence": self.sentence,
        }


def certify(run: Path, effort: Effort, terminal: Terminal) -> list[Certificate]:
    """Train best responses against the last and the averaged policy of a run, and measure them on held-out prompts.

    Everything is kept in RUN/certificate, so that the same call continues where it was left.

    Raises:
        RunError: the run has no trained policy or too few prompts, or an adapter's rank is given although the run trains
            adapters.
    """
    reader = RunReader(run)
    recipe = reader.recipe
    recipe.needed_oracle("a certificate")
    if recipe.training.adapter is not None and effort.adapter_rank is not None:
        raise RunError(
            f"{run}: this run trains adapters, and best responses go on from them with their own rank; leave out"
            " --adapter-rank"
        )
    evaluated = reader.evaluated
    if len(evaluated) < 2:
        raise RunError(f"{run}: no policy of this run has been evaluated; finish an iteration first")
    home = run / FOLDER
    home.mkdir(exist_ok=True)
    _write_prompts(reader, home, effort.prompts)
    targets: dict[Target, list[int]] = {"last": evaluated[-1:], "averaged": evaluated}
    found = []
    for target, numbers in targets.items():
        opponent = _opponent(reader, home, target, numbers, effort, terminal)
        trained, diverged = _train(reader, home, target, opponent, effort, terminal)
        names, rates = _measured(run, numbers, trained, target, terminal)
        bound = lower_bound(rates, confidence=recipe.evaluation.confidence, seed=recipe.seed)
        found.append(Certificate(target, names, bound, diverged))
    write_json(run / FILE, {of.target: of.record() for of in found})
    return found


def _write_prompts(reader: RunReader, home: Path, limit: int) -> None:
    """Write the run's prompts to files, so that the trainings use the same ones however the run has divided its sources."""
    rows = {
        row.prompt_id: row for number in reader.iterations if number > 0 for row in reader.prompts(number)
    }
    for name, part in (("train", list(rows.values())[:limit]), ("held-out", reader.held_out_prompts())):
        lines = [{"id": row.prompt_id, "messages": row.messages} for row in part]
        text = "".join(json.dumps(line, default=vars) + "\n" for line in lines)
        (home / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _oracle(reader: RunReader) -> dict[str, Any]:
    """The run's oracle; the policies of the run that it computes with are named, since another run has others."""
    oracle = with_run_policies(reader, reader.recipe.needed_oracle("a certificate"))
    return oracle.model_dump(mode="json")


def _recipe(reader: RunReader, home: Path, policy: Path, changes: Mapping[str, Any]) -> Recipe:
    """The run's recipe, for a policy that begins where the run has ended."""
    values = reader.recipe.model_dump(mode="json", exclude_unset=True)
    values["prompts"] = {"train": str(home / "train.jsonl"), "held_out": str(home / "held-out.jsonl")}
    values["evaluation"] = {**values.get("evaluation", {}), "oracle": None, "tasks": []}
    values["algorithm"] = values["algorithm"] if reader.recipe.algorithm.type == "sppo" else {"type": "sppo"}
    values["guard"] = {"on_failure": "keep"}
    values["oracle"] = _oracle(reader)
    return parse(values, {"policy.model": str(policy.resolve()), **changes})


def _opponent(
    reader: RunReader, home: Path, target: Target, numbers: Sequence[int], effort: Effort, terminal: Terminal
) -> Path:
    """Draw the opponent's responses to the training prompts: of the averaged policy, as many by each policy.

    Its recorded responses to the held-out prompts are added, because every training measures its policy on those.
    """
    each = max(1, min(effort.responses // len(numbers), reader.recipe.evaluation.responses))
    texts: dict[str, list[str]] = {}
    form = reader.recipe.needed_oracle("a certificate").prompt_form()
    for number in numbers:
        folder = home / f"{label(number).replace(' ', '-')}"
        changes = {"iterations": 1, "sampling.k": max(2, effort.responses)}
        recipe = _recipe(reader, home, reader.named_policy(number).folder, changes)
        terminal.say(f"{target} policy: the responses of {label(number)} to the training prompts", "bold")
        run_stage(recipe, RunFolder(folder), terminal.for_part(), "sample", 1, redo_stale=True)
        rows = [*RunReader(folder).responses(1), *reader.held_out(number)]
        for prompt, row in zip(
            shown_prompts(reader, [row.messages for row in rows], form), rows, strict=True
        ):
            texts.setdefault(prompt, []).extend(row.texts[:each])
    path = home / f"{target}.jsonl"
    lines = [json.dumps({"prompt": prompt, "responses": own}) for prompt, own in texts.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _train(
    reader: RunReader, home: Path, target: Target, opponent: Path, effort: Effort, terminal: Terminal
) -> tuple[dict[str, Path], dict[str, str]]:
    """Train a best response for each seed and step size; those that fail are named with the reason."""
    oracle = _oracle(reader)
    trained: dict[str, Path] = {}
    diverged: dict[str, str] = {}
    for seed in range(effort.seeds):
        for rate in effort.rates:
            name = f"best response (seed {seed}, rate x {rate:g})"
            folder = home / f"{target}-seed-{seed}-rate-{rate:g}"
            changes = {
                "oracle": {"type": "fixed_opponent", "oracle": oracle, "responses": str(opponent.resolve())},
                "iterations": effort.iterations,
                "seed": reader.recipe.seed + 1000 + seed,
                "training.learning_rate": reader.recipe.training.learning_rate * rate,
            }
            if effort.adapter_rank is not None:
                scaled = {"r": effort.adapter_rank, "lora_alpha": 2 * effort.adapter_rank}
                changes["training.adapter"] = {"type": "lora", **scaled}
            terminal.say(f"{target} policy: {name}", "bold")
            try:
                recipe = _recipe(reader, home, reader.last_policy().folder, changes)
                selfplay.run(recipe, RunFolder(folder), terminal.for_part(), redo_stale=True)
                trained[name] = folder
            except TrainingError as error:
                diverged[name] = str(error)
                terminal.warn(f"{name} diverged and is not counted: {error}")
    return trained, diverged


def _measured(
    run: Path, numbers: Sequence[int], trained: Mapping[str, Path], target: Target, terminal: Terminal
) -> tuple[list[str], Array]:
    """The names of all responses to a policy, and their win rates against it on each held-out prompt.

    The run's own policies respond with what they are, but not with the best of several responses: those were drawn for the
    target as well, and a response that is chosen among them makes the others look worse.
    """
    own_names, own = held_out_responses([run])
    opponents = [own[RunReader(run).evaluated.index(number)] for number in numbers]
    sides = [(name, responses, False) for name, responses in zip(own_names, own, strict=True)]
    for name, folder in trained.items():
        labels, by_policy = held_out_responses([folder])
        begun = ["the last policy, drawn again", *(f"{name}, {of}" for of in labels[1:])]
        sides += [(of, responses, True) for of, responses in zip(begun, by_policy, strict=True)]
    shared = sorted(set.intersection(*(set(responses) for _, responses, _ in sides)))
    if len(shared) < 4:
        raise RunError(
            f"{run}: {counted_text(len(shared), 'held-out prompt')}; a certificate needs at least 4"
        )
    oracle = oracle_of(run)
    names: list[str] = []
    columns: list[Array] = []
    # an even number of each policy's, so that both halves of `best_of` hold the same mixture
    recorded = min(len(of[prompt][1]) for of in opponents for prompt in shared)
    each = min(recorded, max(2, _OPPONENTS // len(opponents)))
    each -= each % 2 if each > 1 else 0
    against = [[text for of in opponents for text in of[prompt][1][:each]] for prompt in shared]
    m = min(map(len, against))
    with terminal.bar(f"{target} policy: comparisons", len(sides) * len(shared), "prompts") as advance:
        for name, responses, may_choose in sides:
            texts = [responses[prompt][1] for prompt in shared]
            n = min(map(len, texts))
            pairs = []
            for start in range(0, len(shared), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                together = [[*a[:n], *b[:m]] for a, b in zip(texts[part], against[part], strict=True)]
                prompts = [responses[prompt][0] for prompt in shared[part]]
                pairs.append(oracle.compare_pairs(prompts, together, across(len(prompts), n, m))[:, :n, n:])
                advance(len(prompts))
            matrix = np.concatenate(pairs)
            names.append(name)
            columns.append(matrix.mean((1, 2)))
            if may_choose and n > 1 and each > 1:
                names.append(f"{name}, best of {n}")
                columns.append(best_of(matrix))
    return names, np.stack(columns, axis=1)
