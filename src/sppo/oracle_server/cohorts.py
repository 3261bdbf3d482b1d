"""Cohorts: responses to one prompt that arrive one by one and are compared when all of them are there."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field

from sppo.serving.bodies import RefusedRequest

Rewards = Sequence[float | None]


@dataclass
class _Member:
    """A response of a cohort, and who waits for its reward: more than one where a request was sent again."""

    name: Hashable
    text: str
    waiting: "list[asyncio.Future[float | None]]" = field(default_factory=list)


class Cohorts:
    """The cohorts that are not complete; used within one event loop.

    Args:
        size: the number of responses of a cohort.
        seconds: how long a response waits until its cohort is complete.
        most: the most responses that wait in all cohorts.
        compare: gives the rewards of a prompt's responses.
    """

    def __init__(
        self,
        size: int,
        seconds: float,
        most: int,
        compare: Callable[[str, list[str]], Awaitable[Rewards]],
    ) -> None:
        self.size, self.seconds, self.most, self._compare = size, seconds, most, compare
        self._members: dict[Hashable, list[_Member]] = {}
        self._running: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """The number of responses in cohorts that are not complete."""
        return sum(len(members) for members in self._members.values())

    async def reward(self, key: Hashable, name: Hashable, prompt: str, text: str) -> float | None:
        """The reward of a response in its cohort, once the cohort is complete.

        Args:
            key: what the responses of a cohort have in common.
            name: what tells a response from others of its cohort, so that one that is sent again does not count twice; None
                where nothing does.
            prompt: the prompt as the oracle sees it.
            text: the response.

        Raises:
            RefusedRequest: too many responses wait, or the cohort has not been completed in time.
            sppo.oracle.OracleError: the oracle fails.
        """
        member = self._joined(key, name, text)
        future: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        member.waiting.append(future)
        members = self._members[key]
        if len(members) == self.size:
            del self._members[key]
            task = asyncio.create_task(self._reward_all(prompt, members))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            return await future
        try:
            return await self._in_time(key, member, future)
        finally:
            self._leave(key, member, future)

    async def _in_time(
        self, key: Hashable, member: _Member, future: "asyncio.Future[float | None]"
    ) -> float | None:
        done, _ = await asyncio.wait([future], timeout=self.seconds)
        if not done and self._is_in(key, member):
            count = len(self._members[key])
            raise RefusedRequest(
                504,
                f"only {count} of the {self.size} responses to this prompt came within {self.seconds:g} s; ask for as"
                " many rollouts of each prompt as --cohort says, let them arrive together, or raise --cohort-seconds;"
                " then send this one again",
            )
        return await future  # the cohort is complete, and the oracle is being asked

    def _joined(self, key: Hashable, name: Hashable, text: str) -> _Member:
        members = self._members.get(key, [])
        known = next((member for member in members if name is not None and member.name == name), None)
        if known is not None:
            known.text = text
            return known
        if self.waiting >= self.most:
            raise RefusedRequest(
                503,
                f"{self.waiting} responses are waiting for their cohorts, and at most {self.most} may; send this one"
                " again later, let the rollouts of a prompt arrive together, or raise --max-waiting",
                {"Retry-After": "5"},
            )
        self._members[key] = [*members, _Member(name, text)]
        return self._members[key][-1]

    def _leave(self, key: Hashable, member: _Member, future: "asyncio.Future[float | None]") -> None:
        """Takes a response for which nobody waits any more out of its cohort, if that is still incomplete."""
        member.waiting.remove(future)
        if self._is_in(key, member) and not member.waiting:
            left = [other for other in self._members[key] if other is not member]
            self._members[key] = left
            if not left:
                del self._members[key]

    def _is_in(self, key: Hashable, member: _Member) -> bool:
        """Whether a response still waits for others; its key may have passed to the next cohort."""
        return any(other is member for other in self._members.get(key, []))

    async def _reward_all(self, prompt: str, members: Sequence[_Member]) -> None:
        try:
            rewards = await self._compare(prompt, [member.text for member in members])
        except Exception as error:  # it is that of everyone who waits
            for future in (future for member in members for future in member.waiting if not future.done()):
                future.set_exception(error)
            return
        for member, reward in zip(members, rewards, strict=True):
            for future in (future for future in member.waiting if not future.done()):
                future.set_result(reward)

    def close(self) -> None:
        """Refuse all responses that wait."""
        for member in [member for members in self._members.values() for member in members]:
            for future in (future for future in member.waiting if not future.done()):
                future.set_exception(
                    RefusedRequest(503, "the server is ending; send this again when it runs")
                )
