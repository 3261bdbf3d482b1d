"""What transformers is told about gradient checkpointing; that it changes no weights is tested with the training."""

import pytest
from transformers import PreTrainedModel

from sppo.recipe import RecipeError, Training
from sppo.training import gradient_checkpointing


@pytest.mark.parametrize(
    ("choice", "on_gpu", "options"),
    [
        (True, True, {"use_reentrant": False}),
        ("offload", True, {"use_reentrant": False, "offload": True}),
        ("offload", False, {"use_reentrant": False}),  # what is kept is in the machine's memory already
    ],
)
def test_offloading_is_asked_for_on_a_gpu_only(choice, on_gpu, options):
    arguments = gradient_checkpointing.arguments(Training(gradient_checkpointing=choice), on_gpu=on_gpu)
    assert arguments == {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": options}


def test_without_gradient_checkpointing_nothing_is_asked_for():
    assert gradient_checkpointing.arguments(Training(), on_gpu=True) == {"gradient_checkpointing": False}


def test_offloading_is_refused_where_transformers_does_not_have_it(monkeypatch):
    offloading = Training(gradient_checkpointing="offload")
    gradient_checkpointing.check(offloading)

    def earlier(self, gradient_checkpointing_kwargs=None):
        """The signature of transformers 5.16."""

    monkeypatch.setattr(PreTrainedModel, "gradient_checkpointing_enable", earlier)
    with pytest.raises(RecipeError, match=r"offload needs transformers 5\.17 or newer"):
        gradient_checkpointing.check(offloading)
    gradient_checkpointing.check(Training(gradient_checkpointing=True))
