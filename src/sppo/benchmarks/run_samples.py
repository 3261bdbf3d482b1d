"""Responses of a finished run's policies, outside of its stages: the best of n, and the averaged policy.

The averaged policy of Theorem 4.1 plays each response by one of pi_1, pi_2, ..., drawn anew; so does any other mixture
of them, such as the Nash mixture that `sppo game policies` finds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sppo import prompts as prompt_sources
from sppo import randomness
from sppo.benchmarks.best_of import choose
from sppo.benchmarks.evaluation_stage import EvaluationStage, evaluation_stage
from sppo.benchmarks.participants import Participant, resolve
from sppo.progress import Advance, Terminal
from sppo.recipe import PromptSource, Recipe
from sppo.rundir.folder import RunError, write_text
from sppo.rundir.reader import RunReader
from sppo.rundir.shards import read_shard
from sppo.rundir.tables import PROMPTS, TOKEN_IDS
from sppo.sampling import Response
from sppo.sampling.stop_strings import StopStrings
from sppo.stages.models import Models

_RESPONSE = pa.struct(
    [
        ("number", pa.int32()),
        ("policy", pa.string()),
        ("token_ids", TOKEN_IDS),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("log_prob", pa.float64()),
    ]
)
_ROW = pa.schema([*PROMPTS, ("responses", pa.list_(_RESPONSE))])
"""`number` is the response's among the n of its prompt; `policy` is the name of the one that drew it."""


@dataclass(frozen=True)
class SampleRequest:
    """What is to be drawn.

    Attributes:
        n: responses to each prompt.
        best: keep only the one that the run's oracle ranks first.
        mixture: by all policies of the run, instead of one.
        weights: of the mixture's policies, the base first; None: equal.
        iteration: the policy after it; None: the last accepted one. 0 is the base.
        prompts: a source; None: the run's held-out prompts.
    """

    n: int
    best: bool = False
    mixture: bool = False
    weights: tuple[float, ...] | None = None
    iteration: int | None = None
    prompts: str | None = None


def sample_responses(
    recipe: Recipe, folder: Path, wanted: SampleRequest, terminal: Terminal, output: Path | None = None
) -> Path:
    """Draw responses and write them as JSON lines; what is there already is not drawn again.

    Args:
        recipe: of the run.
        folder: the run's.
        wanted: what is to be drawn.
        terminal: where progress is shown.
        output: the file; None: one in the run's folder `draws`.

    Returns:
        The file.

    Raises:
        RunError: the run has no such policy, or the weights are not its policies'.
        sppo.prompts.PromptError: a prompt cannot be used.
    """
    participants, weights = _mixture(folder, wanted)
    models = Models(recipe)
    prompts = _prompts(models, folder, wanted)
    home = folder / "draws"
    stages = [
        _PolicyShare(models, prompts, participants, weights, wanted, number).stage(home)
        for number, weight in enumerate(weights)
        if weight > 0
    ]
    for stage, share in stages:
        stage.compute(len(prompts), share, _ROW, terminal, "prompts")
        models.release()
    rows = _together(
        [stage.compute(len(prompts), share, _ROW, terminal, "prompts") for stage, share in stages]
    )
    if wanted.best:
        rows = _best(models, home, rows, [stage for stage, _ in stages], terminal)
    name = f"{'best-of' if wanted.best else 'draws'}-{wanted.n}{'-mixture' if wanted.mixture else ''}.jsonl"
    path = output or home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def _mixture(folder: Path, wanted: SampleRequest) -> tuple[list[Participant], np.ndarray]:
    """The policies that take part, and their probabilities."""
    if not wanted.mixture:
        if wanted.iteration is None:
            return resolve([str(folder)]), np.ones(1)
        known = resolve([str(folder)], every_iteration=True)
        if wanted.iteration >= len(known):
            raise RunError(f"--iteration {wanted.iteration}: {folder} has {len(known) - 1} iterations so far")
        return [known[wanted.iteration]], np.ones(1)
    participants = resolve([str(folder)], every_iteration=True)
    given = np.array(wanted.weights or [1.0] * len(participants), dtype=np.float64)
    names = ", ".join(one.name for one in participants)
    if len(given) != len(participants):
        raise RunError(
            f"--weights: {len(given)} for {len(participants)} policies; give one for each of: {names}"
        )
    if not np.isfinite(given).all() or given.min() < 0 or given.sum() <= 0:
        raise RunError(f"--weights: {given.tolist()}; none may be negative, and their sum must be positive")
    return participants, given / given.sum()


def _prompts(models: Models, folder: Path, wanted: SampleRequest) -> list[dict[str, Any]]:
    room = models.sampling_limit - models.recipe.sampling.max_new_tokens
    if wanted.prompts is not None:
        source = PromptSource.model_validate({"source": wanted.prompts})
        skip = models.recipe.prompts.invalid == "skip"
        return prompt_sources.read(source, chat=models.chat, max_tokens=room, skip_invalid=skip).to_pylist()  # type: ignore[no-any-return]
    return [row.to_row() for row in RunReader(folder).held_out_prompts()]


@dataclass(frozen=True)
class _PolicyShare:
    """One policy's share of the responses; work of a part.

    Attributes:
        number: of the policy among the participants.
    """

    models: Models
    prompts: Sequence[dict[str, Any]]
    participants: Sequence[Participant]
    weights: np.ndarray
    wanted: SampleRequest
    number: int

    def stage(self, home: Path) -> tuple[EvaluationStage, "_PolicyShare"]:
        """Where it lies and what it depends on."""
        of, participant = self.models.recipe, self.participants[self.number]
        settings = {
            "prompts": [[row["prompt_id"], row["prompt_token_ids"]] for row in self.prompts],
            "n": self.wanted.n,
            "weights": self.weights.tolist(),
            "number": self.number,
            "sampling": of.sampling.model_dump(exclude={"k"}),
            "dtype": of.policy.dtype,
            "seed": of.seed,
        }
        return evaluation_stage(
            home, f"{participant.name}: draws", "drawn", settings, [participant.fingerprint]
        ), self

    def __call__(self, numbers: range, advance: Advance) -> list[dict[str, Any]]:
        """The rows of some prompts, each with this policy's responses among the n."""
        rows = [{**self.prompts[number], "responses": []} for number in numbers]
        owned = [self._owned(row["prompt_id"]) for row in rows]
        participant = self.participants[self.number]
        # those of a prompt are drawn together, so that it goes through the model once
        for count in sorted({len(own) for own in owned} - {0}):
            of_count = [(row, own) for row, own in zip(rows, owned, strict=True) if len(own) == count]
            drawn = self.models.sampler(participant.path).sample(
                [row["prompt_token_ids"] for row, _ in of_count],
                [("draw", self.models.recipe.seed, self.number, row["prompt_id"]) for row, _ in of_count],
                count,
            )
            for (row, own), responses in zip(of_count, drawn, strict=True):
                row["responses"] = [
                    self._record(number, response) for number, response in zip(own, responses, strict=True)
                ]
        advance(len(rows))
        return rows

    def _owned(self, prompt_id: str) -> list[int]:
        """The numbers of the responses that this policy is to draw."""
        bounds = np.cumsum(self.weights)[:-1]
        seed = self.models.recipe.seed
        return [
            number
            for number in range(self.wanted.n)
            if np.searchsorted(
                bounds, randomness.generator("mixture", seed, prompt_id, number).random(), "right"
            )
            == self.number
        ]

    def _record(self, number: int, response: Response) -> dict[str, Any]:
        chat = self.models.chat
        stop_strings = StopStrings(tuple(self.models.recipe.sampling.stop), chat.decode)
        return {
            "number": number,
            "policy": self.participants[self.number].name,
            "token_ids": response.token_ids,
            "text": stop_strings.trim(chat.decode(response.token_ids)),
            "finish_reason": response.finish_reason,
            "log_prob": response.log_prob,
        }


def _together(of_policies: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each prompt's responses of all policies, in the order of their numbers."""
    return [
        {
            **same[0],
            "responses": sorted(
                (one for row in same for one in row["responses"]), key=lambda one: int(one["number"])
            ),
        }
        for same in zip(*of_policies, strict=True)
    ]


def _best(
    models: Models,
    home: Path,
    rows: list[dict[str, Any]],
    stages: Sequence[EvaluationStage],
    terminal: Terminal,
) -> list[dict[str, Any]]:
    """Of each prompt's responses the one with the highest win rate against the others."""
    texts = [[one["text"] for one in row["responses"]] for row in rows]
    upstream = evaluation_stage(home, "draws", "together", {}, [stage.fingerprint for stage in stages])
    chosen, found = choose(
        home,
        "draws",
        models.recipe.needed_oracle("the best of n"),
        models.prompt_texts([row["messages"] for row in rows]),
        texts,
        upstream,
        terminal,
    )
    rates = [row["win_rates"] for path in found.shards() for row in read_shard(path).to_pylist()]
    return [
        {**row, "responses": [{**row["responses"][best], "win_rate": of[best]}]}
        for row, best, of in zip(rows, chosen, rates, strict=True)
    ]
