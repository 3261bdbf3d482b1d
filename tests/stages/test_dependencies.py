"""Whatever can change the result of a stage is in its fingerprint: each input is changed in turn."""

import importlib
import json
import linecache
import os
import shutil
import sys

import pytest
import yaml
from rich.console import Console

from sppo.executors.local import Local
from sppo.policy import load as policies
from sppo.progress import Terminal
from sppo.recipe import parse
from sppo.rundir import shards
from sppo.rundir.folder import RunFolder
from sppo.stages.iterations import iterations
from sppo.stages.open_run import planned_files
from sppo.stages.run import PolicyState, Run
from sppo.stages.select import Select
from sppo.tinyworld import POLICY

ORACLE = """
import numpy as np

def prefer(prompts, responses):
    return np.full((len(prompts), len(responses[0]), len(responses[0])), 0.5)
"""
ALGORITHMS = [
    "sppo",
    "dpo",
    "ipo",
    "spin",
    "sft",
    "rspo",
    "inpo",
    "comal",
    "onpo",
    "egpo",
    "mnpo",
    "nash_md",
    "rlhf",
    "rspo_released",
    "rebel",
    "blackwell",
    "egpo_released",
    "nash_prox",
]
WITHOUT_SAMPLES, WITHOUT_PREFERENCES = {"sft"}, {"sft", "spin"}
NEED_ALL = {"nash_md", "rlhf", "rebel", "blackwell"}
IN_PROCESS = {"type": "function", "own_process": False}  # hundreds of processes would take minutes to start
FUNCTION = IN_PROCESS | {"function": "dependency_oracle:prefer"}
SAMPLED = ["sample", "annotate", "select", "train", "respond", "evaluate"]
LEARNT = ["select", "train", "respond", "evaluate"]


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Files of every kind that a recipe names."""
    shutil.copytree(POLICY, tmp_path / "base")
    for name in ("train", "held_out"):
        lines = [json.dumps({"prompt": f"{name} {n}", "completion": "Yes."}) for n in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "dependency_oracle.py").write_text(ORACLE)
    (tmp_path / "dependency_held_out.py").write_text(ORACLE)
    template = json.loads((POLICY / "tokenizer_config.json").read_text()).get("chat_template")
    template = template or (POLICY / "chat_template.jinja").read_text()
    (tmp_path / "template.jinja").write_text(template)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def recipe_of(folder, algorithm, **changes):
    demonstration = {"demonstration": "completion"} if algorithm in ("sft", "spin") else {}
    mapping = {
        "iterations": 2,
        "selection": "all" if algorithm in NEED_ALL else "best_worst",
        "policy": {"model": str(folder / "base"), "chat_template": str(folder / "template.jinja")},
        "prompts": {
            "train": {"source": str(folder / "train.jsonl"), **demonstration},
            "held_out": {"source": str(folder / "held_out.jsonl")},
        },
        "sampling": {"k": 3, "max_new_tokens": 16},
        "algorithm": {"type": algorithm},
        "oracle": {"type": "panel", "members": [FUNCTION, FUNCTION]}
        if algorithm == "blackwell"
        else FUNCTION,
        "evaluation": {"oracle": IN_PROCESS | {"function": "dependency_held_out:prefer"}},
    }
    return parse(mapping, changes)


def fingerprints(folder, algorithm, **changes):
    """The fingerprint of every stage, by iteration and name, as a fresh process computes it."""
    shards._file_digest.cache_clear()
    for module in ("dependency_oracle", "dependency_held_out"):
        sys.modules.pop(module, None)
    importlib.invalidate_caches()
    linecache.clearcache()
    recipe = recipe_of(folder, algorithm, **changes)
    with open(os.devnull, "w") as nowhere:
        run = Run(recipe, RunFolder(folder / "run"), Terminal(Console(file=nowhere)), Local(recipe))
        return {(files.iteration, files.name): files.fingerprint for files in planned_files(run)}


def changed(before, after):
    assert before.keys() == after.keys()
    return {key for key in before if before[key] != after[key]}


def stages(algorithm, names, iterations=(1, 2)):
    """The stages of the given names that the algorithm has, in the given iterations."""
    absent = ({"sample"} if algorithm in WITHOUT_SAMPLES else set()) | (
        {"annotate"} if algorithm in WITHOUT_PREFERENCES else set()
    )
    return {(number, name) for number in iterations for name in names if name not in absent}


def append(path, text):
    path.write_text(path.read_text() + text)


def touch_weights(folder):
    """Another base policy: one bit of its weights differs."""
    path = next((folder / "base").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_base_policy_makes_everything_that_plays_stale(inputs, algorithm):
    before = fingerprints(inputs, algorithm)
    touch_weights(inputs)
    found = changed(before, fingerprints(inputs, algorithm))
    assert found == stages(algorithm, SAMPLED) | {(0, "respond"), (0, "evaluate")}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "change",
    [
        lambda folder: append(folder / "template.jinja", "{# another #}"),
        lambda folder: append(folder / "base" / "tokenizer.json", " "),
    ],
    ids=["chat template", "tokenizer"],
)
def test_other_tokens_make_all_stages_stale(inputs, algorithm, change):
    before = fingerprints(inputs, algorithm)
    change(inputs)
    assert changed(before, fingerprints(inputs, algorithm)) == set(before)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ["train", "held_out"])
def test_other_prompts_make_all_stages_stale(inputs, algorithm, name):
    before = fingerprints(inputs, algorithm)
    append(inputs / f"{name}.jsonl", json.dumps({"prompt": "one more", "completion": "Yes."}) + "\n")
    assert changed(before, fingerprints(inputs, algorithm)) == set(before)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_oracle_makes_what_learns_from_it_stale(inputs, algorithm):
    before = fingerprints(inputs, algorithm)
    append(inputs / "dependency_oracle.py", "\nSCALE = 2\n")
    found = changed(before, fingerprints(inputs, algorithm))
    evaluated = {(number, "evaluate") for number in (0, 1, 2)}
    if algorithm in WITHOUT_PREFERENCES:
        assert found == evaluated
    else:
        later = stages(algorithm, ["sample"], iterations=(2,))
        assert found == stages(algorithm, ["annotate", *LEARNT]) | later | evaluated


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_held_out_oracle_makes_the_evaluation_stale_alone(inputs, algorithm):
    before = fingerprints(inputs, algorithm)
    append(inputs / "dependency_held_out.py", "\nSCALE = 2\n")
    found = changed(before, fingerprints(inputs, algorithm))
    assert found == {(number, "evaluate") for number in (0, 1, 2)}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("key", "value", "first"),
    [
        ("seed", 7, "prompts"),
        ("policy.dtype", "bfloat16", "sample"),
        ("policy.template_arguments", {"enable_thinking": False}, "prompts"),
        ("policy.template_date", "2024-07-26", "prompts"),
        ("policy.thought", ["<think>", "</think>"], "sample"),
        ("sampling.temperature", 0.5, "sample"),
        ("sampling.max_new_tokens", 8, "prompts"),
        ("training.truncated_responses", "train", "select"),
        ("training.max_tokens", 64, "select"),
        ("training.learning_rate", 1e-3, "train"),
    ],
)
def test_a_changed_value_makes_its_stage_and_all_after_it_stale(inputs, algorithm, key, value, first):
    before = fingerprints(inputs, algorithm)
    found = changed(before, fingerprints(inputs, algorithm, **{key: value}))
    order = ["prompts", *SAMPLED]
    if key in ("sampling.temperature", "policy.thought") and algorithm in WITHOUT_SAMPLES:
        first = "respond"  # nothing is sampled before
    after = order[order.index(first) :]
    for number, name in stages(algorithm, [name for name in after if name not in ("prompts",)]):
        assert (number, name) in found, f"{name} of iteration {number} does not depend on {key}"
    kept = stages(algorithm, order[: order.index(first)], iterations=(1,))
    assert not found & kept, f"{key} cannot change these"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_policy_in_the_loss_is_in_the_fingerprint(inputs, algorithm):
    """The reference policies and pi_t, each replaced by another one."""
    recipe = recipe_of(inputs, algorithm)
    with open(os.devnull, "w") as nowhere:
        run = Run(recipe, RunFolder(inputs / "run"), Terminal(Console(file=nowhere)), Local(recipe))
    _, second = iterations(run)
    select = second.select

    def fingerprint(policy, references):
        return Select(run, 2, select.prompts, policy, second.sample, second.annotate, references).fingerprint

    other = PolicyState(inputs / "other", "another policy")
    as_planned = fingerprint(select.policy, select.reference_policies)
    assert as_planned == select.fingerprint
    assert fingerprint(other, select.reference_policies) != as_planned
    for number in range(len(select.reference_policies)):
        replaced = list(select.reference_policies)
        replaced[number] = other
        assert fingerprint(select.policy, replaced) != as_planned


def test_another_ensemble_is_another_selection_of_the_same_comparisons(inputs):
    panel = {"type": "panel", "members": [FUNCTION, FUNCTION]}
    before = fingerprints(inputs, "sppo", oracle=panel)
    found = changed(before, fingerprints(inputs, "sppo", oracle=panel | {"ensemble": "pessimistic"}))
    assert found == stages("sppo", LEARNT) | stages("sppo", ["sample", "annotate"], iterations=(2,))


def gated(policy):
    """An oracle that computes with a policy; the held-out oracle does not."""
    return {"type": "similarity", "measure": "hidden_states", "policy": policy, "oracle": FUNCTION}


def test_oracles_that_compute_with_a_policy_depend_on_it(inputs):
    """On pi_t in its own iteration, on the base in all, and on another policy by its files."""
    shutil.copytree(inputs / "base", inputs / "other")

    def plan(policy):
        recipe = recipe_of(inputs, "sppo", oracle=gated(policy))
        with open(os.devnull, "w") as nowhere:
            run = Run(recipe, RunFolder(inputs / "run"), Terminal(Console(file=nowhere)), Local(recipe))
        return run, list(iterations(run))

    run, (first, second) = plan("current")
    assert first.annotate.reads()[1:] == (run.base.fingerprint,)
    assert second.annotate.reads()[1:] == (second.policy.fingerprint,) != (run.base.fingerprint,)
    assert second.annotate.work().policy == second.policy.folder.resolve()
    assert second.policy.fingerprint in second.evaluate.reads()
    assert second.evaluate.work().current == second.policy.folder.resolve()
    run, (_, second) = plan("base")
    assert second.annotate.reads()[1:] == (run.base.fingerprint,)
    _, (_, second) = plan(str(inputs / "other"))
    assert second.annotate.reads()[1:] == ()
    before = fingerprints(inputs, "sppo", oracle=gated(str(inputs / "other")))
    (inputs / "other" / "config.json").write_text((inputs / "other" / "config.json").read_text() + " ")
    found = changed(before, fingerprints(inputs, "sppo", oracle=gated(str(inputs / "other"))))
    later = stages("sppo", ["sample"], iterations=(2,))
    assert found == stages("sppo", ["annotate", *LEARNT]) | later | {(n, "evaluate") for n in (0, 1, 2)}


def test_egpo_as_released_trains_every_second_policy_from_where_the_look_ahead_began(inputs):
    def plan(**changes):
        recipe = recipe_of(inputs, "egpo_released", **changes)
        with open(os.devnull, "w") as nowhere:
            return list(
                iterations(
                    Run(recipe, RunFolder(inputs / "run"), Terminal(Console(file=nowhere)), Local(recipe))
                )
            )

    first, second, third, fourth = plan(iterations=4)
    begins = [first.policy, first.policy, third.policy, third.policy]
    assert [iteration.train.initial for iteration in (first, second, third, fourth)] == begins
    assert second.policy != first.policy
    assert second.train.reads() == (second.select.fingerprint, first.policy.fingerprint)


def test_identities_are_computed_once(inputs, monkeypatch):
    """Files of any size are read once in a process, however many stages depend on them."""
    read = []
    original = shards.hashlib.file_digest
    monkeypatch.setattr(
        shards.hashlib, "file_digest", lambda file, name: read.append(file.name) or original(file, name)
    )
    fingerprints(inputs, "sppo")
    assert len(read) == len(set(read)) > 5
    assert policies.digest(inputs / "base")
    assert len(read) == len(set(read))


def test_a_recipe_read_back_is_the_recipe(inputs):
    recipe = recipe_of(inputs, "sppo")
    assert parse(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe
