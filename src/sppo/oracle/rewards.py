"""Win rates as rewards, for trainers elsewhere that ask for one number per response.

A reward is the response's win rate against the group that it was drawn with, P^(y > pi_t | x) of SPPO
(arXiv:2405.00675, Section 4.2), as :func:`sppo.winrates.win_rates` computes it: the whole K x K matrix is compared, and
the reduction to one number per response comes last. A group's mean reward is 1/2.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sppo.game.intransitivity import cyclic_triples
from sppo.oracle import CheckedOracle, Oracle, OracleError
from sppo.policy.messages import ChatError, as_messages, plain_text
from sppo.winrates import win_rates


class RewardFunction:
    """A reward function by the signature of TRL, which verifiers takes as a group reward function as well.

    Args:
        oracle: compares the responses.
        group_size: the number of responses to a prompt, TRL's `num_generations`.

    Attributes:
        oracle: the oracle behind its checks; its `counts` say what it was asked.
    """

    __name__ = "win_rate"

    def __init__(self, oracle: Oracle, group_size: int | None = None) -> None:
        if group_size is not None and group_size < 2:
            raise OracleError(f"group_size: {group_size}; a response is compared with others: give 2 or more")
        self.oracle = oracle if isinstance(oracle, CheckedOracle) else CheckedOracle(oracle)
        self.group_size = group_size

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **others: Any,
    ) -> list[float | None]:
        """The win rate of each completion over the completions of its group.

        Args:
            prompts: the prompt of each completion: a text, or a list of messages that ends with the user's.
            completions: as many completions: texts, or lists of messages that end with the assistant's.
            log_metric: TRL's logger of a number; it is given the share of triples that form a cycle.
            others: what trainers pass as well, such as the further columns of a data set; it is not used.

        Returns:
            The rewards in [1/(2K), 1 - 1/(2K)], in the order of the completions; None, by which TRL leaves a completion
            out, where the oracle compared it with no other.

        Raises:
            OracleError: a prompt or completion is no text, a group has a size other than `group_size` or is a single
                response, or the oracle fails.
        """
        if len(prompts) != len(completions):
            raise OracleError(f"{len(completions)} completions for {len(prompts)} prompts; give one for each")
        texts = [completion_text(value, f"completions[{n}]") for n, value in enumerate(completions)]
        shown = [prompt_text(value, f"prompts[{n}]") for n, value in enumerate(prompts)]
        groups = self._groups(shown)
        rewards: list[float | None] = [None] * len(texts)
        cyclic: list[float] = []
        for k in sorted({len(group) for group in groups}):
            same = [group for group in groups if len(group) == k]
            matrices = self.oracle.compare(
                [shown[group[0]] for group in same], [[texts[n] for n in group] for group in same]
            )
            for group, matrix in zip(same, matrices, strict=True):
                for n, rate in zip(group, as_rewards(win_rates(matrix)), strict=True):
                    rewards[n] = rate
                if k > 2 and not np.isnan(matrix).any():
                    cyclic.append(float(cyclic_triples(matrix)))
        if log_metric is not None and cyclic:
            log_metric("cyclic_triples", float(np.mean(cyclic)))
        return rewards

    def _groups(self, prompts: Sequence[str]) -> list[list[int]]:
        """The places of the responses of each group, which have one prompt."""
        by_prompt: dict[str, list[int]] = {}
        for n, prompt in enumerate(prompts):
            by_prompt.setdefault(prompt, []).append(n)
        size = self.group_size
        for prompt, places in by_prompt.items():
            if size is not None and len(places) % size:
                raise OracleError(
                    f"{len(places)} responses to one prompt, which is no multiple of group_size: {size}; let each process"
                    " hold whole groups: make the batch on a device a multiple of the number of generations. The prompt"
                    f" was {prompt[:100]!r}"
                )
            if len(places) < 2:
                raise OracleError(
                    "a single response to a prompt has nothing to be compared with; draw 2 or more for each prompt, and"
                    f" let each process hold whole groups. The prompt was {prompt[:100]!r}"
                )
        return [
            places[start : start + (size or len(places))]
            for places in by_prompt.values()
            for start in range(0, len(places), size or len(places))
        ]


def rubric_of(compared: RewardFunction, weight: float) -> Any:
    """The rubric that :func:`sppo.oracle.rubric` describes.

    Raises:
        OracleError: verifiers is not installed, or has no rubrics.
    """
    try:
        import verifiers

        base: Any = verifiers.Rubric
    except (ImportError, AttributeError) as error:
        raise OracleError(
            "a rubric needs verifiers below 0.4: pip install 'verifiers<0.4'; later versions have no rubrics: call"
            " sppo.oracle.reward_function in the `finalize` of your Env, as docs/serve.md shows"
        ) from error

    def win_rate(state: Mapping[str, Any]) -> float:
        rate: float = state["win_rate"]
        return rate

    class WinRateRubric(base):  # type: ignore[misc]
        """Scores whole groups; a rollout by itself has no win rate."""

        oracle = compared.oracle

        @property
        def has_group_rewards(self) -> bool:
            return True

        async def score_rollout(self, state: Any) -> None:
            raise OracleError("a single rollout has no win rate; score the group of rollouts of an example")

        async def score_group(self, states: Any) -> None:
            prompts = [state["prompt"] for state in states]
            completions = [state["completion"] for state in states]
            # verifiers makes an exception in a reward function a reward of 0: the oracle is asked before it is called
            rates = await asyncio.to_thread(compared, prompts, completions)
            for number, (state, rate) in enumerate(zip(states, rates, strict=True)):
                if rate is None:
                    raise OracleError(
                        f"the oracle compared rollout {number} with no other, so it has no reward; set oracle.unread:"
                        " error or other_order"
                    )
                state["win_rate"] = rate
            await super().score_group(states)

    return WinRateRubric(funcs=[win_rate], weights=[weight])


def as_rewards(rates: Sequence[float] | np.ndarray[Any, Any]) -> list[float | None]:
    """Win rates as JSON and TRL have them: None in the place of NaN."""
    return [None if np.isnan(rate) else float(rate) for rate in rates]


def prompt_text(value: Any, where: str) -> str:
    """A prompt as an oracle reads it.

    Raises:
        OracleError: it is neither a text nor messages that end with the user's; the message names `where`.
    """
    if isinstance(value, str):
        return value
    try:
        return plain_text(as_messages(_mappings(value)))
    except ChatError as error:
        raise OracleError(f"{where}: {error}") from error


def completion_text(value: Any, where: str) -> str:
    """A completion as an oracle reads it: the text, or that of the last of several messages.

    Raises:
        OracleError: it is neither a text nor messages that end with the assistant's; the message names `where`.
    """
    messages = _mappings(value)
    if isinstance(messages, list) and messages:
        last = messages[-1]
        value = last.get("content") if isinstance(last, dict) and last.get("role") == "assistant" else None
    if not isinstance(value, str):
        raise OracleError(
            f"{where}: a response is a text, or a list of messages whose last is the assistant's, with a text under"
            f" `content`; this is {type(value).__name__}"
        )
    return value


def _mappings(value: Any) -> Any:
    """Messages as mappings, where they are objects of a library."""
    if not isinstance(value, list | tuple):
        return value
    return [
        item
        if isinstance(item, dict) or not hasattr(item, "role")
        else {"role": item.role, "content": getattr(item, "content", None)}
        for item in value
    ]
