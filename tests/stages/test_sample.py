"""The responses of a sampler, looked at where they come in."""

import math

import pytest
from small_runs import SMALL

from sppo.recipe import parse
from sppo.rundir.tables import PromptRow
from sppo.sampling import Response, SamplingError
from sppo.stages.models import Models
from sppo.stages.sample import DrawResponses


def table(log_probs):
    rows = [PromptRow("p1", [{"role": "user", "content": "Hello"}], [5, 6], None)]
    drawn = [[Response([7, 8], "stop", [-0.5, 0.0]), Response([7, 8], "length", log_probs)]]
    return DrawResponses._table(None, Models(parse(SMALL)), rows, drawn)


@pytest.mark.parametrize(
    ("log_probs", "fault"),
    [
        ([-1.0, math.nan], "the log-probability nan"),
        ([math.inf, -1.0], "the log-probability inf"),
        ([-1.0, -math.inf], "the log-probability -inf"),
        ([0.5, -1.0], "the log-probability 0.5; it must be finite and at most 0"),
        ([-1.0], "1 log-probabilities for 2 tokens"),
        ([], "0 log-probabilities for 2 tokens"),
    ],
)
def test_log_probabilities_of_an_engine_that_are_none_are_refused(log_probs, fault):
    with pytest.raises(SamplingError, match=f"prompt 'p1': the engine transformers gives response 1 {fault}"):
        table(log_probs)


def test_log_probabilities_are_kept_as_they_are():
    assert table([-1.0, -2.0]).to_pylist()[0]["responses"][1]["log_prob"] == -3.0
