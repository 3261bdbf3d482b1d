import pytest
from recipe_texts import SMALLEST, refusal_lines, smallest, with_oracle, with_train

from sppo.recipe import Recipe, RecipeError, load, parse, parse_oracle, trl_names


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (SMALLEST + "itertions: 3\n", ["itertions: unknown key; did you mean `iterations`?"]),
        (
            SMALLEST + "sampling: {temprature: 1}\n",
            ["sampling.temprature: unknown key; did you mean `temperature`?"],
        ),
        (
            SMALLEST + "learning_rate: 1e-6\n",
            ["learning_rate: unknown key; did you mean `training.learning_rate`?"],
        ),
        (
            SMALLEST + "guard: {colour: red}\n",
            [
                "guard.colour: unknown key; known here: max_kl, max_kl_per_token, max_length_ratio, max_repetition, max_sampler_deviation,"
                " max_task_fall, max_truncated_rise, min_length_ratio, min_trained_share, on_failure"
            ],
        ),
        (
            with_oracle("{type: function, functon: mine:f}"),
            [
                "oracle.function: missing; it has no default",
                "oracle.functon: unknown key; did you mean `function`?",
            ],
        ),
        (
            with_oracle("{type: function, function: mine:f, timeout_second: 3}"),
            ["oracle.timeout_second: unknown key; did you mean `timeout_seconds`?"],
        ),
        (with_oracle("{type: pairrm, modle: x}"), ["oracle.modle: unknown key; did you mean `model`?"]),
        (
            with_oracle("{type: panel, members: [{type: pairrm, modle: x}, {type: functon}]}"),
            [
                "oracle.members.0.modle: unknown key; did you mean `model`?",
                "oracle.members.1.type: 'functon' is unknown; did you mean 'function'? Known: function, panel, pairrm, reward_model,"
                " general_preference, judge, policy_judge, verifiable, length_controlled, length_matched, near_tie, similarity, fixed_opponent",
            ],
        ),
        (
            with_oracle(
                "{type: panel, members: [{type: panel, members: [{type: pairrm, modle: x}], weigths: [1]}]}"
            ),
            [
                "oracle.members.0.members.0.modle: unknown key; did you mean `model`?",
                "oracle.members.0.weigths: unknown key; did you mean `weights`?",
            ],
        ),
        (
            with_train("{sorce: x}"),
            [
                "prompts.train.source: missing; it has no default",
                "prompts.train.sorce: unknown key; did you mean `source`?",
            ],
        ),
        (
            with_train("[{source: a, colunm: b}, b, c]"),
            ["prompts.train.0.colunm: unknown key; did you mean `column`?"],
        ),
        (
            with_train("a.jsonl, held_out: {source: a, splt: b}"),
            ["prompts.held_out.splt: unknown key; did you mean `split`?"],
        ),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_right_one(tmp_path, text, refusal):
    assert refusal_lines(tmp_path, text) == [f"{tmp_path}/recipe.yaml cannot be used:", *refusal]


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (SMALLEST + "sampling: {k: 1}\n", "sampling.k: 1, but algorithm.type: sppo compares responses"),
        (
            SMALLEST + "algorithm: {type: spin}\n",
            "prompts.train.demonstration: missing, but algorithm.type: spin learns from demonstrations; name the"
            " column that holds them, e.g. {source: a.jsonl, demonstration: completion}",
        ),
        (
            with_train("[a, {source: b, demonstration: chosen}, c]") + "algorithm: {type: sft}\n",
            "prompts.train.0.demonstration: missing, but algorithm.type: sft",
        ),
        (
            SMALLEST + "algorithm: {type: rlhf}\n",
            "selection: best_worst, but algorithm.type: rlhf needs all K responses; set it to all",
        ),
        (
            SMALLEST.replace(
                "oracle: {type: function, function: mine:f}", "oracle: {type: pairrm, model: m, opponents: 1}"
            )
            + "selection: all\nalgorithm: {type: nash_md}\n",
            "oracle.comparisons.type: random, but algorithm.type: nash_md needs the comparisons of all pairs; set it to all",
        ),
        (
            SMALLEST + "selection: all\nalgorithm: {type: blackwell}\n",
            "oracle.type: function, but algorithm.type: blackwell chooses between several annotators; name them in oracle:"
            " {type: panel, members: [...]}",
        ),
        (
            SMALLEST.replace("{type: function, function: mine:f}", "{type: panel, weights: [0, 1, 0]}")
            + "selection: all\nalgorithm: {type: blackwell}\n",
            "oracle: 1 member of the panel has a weight, but algorithm.type: blackwell chooses between several annotators",
        ),
        (
            SMALLEST.replace("{type: function, function: mine:f}", "{type: panel, ensemble: optimistic}")
            + "selection: all\nalgorithm: {type: nash_md}\n",
            "oracle.ensemble: optimistic, but algorithm.type: nash_md computes its payoffs from the comparisons and not from P^",
        ),
        (
            SMALLEST.replace(
                "{type: function, function: mine:f}",
                "{type: near_tie, oracle: {type: panel, ensemble: pessimistic}}",
            ),
            "oracle.oracle.ensemble: pessimistic has no effect inside another oracle, which takes the matrix alone",
        ),
        (
            SMALLEST.replace(
                "{type: function, function: mine:f}",
                "{type: panel, ensemble: pessimistic, comparisons: {type: random, budget: 4}}",
            ),
            "oracle.ensemble: pessimistic needs the comparisons of all pairs by every member, but comparisons.type is random",
        ),
        (
            SMALLEST + "evaluation: {oracle: {type: panel, ensemble: pessimistic}}\n",
            "evaluation.oracle.ensemble: pessimistic has no effect on the win rate of one policy against another",
        ),
        (
            SMALLEST + "algorithm: {type: inpo, eta: 30, tau: 0.1}\n",
            "algorithm.tau: 0.1, but eta tau = 3 is the reference policy's share of pi_{t+1}, which is at most 1;"
            " lower tau to 0.0333333 or less",
        ),
        (SMALLEST + "algorithm: {type: inpo, opponents: 2}\n", "algorithm.opponents: unknown key"),
        (
            SMALLEST + "algorithm: {type: onpo, tau: 0.1}\n",
            "algorithm.tau: unknown key",
        ),
        (
            SMALLEST + "algorithm: {type: spin, beta: 1}\n",
            "algorithm.beta: unknown key; known here: lam, type",
        ),
        (SMALLEST + "algorithm: {type: sft, eta: 1}\n", "algorithm.eta: unknown key; known here: type"),
        (
            SMALLEST.replace("oracle: {type: function, function: mine:f}\n", ""),
            "oracle: missing, but algorithm.type: sppo learns from preferences",
        ),
        (SMALLEST + "sampling: {k: 2.5}\n", "sampling.k: must be a whole number (got 2.5)"),
        (SMALLEST + "sampling: {k: true}\n", "sampling.k: must be a whole number (got True)"),
        (SMALLEST + "sampling: {k: '5'}\n", "sampling.k: must be a whole number (got '5')"),
        (SMALLEST + "sampling:\n", "sampling: must be a mapping of keys to values (got None)"),
        (SMALLEST + "sampling: [3]\n", "sampling: must be a mapping of keys to values (got [3])"),
        (
            SMALLEST + "sampling: {top_p: 1.01}\n",
            "sampling.top_p: must be less than or equal to 1 (got 1.01)",
        ),
        (SMALLEST + "algorithm: {eta: 0}\n", "algorithm.eta: must be greater than 0 (got 0)"),
        (SMALLEST + "algorithm: {eta: -1e3}\n", "algorithm.eta: must be greater than 0 (got -1000)"),
        (SMALLEST + "algorithm: {type: dpo, eta: 1}\n", "algorithm.eta: unknown key; did you mean `beta`?"),
        (SMALLEST + "algorithm: {eta: .nan}\n", "algorithm.eta: must be a finite number (got nan)"),
        (SMALLEST + "algorithm: {eta: .inf}\n", "algorithm.eta: must be a finite number (got inf)"),
        (SMALLEST + "algorithm: {eta: 1e999}\n", "algorithm.eta: must be a finite number (got inf)"),
        (SMALLEST + "algorithm: {eta: true}\n", "algorithm.eta: must be a number (got True)"),
        (
            SMALLEST + "algorithm: {log_partition: half}\n",
            "algorithm.log_partition: must be 'half_eta' or 'samples' or a number (got 'half')",
        ),
        (
            SMALLEST + "training: {learning_rate: 0}\n",
            "training.learning_rate: must be greater than 0 (got 0)",
        ),
        (
            SMALLEST + "training: {schedule: linaer}\n",
            "training.schedule: must be 'linear', 'cosine', 'constant' or 'constant_with_warmup'"
            " (got 'linaer'); did you mean 'linear'?",
        ),
        (
            SMALLEST + "training: {keep_epochs: 2}\n",
            "training.keep_epochs: 2 is beyond the schedule of 1 epochs; raise epochs",
        ),
        (
            SMALLEST + "training: {gradient_checkpointing: 'yes'}\n",
            "training.gradient_checkpointing: must be true or false or 'offload' (got 'yes')",
        ),
        (
            SMALLEST + "training: {devices: all}\n",
            "training.devices: must be a whole number or 'auto' (got 'all')",
        ),
        (SMALLEST + "report_to: 1\n", "report_to: must be a list (got 1)"),
        (SMALLEST + "seed: 2024-01-01\n", "seed: must be a whole number (got datetime.date(2024, 1, 1))"),
        (
            SMALLEST + "preset: papr\n",
            "preset: must be 'paper' or 'official-code' (got 'papr'); did you mean 'paper'?",
        ),
        (SMALLEST + "iterations: 0\n", "iterations: must be greater than or equal to 1 (got 0)"),
        (
            with_train("[a, b]"),
            "prompts.train: 2 sources for 3 iterations; give one source for all, or one for each",
        ),
        (
            with_train("5"),
            "prompts.train: must be a file, a hub data set, or a mapping with the key `source` (got 5)",
        ),
        (
            with_train("{source: a, limit: 0}"),
            "prompts.train.limit: must be greater than or equal to 1 (got 0)",
        ),
        (with_train("a, held_out: 0"), "prompts.held_out: at least 1 held-out prompt is needed"),
        (with_train("a, held_out: true"), "prompts.held_out: must be a source of prompts, or a whole number"),
        (with_oracle("panel"), "oracle: must be a mapping of keys to values (got 'panel')"),
        (
            with_oracle("{function: mine:f}"),
            "oracle.type: missing; one of function, panel, pairrm, reward_model, general_preference, judge, policy_judge, verifiable, length_controlled, length_matched, near_tie, similarity, fixed_opponent",
        ),
        (with_oracle("{type: functon}"), "oracle.type: 'functon' is unknown; did you mean 'function'?"),
        (
            with_oracle("{type: function, function: mine.f}"),
            "oracle.function: must name a Python function as module:f",
        ),
        (
            with_oracle("{type: function, function: ..:f}"),
            "oracle.function: must name a Python function as module:f",
        ),
        (
            with_oracle("{type: function, function: 'm:f', timeout_seconds: 0}"),
            "oracle.timeout_seconds: must be greater",
        ),
        (with_oracle("{type: panel, weights: [1, 2]}"), "oracle.weights: 2 for 3 members; give one for each"),
        (
            with_oracle("{type: panel, weights: [1, 2, -3]}"),
            "oracle.weights: [1.0, 2.0, -3.0]; none may be negative",
        ),
        (
            with_oracle("{type: panel, weights: [0, 0, 0]}"),
            "oracle.weights: [0.0, 0.0, 0.0]; none may be negative",
        ),
        (
            with_oracle("{type: panel, weights: [1, 2, .nan]}"),
            "oracle.weights.2: must be a finite number (got nan)",
        ),
        (
            SMALLEST.replace("model: m", "model: 7"),
            "policy.model: must be a string, in quotes if it looks like",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(tmp_path, text, refusal):
    lines = refusal_lines(tmp_path, text)
    assert len(lines) == 2
    assert lines[1].startswith(refusal)


def test_every_wrong_field_is_named_at_once(tmp_path):
    lines = refusal_lines(tmp_path, "seed: -1\nsampling: {k: 0, topp: 1}\n")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "seed",
        "policy",
        "prompts",
        "sampling.k",
        "sampling.topp",
        "oracle",
    ]


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("- a\n- b\n", "a recipe is a mapping of keys to values, not list"),
        ("words", "a recipe is a mapping of keys to values, not str"),
        ("", "the recipe is empty"),
        ("# nothing\n", "the recipe is empty"),
        (SMALLEST + "seed: 1\nseed: 2\n", "the key 'seed' is given twice (line 5)"),
        (SMALLEST + "sampling: {k: 3, k: 4}\n", "the key 'k' is given twice (line 4)"),
        (SMALLEST + "sampling: {on: 4}\n", "the key True (line 4) is not a string; put it in quotes"),
        (SMALLEST + "? [a, b]\n: c\n", "the key ['a', 'b'] (line 4) is not a string; put it in quotes"),
        (SMALLEST + "\tseed: 1\n", "line 4, column 1"),
        (SMALLEST + "---\n" + SMALLEST, "expected a single document"),
        (
            SMALLEST + "seed: !!python/object/apply:os.getcwd []\n",
            "(line 4): recipes have no tags; remove it",
        ),
        (SMALLEST + "seed: 2024-99-99\n", "not valid YAML: month must be in 1..12"),
        (SMALLEST + "seed: " + "9" * 5000 + "\n", "not valid YAML: Exceeds the limit"),
        (
            SMALLEST + "seed: " + "[" * 3000 + "]" * 3000 + "\n",
            "line 4: a recipe has at most 10,000 values in at most 50 levels",
        ),
        (SMALLEST + "seed: \x00\n", "unacceptable character"),
        (
            SMALLEST.encode() + b"# caf\xe9\n",
            "line 4: not UTF-8 (invalid continuation byte); save the recipe as UTF-8",
        ),
        (SMALLEST.encode("utf-16"), "line 1: not UTF-8"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, refusal):
    lines = refusal_lines(tmp_path, text)
    assert refusal in "\n".join(lines)
    assert lines[0].startswith(f"{tmp_path}/recipe.yaml")


def test_a_recipe_that_is_not_there_or_is_a_folder(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml: there is no such recipe; name a YAML file, or"):
        load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("key", "refusal"),
    [
        ("sampling.temprature", "sampling.temprature: unknown key; did you mean `temperature`?"),
        ("", ": unknown key; known here: algorithm"),
        ("sampling..k", "sampling.: unknown key; known here: batch_tokens"),
        ("seed.x", "seed: must be a whole number"),
        ("prompts.train.0.source", "prompts.train.source: missing"),
    ],
)
def test_an_override_of_no_key_is_refused(tmp_path, key, refusal):
    assert refusal_lines(tmp_path, SMALLEST, {key: 7})[1].startswith(refusal)


@pytest.mark.parametrize(
    ("mapping", "refusal"),
    [
        (
            {},
            "type: missing; one of function, panel, pairrm, reward_model, general_preference, judge, policy_judge, verifiable, length_controlled, length_matched, near_tie, similarity, fixed_opponent",
        ),
        ({"type": "function", "functon": "a:b"}, "functon: unknown key; did you mean `function`?"),
        ({"type": "panel", "weights": [1.0]}, "weights: 1 for 3 members; give one for each"),
    ],
)
def test_an_oracle_alone_has_the_same_checks(mapping, refusal):
    with pytest.raises(RecipeError) as caught:
        parse_oracle(mapping)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the oracle cannot be used:"
    assert f"  {refusal}" in lines


def test_a_panel_whose_members_see_another_text_is_refused(tmp_path):
    text = with_oracle("{type: panel, members: [{type: pairrm, text: chat}]}")
    assert refusal_lines(tmp_path, text)[1] == (
        "oracle: a member has text: chat, the panel prompt; make them the same"
    )


def test_no_model_is_asked_to_run_its_own_python_unless_told_so():
    assert not Recipe.model_validate(smallest()).policy.trust_remote_code
    with pytest.raises(RecipeError, match=r"policy\.trust_remote_code: must be true or false"):
        parse(smallest(), {"policy.trust_remote_code": "yes"})


def test_adapters_are_checked_with_what_they_are_combined_with():

    plain = {"policy": {"model": "m"}, "prompts": {"train": "p.jsonl"}, "oracle": {"type": "panel"}}
    lora = {"training.adapter": {"type": "lora"}}
    assert parse(plain, lora).training.adapter.target_modules == "all-linear"
    assert parse(plain, lora | {"policy.quantization": "nf4"}).policy.quantization == "nf4"
    for changes, message in (
        (
            {"training.adapter": {"lora_alhpa": 8}},
            r"training.adapter.lora_alhpa: unknown key; .*`lora_alpha`",
        ),
        ({"training.adapter": {"r": 0}}, r"training.adapter.r: must be greater than or equal to 1"),
        ({"training.adapter": {"target_modules": []}}, r"target_modules.*must name at least one layer"),
        ({"policy.quantization": "nf4"}, r"policy.quantization: nf4 weights cannot be trained"),
        ({"policy.quantization": "int8"}, r"policy.quantization: must be 'nf4'"),
        (
            lora | {"policy.quantization": "nf4", "training.adapter.merge": True},
            r"training.adapter.merge: .* round the merged weights to nf4 and lose",
        ),
        (lora | {"training.save_dtype": "bfloat16"}, r"training.save_dtype: bfloat16, but a kept adapter"),
        (
            lora | {"training.sharding": "fsdp2", "training.devices": 2},
            r"training.sharding: fsdp2, but an adapter is trained with a whole copy",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            parse(plain, changes)


@pytest.mark.parametrize("name", trl_names.NAMES)
def test_a_name_of_trl_is_answered_with_the_key_that_does_the_same(name):
    """At the top of a recipe, where TRL's settings stand; what is our own key elsewhere is answered by the usual rule."""
    key = trl_names.NAMES[name][0]
    with pytest.raises(RecipeError) as refused:
        parse({"policy": {"model": "m"}, "prompts": {"train": "a"}, "oracle": {"type": "panel"}, name: 1})
    assert f"{name}: unknown key; here it is `{key}`" in str(refused.value)


def test_the_answer_depends_on_the_algorithm():
    def refusal(algorithm):
        with pytest.raises(RecipeError) as refused:
            parse(
                {
                    "policy": {"model": "m"},
                    "prompts": {"train": "a"},
                    "oracle": {"type": "panel"},
                    "algorithm": algorithm,
                    "beta": 0.1,
                }
            )
        return str(refused.value)

    assert "beta: unknown key; here it is `algorithm.eta` (1 / beta" in refusal({"type": "sppo"})
    assert "beta: unknown key; did you mean `algorithm.beta`?" in refusal({"type": "dpo"})
    assert "algorithm.eta`" not in refusal({"type": "ipo"})


@pytest.mark.parametrize(("given", "meant"), [("wandb", ["wandb"]), ("none", []), (["wandb"], ["wandb"])])
def test_one_tracker_may_stand_by_itself(given, meant):
    smallest = {"policy": {"model": "m"}, "prompts": {"train": "a"}, "oracle": {"type": "panel"}}
    assert parse({**smallest, "report_to": given}).report_to == meant


def test_an_algorithm_without_a_type_is_replaced_by_one_of_another_type():
    smallest = {"policy": {"model": "m"}, "prompts": {"train": "a"}, "oracle": {"type": "panel"}}
    recipe = {**smallest, "algorithm": {"eta": 30.0}}
    assert parse(recipe).algorithm.eta == 30
    assert parse(recipe, {"algorithm.type": "dpo"}).algorithm.type == "dpo"
    assert parse(recipe, {"algorithm.eta": 5.0}).algorithm.eta == 5
