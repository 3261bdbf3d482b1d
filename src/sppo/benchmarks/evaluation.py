"""The state that the parts of one `sppo evaluate BENCHMARK` share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo import oracle as oracles
from sppo.benchmarks.evaluation_stage import EvaluationStage, evaluation_stage
from sppo.benchmarks.participants import Participant
from sppo.benchmarks.results import save
from sppo.progress import Terminal
from sppo.recipe import OracleConfig

if TYPE_CHECKING:
    from sppo.benchmarks.responses import Decoding


@dataclass(frozen=True)
class Evaluation:
    """One benchmark with the settings of its command.

    Attributes:
        benchmark: the benchmark's name.
        home: the folder in which everything is kept.
        decoding: how policies respond.
        terminal: where progress is shown.
        best_of: how many responses each policy gives, one of which is evaluated.
        chooser: the oracle that chooses it; None where there is one response only.
    """

    benchmark: str
    home: Path
    decoding: "Decoding"
    terminal: Terminal
    best_of: int = 1
    chooser: OracleConfig | None = None

    def name(self, participant: Participant) -> str:
        """The participant's name in tables."""
        best = f", best of {self.best_of}" if self.best_of > 1 and participant.is_policy else ""
        return participant.name + best

    def stage(
        self,
        participant: Participant,
        title: str,
        kind: str,
        settings: Mapping[str, Any],
        upstream: Sequence[str],
        *,
        name: str | None = None,
    ) -> EvaluationStage:
        """A stage of one participant; see :func:`sppo.benchmarks.evaluation_stage.evaluation_stage`."""
        home = self.home / participant.file_name
        title = f"{self.benchmark}, {name or participant.name}: {title}"
        return evaluation_stage(home, title, kind, settings, upstream)

    def judgments_stage(
        self, participant: Participant, judge: str, settings: Mapping[str, Any], responses: str
    ) -> EvaluationStage:
        """The stage that holds the judgments of a participant's responses.

        Args:
            participant: whose responses are judged.
            judge: the judge's name in messages.
            settings: everything that the judgments depend on beside the responses and the seed.
            responses: the fingerprint of the responses.
        """
        settings = {**settings, "seed": self.decoding.seed}
        title = f"judgments by {judge}"
        return self.stage(participant, title, "judgments", settings, [responses], name=self.name(participant))

    def save_result(
        self, stage: EvaluationStage, participant: Participant, figures: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write and return a participant's row: its figures, with the policy and the settings that they depend on."""
        is_policy = participant.is_policy
        chosen = (
            {"n": self.best_of, "oracle": oracles.identity(self.chooser)}
            if self.chooser and is_policy
            else None
        )
        row = {
            "name": self.name(participant),
            "policy": participant.record(),
            "seed": self.decoding.seed,
            "decoding": self.decoding.identity() if is_policy else None,
            "best_of": chosen,
            **figures,
        }
        save(stage.folder / "result.json", self.benchmark, row)
        return row
