import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_runs import SHORTEST_ORACLE, SMALL, digests, play, play_aloud, rows, small

from sppo import randomness
from sppo.recipe import load
from sppo.rundir.folder import RunFolder, StaleRun
from sppo.rundir.reader import RunReader, read_summary
from sppo.rundir.records import with_digest
from sppo.rundir.shards import DamagedShard, read_shard, write_shard


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
    assert read_summary(folder) == summary
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
    tokens = load(finished[0] / "recipe.yaml").training.pack_tokens
    assert load(finished[0] / "recipe.yaml") == small(**{"training.pack_tokens": tokens})


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


@pytest.mark.slow
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


def test_one_more_iteration_keeps_what_is_done(copied, finished):
    before = {path: path.stat().st_mtime_ns for path in copied.glob("iter-[12]/**/*.parquet")}
    summary, said = play_aloud(small(iterations=3), copied)
    assert [row["iteration"] for row in summary["iterations"]] == [1, 2, 3]
    assert "the prompts stay divided into 2 parts" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert digests(copied).items() > digests(finished[0]).items()
    first, third = ({row["prompt_id"] for row in rows(copied / f"iter-{t}" / "prompts")} for t in (1, 3))
    assert first == third, "all prompts have been used, so the first part is used again"
    responses = [rows(copied / f"iter-{t}" / "responses") for t in (1, 3)]
    assert responses[0] != responses[1], "but the responses are new"
    assert load(copied / "recipe.yaml").prompts.parts == 2
    play(small(iterations=3), copied)
    with pytest.raises(StaleRun, match=r"prompts\.parts: 2 -> 3"):
        play(small(**{"iterations": 3, "prompts.parts": 3}), copied)


def test_nothing_is_removed_as_stale_before_the_inputs_are_checked(copied, tmp_path, monkeypatch):
    before = digests(copied)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Describe zebra 7."}\n{"prompt": ""}\n')
    (tmp_path / "wrong_shape.py").write_text("def prefer(prompts, responses):\n    return [[0.5]]\n")
    monkeypatch.syspath_prepend(tmp_path)
    for changes, said in (
        ({"prompts.train": {"source": str(tmp_path / "bad.jsonl")}}, "line 2"),
        ({"sampling.max_new_tokens": 5000}, "sampling.max_new_tokens: 5000"),
        ({"oracle": {"type": "function", "function": "wrong_shape:prefer"}}, r"the shape \[1, 1\]"),
    ):
        with pytest.raises(ValueError, match=said):
            play(small(**changes), copied, redo_stale=True)
        assert digests(copied) == before


def test_shards_do_not_depend_on_their_size(finished, tmp_path):
    play(small(**{"iterations": 1, "prompts.per_iteration": 12, "shard_prompts": 64}), tmp_path / "whole")
    ids = {row["prompt_id"]: row for row in rows(tmp_path / "whole" / "iter-1" / "responses")}
    for row in rows(finished[0] / "iter-1" / "responses"):
        if row["prompt_id"] in ids:
            texts = [response["text"] for response in ids[row["prompt_id"]]["responses"]]
            assert texts == [response["text"] for response in row["responses"]]


# for each stage: what exists once it is at work, what exists once it is done, and where its result lies
AT_WORK = {
    "sample": ("iter-1/responses/part-00000.parquet", "iter-1/sample.json", "iter-1/responses"),
    "annotate": ("iter-1/preferences/part-00000.parquet", "iter-1/annotate.json", "iter-1/preferences"),
    "select": ("iter-1/training/part-00000.parquet", "iter-1/select.json", "iter-1/training"),
    "train": ("iter-1/.training", "iter-1/train.json", "iter-1/policy"),
    "evaluate": ("iter-1/evaluation/part-00000.parquet", "iter-1/evaluation.json", "iter-1/evaluation"),
    "sample again": ("iter-2/responses/part-00000.parquet", "iter-2/sample.json", "iter-2/responses"),
}


@pytest.mark.long
def test_killed_in_every_stage_a_run_ends_bit_for_bit_as_if_left_alone(tmp_path):
    (tmp_path / "slow_oracle.py").write_text(SHORTEST_ORACLE.replace("PAUSE", "0.1"))
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


@pytest.mark.parametrize("damage", ['"trained_prompts": 1', '"sampler_deviation"'])
def test_a_changed_digit_in_a_record_is_noticed_and_mended(finished, copied, damage):
    record = copied / "iter-1" / "select.json"
    before, text = record.read_bytes(), record.read_text()
    changed = text.replace(damage, damage.replace("1", "9").replace("deviation", "deviatiom"))
    assert changed != text
    record.write_text(changed)
    said = play_aloud(small(), copied)[1]
    assert "select.json is damaged: its digest is not that of its content" in said
    assert json.loads(record.read_text())["trained_prompts"] == json.loads(before)["trained_prompts"]
    assert digests(copied) == digests(finished[0])


def test_damaged_metrics_are_said(copied):
    path = copied / "iter-1" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    step = next(number for number, line in enumerate(lines) if '"step": 2' in line)
    lines[step] = lines[step].replace('"step": 2', '"step": 3')
    path.write_text("\n".join(lines) + "\n")
    said = play_aloud(small(), copied)[1]
    assert f"1 line of {path} left out: damaged" in said


def test_metrics_that_are_lost_are_said_once(copied):
    path = copied / "iter-1" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    said = play_aloud(small(), copied)[1]
    assert f"3 lines of {path} left out: damaged, lost" in said
    assert "left out: damaged" not in play_aloud(small(), copied)[1]


def test_a_changed_recipe_of_a_run_is_said_once(copied):
    path = copied / "recipe.yaml"
    first, _, rest = path.read_text().partition("\n")
    rest = rest.replace("max_kl_per_token: 1.0", "max_kl_per_token: 7.0")
    path.write_text(first.replace("torch 2", "torch 3") + "\n" + rest)
    said = play_aloud(small(**{"guard.max_kl_per_token": 7.0}), copied)[1]
    assert "recipe.yaml has been changed since it was written" in said
    assert path.read_text().startswith(f"{first}\n")  # damaged versions are not given a digest
    assert "has been changed" not in play_aloud(small(**{"guard.max_kl_per_token": 7.0}), copied)[1]


def test_shards_of_another_iteration_are_not_read_as_this_ones(copied):
    reader = RunReader(copied)
    first, second = (copied / f"iter-{t}" / "responses" / "part-00000.parquet" for t in (1, 2))
    swapped = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(DamagedShard, match="was written as iter-2/responses/part-00000"):
        list(reader.responses(1))
    first.write_bytes(swapped)
    write_shard(first, read_shard(first), {"fingerprint": "of another run"})
    with pytest.raises(DamagedShard, match="belongs to another stage"):
        list(reader.responses(1))
    first.unlink()
    with pytest.raises(DamagedShard, match="is missing"):
        list(reader.responses(1))
    first.write_bytes(swapped)
    assert len(list(reader.responses(1))) == 12


def test_other_versions_and_threads_are_said_and_recorded(copied):
    recipe_file = copied / "recipe.yaml"
    first, _, rest = recipe_file.read_text().partition("\n")
    torch_version = next(part for part in first.split(", ") if part.startswith("torch "))
    older = first.replace(torch_version, "torch 1.0.0").replace("CPU threads 1", "CPU threads 64")
    older = re.sub("bfloat16 products [a-z]+", "bfloat16 products unknown", older)
    assert older != first
    recipe_file.write_text(with_digest(f"{older}\n{rest.rpartition('# digest')[0]}"))
    said = play_aloud(small(), copied)[1]
    assert "other versions" not in said, "nothing was computed"
    assert recipe_file.read_text().startswith(older), "what the run was computed with stays"
    (copied / "iter-2" / "comparisons" / "part-00000.parquet").unlink()
    said = play_aloud(small(), copied)[1]
    assert f"torch 1.0.0 -> {torch_version.removeprefix('torch ')}" in said
    assert "CPU threads 64 -> 1" in said
    assert "bfloat16 products unknown -> " in said
    assert (
        json.loads((copied / "iter-2" / "evaluation.json").read_text())["environment"]["CPU threads"] == "1"
    )


def test_draws_are_keyed_by_seed_iteration_prompt_and_k(finished, tmp_path):
    play(small(seed=4, iterations=1), tmp_path / "other")
    first = {row["prompt_id"]: row for row in rows(finished[0] / "iter-1" / "responses")}
    other = {row["prompt_id"]: row for row in rows(tmp_path / "other" / "iter-1" / "responses")}
    shared = first.keys() & other.keys()
    assert shared
    assert all(first[name]["responses"] != other[name]["responses"] for name in shared)
    assert randomness.digest("a", 1) != randomness.digest("a", "1")
    assert randomness.digest("ab", "c") != randomness.digest("a", "bc")
