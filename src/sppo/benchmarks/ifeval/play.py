"""IFEval: policies respond to prompts with instructions that a program can check, and the program checks them."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sppo.benchmarks.evaluation import Evaluation
from sppo.benchmarks.ifeval import constraints
from sppo.benchmarks.ifeval.constraints import kept
from sppo.benchmarks.ifeval.score import score
from sppo.benchmarks.outputs import Outputs, OutputsError, read_outputs, read_rows
from sppo.benchmarks.participants import Participant
from sppo.benchmarks.question_files import Question, write_lines
from sppo.benchmarks.responses import empty_share, sample_best
from sppo.progress import Advance

_KEPT = pa.list_(pa.bool_())
_CHECKS = pa.schema([("strict", _KEPT), ("loose", _KEPT)])


class IFEval:
    """The benchmark with its prompts.

    Args:
        evaluation: the settings of the command; the most probable tokens are taken.
        data: a file of prompts with instructions in the benchmark's format.
        limit: the number of prompts to evaluate, from the first on; None: all.
    """

    def __init__(self, evaluation: Evaluation, data: Path, limit: int | None) -> None:
        self.evaluation = evaluation
        self.prompts = constraints.read_prompts(data)[:limit]
        self.digest = constraints.digest(data)

    def evaluate(self, participant: Participant) -> dict[str, Any]:
        """Evaluate a participant and return its row, which is written to its folder as well."""
        responses, fingerprint, shortcomings = self._responses(participant)
        settings = {"prompts": self.digest, "limit": len(self.prompts)}
        stage = self.evaluation.stage(participant, "checks", "checks", settings, [fingerprint])

        def check(numbers: range, advance: Advance) -> list[dict[str, Any]]:
            rows = [
                {
                    "strict": kept(self.prompts[n].constraints, responses[n]),
                    "loose": kept(self.prompts[n].constraints, responses[n], loose=True),
                }
                for n in numbers
            ]
            advance(len(rows))
            return rows

        rows = stage.compute(len(self.prompts), check, _CHECKS, self.evaluation.terminal, "prompts")
        # the benchmark's own layout of responses, with what was found
        lines = [
            {"key": prompt.key, "prompt": prompt.text, "response": response, **row}
            for prompt, response, row in zip(self.prompts, responses, rows, strict=True)
        ]
        path = stage.folder / "responses.jsonl"
        write_lines(path, lines)
        scored = score([row["strict"] for row in rows], [row["loose"] for row in rows])
        figures = {
            **vars(scored),
            "by_instruction": self._by_instruction([row["strict"] for row in rows]),
            "shortcomings": shortcomings,
            "checks": str(path),
        }
        return self.evaluation.save_result(stage, participant, figures)

    def _responses(self, participant: Participant) -> tuple[list[str], str, dict[str, float]]:
        """A participant's response to each prompt, its fingerprint, and what is wrong with the responses."""
        texts = [prompt.text for prompt in self.prompts]
        if not participant.is_policy:
            responses = read_responses(participant.path, participant.name).to(texts)
            return responses, participant.fingerprint, {"empty_share": empty_share(responses)}
        questions = [Question(prompt.key, (prompt.text,), temperature=0.0) for prompt in self.prompts]
        collected = sample_best(self.evaluation, participant, questions)
        return [turns[0] for turns in collected.turns], collected.fingerprint, collected.shortcomings

    def _by_instruction(self, strict: Sequence[Sequence[bool]]) -> dict[str, float]:
        """The share of each kind of instruction that is followed, in percent."""
        followed = defaultdict(list)
        for prompt, checked in zip(self.prompts, strict, strict=True):
            for constraint, is_kept in zip(prompt.constraints, checked, strict=True):
                followed[constraint.name].append(is_kept)
        return {name: 100 * sum(kept) / len(kept) for name, kept in sorted(followed.items())}


def read_responses(path: Path, name: str) -> Outputs:
    """Read a file of responses in the benchmark's format, with `prompt` and `response`, or in AlpacaEval's.

    Raises:
        OutputsError: the file cannot be read, a row lacks a text, or a prompt is there twice.
    """
    texts: dict[str, str] = {}
    for number, row in enumerate(read_rows(path)):
        if "response" not in row:
            return read_outputs(path, name)
        prompt, response = row.get("prompt"), row["response"]
        if not isinstance(prompt, str) or not isinstance(response, str):
            raise OutputsError(f"{path}, row {number}: `prompt` and `response` must be texts")
        if prompt in texts:
            raise OutputsError(f"{path}, row {number}: a second response to a prompt; keep one for each")
        texts[prompt] = response
    return Outputs(name, texts)
