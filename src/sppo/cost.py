"""What one iteration costs: tokens and FLOPs of each stage, and the seconds that they take at given rates.

With N parameters of the policy, M of the oracle's model (0: none), X prompts of P tokens, K responses of L tokens of
which m are trained on over E epochs, and H held-out prompts with R responses:

    sample    2 N X (P + K L)                 each prompt once, each response token once
    annotate  2 M X 2 A (P + 2 L)             each of the A pairs of a prompt's responses that are compared, in both orders
    select    2 N X (P + m L)                 forward, responses of a prompt together
    train     6 N E X (P + m L)               forward and backward; 8 with gradient checkpointing
    evaluate  2 N H (P + R L), drawn at the rate of sample and again under the base at the rate of select, and
              2 M H 2 R^2 (P + 2 L) for each of the two opponents (one in the first iteration): each of the
              policy's R responses with each of the opponent's, in both orders

Attention is left out: it adds about 2 n_layers d (P + L) / N of this, a tenth at 4k tokens and 7B parameters.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sppo.benchmarks.head_to_head.score import across
from sppo.oracle.opponents import count_pairs, opponents
from sppo.recipe import RecipeError
from sppo.rundir.reader import RunReader

STAGES = ("sample", "annotate", "select", "train", "evaluate")
PEAKS = {"a100": 312e12, "h100": 989e12, "h200": 989e12}
"""Dense bfloat16 FLOP/s of a GPU, by its maker's data sheet."""
UTILISATION = {"sample": 0.12, "annotate": 0.3, "select": 0.4, "train": 0.35}
"""Assumed, not measured here: what of the peak each stage reaches; of sampling, with a batch that fills the GPU."""


@dataclass(frozen=True)
class Load:
    """One iteration in numbers; the letters are those of the module's equations.

    Attributes:
        parameters: N.
        prompts: X.
        k: K.
        pairs: A, pairs of a prompt's responses that the oracle is asked about; 0 where it is not asked.
        trained: m, responses per prompt.
        epochs: E, that are kept.
        held_out: H.
        responses: R, per held-out prompt.
        prompt_tokens: P, a mean.
        response_tokens: L, a mean.
        oracle_parameters: M, of the oracle that annotates.
        evaluation_parameters: M, of all oracles that give win rates.
        gradient_checkpointing: the forward pass is computed twice.
        opponents: 1 in the first iteration, whose previous policy is the base, else 2.
    """

    parameters: float
    prompts: int
    k: int
    pairs: int
    trained: float
    epochs: float
    held_out: int
    responses: int
    prompt_tokens: float
    response_tokens: float
    oracle_parameters: float = 0.0
    evaluation_parameters: float = 0.0
    gradient_checkpointing: bool = False
    opponents: int = 2

    def tokens(self) -> dict[str, float]:
        """Tokens that go through the policy in each stage; `annotate`: through the oracle."""
        p, length = self.prompt_tokens, self.response_tokens
        pair = p + 2 * length
        trained = self.prompts * (p + self.trained * length)
        return {
            "sample": self.prompts * (p + self.k * length) if self.k else 0.0,
            "annotate": self.prompts * 2 * self.pairs * pair,
            "select": trained,
            "train": self.epochs * trained,
            "evaluate": self.held_out * (p + self.responses * length),
        }

    def flops(self) -> dict[str, float]:
        """The FLOPs of each stage but `evaluate`, whose parts run at the rates of other stages (:meth:`seconds`)."""
        tokens = self.tokens()
        return {
            "sample": 2 * self.parameters * tokens["sample"],
            "annotate": 2 * self.oracle_parameters * tokens["annotate"],
            "select": 2 * self.parameters * tokens["select"],
            "train": (8 if self.gradient_checkpointing else 6) * self.parameters * tokens["train"],
        }

    def seconds(
        self, rates: Mapping[str, float], devices: Mapping[str, int] | None = None
    ) -> dict[str, float]:
        """The seconds of each stage.

        Args:
            rates: FLOP/s of one device in `sample`, `annotate`, `select` and `train`.
            devices: how many work on each of them; None: one.
        """
        of = {name: rates[name] * (devices or {}).get(name, 1) for name in UTILISATION}
        spent = {name: flops / of[name] for name, flops in self.flops().items()}
        drawn = 2 * self.parameters * self.tokens()["evaluate"]
        pairs = self.held_out * count_pairs(across(1, self.responses, self.responses)[0]) * self.opponents
        pair = self.prompt_tokens + 2 * self.response_tokens
        compared = 2 * self.evaluation_parameters * 2 * pairs * pair
        workers = (devices or {}).get("evaluate", 1)
        spent["evaluate"] = (
            drawn / of["sample"] + (drawn / rates["select"] + compared / rates["annotate"]) / workers
        )
        return spent


def hardware_rates(name: str) -> dict[str, float]:
    """FLOP/s of a GPU in each stage: its peak by :data:`UTILISATION`."""
    return {stage: PEAKS[name] * share for stage, share in UTILISATION.items()}


def loads_of_run(run: Path, parameters: float) -> dict[int, Load]:
    """The load of each finished iteration of a run, as its records count it."""
    reader = RunReader(run)
    summary = _read(run / "summary.json")
    loads = {}
    for row in summary["iterations"]:
        number = row["iteration"]
        train = _read(reader.record_file(number, "train"))["settings"]["training"]
        evaluated = _read(reader.record_file(number, "evaluate"))
        lengths = reader.prompt_lengths(number)
        k = row.get("sampled", {}).get("responses_drawn", 0) // len(lengths)
        loads[number] = Load(
            parameters=parameters,
            prompts=len(lengths),
            k=k,
            pairs=_pairs(reader.record_file(number, "annotate"), k),
            trained=row["trained"]["trained_responses"] / len(lengths),
            epochs=train["keep_epochs"] or train["epochs"],
            held_out=evaluated["held_out_prompts"],
            responses=evaluated["responses_drawn"] // evaluated["held_out_prompts"],
            prompt_tokens=sum(lengths) / len(lengths),
            response_tokens=row.get("sampled", row)["response_tokens"],
            gradient_checkpointing=train["gradient_checkpointing"],
            opponents=1 if number == 1 else 2,
        )
    return loads


def _pairs(annotated: Path, k: int) -> int:
    """Pairs of a prompt's responses that the oracle was asked about, by the record of the annotate stage."""
    if not annotated.is_file():
        return 0
    m, _ = _read(annotated).get("settings", {}).get("opponents", (k - 1, 0))
    return count_pairs(opponents(k, m, np.random.default_rng(0)))


def measured_seconds(run: Path) -> dict[int, dict[str, float]]:
    """Seconds of each stage of each iteration of a run, as its summary says."""
    return {row["iteration"]: row["seconds"] for row in _read(run / "summary.json")["iterations"]}


def rates_of_run(run: Path, parameters: float) -> dict[str, float]:
    """The FLOP/s that a run has reached in each stage, over its iterations.

    The rate of `annotate` is that of `select`, since the time of an oracle without a model does not follow from FLOPs.

    Raises:
        RecipeError: there is no such run, or it has no finished iteration.
    """
    loads, seconds = loads_of_run(run, parameters), measured_seconds(run)
    if not loads:
        raise RecipeError(f"--rates {run}: this run has no finished iteration")
    rates = {
        name: sum(load.flops()[name] for load in loads.values())
        / max(0.01, sum(seconds[number][name] for number in loads))
        for name in ("sample", "select", "train")
    }
    if rates["sample"] == 0:
        raise RecipeError(f"--rates {run}: this run has drawn no responses; name one of another algorithm")
    return {**rates, "annotate": rates["select"]}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"--rates: {path} cannot be read ({error}); name a GPU ({', '.join(PEAKS)}) or the folder of a"
            " finished run"
        ) from error
