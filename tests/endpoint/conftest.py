import pytest

from sppo.endpoint.client import Endpoint
from sppo.recipe import EndpointConfig


@pytest.fixture
def endpoint(tmp_path):
    """Makes the client of a server, or of a URL."""

    def make(server, **more):
        cache = str(tmp_path / "answers.sqlite")
        settings = {
            "url": getattr(server, "url", server),
            "model": "judge",
            "retries": 1,
            "cache": cache,
            **more,
        }
        return Endpoint(EndpointConfig(**settings))

    return make
