import errno
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pyarrow.parquet as pq
import pytest
import tiny_models
import yaml
from test_selfplay import SMALL

from sppo.cli.main import main
from sppo.instructions import INPUTS, prompts

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    **SMALL,
    "iterations": 1,
    "prompts": {"train": {"source": "tinyworld/train", "limit": 16}, "held_out": 4},
}


def sppo(*arguments, cwd=None, check=True, **options):
    found = subprocess.run(
        [sys.executable, "-m", "sppo.cli.main", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        **options,
    )
    assert not check or found.returncode == 0, found.stdout + found.stderr
    return found


def call(capsys, *arguments):
    """The command in this process: its exit code and what it said."""
    old, sys.argv = sys.argv, ["sppo", *map(str, arguments)]
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code
    finally:
        sys.argv = old
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def recipe(tmp_path):
    def write(name="tiny.yaml", **changes):
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**TINY, **changes}))
        return path

    return write


NO_TORCH = """
import runpy, sys
sys.argv = ["sppo", {arguments}]
try:
    runpy.run_module("sppo.cli.main", run_name="__main__")
except SystemExit as error:
    assert not error.code, error.code
heavy = sorted(set(sys.modules) & {{"torch", "transformers", "vllm", "ray", "datasets"}})
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "arguments", ['"--help"', '"run", "--dry-run", "recipes/quickstart.yaml"', '"--version"']
)
def test_these_answer_without_torch(arguments):
    script = NO_TORCH.format(arguments=arguments)
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout


def test_the_dry_run_of_the_paper_says_that_the_peak_is_never_reached(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, _ = call(capsys, "run", "--dry-run", "recipes/mistral-7b-instruct.yaml")
    assert code == 0
    assert "7.24B parameters" in out
    assert "of 5," in out  # 18 epochs of some 300 steps are scheduled
    assert "left during its warm-up" in out
    assert "never reached" in out
    assert "GB for weights, gradients and optimiser state" in out


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        # 7.24e9 weights: 4 bytes each for the weight, its gradient and RMSprop's state; checkpoints hold no gradients
        ([], "86.9 GB for weights, gradients and optimiser state over all training devices together"),
        (
            ["training.devices=8"],
            "10.9 GB for weights, gradients and optimiser state on each training device",
        ),
        (
            ["training.devices=8", "training.sharding=null"],
            "86.9 GB for weights, gradients and optimiser state on",
        ),
        ([], "up to 116 GB of checkpoints"),
        (["training.checkpoint_steps=null"], "up to 0 kB of checkpoints"),
    ],
)
def test_the_dry_run_knows_how_training_is_divided(capsys, monkeypatch, settings, said):
    monkeypatch.chdir(ROOT)
    options = [part for setting in settings for part in ("--set", setting)]
    code, out, _ = call(capsys, "run", "--dry-run", "recipes/mistral-7b-instruct.yaml", *options)
    assert code == 0
    assert said in out


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_has_a_dry_run(capsys, monkeypatch, tmp_path, path):
    monkeypatch.chdir(tmp_path)
    prompts.write(INPUTS, train=1300, held_out=200)  # of recipes/real.yaml
    tiny_models.make("llama-3", INPUTS / "policy")
    code, out, err = call(capsys, "run", "--dry-run", path)
    assert (code, err) == (0, "")
    assert "iteration" in out


@pytest.mark.parametrize("arguments", [["run", "real"], ["run", "--dry-run", "real"]])
def test_a_recipe_without_its_inputs_says_what_writes_them(capsys, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *arguments)
    assert code == 1
    assert f"real: there is no folder {INPUTS}, which the recipe reads; `sppo inputs` writes it" in err


def test_the_dry_run_counts_what_the_run_does(capsys, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = recipe(iterations=2)
    code, out, _ = call(capsys, "run", "--dry-run", path)
    assert code == 0
    counted = [line.split() for line in out.splitlines() if line.strip().startswith(("1 ", "2 "))]
    assert not (tmp_path / "runs").exists()
    call(capsys, "run", path)
    for iteration, cells in enumerate(counted, 1):
        home = tmp_path / "runs" / "tiny" / f"iter-{iteration}"
        assert int(cells[1]) == sum(
            pq.read_metadata(part).num_rows for part in (home / "prompts").glob("part*")
        )
        assert int(cells[2]) == json.loads((home / "sample.json").read_text())["responses_drawn"]
        assert int(cells[-1]) == json.loads((home / "train.json").read_text())["steps"]


@pytest.mark.slow
def test_each_stage_is_a_command_that_works_from_the_run_folder(capsys, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "tiny"
    code, _, err = call(capsys, "annotate", recipe())
    assert code == 1
    assert "run `sppo sample runs/tiny --iteration 1` first" in err
    assert call(capsys, "sample", recipe())[0] == 0
    for command, left in (
        ("annotate", "preferences/part-00000.parquet"),
        ("select", "training/part-00000.parquet"),
        ("train", "policy/model.safetensors"),
        ("evaluate", "evaluation.json"),
    ):
        assert not (run / "iter-1" / left).exists()
        code, out, err = call(capsys, command, run, "--quiet")
        assert code == 0
        assert all(line.startswith("WARNING: ") for line in err.splitlines())
        assert f"iteration 1: {command}: done" in out
        assert (run / "iter-1" / left).exists()
    alone = {path.name: path.read_bytes() for path in (run / "iter-1").rglob("*.safetensors")}
    call(capsys, "run", recipe(), "--run-dir", tmp_path / "whole")
    for name, content in alone.items():
        assert (tmp_path / "whole" / "iter-1" / "policy" / name).read_bytes() == content


def test_a_stage_of_an_iteration_that_is_not_there(capsys, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "sample", recipe(), "--iteration", 5)
    assert code == 1
    assert "the recipe has 1 iteration\n" in err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling": {"temprature": 1}}, "sampling.temprature: unknown key; did you mean `temperature`?"),
        ({"sampling": {"k": 1}}, "sampling.k: 1, but algorithm.type: sppo compares responses"),
        ({"algorithm": {"type": "sppo", "eta": 0}}, "algorithm.eta: must be greater than 0 (got 0)"),
        ({"iterations": 40}, "iterations: 40, but only 12 prompts"),
        (
            {"policy": {"model": "no/such-model"}},
            "policy.model: 'no/such-model' is neither a folder here nor",
        ),
        (
            {"policy": {"model": "runs/no/such-model"}},
            "policy.model: there is no folder 'runs/no/such-model' here, and no model on the hub",
        ),
        (
            {"prompts": {"train": "nowhere.jsonl", "held_out": 2}},
            "'nowhere.jsonl' is neither a file here nor",
        ),
        (
            {"oracle": {"type": "function", "function": "no_such_module:f"}},
            "the module 'no_such_module' cannot",
        ),
    ],
)
def test_mistakes_are_said_in_words(capsys, recipe, tmp_path, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "run", recipe(**changes))
    assert code == 1
    assert said in " ".join(err.split())
    assert "Traceback" not in err


def test_values_given_on_the_command_line(capsys, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = recipe()
    code, out, _ = call(
        capsys, "run", "--dry-run", path, "--set", "algorithm.eta=1e2", "--set", "sampling.k=7"
    )
    assert code == 0
    assert "eta 100" in out
    assert "K = 7" in out
    for wrong, said in (("algorithm.eta", "write it as KEY=VALUE"), ("sampling.kk=3", "did you mean `k`")):
        code, _, err = call(capsys, "run", "--dry-run", path, "--set", wrong)
        assert code == 1
        assert said in err


def test_the_guards_stop_has_an_exit_code_of_its_own(capsys, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = recipe(guard={"on_failure": "stop", "min_length_ratio": 0.001, "max_length_ratio": 0.01})
    code, _, err = call(capsys, "run", path)
    assert code == 3
    assert "WARNING: iteration 1 has failed" in err
    assert "stopped after iteration 1" in err


def test_a_full_disk_is_said_and_the_same_command_continues(capsys, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = recipe()
    from sppo.rundir import shards

    write_table = shards.pq.write_table
    written = []

    def full(table, file, **options):
        written.append(file)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "part")
        write_table(table, file, **options)

    monkeypatch.setattr(shards.pq, "write_table", full)
    code, _, err = call(capsys, "run", path)
    assert code == 1
    assert "no space left on the disk" in err
    assert "run the same command again to continue" in err
    assert not list(tmp_path.rglob("*.tmp"))
    assert call(capsys, "run", path)[0] == 0


@pytest.mark.slow
def test_ctrl_c_keeps_every_finished_shard(recipe, tmp_path):
    path = recipe(shard_prompts=1)
    process = subprocess.Popen(
        [sys.executable, "-m", "sppo.cli.main", "run", "--no-report", str(path)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # whoever runs the tests in the background has it ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first = tmp_path / "runs" / "tiny" / "iter-1" / "responses" / "part-00000.parquet"
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.001)
    kept = first.stat().st_mtime_ns
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; every finished shard is kept" in err
    assert "Traceback" not in err
    sppo("run", path, cwd=tmp_path)
    assert first.stat().st_mtime_ns == kept


def test_chat_talks_to_the_policy_of_a_run(tmp_path):
    from sppo.tinyworld import POLICY

    shutil.copytree(POLICY, tmp_path / "policy")
    found = sppo(
        "chat",
        tmp_path / "policy",
        "--temperature",
        "0",
        input="Describe a fox.\n\nDescribe a fox.\n<|end|>\n",
    )
    lines = [line.removeprefix("> ") for line in found.stdout.splitlines()]
    answers = [line for line in lines if "fox" in line.lower() and not line.startswith("(")]
    assert len(answers) == 2
    assert answers[0] == answers[1]  # the most probable answer, in a conversation begun anew
    assert "contains the special token '<|end|>'" in found.stderr


@pytest.mark.slow
def test_chat_has_commands_and_places(recipe, tmp_path):
    sppo("run", recipe(), "--quiet", "--no-report", cwd=tmp_path)
    lines = "/help\n/nothing\nDescribe a fox.\n/new\nDescribe a fox.\n/quit\nDescribe a drum.\n"
    said = {}
    for place in (
        ["runs/tiny"],
        ["runs/tiny", "--iteration", "1"],
        ["runs/tiny/iter-1"],
        ["runs/tiny", "-t", "0"],
    ):
        found = sppo("chat", *place, "--temperature", "0", cwd=tmp_path, input=lines)
        assert len(found.stdout.splitlines()) == 2, "two responses, and nothing after /quit"
        assert "/quit, or Ctrl-D: end" in found.stderr
        assert "/nothing is unknown; /help lists what can be written" in found.stderr
        said[" ".join(place)] = found.stdout
    assert said["runs/tiny --iteration 1"] == said["runs/tiny/iter-1"] == said["runs/tiny"]
    found = sppo("chat", "runs/tiny", "-t", "9", cwd=tmp_path, check=False, input="")
    assert "iteration 9 has no policy; there are base, iteration 1" in found.stderr


@pytest.mark.slow
def test_ctrl_c_in_the_chat_gives_up_a_line_and_lines_can_be_edited():
    """A person types a wrong line, gives it up, writes another with a letter to mend, and recalls it."""
    child = pexpect.spawn(
        sys.executable,
        ["-m", "sppo", "chat", "tinyworld", "--temperature", "0"],
        encoding="utf-8",
        timeout=120,
    )
    child.expect("/help lists")
    child.expect("> ")
    child.send("Describe a fo")
    child.sendintr()
    child.expect("given up; Ctrl-D or /quit ends the chat")
    child.expect("> ")
    child.send("escribe a fox.\x01D\r")  # Ctrl-A goes to the beginning of the line
    child.expect("32m.*[Ff]ox.*> ")
    child.send("\x1b[A")  # the arrow up
    child.expect("Describe a fox.")
    child.sendline("")
    child.expect("[Ff]ox.*> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_chat_refuses_a_folder_that_is_neither(capsys, tmp_path):
    code, _, err = call(capsys, "chat", tmp_path)
    assert code == 1
    assert "neither a run with a finished iteration nor a policy" in err


@pytest.mark.parametrize("kind", [ValueError, OSError, RuntimeError])
def test_the_text_of_an_error_is_never_megabytes(capsys, kind):
    from sppo.cli.main import show_expected_error

    error = type("Said", (kind,), {"__module__": "sppo.x"})("a" * 5_000_000 + "the end")
    assert show_expected_error(error) == 1
    said = capsys.readouterr().err
    assert len(said) < 11_000 and said.rstrip().endswith("the end")


@pytest.mark.slow
def test_bars_show_rate_and_time_left_on_a_terminal(recipe, tmp_path):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sppo.cli.main", "run", "--no-report", str(recipe(shard_prompts=2))],
        cwd=tmp_path,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert process.wait() == 0
    text = shown.decode()
    for stage in ("sample", "annotate", "select", "train", "evaluate"):
        assert f"iteration 1: {stage}" in text
    assert "responses/s" in text
    assert "steps/s" in text


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "training.optimizer=adamw_torhc",
            "training.optimizer: 'adamw_torhc' is unknown; did you mean 'adamw_torch'",
        ),
        ("training.optimizer_args={momentun: 0.9}", "'momentun' has no effect on 'adamw_torch'"),
        ("report_to=[wandbb]", "report_to: 'wandbb' is unknown"),
        ("sampling.temperature=1e-300", "sampling.temperature: must be greater than or equal to 0.01"),
        ("guard.min_length_ratio=5", "guard.min_length_ratio: 5 is above max_length_ratio: 4"),
        ("prompts.train=nofile.jsonl", "nofile.jsonl"),
        ("=1", "write it as KEY=VALUE"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_computed(
    capsys, recipe, tmp_path, monkeypatch, setting, said
):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "run", recipe(), "--set", setting)
    assert code == 1
    assert said in err
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.slow
def test_results_are_on_the_standard_output_and_progress_on_the_standard_error(
    capsys, recipe, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = recipe(iterations=2, report_to="none")
    code, out, err = call(capsys, "run", path)
    assert code == 0
    rows = [line for line in out.splitlines() if re.match(r"(iter|base|1|2)  ", line)]
    assert [row.split()[0] for row in rows] == ["iter", "base", "1", "2"]
    shown = re.split(r"^(?:note|WARNING|prompt)", out, maxsplit=1, flags=re.M)[0]
    assert max(map(len, shown.splitlines())) <= 80
    for row in rows:
        assert row in err, "the table is also shown as it grows"
    assert "iteration 2: train" in err and "loss " in err
    assert "iteration 2: train" not in out
    # a finished run says what it checks, and shows the table once
    code, again, err = call(capsys, "run", path)
    assert (code, again) == (0, out)
    assert "checking runs/tiny" in err
    assert rows[2] not in err
    code, again, err = call(capsys, "run", path, "--quiet")
    assert (code, again, err) == (0, out, "")
    code, out, _ = call(capsys, "run", path, "--json", "--quiet")
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    assert json.loads(out)["iterations"] == summary["iterations"]
    # one more iteration is one flag
    code, out, _ = call(capsys, "run", "runs/tiny", "--iterations", 3, "--quiet")
    assert code == 0
    assert "\n3     " in out


def test_stages_run_one_by_one_end_in_the_same_row_and_summary(capsys, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("sample", "annotate", "select", "train"):
        call(capsys, command, recipe())
    code, out, _ = call(capsys, "evaluate", recipe())
    assert code == 0
    assert any(line.startswith("1   ") for line in out.splitlines())
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    assert len(summary["iterations"]) == 1


@pytest.mark.slow
def test_a_stage_behind_a_failed_iteration_is_refused(capsys, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = recipe(iterations=2, guard={"on_failure": "stop", "min_length_ratio": 3.9})
    assert call(capsys, "run", path)[0] == 3
    code, _, err = call(capsys, "sample", path)
    assert code == 3
    assert "stopped after iteration 1" in err
    # what was rejected is not what the summary shows
    call(capsys, "run", path, "--set", "guard.on_failure=fall_back")
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    assert all(example["before"] == example["after"] for example in summary["examples"])


def test_damaged_metrics_and_summaries_do_not_stand_in_the_way(capsys, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, run = recipe(), tmp_path / "runs" / "tiny"
    call(capsys, "run", path)
    before = json.loads((run / "summary.json").read_text())
    (run / "iter-1" / "metrics.jsonl").write_bytes(b"\xff\xfe{\n[1]\n")
    (run / "summary.json").write_bytes(b"\xff{")
    (run / "iter-1" / "evaluation" / "part-00099.parquet").write_text("junk")
    (run / "iter-1" / ".notes.tmp").write_text("mine")
    assert call(capsys, "run", path)[0] == 0
    after = json.loads((run / "summary.json").read_text())
    assert after["examples"] == before["examples"]
    assert (run / "iter-1" / ".notes.tmp").exists()
    (run / "summary.json").write_text("[1]")
    code, _, err = call(capsys, "chat", run)
    assert code == 1
    assert "neither a run with a finished iteration" in err


@pytest.mark.slow
def test_a_conversation_longer_than_the_context_is_said(tmp_path):
    found = sppo(
        "chat", "tinyworld", "--max-new-tokens", "60", input="Describe a fox. " * 200 + "\nDescribe a fox.\n"
    )
    assert "only 452 leave room for a response of 60" in found.stderr
    assert "lower --max-new-tokens" in found.stderr
    assert "fox" in found.stdout.lower()
