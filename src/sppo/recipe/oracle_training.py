"""The settings of `sppo train-oracle`: one YAML file, checked like a recipe."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sppo.recipe.section import Section


class Pairs(Section):
    """Judged pairs, with a column for each part; a run's folder has them by itself."""

    source: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] = Field(
        description="a .jsonl or .parquet file, a run's folder, or a data set that `datasets` loads; or several"
    )
    split: str = "train"
    config: str | None = Field(
        None, min_length=1, description="the configuration of a data set that has several"
    )
    revision: str | None = None
    prompt: str = Field("prompt", description="its column; a string or a list of messages")
    response_a: str = "response_a"
    response_b: str = "response_b"
    probability: str = Field("probability", description="the column of P(a is preferred), in [0, 1]")
    label: str = Field("label", description="read where there is no probability: a, b or tie")
    group: str | None = Field(
        None,
        description="a column within whose values measures are given as well, such as the model compared",
    )
    limit: int | None = Field(None, ge=2, description="no more than the first so many")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the prompts that is set aside")


class Encoder(Section):
    """The encoder: a pretrained one by `model`, or a DeBERTa-v2 from scratch of the sizes given."""

    model: str | None = Field(None, min_length=1, description="a folder or a hub name; None: from scratch")
    revision: str | None = None
    tokenizer: str | None = Field(
        None, description="a tokenizer.json or its folder; None: the model's own, or trained on the pairs"
    )
    vocabulary: int = Field(8000, ge=300, description="of a tokenizer that is trained")
    hidden_size: int = Field(128, ge=1)
    layers: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    intermediate_size: int = Field(256, ge=1)
    relative_attention: bool = Field(True, description="disentangled attention, DeBERTa's own")
    position_buckets: int = Field(32, ge=2, description="of relative positions")
    absolute_positions: bool = Field(
        False, description="DeBERTa's position_biased_input: positions, and so lengths, can be read off"
    )
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> "Encoder":
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size: {self.hidden_size} is not a multiple of heads, which is {self.heads}"
            )
        return self


class PairTraining(Section):
    """One optimiser step is so many pairs, each in an order drawn by the seed."""

    learning_rate: float | None = Field(None, gt=0, description="None: 1e-5 pretrained, 5e-4 from scratch")
    batch_pairs: int = Field(32, ge=1, description="in one optimiser step, over all devices")
    epochs: float = Field(1.0, gt=0, le=10_000)
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, ge=0, description="0: no clipping")
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    checkpoint_steps: int = Field(200, ge=1, description="what an interruption can lose")
    logging_steps: int = Field(50, ge=1)


class OracleTraining(Section):
    """Everything that a PairRM is trained from."""

    seed: int = Field(0, ge=0)
    pairs: Pairs
    encoder: Encoder = Encoder.model_validate({})
    source_maxlength: int = Field(1224, ge=4, description="tokens of a prompt; a longer one is cut")
    candidate_maxlength: int = Field(
        412, ge=4, description="of a response, and half of what its prompt leaves"
    )
    training: PairTraining = PairTraining.model_validate({})
    cpu_threads: int | None = Field(None, ge=1, le=1024)
    report_to: list[str] = Field(default_factory=list, description="transformers' trackers")
