"""An oracle behind HTTP: an ASGI application that answers programs in JSON, and no browsers."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sppo.oracle import OracleError
from sppo.oracle.rewards import RewardFunction, as_rewards
from sppo.oracle_server.cohorts import Cohorts
from sppo.oracle_server.desk import Desk
from sppo.oracle_server.questions import Questions
from sppo.progress import printable, shortened
from sppo.serving.bodies import RefusedRequest, json_object, problem
from sppo.winrates import Array, win_rates

Body = Mapping[str, Any]
Answered = Callable[[Body], Awaitable[Any]]


class OracleServer:
    """The server of one oracle.

    Args:
        name: what the oracle is called.
        desk: asks the oracle.
        questions: reads the bodies of requests.
        cohort: the number of responses that `/verify` compares with each other; None: it is not answered.
        cohort_seconds: how long a response waits until its cohort is complete.
        key: the key that requests must bring; None: they need none.
        say: is told what goes wrong.
    """

    def __init__(
        self,
        name: str,
        desk: Desk,
        questions: Questions,
        *,
        cohort: int | None = None,
        cohort_seconds: float = 600,
        key: str | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.name, self.desk, self.questions, self._key, self._say = name, desk, questions, key, say
        self._said = ""
        most = questions.limits.waiting
        self.cohorts = (
            None if cohort is None else Cohorts(cohort, cohort_seconds, most, self._rewards_of_a_prompt)
        )

    def app(self) -> Starlette:
        """The application."""
        posts: dict[str, Answered] = {
            "/preferences": self._preferences,
            "/rewards": self._rewards,
            "/verify": self._verify,
            "/seed_session": self._seed_session,
        }
        return Starlette(
            routes=[
                Route("/", self._guarded(self._about, reads=False), methods=["GET"]),
                *(Route(path, self._guarded(answer), methods=["POST"]) for path, answer in posts.items()),
            ],
            exception_handlers={HTTPException: self._no_such_path},
        )

    def close(self) -> None:
        """Refuse all that waits; called within the event loop."""
        if self.cohorts is not None:
            self.cohorts.close()
        self.desk.close(seconds=0)

    def _guarded(self, answer: Answered, *, reads: bool = True) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            try:
                self._refuse_strangers(request, reads=reads)
                body = await json_object(request, self.questions.limits.body) if reads else {}
                return JSONResponse(await answer(body))
            except RefusedRequest as error:
                return problem(error.status, str(error), error.headers)
            except OracleError as error:
                self._tell(f"the oracle failed, and the request was answered with status 502: {error}")
                return problem(502, f"the oracle failed: {error}")
            except Exception as error:  # no traceback leaves the server, nor ends it
                self._tell(f"a request was answered with status 500: {type(error).__name__}: {error}")
                return problem(500, f"the server failed by an error of its own, a {type(error).__name__}")

        return guarded

    def _refuse_strangers(self, request: Request, *, reads: bool) -> None:
        headers = request.headers
        if "origin" in headers or headers.get("sec-fetch-site", "none") != "none":
            raise RefusedRequest(403, "this server answers programs, and no pages in a browser")
        if self._key is not None:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._key.encode()):
                raise RefusedRequest(
                    401, "the header Authorization must be: Bearer, and the key of this server", _CHALLENGE
                )
        if reads and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RefusedRequest(415, "the header Content-Type must be application/json")

    async def _about(self, body: Body) -> Any:
        waiting = 0 if self.cohorts is None else self.cohorts.waiting
        return {
            "oracle": self.name,
            "limits": vars(self.questions.limits),
            "cohort": None if self.cohorts is None else self.cohorts.size,
            "waiting": {"prompts": self.desk.waiting, "responses_of_incomplete_cohorts": waiting},
            "counts": dict(self.desk.oracle.counts),
        }

    async def _preferences(self, body: Body) -> Any:
        prompt, responses = self.questions.group(body)
        answer = await asyncio.wrap_future(self.desk.ask(prompt, responses))
        return {
            "matrix": _as_json(answer.matrix),
            "win_rates": as_rewards(win_rates(answer.matrix)),
            "components": {name: _as_json(matrix) for name, matrix in answer.components.items()},
        }

    async def _rewards(self, body: Body) -> Any:
        prompts, completions, size = self.questions.completions(body)
        rewards = RewardFunction(self.desk, size)
        return {"rewards": await run_in_threadpool(rewards, prompts, completions)}

    async def _verify(self, body: Body) -> Any:
        if self.cohorts is None:
            raise RefusedRequest(
                409,
                "a response is compared with the others of its cohort; start the server with --cohort and the number of"
                " rollouts of a prompt",
            )
        rollout = self.questions.rollout(body)
        reward = await self.cohorts.reward(*rollout)
        if reward is None:
            raise OracleError(
                "it compared this response with no other, so there is no reward; set oracle.unread: error or other_order"
            )
        return {**body, "reward": reward}

    async def _seed_session(self, body: Body) -> Any:
        """What NeMo-Gym asks for before each rollout; there is nothing to prepare."""
        return {}

    async def _rewards_of_a_prompt(self, prompt: str, responses: list[str]) -> list[float | None]:
        answer = await asyncio.wrap_future(self.desk.ask(prompt, responses))
        return as_rewards(win_rates(answer.matrix))

    async def _no_such_path(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            return problem(405, f"{request.method} is not answered here; see docs/serve.md", error.headers)
        return problem(
            error.status_code,
            "there is no such path; GET / describes this server, and docs/serve.md says more",
        )

    def _tell(self, text: str) -> None:
        """Says what went wrong, once for each of its kind."""
        text = printable(shortened(text))
        if text != self._said:
            self._say(text)
        self._said = text


_CHALLENGE = {"WWW-Authenticate": "Bearer"}


def _as_json(matrix: Array) -> list[list[float | None]]:
    """A matrix in JSON, which has null in the place of NaN."""
    return [as_rewards(row) for row in matrix]
