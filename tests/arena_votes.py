"""Responses and votes by hand, for the tests of the arena."""

import contextlib
import socket
import threading

import uvicorn

from sppo.arena.ballot import Ballot
from sppo.arena.matches import Matches
from sppo.arena.server import Arena, access_key

KEY = b"secret"
READY = "body[data-ready=true]"


def responses(prompts=4, policies=("base", "iteration 1"), same=()):
    return {
        policy: {
            f"p{n}": (f"prompt {n}", ["same"] if n in same else [f"{policy} {n} {k}" for k in range(2)])
            for n in range(prompts)
        }
        for policy in policies
    }


def vote(number, a="base", b="iteration 1", label="a", prompt=None, voter="ann", oracle=None, both_bad=False):
    return {
        "vote_id": f"v{number}",
        "time": "2026-01-01T00:00:00Z",
        "voter": voter,
        "prompt_id": prompt or f"p{number}",
        "prompt": f"prompt {number}",
        "policy_a": a,
        "policy_b": b,
        "response_a": f"{a} says",
        "response_b": f"{b} says",
        "label": label,
        "both_bad": both_bad,
        "oracle": oracle,
    }


@contextlib.contextmanager
def served(folder, key=KEY, prompts=4, given=None):
    """Serves an arena on a free port; yields the arena and its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    matches = Matches(given or responses(prompts), ["base", "iteration 1"], key)
    arena = Arena("run", matches, Ballot(folder), key, {f"127.0.0.1:{port}"})
    server = uvicorn.Server(uvicorn.Config(arena.app(), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield arena, f"http://127.0.0.1:{port}/?key={access_key(key)}"
    finally:
        server.should_exit = True
        thread.join()
