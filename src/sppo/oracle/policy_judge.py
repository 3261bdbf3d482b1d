"""A policy as the judge: the current policy of its own responses (self-rewarding), a frozen copy, or any other model.

The policy is asked what a judge behind a server is asked (:mod:`sppo.oracle.judge`), by its own chat template and over an engine that
samples. With `verdict: logprobs` the probabilities of A, B and C come from its logits, so nothing is drawn.
"""

from typing import Any, Literal

from sppo.oracle import own_policy
from sppo.oracle.judge import Judge, JudgeSettings
from sppo.oracle.judge_template import Template, source
from sppo.recipe import parse_sampling
from sppo.recipe.run_policies import OraclePolicy
from sppo.recipe.sampling import GREEDY, Sampling, SamplingConfig


class PolicyJudgeOracle(JudgeSettings):
    """A policy that says which of two responses is better: the current one, which judges its own, the base, or another."""

    type: Literal["policy_judge"] = "policy_judge"
    policy: OraclePolicy = "current"
    """The judge: `current`, which is pi_t and judges its own responses, `base`, which is pi_1, or another policy."""
    sampling: SamplingConfig | None = None
    """The engine, with the keys of the recipe's `sampling:`; None: the run's own, and outside of runs transformers. Temperature
    and length are those of the judge."""

    def load(self) -> Judge:
        """The judge, ready to ask.

        Raises:
            OracleError: the template cannot be used, or the policy or the engine does not load.
        """
        from sppo.oracle import policy_answers

        answers = policy_answers.load(self.policy, self.engine)
        return Judge(self, answers, f"the judge {self.label}")

    @property
    def engine(self) -> Sampling:
        """The engine with the judge's temperature and length, and without what truncates a distribution or ends a text."""
        settings = parse_sampling({}) if self.sampling is None else self.sampling
        plain = {"k": 1, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "stop": []}
        return settings.model_copy(
            update={**plain, "temperature": max(self.temperature, GREEDY), "max_new_tokens": self.max_tokens}
        )

    def refuse_engine(self) -> None:
        """Refuse an engine that cannot give what the verdict is read from.

        Raises:
            ValueError: it cannot.
        """
        if self.verdict == "logprobs" and not self.engine.gives_first_tokens:
            raise ValueError(
                f"verdict: logprobs, but the engine {self.engine.engine} gives the log-probabilities of tokens that it draws"
                " only; set verdict: samples, or sampling: {engine: transformers}"
            )

    def check(self) -> None:
        """Refuse a template that cannot be used and a policy that is not there; no weights are loaded.

        Raises:
            OracleError: the message says what to change.
        """
        Template(source(self.template, self.verdict), self.template or self.verdict)
        own_policy.find(self.policy)

    def identity(self) -> dict[str, Any]:
        """The settings, the template's text, and the policy with its digest; the run's own policies by their names."""
        return super().identity() | {"policy": own_policy.identity(self.policy)}

    @property
    def label(self) -> str:
        """The policy's name."""
        return self.policy if isinstance(self.policy, str) else self.policy.model

    @property
    def holds_a_model(self) -> bool:
        """Whether the engine holds the policy's weights."""
        return self.engine.holds_a_model

    def parameters(self) -> float:
        """The policy's."""
        return own_policy.parameters(self.policy)
