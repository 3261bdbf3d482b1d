"""Examples that are too large for the memory are named, before training begins and when an allocation fails."""

import logging

import pytest
import torch
from training_jobs import examples_table

from sppo.algorithms import sppo as sppo_algorithm
from sppo.policy import load as policies
from sppo.recipe import Training
from sppo.training import train
from sppo.training.examples import TrainingError
from sppo.training.out_of_memory import warn_of_large_examples


def exhaust(self, responses):
    """A loss that asks for more memory than any machine has."""
    return torch.empty(1 << 55)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            r"step 1: the memory is too small for 4 prompts with their responses \(\d+ tokens side by side\); lower",
        ),
        (
            {"pack_tokens": 1},
            r"step 1: the memory is too small for the prompt p\d+ with its responses \(\d+ tokens\); set"
            " training.gradient_checkpointing, or shorten the responses by training.max_tokens",
        ),
    ],
)
def test_an_allocation_that_fails_names_the_prompts_and_the_way_out(job, monkeypatch, settings, message):
    monkeypatch.setattr(sppo_algorithm.SPPO, "loss", exhaust)
    with pytest.raises(TrainingError, match=message):
        train(job(**settings))


def test_other_errors_stay_what_they_are(job, monkeypatch):
    monkeypatch.setattr(sppo_algorithm.SPPO, "loss", lambda self, responses: torch.ones(2) + torch.ones(3))
    with pytest.raises(RuntimeError, match="must match the size"):
        train(job())


@pytest.mark.parametrize(("gigabytes", "warned"), [(0.0005, True), (1, False)])
def test_an_example_that_does_not_fit_is_named_before_training(
    tiny_model, monkeypatch, caplog, gigabytes, warned
):
    model = policies.load(tiny_model("llama-3"), dtype="float32", device="cpu")
    table = examples_table(model)
    rows = table.to_pylist()
    tokens = [
        len(row["prompt_token_ids"]) + sum(len(response["token_ids"]) for response in row["responses"])
        for row in rows
    ]
    largest = max(range(len(rows)), key=tokens.__getitem__)
    monkeypatch.setattr("sppo.policy.memory.machine_memory", lambda: int(gigabytes * 1e9))
    with caplog.at_level(logging.WARNING):
        warn_of_large_examples(table, model, Training())
    assert bool(caplog.messages) == warned
    if warned:
        assert caplog.messages[0].startswith(
            f"the prompt '{rows[largest]['prompt_id']}' has {tokens[largest]} tokens with its responses"
        )
