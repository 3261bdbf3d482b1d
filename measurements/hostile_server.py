"""A judge's server that misbehaves as the question's seed says, and a second server that nobody may be sent to."""

import gzip
import json
import math
import random
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hostile_inputs import broken, changed, to_json

MANNERS = [
    *["changed"] * 8,
    *["broken"] * 2,
    "echoes the key",
    "echoes the key in JSON",
    "echoes the key in a header",
    "redirects",
    "redirects with 307",
    "redirects to a file",
    "drips",
    "is silent",
    "closes",
    "a gzip bomb",
    "an endless body",
    "a wrong length",
    "many headers",
    "HTML",
    "an error with the key",
    "refuses",
    "NaN",
    "positive",
    "a huge text",
    "no choices",
    "an answer in two languages",
]


def valid_answer(body: dict[str, Any]) -> dict[str, Any]:
    """The answer of a judge that finds both responses alike, at 0.6 for the first."""
    tops = [
        {"token": letter, "logprob": math.log(mass), "bytes": None}
        for letter, mass in (("A", 0.6), ("B", 0.39), ("C", 0.01))
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "A"},
        "finish_reason": "stop",
        "logprobs": {"content": [{**tops[0], "top_logprobs": tops}]},
    }
    usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    return {
        "id": "x",
        "object": "chat.completion",
        "model": body.get("model"),
        "choices": [choice],
        "usage": usage,
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _Hostile(BaseHTTPRequestHandler):
    """Answers in the manner that the path names: /MANNER/SEED/v1/chat/completions."""

    protocol_version = "HTTP/1.1"
    elsewhere = ""

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send(200, json.dumps({"object": "list", "data": []}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        _, manner, seed, *_ = self.path.split("/")
        manner = MANNERS[int(manner)]
        try:
            self.answer(manner, random.Random(seed), body)
        except OSError:
            self.close_connection = True

    def send(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, manner: str, draw: random.Random, body: dict[str, Any]) -> None:
        valid = valid_answer(body)
        key = self.headers.get("Authorization", "")
        first = valid["choices"][0]
        top = first["logprobs"]["content"][0]["top_logprobs"][0]
        simple: dict[str, Callable[[], Any]] = {
            "changed": lambda: self.send(200, to_json(changed(valid, draw), draw)),
            "broken": lambda: self.send(200, broken(json.dumps(valid).encode(), draw)),
            "echoes the key": lambda: self.send(200, key.encode()),
            "echoes the key in JSON": lambda: self.send(
                200, json.dumps(valid | {"id": key, "note": key, "system_fingerprint": key}).encode()
            ),
            "echoes the key in a header": lambda: self.send(400, b"{}", X_Echo=key, Retry_After=key),
            "redirects": lambda: self.send(302, b"", Location=f"{self.elsewhere}/v1/chat/completions"),
            "redirects with 307": lambda: self.send(307, b"", Location=f"{self.elsewhere}/v1/chat"),
            "redirects to a file": lambda: self.send(302, b"", Location="file:///etc/passwd"),
            "is silent": lambda: time.sleep(30),
            "closes": lambda: self.connection.close(),
            "a gzip bomb": lambda: self.send(200, _bomb(), Content_Encoding="gzip"),
            "a wrong length": lambda: self.send(200, b"{}", length=10**12),
            "HTML": lambda: self.send(
                200, b"<html><script>alert(1)</script></html>", Content_Type="text/html"
            ),
            "an error with the key": lambda: self.send(
                401, json.dumps({"error": {"message": f"bad key {key}", "type": key}}).encode()
            ),
            "refuses": lambda: self.send(403, b'{"error": {"message": "\\u001b[2J no"}}'),
            "a huge text": lambda: self.send(500, b"x" * 5_000_000),
            "no choices": lambda: self.send(200, json.dumps(valid | {"choices": []}).encode()),
            "an answer in two languages": lambda: self.send(
                200, b"\xff\xfe" + json.dumps(valid).encode("utf-16")
            ),
        }
        if manner in ("NaN", "positive"):
            top["logprob"] = math.nan if manner == "NaN" else draw.choice([0.5, 800.0, 1e308])
            self.send(200, json.dumps(valid).encode())
        elif manner in ("drips", "an endless body"):
            self.send(200, b"", length=10**9)
            part = b" " if manner == "drips" else b" " * 2**20
            for _ in range(10**4):
                self.wfile.write(part)
                time.sleep(0.3 if manner == "drips" else 0.001)
        elif manner == "many headers":
            self.send(200, json.dumps(valid).encode(), **{f"X_{n}": "y" * 500 for n in range(300)})
        else:
            simple[manner]()


def _bomb() -> bytes:
    return gzip.compress(bytes(2**24), 1) * 40


class _Elsewhere(BaseHTTPRequestHandler):
    """Writes down that somebody came."""

    visits: Path

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.visits.write_bytes(f"{self.path} {self.headers}".encode() + self.rfile.read(length))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        pass


def serve(announce: Callable[[str], None], visits: Path) -> None:
    """Run both servers for ever; `visits` is written when somebody follows a redirection."""
    _Elsewhere.visits = visits
    elsewhere = _Server(("127.0.0.1", 0), _Elsewhere)
    threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
    _Hostile.elsewhere = f"http://127.0.0.1:{elsewhere.server_address[1]}"
    hostile = _Server(("127.0.0.1", 0), _Hostile)
    announce(f"http://127.0.0.1:{hostile.server_address[1]}")
    hostile.serve_forever()
