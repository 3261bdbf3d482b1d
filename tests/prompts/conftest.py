import pytest
from prompt_files import as_source

from sppo import prompts
from sppo.policy import chat_format as chat


@pytest.fixture(scope="module")
def llama(tiny_model):
    return chat.load(str(tiny_model("llama-3")))


@pytest.fixture
def split(llama, tmp_path, monkeypatch):
    """Writes files into an otherwise empty working folder and splits their prompts."""
    monkeypatch.chdir(tmp_path)

    def call(train, held_out=1, **options):
        settings = {
            "iterations": 1,
            "per_iteration": None,
            "max_tokens": 100,
            "skip_invalid": False,
            "seed": 0,
        }
        return prompts.split(as_source(train), as_source(held_out), chat=llama, **(settings | options))

    return call
