"""The arena's pages: an ASGI application that answers its own pages alone."""

import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from sppo.arena import votes as vote_files
from sppo.arena.ballot import Ballot
from sppo.arena.matches import Matches, RefusedVote
from sppo.progress import printable

LABELS = {"left": "a", "right": "b", "tie": "tie", "skip": "skip"}
LONGEST_NAME, LARGEST_BODY = 60, 16_384
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:;"
        " frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def access_key(key: bytes) -> str:
    """What the address must bring that opens the arena."""
    return hmac.new(key, b"access", hashlib.sha256).hexdigest()[:32]


class Arena:
    """The arena of a run.

    Args:
        name: of the run.
        matches: what can be shown.
        ballot: where votes are kept.
        key: secret of this arena.
        hosts: names with port under which it is reached; requests to any other are refused.
        voted: told every vote that counts.
    """

    def __init__(
        self,
        name: str,
        matches: Matches,
        ballot: Ballot,
        key: bytes,
        hosts: set[str],
        voted: Callable[[dict[str, Any]], None] = lambda vote: None,
    ) -> None:
        self.name, self.matches, self.ballot = printable(name), matches, ballot
        self.hosts, self.voted = hosts, voted
        self.access = access_key(key)
        # browsers keep one jar for all ports of a machine; lax, for addresses that are opened from another page
        self.cookie = f"sppo-arena-{hmac.new(key, b'cookie', hashlib.sha256).hexdigest()[:8]}"
        self.token = hmac.new(key, b"request", hashlib.sha256).hexdigest()
        files = Environment(
            loader=PackageLoader("sppo.arena", "."), autoescape=True, undefined=StrictUndefined
        )
        self.page = files.get_template("arena.html.jinja")

    def app(self) -> Starlette:
        """The application."""
        return Starlette(
            routes=[
                Route("/", self._guarded(self._index), methods=["GET"]),
                Route("/arena.js", self._guarded(self._script), methods=["GET"]),
                Route("/arena.css", self._guarded(self._style), methods=["GET"]),
                Route("/pair", self._guarded(self._pair), methods=["POST"]),
                Route("/vote", self._guarded(self._vote), methods=["POST"]),
                Route("/results", self._guarded(self._results), methods=["POST"]),
            ]
        )

    def _guarded(
        self, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            refused = self._refusal(request)
            found = await answer(request) if refused is None else _problem(403, refused)
            found.headers.update(_HEADERS)
            return found

        return guarded

    def _refusal(self, request: Request) -> str | None:
        """Why a request is none of this arena's own pages."""
        headers = request.headers
        host = headers.get("host", "")
        if host not in self.hosts:
            return "this arena is not reached under that name"
        opening = request.url.path == "/" and "key" in request.query_params
        given = request.query_params.get("key", "") if opening else request.cookies.get(self.cookie, "")
        if not hmac.compare_digest(given.encode(), self.access.encode()):
            return "open the address that `sppo arena` has printed"
        if request.method != "POST":
            return None
        if (
            headers.get("origin") != f"http://{host}"
            or headers.get("sec-fetch-site", "same-origin") != "same-origin"
        ):
            return "requests from other pages are refused"
        if not hmac.compare_digest(headers.get("x-sppo-token", "").encode(), self.token.encode()):
            return "requests from other pages are refused"
        if headers.get("content-type") != "application/json":
            return "JSON is expected"
        return None

    async def _index(self, request: Request) -> Response:
        if "key" in request.query_params:
            found: Response = RedirectResponse("/", status_code=303)
            found.set_cookie(self.cookie, self.access, httponly=True, samesite="lax", max_age=30 * 24 * 3600)
            return found
        return HTMLResponse(self.page.render(name=self.name, token=self.token))

    async def _script(self, request: Request) -> Response:
        return Response(_own("arena.js"), media_type="text/javascript")

    async def _style(self, request: Request) -> Response:
        return Response(_own("arena.css"), media_type="text/css")

    async def _pair(self, request: Request) -> Response:
        body = await _body(request)
        voter = _name(body.get("voter")) if body is not None else None
        if voter is None:
            return _problem(400, f"a name of 1 to {LONGEST_NAME} characters is expected")
        shown = await run_in_threadpool(lambda: self.matches.draw(voter, self.ballot.seen()))
        mine = sum(row["voter"] == voter for row in self.ballot.votes())
        if shown is None:
            return JSONResponse({"done": True, "votes": mine})
        return JSONResponse(
            {
                "seal": self.matches.seal(shown),
                "prompt": printable(shown.prompt),
                "left": printable(shown.texts[0]),
                "right": printable(shown.texts[1]),
                "votes": mine,
            }
        )

    async def _vote(self, request: Request) -> Response:
        body = await _body(request)
        if body is None or not isinstance(body.get("choice"), str) or body["choice"] not in LABELS:
            return _problem(400, f"a choice is one of {', '.join(LABELS)}")
        try:
            shown = self.matches.opened(body.get("seal"))
        except RefusedVote as error:
            return _problem(409, str(error))
        vote = {
            "vote_id": shown.vote_id,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "voter": shown.voter,
            "prompt_id": shown.prompt_id,
            "prompt": shown.prompt,
            "policy_a": shown.policies[0],
            "policy_b": shown.policies[1],
            "response_a": shown.texts[0],
            "response_b": shown.texts[1],
            "label": LABELS[body["choice"]],
            "oracle": None,
        }
        try:
            stands = await run_in_threadpool(self.ballot.record, vote)
        except OSError as error:
            return _problem(503, f"the vote could not be written: {error.strerror}")
        if not stands:
            return _problem(409, "another choice was already counted for this pair")
        if vote["label"] != "skip":
            self.voted(vote)
        return JSONResponse({"counted": True})

    async def _results(self, request: Request) -> Response:
        votes = self.ballot.votes()
        pairs = [
            {
                "policies": [printable(name) for name in pair],
                "win_rate": sum(rates) / len(rates),
                "prompts": len(rates),
            }
            for pair, rates in sorted(vote_files.by_prompt(votes).items())
        ]
        people = sorted({printable(row["voter"]) for row in votes})
        found = {
            "votes": len(votes),
            "people": people,
            "pairs": pairs,
            "agreement": vote_files.agreement(votes),
        }
        return JSONResponse(found)


async def _body(request: Request) -> dict[str, Any] | None:
    """The JSON object of a request; None where it is none, or too large."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > LARGEST_BODY:
            return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _name(value: Any) -> str | None:
    if not isinstance(value, str) or not 0 < len(value.strip()) <= LONGEST_NAME:
        return None
    return printable(value.strip())


def _problem(status: int, text: str) -> Response:
    return JSONResponse({"problem": text}, status_code=status)


def _own(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
