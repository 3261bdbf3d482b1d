"""One server: requests are posted to it safely, and what it refuses is explained.

A server is not trusted. Its answer must be whole before a deadline, may not unpack to more than a limit, and cannot
redirect a request to another host; and wherever it repeats the API key, the key is masked before anything reads it.
"""

import asyncio
import contextlib
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import httpx2
import openai

from sppo.endpoint.exchange import EndpointError, Kind, Usage
from sppo.reading import parse
from sppo.recipe import EndpointConfig

MOST_BYTES = 64 * 2**20
"""The most that one answer may hold, unpacked."""
KEPT = "All answers so far are kept: the same command asks only for the rest."
_REFUSALS = (400, 413, 422, 451)
"""Statuses by which a server may refuse a prompt for what it says, while it answers others."""
_MODERATION = re.compile(r"moderat|flagged|content.?(filter|policy|management)|safety|harmful", re.IGNORECASE)
"""What servers say that refuse a prompt with the status 403, which otherwise refuses access to everything."""


class _GuardedClient(httpx2.AsyncClient):
    """An HTTP client whose responses are read to the end before anybody sees them, within the limits of this module."""

    def __init__(self, seconds: float, key: str | None) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        super().__init__(timeout=seconds, limits=limits, follow_redirects=False)
        self._seconds, self._key = seconds, key

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and read its response.

        Raises:
            httpx2.ReadTimeout: the response is not whole before the deadline.
            EndpointError: it is larger than the limit, or packed in a way that is not known.
        """
        request.headers["Accept-Encoding"] = "gzip, deflate"
        options |= {"stream": True, "follow_redirects": False}
        try:
            # one deadline for everything: a limit for each read would let a byte a second go on for ever
            async with asyncio.timeout(self._seconds):
                response = await super().send(request, **options)
                try:
                    content = await _unpacked(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise httpx2.ReadTimeout("the answer is not whole before the deadline", request=request) from None
        dropped = ("content-encoding", "content-length", "transfer-encoding")
        headers = [(name, value) for name, value in response.headers.items() if name not in dropped]
        return httpx2.Response(
            response.status_code, headers=headers, content=self._masked(content), request=request
        )

    def _masked(self, content: bytes) -> bytes:
        if b"\\u" in content or (self._key and b"\\/" in content):
            # Escapes can hide the key, and can be halves of surrogate pairs, which no file holds.
            with contextlib.suppress(ValueError):
                content = json.dumps(parse(content), ensure_ascii=False).encode("utf-8", "replace")
        return content.replace(self._key.encode(), b"***") if self._key else content


async def _unpacked(response: httpx2.Response) -> bytes:
    packing = response.headers.get("content-encoding", "identity").strip().lower()
    if packing not in ("identity", "gzip", "deflate"):
        raise EndpointError(f"{response.url}: answers in the encoding {packing!r}, which was not asked for")
    unpack = zlib.decompressobj(47) if packing != "identity" else None  # 47: either kind, by its head
    content = bytearray()
    async for packed in response.aiter_raw():
        room = MOST_BYTES + 1 - len(content)
        try:
            content += packed[:room] if unpack is None else unpack.decompress(packed, room)
        except zlib.error as error:
            raise httpx2.DecodingError(str(error), request=response.request) from error
        if len(content) > MOST_BYTES:
            raise EndpointError(
                f"{response.url}: the answer is larger than {MOST_BYTES >> 20} MiB; ask for fewer tokens or choices"
            )
    return bytes(content)


class Server:
    """A connection to a server, open within an `async with` block.

    Args:
        config: the server, and the limits.
        key: the API key; None: none.
        usage: where retries are counted.
    """

    def __init__(self, config: EndpointConfig, key: str | None, usage: Usage) -> None:
        self.config, self.usage, self._key = config, usage, key
        self.who = f"{config.url}, model {config.model!r},"
        self._client = openai.AsyncOpenAI(
            base_url=config.url,
            api_key=key or "none",
            timeout=config.timeout_seconds,
            max_retries=config.retries,
            http_client=_GuardedClient(config.timeout_seconds, key),
        )
        # The library would take these from the environment, and send them to whichever server this is.
        self._client.organization, self._client.project = config.organization, config.project

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *reason: Any) -> None:
        await self._client.close()

    async def post(self, kind: Kind, body: Mapping[str, Any]) -> str:
        """The text of the answer to a request, which is sent again where trying again may help.

        Raises:
            EndpointError: the server cannot be reached, stalls or refuses.
        """
        try:
            response = await self._client.post(f"/{kind}", body=body, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            self._count_retries(error.request)
            raise EndpointError(
                await self._refusal(error, body), is_refusal=_refuses_the_prompt(error)
            ) from error
        except openai.APITimeoutError as error:
            self._count_retries(error.request)
            raise EndpointError(
                f"{self.who} has not answered within {self.config.timeout_seconds:g} s"
                f" ({self.config.retries} retries); raise timeout_seconds or lower concurrency. {KEPT}"
            ) from error
        except openai.APIConnectionError as error:
            self._count_retries(error.request)
            cause = error.__cause__
            if isinstance(cause, EndpointError):
                raise EndpointError(self._shortened(str(cause))) from error
            raise EndpointError(
                f"{self.who} cannot be reached ({self.config.retries} retries):"
                f" {self._shortened(str(cause or error))}; is the server running, and is the url right? {KEPT}"
            ) from error
        self._count_retries(response.request)
        return str(response.text)

    async def _refusal(self, error: openai.APIStatusError, body: Mapping[str, Any]) -> str:
        """A refusal in words, with the way out."""
        reason = self._shortened(_reason(error))
        said = f"{error.status_code}: {reason}"
        match error.status_code:
            case 401 | 403 if not _refuses_the_prompt(error):
                name = self.config.api_key_env
                way_out = (
                    f"check the API key in {name}"
                    if name
                    else "name the variable of your API key in api_key_env"
                )
                return f"{self.who} refuses access ({said}); {way_out}"
            case 404:
                return f"{self.who} is not there ({said}); {await self._offered()}"
            case 429:
                return (
                    f"{self.who} takes no more for now ({said}; {self.config.retries} retries); lower concurrency, or"
                    f" start again later. {KEPT}"
                )
            case status if status >= 500:
                return f"{self.who} fails ({said}; {self.config.retries} retries). {KEPT}"
            case status if 300 <= status < 400:
                target = self._shortened(error.response.headers.get("location", "another address"))
                return f"{self.who} redirects to {target}; no request is sent there: set url to it if you trust it"
        return f"{self.who} refuses the request ({said}){_unwanted_keys(reason, body)}"

    async def _offered(self) -> str:
        """The models that the server says it has."""
        try:
            listed = await self._client.with_options(max_retries=0, timeout=10).models.list()
            names = sorted(str(model.id) for model in listed.data)
        except Exception:  # it is asked only to help; whatever it says instead is of no use
            return "it lists no models either: the url needs the path of the API, such as /v1"
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        return self._shortened(f"it offers: {shown}" if names else "it offers no models")

    def _count_retries(self, request: httpx2.Request) -> None:
        self.usage.retries += int(request.headers.get("x-stainless-retry-count", 0))

    def _shortened(self, text: str) -> str:
        text = text.replace(self._key, "***") if self._key else text
        return text if len(text) <= 500 else text[:497] + "..."


def _reason(error: openai.APIStatusError) -> str:
    body = error.body
    if not isinstance(body, dict):
        return str(body or error.response.text or error.message)
    said = str(body.get("message") or body.get("detail") or error.response.text or error.message)
    parameter = body.get("param")
    return f"{said} ({parameter})" if isinstance(parameter, str) and parameter not in said else said


def _refuses_the_prompt(error: openai.APIStatusError) -> bool:
    moderated = error.status_code == 403 and _MODERATION.search(_reason(error)) is not None
    return moderated or error.status_code in _REFUSALS


def _unwanted_keys(reason: str, body: Mapping[str, Any]) -> str:
    """Advice on leaving out the keys of a request that a refusal names."""
    named = [key for key in body if re.search(rf"\b{re.escape(key)}\b", reason)]
    instead = {"max_tokens": f"max_completion_tokens: {body.get('max_tokens')}"}
    keys = [
        f"{key}: null" + (f", {instead[key]}" if key in instead else "")
        for key in named
        if key not in ("model", "messages", "prompt")
    ]
    return f"; if it does not take what it names, set extra_body: {{{', '.join(keys)}}}" if keys else ""
