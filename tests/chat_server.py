"""A small OpenAI-compatible server on loopback that answers, and misbehaves, as a test tells it to."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Reply:
    """What the server sends back: a status, headers, and a body that is JSON unless it is bytes.

    It comes after so many `seconds`, and with so many seconds between its bytes (`pace`).
    """

    def __init__(
        self, body: Any, status: int = 200, seconds: float = 0.0, pace: float = 0.0, **headers: str
    ) -> None:
        self.body, self.status, self.seconds, self.pace = body, status, seconds, pace
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def said(*texts: str, prompt_tokens: int = 7, completion_tokens: int = 3, **choice: Any) -> Reply:
    """An answer of a chat with a choice for each text."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
        for i, text in enumerate(texts)
    ]
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    return Reply({"object": "chat.completion", "choices": choices, "usage": usage})


class ChatServer:
    """The server while it runs.

    Attributes:
        url: its address, with /v1.
        asked: the body of every request, in the order in which they came.
        headers: of every request.
        most: the most requests that were open at once.
    """

    def __init__(self, answer: Callable[[str, dict[str, Any]], Reply]) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most = 0
        self.url = ""
        self.models = ["judge", "other"]
        self.lock = threading.Lock()
        self.open = 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # more than are ever asked at once, so that none is turned away


@contextlib.contextmanager
def serve(answer: Callable[[str, dict[str, Any]], Reply]) -> Iterator[ChatServer]:
    """A server that answers a request's path and body with what the function says; it may be called side by side."""
    state = ChatServer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not state.models:
                return self.reply(Reply({"error": {"message": "no such path"}}, 404))
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in state.models]
            return self.reply(Reply({"object": "list", "data": listed}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.asked.append(body)
                state.headers.append({name.lower(): value for name, value in self.headers.items()})
                state.open += 1
                state.most = max(state.most, state.open)
            try:
                reply = state.answer(self.path, body)
                time.sleep(reply.seconds)
            finally:
                with state.lock:
                    state.open -= 1
            self.reply(reply)

        def reply(self, reply: Reply) -> None:
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            with contextlib.suppress(ConnectionError):  # a client that has given up
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                for part in [bytes([byte]) for byte in body] if reply.pace else [body]:
                    self.wfile.write(part)
                    time.sleep(reply.pace)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
