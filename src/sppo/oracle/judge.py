r"""A language model as the judge, behind any OpenAI-compatible server (or a policy: :mod:`sppo.oracle.policy_judge`).

The judge sees the prompt and two responses, called A and B, and says which is better, or C for a tie. Every pair is
asked about in both orders, K(K - 1) questions a prompt, since judges favour a position. With :math:`q_{ij}` the
probability that the first is preferred when y_i stands first, a tie counting one half,

.. math:: P_{ij} = \tfrac12 (q_{ij} + 1 - q_{ji}).

q comes from the log-probabilities of the verdict's token, :math:`q = (m_A + m_C/2)/(m_A + m_B + m_C)` with m the
probability of each letter, or from the mean of verdicts written out. Equal texts are not asked about: P = 1/2.

A verdict that cannot be read is asked for again, and counted. What happens where an order of a pair has no verdict,
because none can be read or the judge refuses to give one, is `unread`: the oracle stops, takes the other order's
answer, or leaves the pair or the prompt out. No verdict is never taken for a tie.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field
from scipy.special import expit, logit

from sppo.endpoint.cache import AnswerCacheError
from sppo.endpoint.client import Endpoint
from sppo.endpoint.exchange import (
    Answer,
    AnswerCheck,
    Choice,
    EndpointError,
    Request,
    Usage,
    accept_any,
    chat,
)
from sppo.oracle import (
    BothOrders,
    OracleError,
    Pairs,
    Preferences,
    Prompts,
    Responses,
    excerpt,
)
from sppo.oracle.judge_template import Template, source, verdict_probabilities, written_verdict
from sppo.oracle.orders import OrderFlips
from sppo.recipe import EndpointConfig
from sppo.recipe.comparisons import PairsOracleSection
from sppo.recipe.oracle import Text

TOP_LOGPROBS = 20
"""The most that OpenAI gives; the letters are among them if the judge means to give a verdict at all."""


class JudgeSettings(PairsOracleSection):
    """What a judge is asked and how its verdicts are read, whatever gives the answers."""

    settings_without_effect: ClassVar[frozenset[str]] = frozenset(
        {"comparisons", "parse_retries", "max_left_out_share"}
    )

    template: str | None = Field(None, min_length=1)
    """A jinja file with prompt, response_a and response_b; None takes the package's own template."""
    system: str | None = Field(None, min_length=1)
    """A system message."""
    verdict: Literal["logprobs", "samples"] = "logprobs"
    """How the verdict is read: from the probabilities of the tokens A, B and C, or from verdicts written out."""
    min_mass: float = Field(0.5, gt=0, le=1)
    """logprobs: the least probability that A, B and C must have together."""
    samples: int = Field(1, ge=1, le=1000)
    """samples: the number of verdicts for each order of a pair."""
    temperature: float = Field(1.0, ge=0)
    """samples: the judge's temperature."""
    max_tokens: int = Field(1024, ge=1)
    """samples: the most tokens of a reply, a thought included."""
    parse_retries: int = Field(2, ge=0, le=100)
    """samples: how often an unreadable verdict is asked for again."""
    unread: Literal["error", "other_order", "leave_out_pair", "leave_out_prompt"] = "error"
    """What to do where an order of a pair has no verdict: stop, take the other order's, or leave the pair or prompt out."""
    max_left_out_share: float = Field(0.05, ge=0, le=1)
    """The share of pairs that may be left out before the oracle stops."""
    text: Text = "prompt"
    """The form in which the judge sees prompts: plain or templated."""

    def identity(self) -> dict[str, Any]:
        """The settings, and the template's text."""
        return super().identity() | {"template": source(self.template, self.verdict)}


class JudgeOracle(JudgeSettings):
    """A language model behind an OpenAI-compatible server that says which of two responses is better."""

    type: Literal["judge"] = "judge"
    endpoint: EndpointConfig

    def load(self) -> "Judge":
        """The judge, ready to ask.

        Raises:
            OracleError: the template cannot be used, or the endpoint cannot be set up.
        """
        try:
            endpoint = Endpoint(self.endpoint)
        except (EndpointError, AnswerCacheError) as error:
            raise OracleError(f"oracle.endpoint: {error}") from error
        return Judge(self, endpoint, f"the judge {self.endpoint.model} at {self.endpoint.url}")

    def identity(self) -> dict[str, Any]:
        """The settings, the served model, and the template's text; no answer depends on where the server stands."""
        endpoint = self.endpoint.model_dump(include={"model", "revision", "extra_body"})
        return super().identity() | {"endpoint": endpoint}

    @property
    def label(self) -> str:
        """The model's name on its server."""
        return self.endpoint.model


class Answers(Protocol):
    """What a judge asks: a server, or a policy."""

    @property
    def usage(self) -> Usage:
        """What it has been asked."""
        ...

    def ask(
        self,
        requests: Sequence[Request],
        on_answer: Callable[[int], None] | None = None,
        check: AnswerCheck = accept_any,
        *,
        allow_refusals: bool = False,
    ) -> list[Answer]:
        """See :meth:`sppo.endpoint.client.Endpoint.ask`."""
        ...


@dataclass
class _Question:
    """An ordered pair of different texts of a prompt, and what is known of its answer.

    Attributes:
        n: the prompt.
        text: what the judge is sent.
        entries: the entries of q that it answers.
        scores: the score of the first response in each verdict read so far.
        asked: the number of verdicts asked for so far.
        unreadable: the last reply that could not be read, or the words of a refusal.
        is_refused: whether the judge refused, so that it is not asked again.
    """

    n: int
    text: str
    entries: list[tuple[int, int]]
    scores: list[float] = field(default_factory=list)
    asked: int = 0
    unreadable: str = ""
    is_refused: bool = False


class Judge(BothOrders):
    """A judge.

    Args:
        config: the judge's section of the recipe.
        answers: gives the answers to its questions.
        name: what it is called in messages.

    Raises:
        OracleError: the template cannot be used.
    """

    def __init__(self, config: JudgeSettings, answers: Answers, name: str) -> None:
        self.config = config
        self.answers = answers
        self.name = name
        template = config.template or f"the package's for {config.verdict}"
        self.template = Template(source(config.template, config.verdict), template)
        self._counts = dict.fromkeys(
            ("verdicts", "unreadable_verdicts", "one_order_pairs", "pairs_left_out"), 0
        )
        self._orders = OrderFlips()
        self._pairs = 0

    @property
    def counts(self) -> dict[str, int]:
        """Verdicts read and unreadable, pairs with one order or left out, the order's effect, and what was asked for them."""
        return self._counts | self._orders.counts | vars(self.answers.usage)

    def close(self) -> None:
        """Free the memory of what gives the answers, if it takes any."""
        getattr(self.answers, "close", lambda: None)()

    @property
    def leaves_gaps(self) -> bool:
        """Whether pairs without a verdict are left out, as NaN."""
        return self.config.unread == "leave_out_pair" or self.leaves_out_prompts

    @property
    def leaves_out_prompts(self) -> bool:
        """Whether all pairs of a prompt are left out with one of them."""
        return self.config.unread == "leave_out_prompt"

    def compare_pairs(self, prompts: Prompts, responses: Responses, wanted: Pairs) -> Preferences:
        """Like :meth:`compare` for some pairs only; 1/2 elsewhere."""
        return self.probabilities(self.logits(prompts, responses, wanted))

    def logits(self, prompts: Prompts, responses: Responses, wanted: Pairs | None = None) -> Preferences:
        """logit q, in nats.

        Infinite where all verdicts agree; 0 on the diagonal and where a pair is not wanted; NaN where it is left out.

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
        unread = [question for question in questions if not question.scores]
        if self.leaves_gaps:
            self._leave_out(first, questions, unread)
        else:
            self._take_other_order(first, unread)
        logits = np.asarray(logit(first))
        self._orders.note(responses, logits)
        return logits

    def probabilities(self, logits: Preferences) -> Preferences:
        """P from both orders; see the module."""
        first = expit(logits)
        return np.asarray((first + 1 - first.swapaxes(-1, -2)) / 2)

    def _questions(self, prompts: Prompts, responses: Responses, wanted: Pairs | None) -> Iterable[_Question]:
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
            masses = verdict_probabilities(choice)
            total = sum(masses.values())
            readable = total >= self.config.min_mass
            self._note(question, choice, (masses["A"] + masses["C"] / 2) / total if readable else None)

    def _from_samples(self, questions: Sequence[_Question]) -> None:
        settings = {"max_tokens": self.config.max_tokens, "temperature": self.config.temperature}
        for _ in range(self.config.parse_retries + 1):
            asked: list[_Question] = []
            requests: list[Request] = []
            for question in questions:
                missing = 0 if question.is_refused else self.config.samples - len(question.scores)
                for _ in range(missing):
                    # another seed is another draw, also for servers that keep answers
                    draw = question.asked
                    requests.append(self._request(question, draw=draw, seed=draw, **settings))
                    asked.append(question)
                    question.asked += 1
            for question, choice in zip(asked, self._ask(asked, requests), strict=True):
                self._note(question, choice, written_verdict(choice.conclusion or ""))
            if not requests:
                return

    def _note(self, question: _Question, choice: Choice, score: float | None) -> None:
        """Keep the score that a reply gives to the first response; None where the reply has no readable verdict."""
        if choice.refusal is not None:
            question.unreadable, question.is_refused = choice.refusal, True
        elif score is None:
            question.unreadable = choice.said
            self._counts["unreadable_verdicts"] += 1
        else:
            question.scores.append(score)
            self._counts["verdicts"] += 1

    def _take_other_order(self, first: Preferences, unread: Sequence[_Question]) -> None:
        for question in unread:
            i, j = question.entries[0]
            orders = "either order" if np.isnan(first[question.n, j, i]) else "one order"
            if self.config.unread == "error" or orders == "either order":
                raise OracleError(
                    f"{self.name} gives no verdict that can be read on responses {i} and {j} in {orders}; the last"
                    f" answer was {excerpt(question.unreadable, 500)}. {self._way_out(orders)}",
                    question.n,
                )
        for question in unread:
            self._counts["one_order_pairs"] += len(question.entries)
            for i, j in question.entries:
                first[question.n, i, j] = 1 - first[question.n, j, i]

    def _leave_out(
        self, first: Preferences, questions: Sequence[_Question], unread: Sequence[_Question]
    ) -> None:
        """Mark pairs without a verdict, or all pairs of their prompts, as left out, within the allowed share."""
        for question in unread:
            if self.leaves_out_prompts:
                first[question.n][~np.eye(first.shape[-1], dtype=bool)] = np.nan
        entries = [(question.n, i, j) for question in questions for i, j in question.entries if i < j]
        self._pairs += len(entries)
        self._counts["pairs_left_out"] += sum(
            bool(np.isnan(first[n, i, j] + first[n, j, i])) for n, i, j in entries
        )
        left_out, limit = self._counts["pairs_left_out"], self.config.max_left_out_share
        if left_out > limit * self._pairs:
            raise OracleError(
                f"{self.name} gives no verdict on {left_out} of {self._pairs} pairs, which is more than"
                f" oracle.max_left_out_share: {limit:g}; the last answer was {excerpt(unread[-1].unreadable, 500)}."
                f" {self._way_out('one order')}, or raise oracle.max_left_out_share",
                unread[-1].n,
            )

    def _way_out(self, orders: str) -> str:
        change = (
            "Raise oracle.parse_retries or oracle.max_tokens"
            if self.config.verdict == "samples"
            else "Lower oracle.min_mass, or set oracle.verdict: samples"
        )
        others = {"error": ", or set oracle.unread: other_order, leave_out_pair or leave_out_prompt"}
        if orders == "either order":
            others = dict.fromkeys(
                ("error", "other_order"), ", or set oracle.unread: leave_out_pair or leave_out_prompt"
            )
        return change + others.get(self.config.unread, "")

    def _request(self, question: _Question, *, draw: int = 0, **settings: Any) -> Request:
        system = [{"role": "system", "content": self.config.system}] if self.config.system else []
        return chat([*system, {"role": "user", "content": question.text}], draw=draw, **settings)

    def _ask(
        self, questions: Sequence[_Question], requests: Sequence[Request], check: AnswerCheck = accept_any
    ) -> list[Choice]:
        """Asks for all transcripts, and returns the one choice of each answer."""
        try:
            answers = self.answers.ask(requests, check=check, allow_refusals=self.config.unread != "error")
            return [answer.choices[0] for answer in answers]
        except EndpointError as error:
            index = error.request_index
            lacks = "logprobs" in str(error) or "log-probabilities" in str(error)
            hint = "; set oracle.verdict: samples" if lacks else ""
            if error.is_refusal and not lacks:
                hint = "; if it refuses what this prompt says, set oracle.unread: leave_out_pair or leave_out_prompt"
            raise OracleError(f"{error}{hint}", None if index is None else questions[index].n) from error
        except AnswerCacheError as error:
            raise OracleError(str(error)) from error


def _no_log_probs(request: Request, answer: Answer) -> str | None:
    """Whether the server gives no log-probabilities at all; an empty reply is the judge's, and has no verdict."""
    choice = answer.choices[0]
    is_reply = choice.said and choice.refusal is None
    return "gives no log-probabilities" if is_reply and choice.first_token is None else None
