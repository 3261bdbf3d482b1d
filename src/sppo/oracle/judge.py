r"""A language model as the judge, behind any OpenAI-compatible server.

It sees the prompt and two responses, called A and B, and says which is better, or C for a tie. Every pair is asked
about in both orders, K(K - 1) questions a prompt, since judges favour a position. With :math:`q_{ij}` the probability
that the first is preferred when y_i stands first, a tie counting one half,

.. math:: P_{ij} = \tfrac12 (q_{ij} + 1 - q_{ji}).

q comes from the log-probabilities of the verdict's token, :math:`q = (m_A + m_C/2)/(m_A + m_B + m_C)` with m the
probability of each letter, or from the mean of verdicts written out. Equal texts are not asked about: P = 1/2.

A verdict that cannot be read is asked for again, and counted; where none of an order's can be read, the oracle stops,
or takes the other order's answer if it was told so. It is never taken for a tie.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field
from scipy.special import expit, logit

from sppo.endpoint.cache import AnswersError
from sppo.endpoint.client import Answer, Endpoint, EndpointError, Fault, Request, chat, faultless
from sppo.oracle import OracleError, OracleSection, excerpt
from sppo.oracle.judge_template import Template, masses, source, written_out
from sppo.recipe import EndpointConfig
from sppo.recipe.oracle import Text
from sppo.winrates import Array

TOP_LOGPROBS = 20
"""What OpenAI gives at most; the letters are among them if the judge means to give a verdict at all."""


class JudgeOracle(OracleSection):
    """A language model behind an OpenAI-compatible server that says which of two responses is better."""

    settings_without_effect: ClassVar[frozenset[str]] = frozenset({"opponents", "parse_retries"})

    type: Literal["judge"] = "judge"
    endpoint: EndpointConfig
    template: str | None = Field(
        None,
        min_length=1,
        description="a jinja file with prompt, response_a, response_b; None: the package's",
    )
    system: str | None = Field(None, min_length=1, description="a system message")
    verdict: Literal["logprobs", "samples"] = Field(
        "logprobs", description="from the probabilities of the tokens A, B, C, or from verdicts written out"
    )
    min_mass: float = Field(
        0.5, gt=0, le=1, description="logprobs: the least probability that A, B and C have together"
    )
    samples: int = Field(1, ge=1, le=1000, description="samples: verdicts for each order of a pair")
    temperature: float = Field(1.0, ge=0, description="samples: of the judge's")
    max_tokens: int = Field(1024, ge=1, description="samples: of a verdict")
    parse_retries: int = Field(2, ge=0, le=100, description="samples: of a verdict that cannot be read")
    unread: Literal["error", "other_order"] = Field(
        "error",
        description="a pair of which one order has no readable verdict: stop, or take the other order's",
    )
    opponents: int | None = Field(None, ge=1, description="as of pairrm; None: all")
    text: Text = Field("prompt", description="what it sees as the prompt: plain or templated")

    def load(self) -> "Judge":
        """The judge, ready to ask.

        Raises:
            OracleError: the template cannot be used, or the endpoint cannot be set up.
        """
        return Judge(self)

    def identity(self) -> dict[str, Any]:
        """The settings, the served model, and the template's text; where the server stands moves no answer."""
        endpoint = self.endpoint.model_dump(include={"model", "revision", "extra_body"})
        return super().identity() | {"endpoint": endpoint, "template": source(self.template, self.verdict)}

    @property
    def label(self) -> str:
        """The model's name on its server."""
        return self.endpoint.model


@dataclass
class _Question:
    """An ordered pair of different texts of a prompt, and what is known of its answer.

    Attributes:
        n: the prompt.
        text: what the judge is sent.
        entries: of q, which it answers.
        scores: of the first response, one for each verdict read so far.
        asked: verdicts asked for so far.
        unreadable: the last answer that could not be read.
    """

    n: int
    text: str
    entries: list[tuple[int, int]]
    scores: list[float] = field(default_factory=list)
    asked: int = 0
    unreadable: str = ""


class Judge:
    """A judge.

    Args:
        config: of the recipe.

    Raises:
        OracleError: the template cannot be used, or the endpoint not be set up.
    """

    def __init__(self, config: JudgeOracle) -> None:
        self.config = config
        self.template = Template(
            source(config.template, config.verdict), config.template or f"the package's for {config.verdict}"
        )
        try:
            self.endpoint = Endpoint(config.endpoint)
        except (EndpointError, AnswersError) as error:
            raise OracleError(f"oracle.endpoint: {error}") from error
        self._verdicts = 0
        self._unreadable = 0
        self._one_order = 0

    @property
    def counts(self) -> dict[str, int]:
        """Verdicts read and unreadable, pairs with one order only, and what the endpoint was asked."""
        counted = {
            "verdicts": self._verdicts,
            "unreadable_verdicts": self._unreadable,
            "one_order_pairs": self._one_order,
        }
        return counted | vars(self.endpoint.usage)

    def compare(
        self, prompts: Sequence[str], responses: Sequence[Sequence[str]]
    ) -> Float[Array, "prompts K K"]:
        """Like :meth:`sppo.oracle.Oracle.compare`.

        Raises:
            OracleError: as :meth:`logits` does.
        """
        return self.probabilities(self.logits(prompts, responses))

    def compare_pairs(
        self,
        prompts: Sequence[str],
        responses: Sequence[Sequence[str]],
        wanted: Bool[np.ndarray[Any, Any], "prompts K K"],
    ) -> Float[Array, "prompts K K"]:
        """Like :meth:`compare` for some pairs only; 1/2 elsewhere."""
        return self.probabilities(self.logits(prompts, responses, wanted))

    def logits(
        self,
        prompts: Sequence[str],
        responses: Sequence[Sequence[str]],
        wanted: Bool[np.ndarray[Any, Any], "prompts K K"] | None = None,
    ) -> Float[Array, "prompts K K"]:
        """logit q, in nats; infinite where all verdicts agree; zero diagonal, and where a pair is not wanted.

        Raises:
            OracleError: the endpoint fails, or a verdict cannot be read.
        """
        k = len(responses[0]) if responses else 0
        first = np.full((len(prompts), k, k), 0.5)
        questions = list(self._questions(prompts, responses, wanted))
        read = self._from_samples if self.config.verdict == "samples" else self._from_logprobs
        read(questions)
        for question in questions:
            for i, j in question.entries:
                first[question.n, i, j] = np.mean(question.scores) if question.scores else np.nan
        self._fill_in(first, questions)
        return np.asarray(logit(first))

    def probabilities(self, logits: Float[Array, "prompts K K"]) -> Float[Array, "prompts K K"]:
        """P from both orders; see the module."""
        first = expit(logits)
        return np.asarray((first + 1 - first.swapaxes(-1, -2)) / 2)

    def _questions(
        self, prompts: Sequence[str], responses: Sequence[Sequence[str]], wanted: Any
    ) -> Iterable[_Question]:
        for n, (prompt, of_prompt) in enumerate(zip(prompts, responses, strict=True)):
            alike: dict[str, list[int]] = {}
            for index, text in enumerate(of_prompt):
                alike.setdefault(text, []).append(index)
            for a, first in alike.items():
                for b, second in alike.items():
                    if a != b:
                        entries = [(i, j) for i in first for j in second if wanted is None or wanted[n, i, j]]
                        if entries:
                            yield _Question(n, self.template.render(prompt, a, b), entries)

    def _from_logprobs(self, questions: Sequence[_Question]) -> None:
        # one token at temperature 1: the probabilities are the model's own, whichever of them is drawn
        settings: dict[str, Any] = {
            "max_tokens": 1,
            "temperature": 1.0,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }
        requests = [self._request(question, **settings) for question in questions]
        for question, choice in zip(questions, self._ask(questions, requests, _no_log_probs), strict=True):
            found = masses(choice)
            assert found is not None
            total = sum(found.values())
            if total < self.config.min_mass:
                question.unreadable = _content(choice)
                self._unreadable += 1
            else:
                self._verdicts += 1
                question.scores = [(found["A"] + found["C"] / 2) / total]

    def _from_samples(self, questions: Sequence[_Question]) -> None:
        settings: dict[str, Any] = {
            "max_tokens": self.config.max_tokens,
            "temperature": self.config.temperature,
        }
        for _ in range(self.config.parse_retries + 1):
            asked: list[_Question] = []
            requests: list[Request] = []
            for question in questions:
                for _ in range(self.config.samples - len(question.scores)):
                    # another seed is another draw, also for servers that keep answers
                    requests.append(
                        self._request(question, draw=question.asked, seed=question.asked, **settings)
                    )
                    asked.append(question)
                    question.asked += 1
            for question, choice in zip(asked, self._ask(asked, requests), strict=True):
                said = _content(choice)
                score = written_out(said)
                if score is None:
                    question.unreadable = said
                    self._unreadable += 1
                else:
                    self._verdicts += 1
                    question.scores.append(score)
            if all(len(question.scores) == self.config.samples for question in questions):
                return

    def _fill_in(self, first: Float[Array, "prompts K K"], questions: Sequence[_Question]) -> None:
        """Settle what has no readable verdict, as the recipe says."""
        unread = [question for question in questions if not question.scores]
        for question in unread:
            i, j = question.entries[0]
            if self.config.unread == "error" or np.isnan(first[question.n, j, i]):
                both = "either order" if np.isnan(first[question.n, j, i]) else "one order"
                raise OracleError(
                    f"{self._who} gives no verdict that can be read on responses {i} and {j} in {both}; the last"
                    f" answer was {excerpt(question.unreadable)}. {self._way_out(both)}",
                    question.n,
                )
        for question in unread:
            self._one_order += len(question.entries)
            for i, j in question.entries:
                first[question.n, i, j] = 1 - first[question.n, j, i]

    def _way_out(self, both: str) -> str:
        change = (
            "Raise oracle.parse_retries or oracle.max_tokens"
            if self.config.verdict == "samples"
            else "Lower oracle.min_mass, or set oracle.verdict: samples"
        )
        return change + (", or set oracle.unread: other_order" if both == "one order" else "")

    def _request(self, question: _Question, *, draw: int = 0, **settings: Any) -> Request:
        system = [{"role": "system", "content": self.config.system}] if self.config.system else []
        return chat([*system, {"role": "user", "content": question.text}], draw=draw, **settings)

    def _ask(
        self, questions: Sequence[_Question], requests: Sequence[Request], fault: Fault = faultless
    ) -> list[dict[str, Any]]:
        """The one choice of each answer."""
        try:
            return [answer["choices"][0] for answer in self.endpoint.ask(requests, fault=fault)]
        except EndpointError as error:
            index = error.request_index
            lacks = "logprobs" in str(error) or "log-probabilities" in str(error)
            hint = "; set oracle.verdict: samples" if lacks else ""
            raise OracleError(f"{error}{hint}", None if index is None else questions[index].n) from error
        except AnswersError as error:
            raise OracleError(str(error)) from error

    @property
    def _who(self) -> str:
        return f"the judge {self.config.endpoint.model} at {self.config.endpoint.url}"


def _no_log_probs(request: Request, answer: Answer) -> str | None:
    return "gives no log-probabilities" if masses(answer["choices"][0]) is None else None


def _content(choice: dict[str, Any]) -> str:
    content = choice["message"].get("content")
    return content if isinstance(content, str) else ""
