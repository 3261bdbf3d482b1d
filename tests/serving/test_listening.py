"""The addresses of a server."""

import pytest

from sppo.rundir.folder import RunError
from sppo.serving.listening import address, hosts, listen, own_names


def test_names_are_this_machines():
    assert own_names("127.0.0.1") == {"127.0.0.1", "localhost"}
    assert own_names("10.0.0.7") == {"10.0.0.7"}
    assert hosts("Box.local", 8765) == {"box.local:8765"}
    assert hosts("::1", 80) == {"[::1]", "[::1]:80", "localhost", "localhost:80"}
    assert address("::1", 80) == "http://[::1]:80"


def test_a_port_that_is_taken():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"--port {port}: .*choose another"):
            listen("127.0.0.1", port)
