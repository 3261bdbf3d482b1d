"""The client of OpenAI-compatible servers: many requests side by side, every answer kept on disk.

A request is known by its content: the model's name and revision, the whole body, and the number of the draw. An answer
is written to the cache (:class:`Answers`) within a twentieth of a second, so that nothing is paid for twice, whatever
interrupts a batch.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sppo.endpoint.cache import Answers, AnswersError
from sppo.recipe import EndpointConfig

if TYPE_CHECKING:
    import openai

Kind = Literal["chat/completions", "completions"]
Answer = dict[str, Any]
"""A server's answer as JSON: `choices`, each with a `message` or a `text`; `usage` where the server counts it."""


@dataclass(frozen=True)
class Request:
    """One question to a server.

    Attributes:
        kind: the path under the server's URL.
        body: what is sent, without `model`.
        draw: the same body asked again is another draw, with an answer of its own; not sent.
    """

    kind: Kind
    body: Mapping[str, Any]
    draw: int = 0


def chat(messages: Sequence[Mapping[str, str]], *, draw: int = 0, **settings: Any) -> Request:
    """A chat completion: `messages` with `role` and `content`, and settings such as `temperature` or `logprobs`."""
    return Request("chat/completions", {"messages": list(messages), **settings}, draw)


def completion(prompt: str | Sequence[int], *, draw: int = 0, **settings: Any) -> Request:
    """A completion of a prompt, which is text or token ids."""
    return Request(
        "completions", {"prompt": prompt if isinstance(prompt, str) else list(prompt), **settings}, draw
    )


@dataclass
class Usage:
    """What has been asked.

    Attributes:
        requests: answered by the server.
        cached: answered from the disk.
        prompt_tokens: of the server's answers, as it counts them.
        completion_tokens: likewise.
        retries: requests sent again.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens


class EndpointError(RuntimeError):
    """A server that refuses, stalls, cannot be reached or answers nonsense.

    Attributes:
        request_index: which of the requests of the call failed; None where it is not one of them.
    """

    def __init__(self, message: str, request_index: int | None = None) -> None:
        super().__init__(message)
        self.request_index = request_index


class BudgetError(EndpointError):
    """The token budget is spent."""


Fault = Callable[[Request, Answer], str | None]
"""What makes an answer useless to whoever asks, as words that follow the server's name; None: nothing."""


def faultless(request: Request, answer: Answer) -> None:
    """Every answer will do."""


class Endpoint:
    """A model behind an OpenAI-compatible server.

    Args:
        config: the server, the model, and the limits.
        cache: the file of the answers where the configuration names none; None: one for this user.

    Attributes:
        usage: of this object's life.

    Raises:
        EndpointError: the `openai` package is not installed, or the variable of the API key is not set.
        sppo.endpoint.cache.AnswersError: the cache cannot be opened.
    """

    def __init__(self, config: EndpointConfig, cache: Path | None = None) -> None:
        self.config = config
        self.usage = Usage()
        self.cache = Path(config.cache).expanduser() if config.cache else cache or default_cache()
        self._key = _api_key(config)
        try:
            import openai  # noqa: F401
        except ImportError:
            raise EndpointError(
                "an endpoint needs the package openai; install it with: pip install 'sppo[openai]'"
            ) from None
        with Answers(self.cache):
            pass  # what is wrong with the file is said before anything is paid for

    def ask(
        self,
        requests: Sequence[Request],
        on_answer: Callable[[int], None] | None = None,
        fault: Fault = faultless,
    ) -> list[Answer]:
        """The answers to requests, in their order; requests of equal content are asked once.

        Args:
            requests: any number of them; `config.concurrency` are on their way at once.
            on_answer: called with the number of requests answered since the last call, from another thread.
            fault: of an answer; one that has a fault is not kept, and one that was kept is asked for again.

        Raises:
            BudgetError: `config.token_budget` is spent. Requests on their way are waited for first, so it can be
                exceeded by as much as these cost.
            EndpointError: a request failed for good, or its answer has a fault. Those on their way are waited for, and their answers kept.
        """
        from anyio.from_thread import start_blocking_portal

        if not requests:
            return []
        # a thread with a loop of its own: the caller may be inside a loop already
        with start_blocking_portal() as portal:
            return portal.call(self._ask, requests, on_answer or (lambda count: None), fault)

    async def _ask(
        self, requests: Sequence[Request], on_answer: Callable[[int], None], fault: Fault
    ) -> list[Answer]:
        import asyncio

        keys = [self._content(request) for request in requests]
        places: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            places.setdefault(key, []).append(index)
        failures: list[Exception] = []
        with Answers(self.cache) as answers:
            found = {
                key: answer
                for key, answer in answers.get(places).items()
                if fault(requests[places[key][0]], answer) is None
            }
            known = sum(len(places[key]) for key in found)
            self.usage.cached += known
            if known:
                on_answer(known)
            loop, writing = asyncio.get_running_loop(), False

            def write() -> None:
                nonlocal writing
                writing = False
                try:
                    answers.flush()
                except AnswersError as error:
                    failures.append(error)

            def keep(key: str, answer: Answer, tokens: int) -> None:
                nonlocal writing
                answers.put(key, answer, self._named, tokens)
                found[key] = answer
                if not writing:  # answers that come close together are written together
                    writing = True
                    loop.call_later(_WRITE_SECONDS, write)

            waiting = iter([(key, indices) for key, indices in places.items() if key not in found])

            async def work(client: "openai.AsyncOpenAI") -> None:
                for key, indices in waiting:  # shared by the workers
                    if failures:
                        return
                    try:
                        self._check_budget(answers)
                        answer = await self._answer(client, requests[indices[0]])
                        wrong = fault(requests[indices[0]], answer)
                        if wrong is not None:
                            raise EndpointError(f"{self._who} {wrong}")
                        tokens = self._tokens(answer)
                        keep(key, answer, tokens)
                    except EndpointError as error:
                        error.request_index = indices[0]
                        failures.append(error)
                        return
                    except Exception as error:
                        failures.append(error)
                        return
                    on_answer(len(indices))

            if len(found) < len(places):
                async with self._client() as client:
                    count = min(self.config.concurrency, len(places) - len(found))
                    await asyncio.gather(*(work(client) for _ in range(count)))
        if failures:
            raise failures[0]
        return [found[key] for key in keys]

    async def _answer(self, client: "openai.AsyncOpenAI", request: Request) -> Answer:
        """The answer of the server to one request; nonsense is asked again, with the client's other retries."""
        import asyncio

        body = {"model": self.config.model, **request.body, **self.config.extra_body}
        for attempt in range(self.config.retries + 1):
            response = await self._post(client, request.kind, body)
            self.usage.retries += int(response.request.headers.get("x-stainless-retry-count", 0))
            try:
                answer = _checked(response.text, request)
            except ValueError as nonsense:
                if attempt == self.config.retries:
                    raise EndpointError(
                        f"{self._who} answers nonsense: {nonsense}; is {self.config.url} the URL of an"
                        " OpenAI-compatible server, with the path, such as /v1?"
                    ) from nonsense
                self.usage.retries += 1
                await asyncio.sleep(min(8.0, 0.5 * 2**attempt))
            else:
                self.usage.requests += 1
                self._count_choices(answer, request)
                return answer
        raise AssertionError("unreachable")

    def _count_choices(self, answer: Answer, request: Request) -> None:
        asked, given = request.body.get("n", 1), len(answer["choices"])
        if given != asked:
            raise EndpointError(
                f"{self._who} gives {given} choices where n = {asked} were asked for; use n = 1"
            )

    async def _post(self, client: "openai.AsyncOpenAI", kind: Kind, body: Mapping[str, Any]) -> Any:
        import httpx2
        import openai

        try:
            return await client.post(f"/{kind}", body=body, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            self.usage.retries += _retries(error.request)
            raise EndpointError(await self._refusal(client, error)) from error
        except openai.APITimeoutError as error:
            self.usage.retries += _retries(error.request)
            raise EndpointError(
                f"{self._who} has not answered within {self.config.timeout_seconds:g} s"
                f" ({self.config.retries} retries); raise timeout_seconds or lower concurrency. {_KEPT}"
            ) from error
        except openai.APIConnectionError as error:
            self.usage.retries += _retries(error.request)
            raise EndpointError(
                f"{self._who} cannot be reached ({self.config.retries} retries):"
                f" {self._hidden(str(error.__cause__ or error))}; is the server running, and is the url right? {_KEPT}"
            ) from error

    async def _refusal(self, client: "openai.AsyncOpenAI", error: "openai.APIStatusError") -> str:
        said = f"{error.status_code}: {self._hidden(_message(error))}"
        match error.status_code:
            case 401 | 403:
                name = self.config.api_key_env
                way_out = (
                    f"check the API key in {name}"
                    if name
                    else "name the variable of your API key in api_key_env"
                )
                return f"{self._who} refuses access ({said}); {way_out}"
            case 404:
                return f"{self._who} is not there ({said}); {await self._offered(client)}"
            case 429:
                return (
                    f"{self._who} takes no more for now ({said}; {self.config.retries} retries); lower concurrency, or"
                    f" start again later. {_KEPT}"
                )
            case status if status >= 500:
                return f"{self._who} fails ({said}; {self.config.retries} retries). {_KEPT}"
        return f"{self._who} refuses the request ({said})"

    async def _offered(self, client: "openai.AsyncOpenAI") -> str:
        """The models that the server says it has."""
        try:
            listed = await client.with_options(max_retries=0, timeout=10).models.list()
            names = sorted(str(model.id) for model in listed.data)
        except Exception:  # it is asked only to help; whatever it says instead is of no use
            return "it lists no models either: the url needs the path of the API, such as /v1"
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        return f"it offers: {shown}" if names else "it offers no models"

    def _check_budget(self, answers: Answers) -> None:
        budget = self.config.token_budget
        if budget is None:
            return
        spent = answers.spent(self._named)
        if spent >= budget:
            raise BudgetError(
                f"{self._who}: {spent} tokens are spent of token_budget: {budget}; raise it to go on. {_KEPT}"
            )

    def _tokens(self, answer: Answer) -> int:
        counted = tokens_of(answer)
        if counted is None and self.config.token_budget is not None:
            raise EndpointError(
                f"{self._who} does not say how many tokens it used, so token_budget cannot be kept; remove it"
            )
        prompt, completion = counted or (0, 0)
        self.usage.prompt_tokens += prompt
        self.usage.completion_tokens += completion
        return prompt + completion

    def _client(self) -> "openai.AsyncOpenAI":
        import openai

        return openai.AsyncOpenAI(
            base_url=self.config.url,
            api_key=self._key or "none",
            timeout=self.config.timeout_seconds,
            max_retries=self.config.retries,
        )

    @property
    def _named(self) -> str:
        return json.dumps([self.config.model, self.config.revision])

    @property
    def _who(self) -> str:
        return f"{self.config.url}, model {self.config.model!r},"

    def _content(self, request: Request) -> str:
        body = {**request.body, **self.config.extra_body}
        return json.dumps(
            [self.config.model, self.config.revision, request.kind, body, request.draw], sort_keys=True
        )

    def _hidden(self, text: str) -> str:
        """A text without the API key, which some servers repeat."""
        text = text.replace(self._key, "***") if self._key else text
        return text if len(text) <= 500 else text[:497] + "..."


_WRITE_SECONDS = 0.05
_MOST_TOKENS = 1_000_000_000  # of one answer; more is nonsense, and sums of it would outgrow the columns
_KEPT = "All answers so far are kept: the same command asks only for the rest."


def tokens_of(answer: Answer) -> tuple[int, int] | None:
    """The prompt and completion tokens of an answer, as the server counts them; None where it does not, or not so."""
    counted = answer.get("usage")
    if not isinstance(counted, dict):
        return None
    prompt, completion = (counted.get(name) for name in ("prompt_tokens", "completion_tokens"))
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    return (
        (prompt, completion)
        if 0 <= min(prompt, completion) <= max(prompt, completion) < _MOST_TOKENS
        else None
    )


def default_cache() -> Path:
    """The user's file of answers."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "sppo", "answers.sqlite")


def _api_key(config: EndpointConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise EndpointError(
            f"api_key_env: the environment variable {config.api_key_env} is not set; export the key of"
            f" {config.url} in it"
        )
    return key


def _checked(text: str, request: Request) -> Answer:
    """The answer, if it is one to the request; ValueError says why not."""
    shown = repr(text if len(text) <= 200 else text[:197] + "...")
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {shown}") from error
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices:
        raise ValueError(f"no choices: {shown}")
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        if request.kind == "chat/completions" and not isinstance(message, dict):
            raise ValueError(f"a choice without a message: {shown}")
        if request.kind == "completions" and not (
            isinstance(choice, dict) and isinstance(choice.get("text"), str)
        ):
            raise ValueError(f"a choice without a text: {shown}")
    assert isinstance(answer, dict)
    return answer


def _message(error: "openai.APIStatusError") -> str:
    body = error.body
    said = body.get("message") or body.get("detail") if isinstance(body, dict) else body
    return str(said or error.response.text or error.message)


def _retries(request: Any) -> int:
    return int(request.headers.get("x-stainless-retry-count", 0))
