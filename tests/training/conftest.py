import pytest
from training_jobs import jobs_on


@pytest.fixture
def job(tiny_model, tmp_path):
    return jobs_on(tiny_model("llama-3"), tmp_path)
