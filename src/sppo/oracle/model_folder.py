"""The settings that oracles with a model of their own share, and the lookup of its folder and weights."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from sppo.oracle import OracleError, OracleSection
from sppo.policy import load as policies
from sppo.policy import model_files
from sppo.policy.model_files import load_errors
from sppo.recipe.oracle import Text
from sppo.recipe.section import TemplateDate


class ModelOracle(OracleSection):
    """An oracle that computes with a model of its own; `model` is a folder or a hub name."""

    model: str

    @property
    def folder(self) -> Path:
        """The folder that `model` names, if it names one."""
        return Path(self.model)

    def identity(self) -> dict[str, Any]:
        """The settings, and a digest of the weights if they lie in a folder."""
        folder = self.folder
        return super().identity() | {"weights": policies.digest(folder) if folder.is_dir() else None}

    @property
    def label(self) -> str:
        """The model's folder or name."""
        return self.model

    @property
    def holds_a_model(self) -> bool:
        """True."""
        return True


class ScoringOracle(ModelOracle):
    """An oracle whose model reads each response by itself."""

    settings_without_effect: ClassVar[frozenset[str]] = frozenset({"batch_tokens"})

    model: str = Field(min_length=1)
    """A folder or a hub name."""
    revision: str | None = None
    """The revision of a model on the hub."""
    text: Text = "prompt"
    """The form in which the model sees prompts, as the user's message: plain or templated."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the weights."""
    max_tokens: int | None = Field(None, ge=8)
    """The most tokens of a prompt and response; None takes what the model holds."""
    batch_tokens: int = Field(16384, ge=1)
    """Tokens that are computed side by side, padding included; changes answers by rounding only."""
    template_date: TemplateDate | None = None
    """The date, as YYYY-MM-DD, that the model's chat template writes as today's; None takes the clock's."""

    def response_parameters(self) -> float:
        """The folder's; 0 before a download."""
        try:
            return float(policies.count_parameters(self.folder))
        except (OSError, ValueError, KeyError):
            return 0.0

    def identity(self) -> dict[str, Any]:
        """Like :meth:`ModelOracle.identity`; the date only if it is set."""
        identity = super().identity()
        return {key: value for key, value in identity.items() if key != "template_date" or value is not None}


def oracle_folder(model: str, revision: str | None, trust_remote_code: bool = False) -> Any:
    """The folder of an oracle's model.

    Raises:
        OracleError: there is none, or it has no safetensors, or it has files that must not be loaded.
    """
    try:
        return policies.folder(model, revision=revision, trust_remote_code=trust_remote_code)
    except policies.PolicyError as error:
        raise OracleError(str(error).replace("policy.model: ", "oracle.model: ", 1)) from error


def check_weights(name: str, model: Any, report: Mapping[str, Any]) -> None:
    """Refuse a model whose files lack some of its weights, or hold weights that are not finite.

    Args:
        name: the model's name for messages.
        model: the model with its weights.
        report: the `output_loading_info` of transformers.

    Raises:
        OracleError: weights are missing, of a wrong shape, NaN or infinite.
    """
    missing = [*report["missing_keys"], *report["mismatched_keys"]]
    if missing:
        shown = ", ".join(sorted(map(str, missing))[:4])
        raise OracleError(
            f"{name}: {len(missing)} weights are missing or of a wrong shape: {shown}; they would be random."
            " Check that it is a model of this type"
        )
    refuse_non_finite(name, model.named_parameters())


def refuse_non_finite(name: str, weights: Iterable[tuple[str, Any]]) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        OracleError: a weight is not finite.
    """
    with load_errors(f"{name} cannot be used", OracleError):
        model_files.refuse_non_finite(weights)
