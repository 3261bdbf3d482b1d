"""The settings of `sppo train-oracle`: one YAML file, checked like a recipe."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sppo.recipe.section import Section, Trackers
from sppo.recipe.training import Lora


class Pairs(Section):
    """The judged pairs and the names of their columns; a run's folder needs no names."""

    source: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]
    """A .jsonl or .parquet file, a run's folder, a data set that `datasets` loads, or a list of them."""
    split: str = "train"
    config: str | None = Field(None, min_length=1)
    """The configuration to read, of a data set that has several."""
    revision: str | None = None
    prompt: str = "prompt"
    """The column of the prompt, which is a string or a list of messages."""
    response_a: str = "response_a"
    response_b: str = "response_b"
    probability: str = "probability"
    """The column of P(a is preferred), in [0, 1]."""
    label: str = "label"
    """The column of a, b or tie, one vote, which is read where there is no probability. Votes on the same pair are counted."""
    votes_a: str = "votes_a"
    """The column of the number of votes for a; where there are numbers of votes, neither probability nor label is read."""
    votes_b: str = "votes_b"
    votes_tie: str = "votes_tie"
    texts: str | None = Field(None, min_length=1)
    """The folder of the texts of published votes that name them by numbers; None is the folder of the votes."""
    without_text: Literal["error", "leave_out"] = "error"
    """What happens to such votes on a response that has no text there; those that are left out are counted."""
    group: str | None = None
    """A column, such as the compared model, for each of whose values measures are reported as well."""
    limit: int | None = Field(None, ge=2)
    """The largest number of rows to read, each a pair or a vote."""
    held_out: float = Field(0.1, gt=0, lt=1)
    """The share of the prompts that is held out."""


class Encoder(Section):
    """The encoder: the pretrained `model`, or a DeBERTa-v2 of the given sizes that is trained from scratch."""

    model: str | None = Field(None, min_length=1)
    """A folder or a hub name of an encoder or a causal language model; None trains from scratch."""
    frozen: bool = False
    """True trains the head alone, on hidden states that are computed once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of a frozen model's weights; use the oracle with the same."""
    revision: str | None = None
    tokenizer: str | None = None
    """A tokenizer.json or its folder; None takes the model's own, or trains one on the pairs."""
    vocabulary: int = Field(8000, ge=300)
    """The size of the vocabulary, if a tokenizer is trained."""
    hidden_size: int = Field(128, ge=1)
    layers: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    intermediate_size: int = Field(256, ge=1)
    relative_attention: bool = True
    """Use DeBERTa's disentangled attention."""
    position_buckets: int = Field(32, ge=2)
    """The number of buckets of relative positions."""
    absolute_positions: bool = False
    """Add absolute positions to the embeddings (DeBERTa's position_biased_input), which makes lengths easy to read."""
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> "Encoder":
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size: {self.hidden_size} is not a multiple of heads, which is {self.heads}"
            )
        if self.frozen and self.model is None:
            raise ValueError("frozen: true needs a pretrained model; name it as encoder.model")
        if not self.frozen and self.dtype != "float32":
            raise ValueError("dtype: it belongs to a frozen model; use training.mixed_precision")
        return self


class Head(Section):
    """A pretrained backbone with a head that gives each response a reward or an embedding, instead of a PairRM."""

    type: Literal["reward_model", "general_preference"]
    """A Bradley-Terry reward, or a general preference model, whose preferences may be cyclic."""
    model: str = Field(min_length=1)
    """The backbone, a folder or a hub name: a causal language model or an encoder."""
    revision: str | None = None
    frozen: bool = True
    """True trains the head alone, on features that are computed once; false trains the backbone too, by `training`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of a frozen backbone's weights; use the oracle with the same."""
    dimensions: int = Field(8, ge=2, multiple_of=2)
    """general_preference: the numbers of an embedding."""
    l2: float | None = Field(None, gt=0)
    """The strength of the penalty on a frozen backbone's head; None chooses it by cross-validation on the training pairs."""
    max_tokens: int | None = Field(None, ge=8)
    """The most tokens of a prompt and response; None takes what the model holds."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens of a frozen backbone that are computed side by side, padding included."""


class PairTraining(Section):
    """The training of the network. An optimiser step takes `batch_pairs` pairs, each in an order drawn by the seed."""

    learning_rate: float | None = Field(None, gt=0)
    """None takes 1e-5 for all weights of a pretrained model, 1e-4 for an adapter and 5e-4 from scratch."""
    adapter: Lora | None = None
    """Train an adapter beside a pretrained model's weights, which is merged into them at the end; None trains all weights."""
    batch_pairs: int = Field(32, ge=1)
    """Pairs in one optimiser step, over all devices."""
    device_pairs: int | None = Field(None, ge=1)
    """Pairs that a device computes at a time, which changes the memory and not the result; None takes as many as fit."""
    epochs: float = Field(1.0, gt=0, le=10_000)
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, ge=0)
    """Largest norm of the gradient, beyond which it is clipped; 0 never clips."""
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    checkpoint_steps: int = Field(200, ge=1)
    """The number of steps between checkpoints; an interruption loses at most so many."""
    logging_steps: int = Field(50, ge=1)


class OracleTraining(Section):
    """All settings of the training of an oracle: a PairRM, or a pretrained backbone with a head."""

    seed: int = Field(0, ge=0, lt=2**63)
    pairs: Pairs
    head: Head | None = None
    """None trains a PairRM with the settings under `encoder` and `training`."""
    encoder: Encoder = Encoder.model_validate({})
    source_maxlength: int = Field(1224, ge=4)
    """The largest number of tokens of a prompt; a longer one is truncated."""
    candidate_maxlength: int = Field(412, ge=4)
    """The largest number of tokens of a response, which may also use half of the tokens that its prompt leaves."""
    training: PairTraining = PairTraining.model_validate({})
    cpu_threads: int | None = Field(None, ge=1, le=1024)
    report_to: Trackers = Field(default_factory=list)
    """Transformers' trackers that metrics are reported to."""

    @model_validator(mode="after")
    def _trains_one_thing(self) -> "OracleTraining":
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        own = ("encoder", "source_maxlength", "candidate_maxlength")
        others = [name for name in own if getattr(self, name) != defaults[name]]
        if self.head is not None and others:
            raise ValueError(f"head: {', '.join(sorted(others))} belong to a PairRM; leave them out, or head")
        section, frozen = (
            ("encoder", self.encoder.frozen) if self.head is None else ("head", self.head.frozen)
        )
        if frozen and self.training != defaults["training"]:
            raise ValueError(
                f"training: {section}.frozen is true, so that a head is fitted and no step is taken; leave training out, or set"
                f" {section}.frozen: false"
            )
        if self.head is not None and not frozen:
            instead = {"l2": "training.weight_decay", "dtype": "training.mixed_precision"}
            for key in (name for name in instead if getattr(self.head, name) not in (None, "float32")):
                raise ValueError(f"head.{key}: it belongs to a frozen backbone; use {instead[key]}")
        return self

    @model_validator(mode="after")
    def _adapter_has_a_base(self) -> "OracleTraining":
        adapter = self.training.adapter
        if adapter is None:
            return self
        if self.head is None and self.encoder.model is None:
            raise ValueError(
                "training.adapter: a network from scratch has no weights to stand beside; name encoder.model, or leave it out"
            )
        if "merge" in adapter.model_fields_set and not adapter.merge:
            raise ValueError("training.adapter.merge: an oracle's adapter is always merged; leave it out")
        return self
