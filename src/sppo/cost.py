"""The cost of an iteration: tokens and FLOPs of each stage, and the seconds that they take at given rates.

With N parameters of the policy, M of the oracle's models that read pairs and S of those that read each response by itself (0:
none), X prompts of P tokens, K responses of L tokens of
which m are trained on over E epochs, and H held-out prompts with R responses:

    sample    2 N X (P + K L)                 each prompt once, each response token once
    annotate  2 M X 2 A (P + 2 L)             each of the A pairs of a prompt's responses that are compared, in both orders
              + 2 S X K (P + L)               each response
    select    2 N X (P + m L)                 forward, responses of a prompt together
    train     6 N E X (P + m L)               forward and backward; 8 with gradient checkpointing
    evaluate  2 N H (P + R L) to sample, at the rate of sample, and the same under the base at the rate of select;
              2 M H 2 R^2 (P + 2 L) + 2 S H 2 R (P + L) for each of the two opponents (one in the first iteration), because
              each of the policy's R responses is compared with each of the opponent's, in both orders

Attention is left out: it adds about 2 n_layers d (P + L) / N of this, a tenth at 4k tokens and 7B parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo.benchmarks.head_to_head.score import across
from sppo.comparisons import Choice, count_pairs, pairs_of_opponents
from sppo.recipe import RecipeError
from sppo.rundir.reader import RunReader
from sppo.rundir.records import DamagedRecord, load_record

STAGES = ("sample", "annotate", "select", "train", "evaluate")
PEAKS = {"a100": 312e12, "h100": 989e12, "h200": 989e12}
"""Dense bfloat16 FLOP/s of a GPU, from its maker's data sheet."""
UTILISATION = {"sample": 0.12, "annotate": 0.3, "select": 0.4, "train": 0.35}
"""The share of the peak that each stage is assumed, not measured, to reach; sampling with a batch that fills the GPU."""


@dataclass(frozen=True)
class Load:
    """The numbers of an iteration; the letters are those of the module's equations.

    Attributes:
        parameters: N, the policy's parameters.
        prompts: X, the prompts of the iteration.
        k: K, the responses sampled for each prompt.
        pairs: A, the pairs of a prompt's responses that the oracle compares; 0 if it compares none.
        trained: m, the responses of each prompt that are trained on.
        epochs: E, the epochs that are trained.
        held_out: H, the held-out prompts.
        responses: R, the responses to each held-out prompt.
        prompt_tokens: P, the mean length of a prompt.
        response_tokens: L, the mean length of a response.
        oracle_parameters: M of the oracle that annotates.
        evaluation_parameters: M summed over the oracles that compute win rates.
        oracle_response_parameters: S of the oracle that annotates.
        evaluation_response_parameters: S summed over the oracles that compute win rates.
        gradient_checkpointing: whether the forward pass is computed twice.
        opponents: 1 in the first iteration, whose previous policy is the base, otherwise 2.
    """

    parameters: float
    prompts: int
    k: int
    pairs: float
    trained: float
    epochs: float
    held_out: int
    responses: int
    prompt_tokens: float
    response_tokens: float
    oracle_parameters: float = 0.0
    evaluation_parameters: float = 0.0
    oracle_response_parameters: float = 0.0
    evaluation_response_parameters: float = 0.0
    gradient_checkpointing: bool = False
    opponents: int = 2

    def tokens(self) -> dict[str, float]:
        """The tokens that the policy computes in each stage; in `annotate`, the oracle."""
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
        """The FLOPs of each stage except `evaluate`, whose parts run at the rates of other stages (:meth:`seconds`)."""
        tokens, single = self.tokens(), self.prompt_tokens + self.response_tokens
        return {
            "sample": 2 * self.parameters * tokens["sample"],
            "annotate": 2 * self.oracle_parameters * tokens["annotate"]
            + 2 * self.oracle_response_parameters * self.prompts * self.k * single,
            "select": 2 * self.parameters * tokens["select"],
            "train": (8 if self.gradient_checkpointing else 6) * self.parameters * tokens["train"],
        }

    def seconds(
        self, rates: Mapping[str, float], devices: Mapping[str, int] | None = None
    ) -> dict[str, float]:
        """The seconds of each stage.

        Args:
            rates: FLOP/s of one device in `sample`, `annotate`, `select` and `train`.
            devices: the number of devices in each stage, 1 where a stage is missing.
        """
        devices = devices or {}
        speed = {name: rates[name] * devices.get(name, 1) for name in UTILISATION}
        spent = {name: flops / speed[name] for name, flops in self.flops().items()}
        sampled = 2 * self.parameters * self.tokens()["evaluate"]
        pairs = self.held_out * count_pairs(across(1, self.responses, self.responses)[0]) * self.opponents
        pair = self.prompt_tokens + 2 * self.response_tokens
        compared = 2 * self.evaluation_parameters * 2 * pairs * pair
        read = self.held_out * 2 * self.responses * self.opponents
        compared += (
            2 * self.evaluation_response_parameters * read * (self.prompt_tokens + self.response_tokens)
        )
        scored = sampled / rates["select"] + compared / rates["annotate"]
        spent["evaluate"] = sampled / speed["sample"] + scored / devices.get("evaluate", 1)
        return spent


def hardware_rates(name: str) -> dict[str, float]:
    """The FLOP/s of a GPU in each stage: its peak times the share in :data:`UTILISATION`."""
    return {stage: PEAKS[name] * share for stage, share in UTILISATION.items()}


def loads_of_run(run: Path, parameters: float) -> dict[int, Load]:
    """The load of each finished iteration, counted from the run's records."""
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
            gradient_checkpointing=bool(train["gradient_checkpointing"]),
            opponents=1 if number == 1 else 2,
        )
    return loads


def _pairs(annotated: Path, k: int) -> float:
    """The number of pairs of a prompt's responses that the oracle compared, from the record of the annotate stage."""
    if not annotated.is_file():
        return 0
    record = _read(annotated)
    compared = record.get("pairs_per_prompt")
    if compared is None:  # an older record
        opponents = record.get("settings", {}).get("opponents")
        compared = Choice("all", k).most_pairs if opponents is None else pairs_of_opponents(k, opponents[0])
    return float(compared)


def measured_seconds(run: Path) -> dict[int, dict[str, float]]:
    """The seconds of each stage of each iteration, from the run's summary."""
    return {row["iteration"]: row["seconds"] for row in _read(run / "summary.json")["iterations"]}


def rates_of_run(run: Path, parameters: float) -> dict[str, float]:
    """The FLOP/s that a run has reached in each stage, averaged over its iterations.

    The rate of `select` stands for that of `annotate`, because an oracle without a model takes time without FLOPs.

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
        raise RecipeError(
            f"--rates {run}: this run has sampled no responses; name a run of another algorithm"
        )
    return {**rates, "annotate": rates["select"]}


def _read(path: Path) -> dict[str, Any]:
    reason = "there is no such file"
    try:
        record = load_record(path)
    except DamagedRecord as error:
        record, reason = None, str(error)
    if record is None:
        raise RecipeError(
            f"--rates: {path} cannot be read ({reason}); name a GPU ({', '.join(PEAKS)}) or the folder of a"
            " finished run"
        )
    return record
