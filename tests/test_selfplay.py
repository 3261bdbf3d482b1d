import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_runs import SMALL, digests, play, rows, small

from sppo import randomness, selfplay
from sppo.executors.local import Local
from sppo.policy.chat_format import ChatError
from sppo.progress import Terminal
from sppo.recipe import load, parse
from sppo.rundir.folder import RunFolder, StaleRun
from sppo.stages.run import Run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run, played to its end; copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    return folder, play(small(), folder)


@pytest.fixture
def copied(finished, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(finished[0], folder)
    return folder


# What a run leaves behind


def test_the_summary_says_what_design_promises(finished):
    folder, summary = finished
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert [row["iteration"] for row in summary["iterations"]] == [1, 2]
    for row in summary["iterations"]:
        for name in ("win_rate_vs_base", "win_rate_vs_previous"):
            assert 0 <= row[name]["low"] <= row[name]["mean"] <= row[name]["high"] <= 1
        assert row["response_tokens"] > 1
        assert 0 <= row["truncated_share"] <= 1
        assert set(row["seconds"]) == {"sample", "annotate", "select", "train", "evaluate"}
        assert row["seconds"]["train"] > 0
    assert summary["iterations"][0]["win_rate_vs_base"] == summary["iterations"][0]["win_rate_vs_previous"]
    assert Path(summary["policy"]) == folder / "iter-2" / "policy"
    assert len(summary["examples"]) == 3


def test_the_policy_loads_as_any_transformers_folder(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished[0] / "iter-2" / "policy"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": "Describe a fox."}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**inputs, max_new_tokens=5).shape[1] == inputs["input_ids"].shape[1] + 5


def test_what_is_trained_on_is_what_was_sampled_with_its_win_rate_over_all_k(finished):
    home = finished[0] / "iter-1"
    sampled = {row["prompt_id"]: row for row in rows(home / "responses")}
    matrices = {row["prompt_id"]: np.array(row["matrix"]) for row in rows(home / "preferences")}
    trained = rows(home / "training")
    assert len(sampled) == len(matrices) == len(trained) == 12
    for row in trained:
        matrix = matrices[row["prompt_id"]]
        np.testing.assert_allclose(matrix + matrix.T, 1)
        rates = matrix.mean(axis=1)
        assert {response["k"] for response in row["responses"]} == {int(rates.argmax()), int(rates.argmin())}
        assert row["log_partition"] == 5
        for response in row["responses"]:
            origin = sampled[row["prompt_id"]]["responses"][response["k"]]
            assert response["token_ids"] == origin["token_ids"]
            assert response["win_rate"] == pytest.approx(rates[response["k"]])
            # the opponent is the sampler's own policy
            assert response["opponent_log_prob"] == pytest.approx(origin["log_prob"], abs=1e-2)


def test_iterations_have_prompts_of_their_own(finished):
    parts = [{row["prompt_id"] for row in rows(finished[0] / f"iter-{t}" / "prompts")} for t in (0, 1, 2)]
    assert [len(part) for part in parts] == [10, 12, 12]
    assert not parts[0] & parts[1]
    assert not parts[1] & parts[2]


def test_text_is_the_decoded_ids_and_metrics_hold_every_step(finished):
    from transformers import AutoTokenizer

    home = finished[0] / "iter-1"
    tokenizer = AutoTokenizer.from_pretrained(home / "policy")
    for row in rows(home / "responses"):
        for response in row["responses"]:
            assert response["text"] == tokenizer.decode(response["token_ids"], skip_special_tokens=True)
    metrics = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in metrics if record["stage"] == "train" and "step" in record]
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert steps[0]["log_ratio_winners"] == pytest.approx(0, abs=1e-4)
    (last,) = [record for record in metrics if record["stage"] == "summary"]
    assert last["win_rate_vs_base"] == finished[1]["iterations"][0]["win_rate_vs_base"]


def test_the_resolved_recipe_reads_back_with_versions(finished):
    text = (finished[0] / "recipe.yaml").read_text()
    assert text.startswith("# sppo ")
    assert "torch 2." in text.splitlines()[0]
    assert load(finished[0] / "recipe.yaml") == small()


def test_the_head_to_head_against_itself_is_a_tie(tmp_path):
    """A step size of next to nothing leaves the policy where it is: half of the comparisons are won."""
    summary = play(
        small(**{"iterations": 1, "training.learning_rate": 1e-12, "evaluation.responses": 16}),
        tmp_path / "still",
    )
    row = summary["iterations"][0]
    assert row["win_rate_vs_base"]["mean"] == pytest.approx(0.5, abs=0.06)
    assert abs(row["kl_to_base"]) < 1e-2


# Resume


def test_a_finished_run_started_again_computes_nothing(copied):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*.parquet")}
    play(small(), copied)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*.parquet")} == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes())),
    ],
    ids=["truncated", "empty", "missing", "altered"],
)
@pytest.mark.parametrize("stage", ["prompts", "responses", "preferences", "training", "evaluation"])
def test_a_damaged_shard_alone_is_made_again(finished, copied, stage, damage):
    broken = copied / "iter-1" / stage / "part-00001.parquet"
    untouched = {path: path.stat().st_mtime_ns for path in copied.rglob("*.parquet") if path != broken}
    damage(broken)
    play(small(), copied)
    assert digests(copied) == digests(finished[0])
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched


def test_a_damaged_policy_is_trained_again(finished, copied):
    weights = copied / "iter-1" / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    play(small(), copied)
    assert digests(copied) == digests(finished[0])


def test_a_changed_recipe_names_the_stale_stages_and_touches_nothing(finished, copied):
    with pytest.raises(StaleRun) as error:
        play(small(**{"training.learning_rate": 2e-4}), copied)
    text = str(error.value)
    assert "training.learning_rate: 0.0001 -> 0.0002" in text
    assert "iteration 1: train" in text
    assert "iteration 1: sample" not in text
    assert "iteration 2: sample" in text
    assert "--redo-stale" in text
    assert digests(copied) == digests(finished[0])


def test_stale_stages_are_redone_on_demand_and_equal_a_fresh_run(copied, tmp_path):
    changed = small(**{"training.learning_rate": 2e-4})
    kept = (copied / "iter-1" / "responses" / "part-00000.parquet").stat().st_mtime_ns
    play(changed, copied, redo_stale=True)
    assert (copied / "iter-1" / "responses" / "part-00000.parquet").stat().st_mtime_ns == kept
    play(changed, tmp_path / "fresh")
    assert digests(copied) == digests(tmp_path / "fresh")


def test_what_does_not_touch_results_makes_nothing_stale(copied, finished):
    play(small(**{"training.logging_steps": 2, "guard.max_kl": 1e6, "cpu_threads": None}), copied)
    assert digests(copied) == digests(finished[0])


def test_shards_do_not_depend_on_their_size(finished, tmp_path):
    play(small(**{"iterations": 1, "prompts.per_iteration": 12, "shard_prompts": 64}), tmp_path / "whole")
    ids = {row["prompt_id"]: row for row in rows(tmp_path / "whole" / "iter-1" / "responses")}
    for row in rows(finished[0] / "iter-1" / "responses"):
        if row["prompt_id"] in ids:
            texts = [response["text"] for response in ids[row["prompt_id"]]["responses"]]
            assert texts == [response["text"] for response in row["responses"]]


SLOW_ORACLE = """
import time
import numpy as np

def prefer(prompts, responses):
    time.sleep(0.1)
    lengths = np.array([[len(text) for text in of_prompt] for of_prompt in responses], dtype=float)
    return 1 / (1 + np.exp((lengths[:, :, None] - lengths[:, None, :]) / 20))
"""

# for each stage: what exists once it is at work, what exists once it is done, and where its result lies
AT_WORK = {
    "sample": ("iter-1/responses/part-00000.parquet", "iter-1/sample.json", "iter-1/responses"),
    "annotate": ("iter-1/preferences/part-00000.parquet", "iter-1/annotate.json", "iter-1/preferences"),
    "select": ("iter-1/training/part-00000.parquet", "iter-1/select.json", "iter-1/training"),
    "train": ("iter-1/.training", "iter-1/train.json", "iter-1/policy"),
    "evaluate": ("iter-1/evaluation/part-00000.parquet", "iter-1/evaluation.json", "iter-1/evaluation"),
    "sample again": ("iter-2/responses/part-00000.parquet", "iter-2/sample.json", "iter-2/responses"),
}


@pytest.mark.slow
def test_killed_in_every_stage_a_run_ends_bit_for_bit_as_if_left_alone(tmp_path):
    (tmp_path / "slow_oracle.py").write_text(SLOW_ORACLE)
    recipe = {**SMALL, "shard_prompts": 1, "oracle": {"type": "function", "function": "slow_oracle:prefer"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def start(name):
        return subprocess.Popen(
            [sys.executable, "-m", "sppo.cli.main", "run", "recipe.yaml", "--run-dir", name],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    alone = start("alone")
    output = alone.communicate(timeout=280)[0]
    assert alone.returncode == 0, output.decode()

    killed = tmp_path / "killed"
    for stage, (at_work, done, result) in AT_WORK.items():
        for _ in range(5):
            process = start("killed")
            while not (killed / at_work).exists():
                assert process.poll() is None, f"{stage}: {process.stdout.read().decode()}"
                time.sleep(0.0005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            if not (killed / done).exists():
                break
            # on a busy machine the signal can come when the stage is over: back to before it
            (killed / done).unlink()
            shutil.rmtree(killed / result)
        else:
            pytest.fail(f"{stage} was always over before it was killed")
    last = start("killed")
    output = last.communicate(timeout=280)[0]
    assert last.returncode == 0, output.decode()
    assert digests(killed) == digests(tmp_path / "alone")
    assert not list(killed.rglob("*.tmp")), "leftovers of a kill"


def test_two_at_once_in_one_run_folder_are_kept_apart(copied):
    folder = RunFolder(copied)
    with folder.locked(), pytest.raises(ValueError, match="another sppo is at work"):
        play(small(), copied)


# The guard

COLLAPSE = {"training.learning_rate": 3e-2, "training.epochs": 4, "algorithm.eta": 1000}


def test_a_failed_iteration_stops_the_run_loudly(tmp_path):
    with pytest.raises(selfplay.GuardStop, match=r"stopped after iteration 1: .*guard.on_failure=keep"):
        play(small(**COLLAPSE, **{"guard.on_failure": "stop"}), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["iterations"]) == 1
    assert summary["iterations"][0]["alarms"]
    assert not (tmp_path / "run" / "iter-2" / "responses").exists()
    # the recipe's other choices go on from there
    play(small(**COLLAPSE, **{"guard.on_failure": "keep"}), tmp_path / "run")
    assert (tmp_path / "run" / "iter-2" / "policy").is_dir()


def test_a_run_falls_back_to_the_previous_policy(tmp_path):
    summary = play(small(**COLLAPSE, **{"guard.on_failure": "fall_back"}), tmp_path / "run")
    assert [bool(row["alarms"]) for row in summary["iterations"]] == [True, True]
    assert summary["policy"] == summary["base"]["policy"]
    # iteration 2 was sampled from the base policy again: short texts of tinyworld, not the collapsed ones
    second = json.loads((tmp_path / "run" / "iter-2" / "sample.json").read_text())
    base = json.loads((tmp_path / "run" / "iter-0" / "evaluation.json").read_text())
    assert second["repetition"] == pytest.approx(base["repetition"], abs=0.15)


# Other oracles, rules and prompts


def test_all_and_random_selection_with_an_exact_partition(tmp_path):
    recipe = small(**{"iterations": 1, "selection": "all", "algorithm.log_partition": "samples"})
    play(recipe, tmp_path / "all")
    for row in rows(tmp_path / "all" / "iter-1" / "training"):
        assert [response["k"] for response in row["responses"]] == [0, 1, 2]
        rates = np.array([response["win_rate"] for response in row["responses"]])
        assert row["log_partition"] == pytest.approx(np.log(np.mean(np.exp(10 * rates))))
    play(small(**{"iterations": 1, "selection": "best_worst_random", "sampling.k": 4}), tmp_path / "random")
    assert {len(row["responses"]) for row in rows(tmp_path / "random" / "iter-1" / "training")} == {3}


@pytest.mark.parametrize("algorithm", [{"type": "dpo", "beta": 0.5}, {"type": "ipo", "tau": 0.05}])
def test_another_algorithm_is_one_changed_line(tmp_path, algorithm):
    summary = play(small(iterations=1, algorithm=algorithm), tmp_path)
    assert summary["iterations"][0]["win_rate_vs_base"]["mean"] > 0
    first, *_, last = trained(tmp_path)
    assert first["log_ratio_winners"] == first["log_ratio_losers"] == 0
    assert last["log_ratio_winners"] > last["log_ratio_losers"]
    assert first["loss"] == pytest.approx({"dpo": math.log(2), "ipo": 100}[algorithm["type"]])


def trained(run):
    lines = [json.loads(line) for line in (run / "iter-1" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "log_ratio_winners" in line]


def test_cut_responses_are_scored_but_not_trained_on(tmp_path):
    recipe = small(
        **{"iterations": 1, "training.truncated_responses": "score_only", "sampling.max_new_tokens": 25}
    )
    summary = play(recipe, tmp_path / "cut")
    home = tmp_path / "cut" / "iter-1"
    finish = {
        row["prompt_id"]: [r["finish_reason"] for r in row["responses"]] for row in rows(home / "responses")
    }
    reasons = [reason for of_prompt in finish.values() for reason in of_prompt]
    assert 0 < reasons.count("length") < len(reasons)
    for row in rows(home / "training"):
        ended = [k for k, reason in enumerate(finish[row["prompt_id"]]) if reason == "stop"]
        assert {response["k"] for response in row["responses"]} <= set(ended)
        assert len(row["responses"]) == min(2, len(ended))
    assert summary["iterations"][0]["sampled"]["truncated_share"] == pytest.approx(
        reasons.count("length") / len(reasons)
    )


@pytest.mark.parametrize("family", ["llama-3", "mistral", "qwen2", "qwen3", "gemma-2", "phi-3"])
def test_every_family_plays_an_iteration_on_conversations(tiny_model, tmp_path, family, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"shortest_{family.replace('-', '_')}.py").write_text(
        SLOW_ORACLE.replace("time.sleep(0.1)", "")
    )
    system = [{"role": "system", "content": "Answer briefly."}]
    turns = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital is Paris."},
    ]
    with open("prompts.jsonl", "w") as file:
        for number in range(8):
            asked = [{"role": "user", "content": f"And what is {number} and {number}?"}]
            head = [[], system, turns, system + turns][number % 4]
            file.write(json.dumps({"messages": head + asked}) + "\n")
    recipe = parse(
        {
            "iterations": 1,
            "policy": {"model": str(tiny_model(family))},
            "prompts": {
                "train": "prompts.jsonl",
                "held_out": 3,
                "system": "merge" if family in ("mistral", "gemma-2") else "template",
            },
            "sampling": {"k": 2, "max_new_tokens": 12},
            "oracle": {"type": "function", "function": f"shortest_{family.replace('-', '_')}:prefer"},
            "training": {"learning_rate": 1e-3, "batch_prompts": 2, "truncated_responses": "train"},
            "evaluation": {"responses": 1},
            "guard": {"on_failure": "keep"},
        }
    )
    play(recipe, tmp_path / "run")
    metrics = [
        json.loads(line) for line in (tmp_path / "run" / "iter-1" / "metrics.jsonl").read_text().splitlines()
    ]
    first = next(record for record in metrics if "log_ratio_winners" in record)
    assert first["log_ratio_winners"] == pytest.approx(0, abs=1e-3)
    assert first["log_ratio_losers"] == pytest.approx(0, abs=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the tracker's own dependencies
def test_a_tracker_of_transformers_sees_the_training(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    play(small(report_to=["tensorboard"]), tmp_path / "run")
    for number in (1, 2):
        events = EventAccumulator(str(tmp_path / "run" / f"iter-{number}" / "trackers")).Reload()
        assert len(events.Scalars("train/log_ratio_winners")) == 3


def test_draws_are_keyed_by_seed_iteration_prompt_and_k(finished, tmp_path):
    play(small(seed=4, iterations=1), tmp_path / "other")
    first = {row["prompt_id"]: row for row in rows(finished[0] / "iter-1" / "responses")}
    other = {row["prompt_id"]: row for row in rows(tmp_path / "other" / "iter-1" / "responses")}
    shared = first.keys() & other.keys()
    assert shared
    assert all(first[name]["responses"] != other[name]["responses"] for name in shared)
    assert randomness.digest("a", 1) != randomness.digest("a", "1")
    assert randomness.digest("ab", "c") != randomness.digest("a", "bc")


def test_a_chat_template_of_the_recipe_goes_with_the_policy(tmp_path):
    from transformers import AutoTokenizer

    from sppo.tinyworld import POLICY

    template = tmp_path / "other.jinja"
    template.write_text((POLICY / "chat_template.jinja").read_text() + "{# another #}")
    play(small(**{"iterations": 1, "policy.chat_template": str(template)}), tmp_path / "run")
    found = AutoTokenizer.from_pretrained(tmp_path / "run" / "iter-1" / "policy").chat_template
    assert found == template.read_text()


def test_steps_that_would_all_have_a_learning_rate_of_zero_are_refused(tmp_path):
    recipe = small(**{"training.batch_prompts": 64, "training.epochs": 18, "training.keep_epochs": 1})
    with pytest.raises(ValueError, match="all of its 1 steps have a learning rate of 0"):
        play(recipe, tmp_path / "run")


def test_noise_is_a_collapse(tmp_path):
    """Responses without repetition, of fair length, that a panel may even like by chance."""
    changes = {"training.learning_rate": 1.0, "guard.on_failure": "stop", "sampling.max_new_tokens": 60}
    with pytest.raises(selfplay.GuardStop, match=r"KL to the base|does not end"):
        play(small(**changes), tmp_path / "run")


def test_a_changed_folder_of_prompts_is_noticed(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    lines = [
        json.dumps({"prompt": f"Describe a {name}."}) for name in ("fox", "drum", "tram", "hat", "owl", "cat")
    ]
    (folder / "a.jsonl").write_text("\n".join(lines))
    recipe = small(**{"iterations": 1, "prompts.train": str(folder), "prompts.held_out": 2})
    play(recipe, tmp_path / "run")
    (folder / "a.jsonl").write_text("\n".join(lines).replace("fox", "dog"))
    with pytest.raises(StaleRun, match="the files that it names"):
        play(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_new_tokens": 5000}, r"5000, but 'tinyworld' takes \d+ tokens in all"),
        (
            {"engine": "vllm", "engine_args": {"max_model_len": 40}, "max_new_tokens": 40},
            "40, but sampling.engine_args.max_model_len takes 40 tokens in all",
        ),
    ],
)
def test_responses_that_leave_no_room_for_a_prompt_are_refused(tmp_path, changes, said):
    recipe = small(sampling=changes)
    with pytest.raises(ChatError, match=f"sampling.max_new_tokens: {said}"):
        _ = Run(recipe, RunFolder(tmp_path), Terminal(), Local(recipe)).prompt_limit


def test_a_prompt_has_the_room_that_the_engine_leaves(tmp_path):
    of = {"engine": "vllm", "engine_args": {"max_model_len": 100}, "max_new_tokens": 40}
    recipe = small(sampling=of)
    assert Run(recipe, RunFolder(tmp_path), Terminal(), Local(recipe)).prompt_limit == 60
