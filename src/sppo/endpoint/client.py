"""The client of OpenAI-compatible servers: many requests side by side, and every answer kept on disk.

A request is known by its content: the model's name and revision, the whole body, and the number of the draw. An answer
is written to the cache (:class:`~sppo.endpoint.cache.AnswerCache`) within a twentieth of a second, so that nothing is
paid for twice, whatever interrupts a batch.
"""

import asyncio
import concurrent.futures
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from sppo.endpoint.cache import AnswerCache, AnswerCacheError
from sppo.endpoint.exchange import (
    Answer,
    AnswerCheck,
    BudgetError,
    EndpointError,
    InvalidAnswerError,
    Request,
    Usage,
    accept_any,
    parse_answer,
    refused,
)
from sppo.recipe import EndpointConfig

if TYPE_CHECKING:
    from sppo.endpoint.server import Server

_WRITE_SECONDS = 0.05


class Endpoint:
    """A model behind an OpenAI-compatible server.

    Args:
        config: the server, the model, and the limits.
        cache: the file of the answers where the configuration names none; None: one for this user.

    Attributes:
        usage: what has been asked in this object's life.

    Raises:
        EndpointError: the `openai` package is not installed, or the variable of the API key is not set.
        sppo.endpoint.cache.AnswerCacheError: the cache cannot be opened.
    """

    def __init__(self, config: EndpointConfig, cache: Path | None = None) -> None:
        self.config = config
        self.usage = Usage()
        self.cache = Path(config.cache).expanduser() if config.cache else cache or default_cache()
        self._key = _api_key(config)
        try:
            import sppo.endpoint.server  # noqa: F401
        except ImportError:
            raise EndpointError(
                "an endpoint needs the package openai; install it with: pip install 'sppo[openai]'"
            ) from None
        with AnswerCache(self.cache):
            pass  # what is wrong with the file is said before anything is paid for

    def ask(
        self,
        requests: Sequence[Request],
        on_answer: Callable[[int], None] | None = None,
        check: AnswerCheck = accept_any,
        *,
        allow_refusals: bool = False,
    ) -> list[Answer]:
        """The answers to requests, in their order; requests of equal content are asked once.

        Args:
            requests: any number of requests; `config.concurrency` of them are on their way at once.
            on_answer: called with the number of requests answered since the last call.
            check: an answer that does not pass is not kept, and one that was kept is asked for again.
            allow_refusals: where the server refuses a request for what it says, or sends no valid answer to it, answer with
                the :attr:`~sppo.endpoint.exchange.Choice.refusal`. Such an answer is neither checked nor kept.

        Raises:
            BudgetError: `config.token_budget` is spent. Requests on their way are waited for first, so it can be
                exceeded by as much as these cost.
            EndpointError: a request failed for good, or its answer does not pass the check. Those on their way are
                waited for, and their answers kept.
        """
        ((_, answers),) = self.stream([requests], on_answer, check, allow_refusals=allow_refusals)
        return answers

    def stream(
        self,
        batches: Iterable[Sequence[Request]],
        on_answer: Callable[[int], None] | None = None,
        check: AnswerCheck = accept_any,
        *,
        allow_refusals: bool = False,
    ) -> Iterator[tuple[int, list[Answer]]]:
        """The answers to many batches of requests; the server is not left idle while a batch waits for its last answers.

        Args:
            batches: the next one is taken as soon as fewer than `config.concurrency` requests are unanswered.
            on_answer: as for :meth:`ask`.
            check: as for :meth:`ask`.
            allow_refusals: as for :meth:`ask`.

        Yields:
            The number of a batch, counted from 0, and its answers as soon as all of them are there; not always in the
            order of the batches.

        Raises:
            BudgetError: as for :meth:`ask`.
            EndpointError: as for :meth:`ask`; its `request_index` counts within the batch.
        """
        from anyio.from_thread import start_blocking_portal

        coming = enumerate(batches)
        begun: dict[int, concurrent.futures.Future[list[Answer]]] = {}
        # How many requests of any batch were answered; the number of a batch and 0 once it is finished.
        events: SimpleQueue[tuple[int, int]] = SimpleQueue()
        unanswered = 0
        # a thread with a loop of its own: the caller may be inside a loop already
        with start_blocking_portal() as portal:
            on_the_way, failures = asyncio.Semaphore(self.config.concurrency), list[Exception]()
            while True:
                while not begun or unanswered < self.config.concurrency:
                    number, requests = next(coming, (-1, None))
                    if requests is None:
                        break
                    if not requests:
                        yield number, []
                        continue
                    unanswered += len(requests)
                    batch = _Batch(self, requests, check, allow_refusals, on_the_way, failures)
                    begun[number] = portal.start_task_soon(batch.run, partial(_tell, events, number))
                    begun[number].add_done_callback(partial(_tell, events, number, 0))
                if not begun:
                    return
                number, count = events.get()
                if count:
                    unanswered -= count
                    if on_answer is not None:
                        on_answer(count)
                    continue
                if begun[number].exception() is not None:
                    concurrent.futures.wait(begun.values())  # what is on its way is paid for
                yield number, begun.pop(number).result()

    def body(self, request: Request) -> dict[str, Any]:
        """The body that is sent: the request with `extra_body`, whose null takes a key away."""
        removed = {key for key, value in self.config.extra_body.items() if value is None}
        merged = {"model": self.config.model, **request.body, **self.config.extra_body}
        return {key: value for key, value in merged.items() if key not in removed}

    def content(self, request: Request) -> str:
        """The part of a request that its kept answer is found by, wherever the server stands."""
        body = self.body(request)
        del body["model"]
        identity = [self.config.model, self.config.revision, request.kind, body, request.draw]
        return json.dumps(identity, sort_keys=True)

    @property
    def model_key(self) -> str:
        """The name that the model's spent tokens are counted under."""
        return json.dumps([self.config.model, self.config.revision])


def _tell(events: "SimpleQueue[tuple[int, int]]", batch: int, count: int, done: object = None) -> None:
    events.put((batch, count))


class _Batch:
    """Requests that belong together: those that the cache does not know are asked by workers side by side.

    Args:
        endpoint: whose requests these are.
        requests: the requests.
        check: as for :meth:`Endpoint.ask`.
        allow_refusals: as for :meth:`Endpoint.ask`.
        on_the_way: admits as many requests of all batches at once as the configuration allows.
        failures: the errors of all batches; after one, nothing more is asked.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        requests: Sequence[Request],
        check: AnswerCheck,
        allow_refusals: bool,
        on_the_way: asyncio.Semaphore,
        failures: list[Exception],
    ) -> None:
        self.endpoint, self.config, self.usage = endpoint, endpoint.config, endpoint.usage
        self.requests, self.check, self.allow_refusals = requests, check, allow_refusals
        self.on_the_way, self.failures = on_the_way, failures
        self.keys = [endpoint.content(request) for request in requests]
        self.places: dict[str, list[int]] = {}
        for index, key in enumerate(self.keys):
            self.places.setdefault(key, []).append(index)
        self.answers: dict[str, Answer] = {}
        self._is_write_planned = False

    def _known(self) -> Iterator[tuple[str, Answer]]:
        """The answers that the cache holds, as far as they are valid and pass the check."""
        for key, text in self.cache.get(self.places).items():
            request = self.requests[self.places[key][0]]
            try:
                answer = parse_answer(text, request.kind)
            except ValueError:
                continue  # kept by a version that looked less closely
            if self.check(request, answer) is None:
                yield key, answer

    async def run(self, on_answer: Callable[[int], None]) -> list[Answer]:
        """The answers in the order of the requests; `on_answer` is called with the number of those that have come."""
        from sppo.endpoint.server import Server

        with AnswerCache(self.endpoint.cache) as self.cache:
            self.answers = dict(self._known())
            known = sum(len(self.places[key]) for key in self.answers)
            self.usage.cached += known
            if known:
                on_answer(known)
            unknown = [key for key in self.places if key not in self.answers]
            if unknown:
                waiting = iter(unknown)  # shared by the workers
                async with Server(self.config, self.endpoint._key, self.usage) as server:
                    count = min(self.config.concurrency, len(unknown))
                    await asyncio.gather(*(self._work(server, waiting, on_answer) for _ in range(count)))
        if self.failures:
            raise self.failures[0]
        answers = [self.answers[key] for key in self.keys]
        self.usage.refusals += sum(answer.choices[0].refusal is not None for answer in answers)
        return answers

    async def _work(self, server: "Server", waiting: Iterator[str], on_answer: Callable[[int], None]) -> None:
        for key in waiting:
            async with self.on_the_way:
                if self.failures:
                    return
                indices = self.places[key]
                try:
                    await self._answer(server, key, self.requests[indices[0]])
                except Exception as error:
                    if isinstance(error, EndpointError):
                        error.request_index = indices[0]
                    self.failures.append(error)
                    return
            on_answer(len(indices))

    async def _answer(self, server: "Server", key: str, request: Request) -> None:
        self._check_budget(server)
        try:
            text, answer = await self._asked(server, request)
        except EndpointError as error:
            if not (self.allow_refusals and error.is_refusal):
                raise
            self.answers[key] = refused(str(error))
            return
        objection = self.check(request, answer)
        if objection is not None and not (self.allow_refusals and answer.choices[0].refusal):
            raise EndpointError(f"{server.who} {objection}")
        if answer.usage is None and self.config.token_budget is not None:
            raise EndpointError(
                f"{server.who} does not say how many tokens it used, so token_budget cannot be kept; remove it"
            )
        prompt, completion = answer.tokens
        self.usage.prompt_tokens += prompt
        self.usage.completion_tokens += completion
        self.answers[key] = answer
        self.cache.put(key, text, self.endpoint.model_key, prompt + completion)
        if not self._is_write_planned:  # answers that come close together are written together
            self._is_write_planned = True
            asyncio.get_running_loop().call_later(_WRITE_SECONDS, self._write)

    async def _asked(self, server: "Server", request: Request) -> tuple[str, Answer]:
        """The server's answer as text and validated; one that is not valid is asked for again, `retries` times."""
        for attempt in range(self.config.retries + 1):
            text = await server.post(request.kind, self.endpoint.body(request))
            try:
                answer = parse_answer(text, request.kind)
            except ValueError as error:
                if attempt == self.config.retries:
                    raise EndpointError(
                        f"{server.who} answers nonsense: {error}; is {self.config.url} the URL of an"
                        " OpenAI-compatible server, with the path, such as /v1?",
                        is_refusal=isinstance(error, InvalidAnswerError),
                    ) from error
                self.usage.retries += 1
                await asyncio.sleep(min(8.0, 0.5 * 2**attempt))
                continue
            self.usage.requests += 1
            asked, given = request.body.get("n", 1), len(answer.choices)
            if given != asked:
                raise EndpointError(
                    f"{server.who} gives {given} choices where n = {asked} were asked for; use n = 1"
                )
            return text, answer
        raise AssertionError("the last attempt returns or raises")

    def _write(self) -> None:
        self._is_write_planned = False
        try:
            self.cache.flush()
        except AnswerCacheError as error:
            self.failures.append(error)

    def _check_budget(self, server: "Server") -> None:
        budget = self.config.token_budget
        if budget is None:
            return
        from sppo.endpoint.server import KEPT

        spent = self.cache.spent(self.endpoint.model_key)
        if spent >= budget:
            raise BudgetError(
                f"{server.who}: {spent} tokens are spent of token_budget: {budget}; raise it to go on. {KEPT}"
            )


def default_cache() -> Path:
    """The user's file of answers."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "sppo", "answers.sqlite")


def _api_key(config: EndpointConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    where = f"api_key_env: the environment variable {config.api_key_env}"
    if not key:
        raise EndpointError(f"{where} is not set; export the key of {config.url} in it")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise EndpointError(f"{where} holds a space or a character that no API key has; export the key alone")
    return key
