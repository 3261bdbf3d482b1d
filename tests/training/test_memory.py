"""The memory that is estimated for training, against what autograd keeps in the trainer's own passes."""

import pytest
import tiny_models
from pack_memory import kept_bytes
from rich.console import Console
from small_runs import small

from sppo.policy import load as policies
from sppo.policy.memory import RECOMPUTED, activation_bytes
from sppo.progress import Terminal
from sppo.recipe import MOST_PACK_TOKENS
from sppo.rundir.folder import RunFolder
from sppo.stages.open_run import open_run
from sppo.training import memory
from sppo.training.log_probs import Tree, measure_capabilities


def pack_bytes(model, tokens):
    """What a pack of so many tokens, 16 for each prompt and response, keeps for its backward pass."""
    trees = [Tree([1] * 16, [[2] * 16]) for _ in range(tokens // 32)]
    return kept_bytes(model, trees, measure_capabilities(model))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama-3", "gemma-2", "qwen2"])
def test_bytes_of_a_token_are_those_that_a_pack_keeps(family, checkpointing, tmp_path):
    folder = tiny_models.make(family, tmp_path / "model")
    model = policies.load(folder, dtype="float32", device="cpu").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    measured = (pack_bytes(model, 512) - pack_bytes(model, 256)) / 256
    estimated = activation_bytes(model.config.to_dict(), "float32", gradient_checkpointing=checkpointing)
    if checkpointing:  # autograd keeps the inputs of layers; the estimate adds those that are computed again
        plain = activation_bytes(model.config.to_dict(), "float32", gradient_checkpointing=False)
        estimated -= RECOMPUTED * plain / model.config.get_text_config().num_hidden_layers
    # beside the layers a pack keeps the rows whose tokens are predicted, which count in models of two layers
    assert 0.4 * measured < estimated < 1.3 * measured


@pytest.mark.parametrize(("gigabytes", "tokens"), [(0.05, 512), (1.0, 4096), (1000, MOST_PACK_TOKENS)])
def test_a_pack_takes_half_of_the_memory_beside_the_weights(gigabytes, tokens, tmp_path, monkeypatch):
    folder = tiny_models.make("llama-3", tmp_path / "model", num_hidden_layers=40)
    monkeypatch.setattr("sppo.policy.memory.machine_memory", lambda: int(gigabytes * 1e9))
    recipe = small(**{"policy.model": str(folder)})
    assert memory.pack_tokens(recipe.policy, recipe.training) == tokens
    fitting = 0.5 * (gigabytes * 1e9 - memory.training_bytes(recipe.policy, recipe.training))
    if tokens < MOST_PACK_TOKENS:
        assert 2 * memory.pack_bytes(recipe.policy, recipe.training) > fitting
    if tokens > 512:
        assert memory.pack_bytes(recipe.policy, recipe.training) <= fitting


def test_a_number_in_the_recipe_is_taken_as_it_is():
    recipe = small(**{"training.pack_tokens": 7})
    assert memory.pack_tokens(recipe.policy, recipe.training) == 7


def test_a_run_keeps_the_packs_that_it_was_begun_with(tmp_path):
    terminal = Terminal(Console(quiet=True))
    folder = RunFolder(tmp_path / "run")
    begun = open_run(small(**{"training.pack_tokens": 1024}), folder, terminal)
    continued = open_run(small(), folder, terminal)
    fresh = open_run(small(), RunFolder(tmp_path / "fresh"), terminal)
    assert begun.recipe.training.pack_tokens == continued.recipe.training.pack_tokens == 1024
    assert fresh.recipe.training.pack_tokens == memory.pack_tokens(fresh.recipe.policy, small().training)
    assert fresh.executor.recipe == fresh.recipe, "workers compute with the same packs"
    assert "pack_tokens: 1024" in (tmp_path / "run" / "recipe.yaml").read_text()
