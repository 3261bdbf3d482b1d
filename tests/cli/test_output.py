"""What every command prints: results on the standard output, as text or as JSON, and progress on the standard error."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from commands import LEAVES
from docs_commands import commands
from small_runs import SMALL
from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.instructions import INPUTS
from sppo.policy.chat_format import model_path
from sppo.recipe import PACKAGED

TINY = {
    **SMALL,
    "iterations": 3,
    "policy": {"model": "models/own"},
    "prompts": {"train": {"source": "tinyworld/train", "limit": 10}, "held_out": 4},
    "evaluation": {"responses": 1, "resamples": 100},
}
VERDICT = {"preference": 1.5, "generator_2": "mine", "output_1": "a", "output_2": "b", "instruction": "q"}
FILES = {
    "tiny.yaml": TINY,
    "recipe.yaml": TINY,
    "mine.yaml": TINY,
    "questions.jsonl": "\n".join(f'{{"prompt": "Describe fox {n}."}}' for n in range(8)),
    "game.csv": "0.5,0.9\n0.1,0.5\n",
    "responses.jsonl": {"prompt": "Say a word.", "responses": ["a", "a word"]},
    "pairs.yaml": {"pairs": {"source": "pairs.jsonl", "held_out": 0.25}, "training": {"epochs": 1}},
    "alpaca.json": [VERDICT],
    "hard.jsonl": {"question_id": 1, "model": "m", "judge": "j", "games": [{"score": "A>B"}] * 2},
    "mt.jsonl": {"question_id": 81, "model": "m", "judge": "j", "turn": 1, "score": 5},
    "ifeval.jsonl": {
        "key": 1,
        "prompt": "No commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
    "mine.jsonl": {"prompt": "No commas.", "response": "none"},
    "outputs.json": [{"instruction": "Describe a fox.", "output": "It is red.", "generator": "other"}],
    "judge.yaml": {"oracle": {"type": "panel"}},
}
COMMANDS = {
    "init": "from-here",
    "inputs": "--train 4 --held-out 2",
    "recipe": "tiny.yaml",
    "run": "runs/tiny",
    "compare": "tiny.yaml --algorithms sppo --seeds 1 --set iterations=1",
    "report": "runs/tiny",
    "chat": "runs/tiny",
    "export": "runs/tiny exported",
    "sample": "runs/tiny --best-of 2",
    "annotate": "runs/tiny -t 1",
    "select": "runs/tiny -t 1",
    "train": "runs/tiny -t 1",
    "train-oracle": "pairs.yaml",
    "evaluate stage": "runs/tiny -t 1",
    "evaluate head-to-head": "runs/tiny --oracle panel",
    "evaluate alpaca-eval": "--annotations alpaca.json --no-length-control",
    "evaluate arena-hard": "--judgments hard.jsonl",
    "evaluate mt-bench": "--judgments mt.jsonl",
    "evaluate ifeval": "mine=mine.jsonl --data ifeval.jsonl",
    "oracle check": "panel --responses responses.jsonl",
    "oracle inspect": "runs/tiny",
    "game generate": "cyclic -o cyclic.csv",
    "game solve": "game.csv",
    "game inspect": "game.csv",
    "game converge": "game.csv --iterations 10",
    "game strategies": "game.csv",
    "game policies": "runs/tiny",
    "game certify": "runs/tiny --seeds 1 --rates 1 --iterations 1 --prompts 4 --responses 1",
}
ELSEWHERE = {
    "arena": "below, because it serves until it is killed",
    "oracle serve": "below, because it serves until it is killed",
    "evaluate open-llm": "tests/benchmarks/test_open_llm.py, because lm-eval takes long",
    "oracle convert": "tests/oracle/test_pairrm_checkpoint.py, which has the weights for it",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished run and the files that commands read."""
    folder = tmp_path_factory.mktemp("place")
    for name, content in FILES.items():
        text = yaml.safe_dump(content) if name.endswith(".yaml") else content
        (folder / name).write_text(text if isinstance(text, str) else json.dumps(text))
    pairs = [
        {"prompt": f"p{n}", "response_a": "a word" * (n % 3), "response_b": "two", "label": "ab"[n % 2]}
        for n in range(24)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "input_data.jsonl").write_text((folder / "ifeval.jsonl").read_text())
    policy = shutil.copytree(model_path("tinyworld"), folder / "models/own")
    config = json.loads((policy / "config.json").read_text())
    # the pages allow longer responses than tinyworld does
    (policy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    shutil.copy(policy / "chat_template.jinja", folder / "template.jinja")
    (folder / INPUTS / "policy").mkdir(parents=True)
    (folder / "recipes").symlink_to(PACKAGED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert CliRunner().invoke(app, ["run", "tiny.yaml", "--no-report"]).exit_code == 0
    for name in ("own", "quickstart", "a", "small", "real"):
        (folder / "runs" / name).symlink_to("tiny")
    shutil.copytree(folder / "runs" / "tiny", folder / "runs" / "b")
    return folder


@pytest.mark.parametrize("names", [" ".join(names) for names in LEAVES])
def test_every_command_prints_its_results_as_json(place, monkeypatch, names):
    """A new command stands in one of the tables above, or this test fails."""
    options = {option for parameter in LEAVES[*names.split()].params for option in parameter.opts}
    assert {"--json", "--quiet"} <= options
    if names in ELSEWHERE:
        return
    monkeypatch.chdir(place)
    words = f"{names} {COMMANDS[names]} --json --quiet".split()
    done = CliRunner().invoke(app, words, input="Describe a fox.\n", catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)
    assert all(line.startswith("WARNING: ") for line in done.stderr.splitlines()), done.stderr


@pytest.mark.parametrize("words", ["arena runs/tiny --no-oracle", "oracle serve panel"])
def test_a_server_says_its_address_at_once(place, words):
    command = [sys.executable, "-m", "sppo", *words.split(), "--port", "0", "--json"]
    with subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        said = ""
        while not said.endswith("}\n"):
            said += (line := server.stdout.readline())
            assert line, said
        server.kill()
    assert json.loads(said)["address"].startswith("http://127.0.0.1:")


def test_the_plan_of_a_dry_run_is_json_too(place, monkeypatch):
    monkeypatch.chdir(place)
    done = CliRunner().invoke(app, ["run", "tiny.yaml", "--dry-run", "--json", "--rates", "runs/tiny"])
    plan = json.loads(done.stdout)
    assert plan["prompts"] == [2, 2, 2] and plan["held_out"] == 4
    assert plan["seconds"][0]["train"] > 0


def test_head_to_head_samples_as_the_run_and_long_work_shows_progress(place, monkeypatch):
    monkeypatch.chdir(place)
    done = CliRunner().invoke(app, ["evaluate", "head-to-head", "runs/tiny", "--oracle", "panel"])
    assert done.exit_code == 0, done.output
    written = json.loads((place / "evaluations/head-to-head/head-to-head.json").read_text())
    assert written["decoding"]["sampling"]["max_new_tokens"] == TINY["sampling"]["max_new_tokens"]
    assert (
        "game between the policies: 4 prompts"
        in CliRunner().invoke(app, ["game", "policies", "runs/tiny"]).stderr
    )


ELSEWHERE_BY_PAGE = {
    "README.md": "tests/test_docs.py and tests/cli/test_start.py",
    "arena.md": "tests/arena",
    "cluster.md": "tests/executors and tests/rundir/test_storage.py",
    "experiments.md": "measurements, which take minutes or hours",
    "extending.md": "tests/test_extending.py",
    "game.md": "tests/game/test_commands.py",
    "lora.md": "tests/test_docs.py",
    "python.md": "tests/test_api.py",
}
NOT_RUN = {
    r"sppo compare|oracles/tinyworld\.yaml": "minutes: tests/compare and tests/oracle/test_training.py play smaller ones",
    r"--judge |DATA|open-llm|\.\./shared": "a judge, or foreign data: tests/benchmarks",
    "--watch": "it has no end: tests/report",
    "oracle convert": "tests/oracle/test_pairrm_checkpoint.py, which has the weights for it",
}
"""Commands that are not run here, with the reason, and where what they do is run; tests/test_docs_commands.py parses them."""


OF_PAGES = [
    pytest.param(line, id=f"{page}: {line}")
    for page, line, is_whole in dict.fromkeys(commands())
    if is_whole and line.startswith("sppo ") and page not in ELSEWHERE_BY_PAGE
    if not re.search("|".join(NOT_RUN), line)
]


@pytest.mark.long  # four minutes together; the default tests read every command by the real parser
@pytest.mark.parametrize("line", OF_PAGES)
def test_the_commands_of_the_pages_run(place, monkeypatch, line):
    """Word by word, but for runs that take minutes: of those, the dry run."""
    monkeypatch.chdir(place)
    words = shlex.split(line)[1:]
    if words[0] == "run" and "--dry-run" not in words:
        words.append("--dry-run")
    done = CliRunner().invoke(app, words, input="Describe a fox.\n", catch_exceptions=False)
    assert done.exit_code == 0, done.output
