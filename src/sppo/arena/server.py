"""The arena's page and its requests: an ASGI application that only answers its own page."""

import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from sppo.arena.ballot import Ballot
from sppo.arena.matches import Matches, RefusedVote, Shown
from sppo.arena.votes import agreement, win_rates
from sppo.progress import printable
from sppo.rundir.guard import standing
from sppo.serving.bodies import RefusedRequest, json_object, problem

LABELS = {"left": "a", "right": "b", "tie": "tie", "both_bad": "tie", "skip": "skip"}
"""The label in the file of votes for each choice on the page."""
LONGEST_NAME, LARGEST_BODY = 60, 16_384
FEW_PROMPTS = 30
"""With votes on fewer prompts than this, the bootstrap's intervals are too narrow to be trusted."""
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
# HTML in a response is escaped, and links and images stay text: a response must not lead readers or requests elsewhere
_MARKDOWN = (
    MarkdownIt("commonmark", {"html": False, "breaks": True})
    .enable(["table", "strikethrough"])
    .disable(["link", "image", "autolink", "reference"])
)


def access_key(key: bytes) -> str:
    """The key that the address of the arena must contain."""
    return _derived(key, b"access")[:32]


def _derived(key: bytes, purpose: bytes) -> str:
    return hmac.new(key, purpose, hashlib.sha256).hexdigest()


class Arena:
    """The arena of a run.

    Args:
        name: the run's name.
        matches: the pairs that can be shown.
        ballot: where votes are kept.
        key: the secret of this arena.
        hosts: the names, with port, under which the arena is reached; requests to any other name are refused.
        voted: called with every vote that counts.
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
        # browsers share cookies between all ports of a machine, so that each arena needs a name of its own
        self.cookie = f"sppo-arena-{_derived(key, b'cookie')[:8]}"
        self.token = _derived(key, b"request")
        loader = PackageLoader("sppo.arena", ".")
        templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
        self.page = templates.get_template("arena.html.jinja")

    def app(self) -> Starlette:
        """The application."""
        gets = {"/": self._index, "/arena.js": self._asset, "/arena.css": self._asset}
        posts = {"/pair": self._pair, "/vote": self._vote, "/undo": self._undo, "/results": self._results}
        return Starlette(
            routes=[
                Route(path, self._guarded(answer), methods=[method])
                for method, answers in (("GET", gets), ("POST", posts))
                for path, answer in answers.items()
            ]
        )

    def _guarded(
        self, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            refusal = self._refusal(request)
            try:
                response = await answer(request) if refusal is None else problem(403, refusal)
            except RefusedRequest as error:
                response = problem(error.status, str(error), error.headers)
            response.headers.update(_HEADERS)
            return response

        return guarded

    def _refusal(self, request: Request) -> str | None:
        """Why a request does not come from this arena's own page; None where it does."""
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
        is_ours = (
            headers.get("origin") == f"http://{host}"
            and headers.get("sec-fetch-site", "same-origin") == "same-origin"
            and hmac.compare_digest(headers.get("x-sppo-token", "").encode(), self.token.encode())
        )
        if not is_ours:
            return "requests from other pages are refused"
        return None if headers.get("content-type") == "application/json" else "the request must be JSON"

    async def _index(self, request: Request) -> Response:
        if "key" in request.query_params:
            response = RedirectResponse("/", status_code=303)
            # a strict cookie would not be sent when the address is opened from another page
            month = 30 * 24 * 3600
            response.set_cookie(self.cookie, self.access, httponly=True, samesite="lax", max_age=month)
            return response
        return HTMLResponse(self.page.render(name=self.name, token=self.token))

    async def _asset(self, request: Request) -> Response:
        return FileResponse(Path(__file__).with_name(request.url.path[1:]))

    async def _pair(self, request: Request) -> Response:
        voter = _name((await json_object(request, LARGEST_BODY)).get("voter"))
        if voter is None:
            return problem(400, f"voter: a name must have 1 to {LONGEST_NAME} characters")
        seen = self.ballot.seen()
        shown = await run_in_threadpool(self.matches.choose, voter, seen)
        progress = {
            "votes": sum(row["voter"] == voter and row["label"] != "skip" for row in seen),
            "seen": len(self.matches) - len(self.matches.unseen(voter, seen)),
            "total": len(self.matches),
        }
        if shown is None:
            return JSONResponse({**progress, "done": True})
        texts = [printable(text) for text in shown.texts]
        pair = {"seal": self.matches.seal(shown), "prompt": printable(shown.prompt)}
        plain = dict(zip(("left", "right"), texts, strict=True))
        html = {side: _MARKDOWN.render(text) for side, text in plain.items()}
        return JSONResponse({**progress, **pair, **plain, "html": html})

    async def _vote(self, request: Request) -> Response:
        body = await json_object(request, LARGEST_BODY)
        choice = body.get("choice")
        if not isinstance(choice, str) or choice not in LABELS:
            return problem(400, f"choice: it must be one of {', '.join(LABELS)}")
        return await self._sealed(body, lambda shown: self._record(shown, choice))

    async def _undo(self, request: Request) -> Response:
        return await self._sealed(await json_object(request, LARGEST_BODY), self._withdraw)

    async def _sealed(self, body: dict[str, Any], answer: Callable[[Shown], Response]) -> Response:
        """The answer to a request about what was shown under the seal that the request brings."""
        try:
            return await run_in_threadpool(answer, self.matches.opened(body.get("seal")))
        except RefusedVote as error:
            return problem(409, str(error))
        except OSError as error:
            return problem(503, f"the vote could not be written: {error.strerror}")

    def _record(self, shown: Shown, choice: str) -> Response:
        vote = {
            "vote_id": shown.vote_id,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "voter": shown.voter,
            "prompt_id": shown.prompt_id,
            "prompt": shown.prompt,
            **dict(zip(("policy_a", "policy_b"), shown.policies, strict=True)),
            **dict(zip(("response_a", "response_b"), shown.texts, strict=True)),
            "label": LABELS[choice],
            "both_bad": choice == "both_bad",
            "oracle": None,
        }
        if not self.ballot.record(vote):
            return problem(409, "another choice was already counted for this pair")
        if choice != "skip":
            self.voted(vote)
        return JSONResponse({"counted": True})

    def _withdraw(self, shown: Shown) -> Response:
        return JSONResponse({"withdrawn": self.ballot.withdraw(shown.vote_id)})

    async def _results(self, request: Request) -> Response:
        votes = self.ballot.votes()
        rates = await run_in_threadpool(win_rates, votes)
        names = sorted({name for pair in rates for name in pair})
        return JSONResponse(
            {
                "votes": len(votes),
                "people": sorted({printable(row["voter"]) for row in votes}),
                "names": [printable(name) for name in names],
                "win_rates": [[rates.get((first, second)) for second in names] for first in names],
                "words": [
                    in_words(printable(first), printable(second), rate)
                    for (first, second), rate in rates.items()
                    if first > second
                ],
                "agreement": agreement(votes),
            }
        )


def in_words(first: str, second: str, rate: dict[str, float]) -> str:
    """A sentence about the votes between two policies, which says so if they are too few."""
    if rate["prompts"] < FEW_PROMPTS:
        return (
            f"There are too few votes to tell whether {first} or {second} is preferred: collect votes on at least"
            f" {FEW_PROMPTS} prompts; so far {rate['prompts']:.0f} have votes."
        )
    return f"By these votes, {first} is {standing(rate)} {second}."


def _name(value: Any) -> str | None:
    if not isinstance(value, str) or not 0 < len(value.strip()) <= LONGEST_NAME:
        return None
    return printable(value.strip())
