r"""An oracle whose truth nobody disputes: a program counts how many of a prompt's stated constraints a response keeps.

The constraints are IFEval's (arXiv:2311.07911), in a file beside the prompts. With s the share of the prompt's constraints
that a response keeps, a `hard` comparison prefers the response that keeps more,

.. math:: P_{ij} = \mathbb 1[s_i > s_j] + \tfrac12 \mathbb 1[s_i = s_j],

and a `soft` one prefers it by how many more it keeps, :math:`P_{ij} = \frac12 + \frac12 (s_i - s_j)`. Responses that keep
equally many can be left to a second oracle, since constraints say nothing about anything else.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from sppo.benchmarks.ifeval import constraints
from sppo.benchmarks.ifeval.constraints import Constraint, ConstraintError
from sppo.oracle import (
    CheckedOracle,
    Comparison,
    Composite,
    Oracle,
    OracleError,
    OracleSection,
    Preferences,
    Prompts,
    Responses,
    excerpt,
)
from sppo.recipe.oracle import OracleConfig


class VerifiableOracle(OracleSection):
    """The response that keeps more of its prompt's verifiable constraints is preferred."""

    type: Literal["verifiable"] = "verifiable"
    constraints: str = Field(
        min_length=1,
        description="A file of JSON lines with `prompt`, `instruction_id_list` and `kwargs`, as IFEval has it.",
    )
    comparison: Literal["soft", "hard"] = Field(
        "hard",
        description="With hard more constraints win; with soft the win rate grows with the difference.",
    )
    loose: bool = Field(False, description="Check without first line, last line and asterisks as well.")
    tie_break: OracleConfig | None = Field(
        None, description="The oracle that decides between responses that keep equally many."
    )

    def load(self) -> "Verifiable":
        """The oracle with its constraints read and its second oracle loaded.

        Raises:
            OracleError: the file of constraints cannot be used.
        """
        try:
            prompts = constraints.read_prompts(Path(self.constraints))
        except ConstraintError as error:
            raise OracleError(f"oracle.constraints: {error}") from error
        by_prompt = {prompt.text: prompt.constraints for prompt in prompts}
        tie_break = None if self.tie_break is None else CheckedOracle(self.tie_break.load())
        return Verifiable(by_prompt, self.comparison == "soft", self.loose, tie_break)

    def identity(self) -> dict[str, Any]:
        """The settings, the digest of the file of constraints, and the identity of the second oracle."""
        try:
            digest = constraints.digest(Path(self.constraints))
        except ConstraintError as error:
            raise OracleError(f"oracle.constraints: {error}") from error
        second = None if self.tie_break is None else self.tie_break.identity()
        return super().identity() | {"constraints": digest, "tie_break": second}

    @property
    def holds_a_model(self) -> bool:
        """Whether the second oracle holds a model."""
        return self.tie_break is not None and self.tie_break.holds_a_model

    @property
    def answers_any_prompt(self) -> bool:
        """False: only prompts whose constraints stand in the file can be asked about."""
        return False

    @property
    def is_transitive(self) -> bool:
        """Whether no cycle is possible, which holds without a second oracle or with a transitive one."""
        return self.tie_break is None or self.tie_break.is_transitive


class Verifiable(Composite):
    """Compares responses by the constraints that they keep.

    Args:
        by_prompt: the constraints of each prompt, by the prompt's text.
        soft: whether the preference grows with the difference.
        loose: whether responses are checked loosely.
        tie_break: the oracle that decides between responses that keep equally many; None: they tie.
    """

    def __init__(
        self,
        by_prompt: dict[str, tuple[Constraint, ...]],
        soft: bool,
        loose: bool,
        tie_break: CheckedOracle | None,
    ) -> None:
        self.by_prompt, self.soft, self.loose, self.tie_break = by_prompt, soft, loose, tie_break

    def compare_with_components(self, prompts: Prompts, responses: Responses) -> Comparison:
        """The preferences, and beside them those of the constraints alone and of the second oracle alone."""
        shares = np.array(
            [
                [self._share(prompt, text) for text in texts]
                for prompt, texts in zip(prompts, responses, strict=True)
            ]
        )
        difference = shares[:, :, None] - shares[:, None, :]
        matrix: Preferences = 0.5 + (difference if self.soft else np.sign(difference)) / 2
        if self.tie_break is None:
            return Comparison(matrix, {})
        second = self.tie_break.compare(prompts, responses)
        return Comparison(
            np.where(difference == 0, second, matrix), {"constraints": matrix, "tie_break": second}
        )

    @property
    def inner_oracles(self) -> Sequence[Oracle]:
        """The second oracle, if there is one."""
        return [] if self.tie_break is None else [self.tie_break]

    def _share(self, prompt: str, response: str) -> float:
        if prompt not in self.by_prompt:
            raise OracleError(
                f"oracle.constraints: the file states no constraints for the prompt {excerpt(prompt)}; add them, or leave"
                " the prompt out"
            )
        return float(np.mean(constraints.kept(self.by_prompt[prompt], response, loose=self.loose)))
