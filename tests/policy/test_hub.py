"""What is asked of the hub, by the real client: of a server on this machine that answers as the hub does."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

PROGRAM = """
import sys
from sppo.policy import hub
for name, endpoint in (("own/model", sys.argv[1]), ("own/old", sys.argv[1]), ("own/model", "http://127.0.0.1:9")):
    print(hub.parameters(name, endpoint=endpoint))
try:
    hub.parameters("own/none", endpoint=sys.argv[1])
except ValueError as error:
    print(type(error).__name__, error)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.partition("?")[0].removeprefix("/api/models/")
        page = {"id": name, "tags": [], "siblings": []}
        if name == "own/model":
            page["safetensors"] = {"parameters": {"BF16": 134_515_008}, "total": 134_515_008}
        known = name in ("own/model", "own/old")
        self.send_response(200 if known else 404)
        if not known:
            self.send_header("X-Error-Code", "RepoNotFound")
        body = json.dumps(page).encode() if known else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_size_of_a_model_is_that_of_its_page_and_a_missing_model_is_refused(address):
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, address], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    stated, unstated, unreachable, refused = done.stdout.splitlines()
    assert (stated, unstated, unreachable) == ("134515008.0", "None", "None")
    assert refused.startswith(
        "PolicyError policy.model: 'own/none' is neither a folder here nor a model on the hub"
    )
