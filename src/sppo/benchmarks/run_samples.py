"""Responses of a finished run's policies, outside of its stages: the best of n, and the averaged policy.

The averaged policy of Theorem 4.1 gives each response by one of pi_1, pi_2, ..., chosen anew at random. Any other mixture of
them works alike, such as the Nash mixture that `sppo game policies` finds.
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
from sppo.benchmarks import best_of
from sppo.benchmarks.evaluation_stage import EvaluationStage, evaluation_stage
from sppo.benchmarks.participants import Participant, resolve
from sppo.progress import Advance, Terminal, counted_text
from sppo.recipe import PromptSource, Recipe
from sppo.rundir.folder import RunError, write_text
from sppo.rundir.reader import RunReader, with_run_policies
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
"""`number` is the response's number among the n of its prompt; `policy` is the name of the policy that gave it."""


@dataclass(frozen=True)
class SampleRequest:
    """The responses to sample.

    Attributes:
        n: the number of responses to each prompt.
        best: whether only the response that the run's oracle prefers is kept.
        mixture: whether responses come from all policies of the run instead of one.
        weights: the weights of the policies in the mixture, the base first; None: equal weights.
        iteration: the iteration whose policy responds, 0 for the base; None: the last accepted policy.
        prompts: a source of prompts; None: the run's held-out prompts.
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
    """Sample responses and write them as JSON lines; responses that are there already are not sampled again.

    Args:
        recipe: the run's recipe.
        folder: the run's folder.
        wanted: the responses to sample.
        terminal: where progress is shown.
        output: the file to write; None: a file in the run's folder `draws`.

    Returns:
        The file.

    Raises:
        RunError: the run has no such policy, or the weights do not fit its policies.
        sppo.prompts.PromptError: a prompt cannot be used.
    """
    participants, weights = _mixture(folder, wanted)
    models = Models(recipe)
    prompts = _prompts(models, folder, wanted)
    home = folder / "draws"
    shares = [
        _PolicyShare(models, prompts, participants, weights, wanted, number)
        for number, weight in enumerate(weights)
        if weight > 0
    ]
    stages = [share.stage(home) for share in shares]
    by_policy = []
    for stage, share in zip(stages, shares, strict=True):
        by_policy.append(stage.compute(len(prompts), share, _ROW, terminal, "prompts"))
        models.release()
    rows = _together(by_policy)
    if wanted.best:
        rows = _best(models, home, rows, stages, terminal)
    name = f"{'best-of' if wanted.best else 'draws'}-{wanted.n}{'-mixture' if wanted.mixture else ''}.jsonl"
    path = output or home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def _mixture(folder: Path, wanted: SampleRequest) -> tuple[list[Participant], np.ndarray]:
    """The policies that respond, and their probabilities."""
    if not wanted.mixture:
        if wanted.iteration is None:
            return resolve([str(folder)]), np.ones(1)
        known = resolve([str(folder)], every_iteration=True)
        if wanted.iteration >= len(known):
            raise RunError(
                f"--iteration {wanted.iteration}: {folder} has {counted_text(len(known) - 1, 'iteration')} so far"
            )
        return [known[wanted.iteration]], np.ones(1)
    participants = resolve([str(folder)], every_iteration=True)
    weights = np.array(wanted.weights or [1.0] * len(participants), dtype=np.float64)
    names = ", ".join(participant.name for participant in participants)
    if len(weights) != len(participants):
        raise RunError(
            f"--weights: {len(weights)} for {len(participants)} policies; give one for each of: {names}"
        )
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
        raise RunError(f"--weights: {weights.tolist()}; none may be negative, and their sum must be positive")
    return participants, weights / weights.sum()


def _prompts(models: Models, folder: Path, wanted: SampleRequest) -> list[dict[str, Any]]:
    room = models.sampling_limit - models.recipe.sampling.max_new_tokens
    if wanted.prompts is not None:
        source = PromptSource.model_validate({"source": wanted.prompts})
        skip = models.recipe.prompts.invalid == "skip"
        return prompt_sources.read(source, chat=models.chat, max_tokens=room, skip_invalid=skip).to_pylist()  # type: ignore[no-any-return]
    return [row.to_row() for row in RunReader(folder).held_out_prompts()]


@dataclass(frozen=True)
class _PolicyShare:
    """One policy's share of the responses; calling it computes the rows of a range of prompts.

    Attributes:
        number: the number of the policy among the participants.
    """

    models: Models
    prompts: Sequence[dict[str, Any]]
    participants: Sequence[Participant]
    weights: np.ndarray
    wanted: SampleRequest
    number: int

    def stage(self, home: Path) -> EvaluationStage:
        """The stage that holds this policy's responses."""
        recipe, participant = self.models.recipe, self.participants[self.number]
        settings = {
            "prompts": [[row["prompt_id"], row["prompt_token_ids"]] for row in self.prompts],
            "n": self.wanted.n,
            "weights": self.weights.tolist(),
            "number": self.number,
            "sampling": recipe.sampling.model_dump(exclude={"k"}),
            "dtype": recipe.policy.dtype,
            "seed": recipe.seed,
        }
        title = f"{participant.name}: draws"
        return evaluation_stage(home, title, "drawn", settings, [participant.fingerprint])

    def __call__(self, numbers: range, advance: Advance) -> list[dict[str, Any]]:
        """The rows of some prompts, each with this policy's responses among the n."""
        rows = [{**self.prompts[number], "responses": []} for number in numbers]
        owned = [self._owned(row["prompt_id"]) for row in rows]
        participant = self.participants[self.number]
        # the responses to a prompt are sampled together, so that the prompt goes through the model once
        for count in sorted({len(own) for own in owned} - {0}):
            of_count = [(row, own) for row, own in zip(rows, owned, strict=True) if len(own) == count]
            sampled = self.models.sampler(participant.path).sample(
                [row["prompt_token_ids"] for row, _ in of_count],
                [("draw", self.models.recipe.seed, self.number, row["prompt_id"]) for row, _ in of_count],
                count,
            )
            for (row, own), responses in zip(of_count, sampled, strict=True):
                row["responses"] = [
                    self._record(number, response) for number, response in zip(own, responses, strict=True)
                ]
        advance(len(rows))
        return rows

    def _owned(self, prompt_id: str) -> list[int]:
        """The numbers of the responses that this policy gives.

        Response k belongs to the policy in whose interval of the cumulative weights the k-th random number falls. All
        policies draw the same numbers, so that each response has exactly one.
        """
        bounds = np.cumsum(self.weights)[:-1]
        seed = self.models.recipe.seed
        drawn = [
            randomness.generator("mixture", seed, prompt_id, number).random()
            for number in range(self.wanted.n)
        ]
        return [
            number
            for number, value in enumerate(drawn)
            if np.searchsorted(bounds, value, "right") == self.number
        ]

    def _record(self, number: int, response: Response) -> dict[str, Any]:
        chat = self.models.chat
        stop_strings = StopStrings(tuple(self.models.recipe.sampling.stop), chat.decode)
        return {
            "number": number,
            "policy": self.participants[self.number].name,
            "token_ids": response.token_ids,
            "text": chat.answer(stop_strings.trim(chat.decode(response.token_ids))) or "",
            "finish_reason": response.finish_reason,
            "log_prob": response.log_prob,
        }


def _together(by_policy: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The responses of all policies to each prompt, in the order of their numbers."""
    rows = []
    for same_prompt in zip(*by_policy, strict=True):
        responses = [response for row in same_prompt for response in row["responses"]]
        responses.sort(key=lambda response: int(response["number"]))
        rows.append({**same_prompt[0], "responses": responses})
    return rows


def _best(
    models: Models,
    home: Path,
    rows: list[dict[str, Any]],
    stages: Sequence[EvaluationStage],
    terminal: Terminal,
) -> list[dict[str, Any]]:
    """The rows with the response to each prompt that has the highest win rate against the others."""
    together = evaluation_stage(home, "draws", "together", {}, [stage.fingerprint for stage in stages])
    config = with_run_policies(RunReader(home.parent), models.recipe.needed_oracle("the best of n"))
    title, settings = "draws: best of n", best_of.settings(config)
    stage = evaluation_stage(home, title, "choices", settings, [together.fingerprint])
    prompts = models.prompt_texts([row["messages"] for row in rows])
    texts = [[response["text"] for response in row["responses"]] for row in rows]
    ranked = best_of.choose(stage, config, prompts, texts, terminal)
    return [
        {**row, "responses": [{**row["responses"][best], "win_rate": rates[best]}]}
        for row, (best, rates) in zip(rows, ranked, strict=True)
    ]
