from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_texts import SMALLEST, load_text, smallest, with_train

from sppo.recipe import PromptSource, Recipe, dump, load, parse, parse_oracle

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

# what a recipe means


def test_the_defaults_are_those_of_the_paper_where_it_says_so(tmp_path):
    recipe = load_text(tmp_path, SMALLEST)
    assert (recipe.iterations, recipe.sampling.k, recipe.algorithm.eta) == (3, 5, 1000.0)
    assert (recipe.sampling.temperature, recipe.sampling.top_p) == (1.0, 1.0)
    assert recipe.selection == "best_worst"
    assert recipe.prompts.train == PromptSource(source="a.jsonl")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1e-7", 1e-7), ("5e-7", 5e-7), ("1E+2", 100.0), ("2.5e3", 2500.0), ("1_0e2", 1000.0), ("1", 1.0)],
)
def test_numbers_as_people_write_them(tmp_path, written, meant):
    found = load_text(tmp_path, f"{SMALLEST}training: {{learning_rate: {written}}}\n").training.learning_rate
    assert found == meant
    assert isinstance(found, float)


def test_a_whole_number_may_have_an_exponent(tmp_path):
    recipe = load_text(tmp_path, with_train("a.jsonl, per_iteration: 2e4"))
    assert recipe.prompts.per_iteration == 20_000
    assert isinstance(recipe.prompts.per_iteration, int)


def test_sources_one_for_all_or_one_for_each_iteration(tmp_path):
    recipe = load_text(tmp_path, with_train("[a.txt, {source: b, column: x}, c.json]"))
    assert recipe.prompts.train == [
        PromptSource(source="a.txt"),
        PromptSource(source="b", column="x"),
        PromptSource(source="c.json"),
    ]


def test_a_bare_no_is_no(tmp_path):
    assert (
        load_text(tmp_path, SMALLEST + "training: {mixed_precision: no}\n").training.mixed_precision == "no"
    )


def test_anchors_and_merge_keys(tmp_path):
    recipe = load_text(
        tmp_path, SMALLEST + "sampling: &s {k: 3}\nevaluation:\n  <<: {responses: 2}\n  confidence: 0.9\n"
    )
    assert (recipe.sampling.k, recipe.evaluation.responses, recipe.evaluation.confidence) == (3, 2, 0.9)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    assert load_text(tmp_path, b"\xef\xbb\xbf" + SMALLEST.encode()) == load_text(tmp_path, SMALLEST)


def test_a_recipe_cannot_be_changed(tmp_path):
    recipe = load_text(tmp_path, SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


# presets: the table of docs/design.md


def _preset(name: str, **more: object) -> Recipe:
    return parse(smallest() | {"oracle": {}, "preset": name} | more)


def test_the_paper():
    recipe = _preset("paper")
    assert (recipe.sampling.temperature, recipe.sampling.top_p, recipe.sampling.k) == (1.0, 1.0, 5)
    assert (recipe.oracle.type, recipe.oracle.probability, recipe.oracle.text) == (
        "pairrm",
        "pairwise",
        "prompt",
    )
    assert recipe.selection == "best_worst"
    assert recipe.algorithm.reduction == "sum"
    assert (recipe.algorithm.eta, recipe.algorithm.log_partition) == (1e3, "half_eta")
    training = recipe.training
    assert (training.learning_rate, training.schedule, training.warmup_ratio) == (5e-7, "linear", 0.1)
    assert (training.epochs, training.keep_epochs, training.batch_prompts) == (18, 1, 64)


def test_the_released_code():
    recipe = _preset("official-code")
    assert (recipe.sampling.temperature, recipe.sampling.top_p, recipe.sampling.k) == (0.7, 0.9, 5)
    assert recipe.sampling.max_new_tokens == 2048
    assert (recipe.oracle.type, recipe.oracle.probability, recipe.oracle.text) == (
        "pairrm",
        "averaged",
        "chat",
    )
    assert recipe.selection == "best_worst"
    assert recipe.algorithm.reduction == "mean"
    assert (recipe.algorithm.eta, recipe.algorithm.log_partition) == (1e3, "half_eta")
    training = recipe.training
    assert (training.learning_rate, training.schedule, training.warmup_ratio) == (5e-7, "linear", 0.1)
    assert (training.epochs, training.keep_epochs, training.batch_prompts) == (1, None, 64)
    assert training.optimizer == "rmsprop"
    assert (recipe.prompts.max_tokens, training.max_tokens) == (512, 1024)


def test_a_recipe_stands_over_its_preset_key_by_key():
    recipe = _preset("official-code", sampling={"temperature": 1.0}, training={"learning_rate": 1e-6})
    assert (recipe.sampling.temperature, recipe.sampling.top_p) == (1.0, 0.9)
    assert (recipe.training.learning_rate, recipe.training.optimizer) == (1e-6, "rmsprop")


def test_another_type_of_oracle_keeps_nothing_of_the_presets():
    recipe = _preset("official-code", oracle={"type": "function", "function": "mine:f"})
    assert recipe.oracle == parse_oracle({"type": "function", "function": "mine:f"})
    assert recipe.oracle.text == "prompt"


def test_the_same_type_of_oracle_keeps_what_it_does_not_say():
    assert (
        _preset("official-code", oracle={"type": "pairrm", "model": "here"}).oracle.probability == "averaged"
    )


def test_an_override_stands_over_both_and_may_name_the_preset():
    mapping = smallest() | {"sampling": {"k": 4}}
    recipe = parse(mapping, {"preset": "official-code", "sampling.top_p": 0.5})
    assert (recipe.sampling.k, recipe.sampling.top_p, recipe.sampling.temperature) == (4, 0.5, 0.7)
    assert mapping["sampling"] == {"k": 4}


def test_overrides_reach_any_depth_and_make_sections(tmp_path):
    recipe = load_text(tmp_path, SMALLEST, {"sampling.k": 7, "seed": 9, "oracle.timeout_seconds": 2})
    assert (recipe.sampling.k, recipe.seed, recipe.oracle.timeout_seconds) == (7, 9, 2.0)
    assert recipe.oracle.function == "mine:f"


def test_an_override_of_the_oracles_type_begins_anew(tmp_path):
    assert load_text(tmp_path, SMALLEST, {"oracle.type": "panel"}).oracle == parse_oracle({"type": "panel"})


# written down and read back


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("*.yaml")))
def test_the_shipped_recipes_load_and_survive_a_round_trip(tmp_path, name):
    recipe = load(RECIPES / name)
    assert load_text(tmp_path, dump(recipe)) == recipe


_CHARACTERS = st.characters(
    exclude_categories=["Cs"], exclude_characters="\0"
)  # those that a recipe file can hold
_TEXT = st.text(_CHARACTERS, min_size=1, max_size=12) | st.sampled_from(
    ["no", "null", "1e3", "5e21889", "~", "2024-01-01", "0x1f", "1:30", "- a", "a: b", "#", "\ud7ff", "1_000"]
)
_POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
_SOURCE = st.fixed_dictionaries({"source": _TEXT}, optional={"split": _TEXT, "limit": st.integers(1, 10**12)})
_FUNCTION = st.fixed_dictionaries({"type": st.just("function"), "function": st.just("a.b:c")})
_PANEL = st.fixed_dictionaries(
    {"type": st.just("panel"), "members": st.lists(_FUNCTION, min_size=1, max_size=2)}
)


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    preset=st.sampled_from([None, "paper", "official-code"]),
    model=_TEXT,
    revision=st.none() | _TEXT,
    source=_SOURCE,
    held_out=st.integers(1, 10**9) | _SOURCE,
    eta=_POSITIVE,
    log_partition=st.sampled_from(["half_eta", "samples"]) | st.floats(allow_nan=False, allow_infinity=False),
    arguments=st.dictionaries(_TEXT, _TEXT | st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    oracle=_FUNCTION | _PANEL,
)
def test_what_is_dumped_loads_to_an_equal_recipe(
    tmp_path, preset, model, revision, source, held_out, eta, log_partition, arguments, oracle
):
    recipe = parse(
        {
            "preset": preset,
            "policy": {"model": model, "revision": revision},
            "prompts": {"train": source, "held_out": held_out},
            "oracle": oracle,
            "algorithm": {"eta": eta, "log_partition": log_partition},
            "training": {"optimizer_args": arguments},
        }
    )
    assert load_text(tmp_path, dump(recipe)) == recipe
