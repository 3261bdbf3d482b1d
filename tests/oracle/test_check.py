import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from chat_server import said, serve
from run_folders import RECIPE, write_run
from scipy.special import expit
from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.oracle import CheckedOracle, OracleError
from sppo.oracle.behaviour import check
from sppo.oracle.panel import Panel
from sppo.recipe import parse_oracle


class FirstLiking:
    """Sees pairs in an order: M_ij is the difference of the lengths, and two nats for standing first."""

    @property
    def counts(self):
        return {"texts": 3}

    def compare(self, prompts, responses):
        return self.probabilities(self.logits(prompts, responses))

    def logits(self, prompts, responses):
        n = np.array([[len(text) for text in of] for of in responses], dtype=float)
        found = n[:, :, None] - n[:, None, :] + 2.0
        return found * (1 - np.eye(n.shape[1]))

    def probabilities(self, logits):
        return expit((logits - logits.swapaxes(1, 2)) / 2)


class Cycle:
    def compare(self, prompts, responses):
        return [[[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]] * len(prompts)


def test_measures_by_hand():
    seen = []
    found = check(
        CheckedOracle(FirstLiking()),
        ["x", "y"],
        [["aaaa", "a", ""], ["b", "b"]],
        tie=0.3,
        advance=seen.append,
    )
    assert (found.prompts, found.pairs, sum(seen)) == (2, 4, 2)
    p = expit([3.0, 4.0, 1.0, 0.0])  # lengths 4, 1, 0, and a pair of the same
    assert found.mean_margin == pytest.approx(np.mean(np.abs(p - 0.5)))
    assert found.near_ties == 0.5  # 0.73 and 0.5
    assert found.longer_wins == pytest.approx(np.mean(p[:3]))
    assert found.length_correlation == pytest.approx(1.0)
    assert found.cyclic_triples == 0
    assert found.counts == {"texts": 3}
    assert found.pairs_per_second == pytest.approx(4 / found.seconds)
    (orders,) = found.orders.values()
    assert orders.inconsistency == pytest.approx(4.0)  # two nats in either order
    assert orders.flips == 0.5  # differences of 1 and 0 are less than the two nats
    first = [expit(d + 2) for d in (3, -3, 4, -4, 1, -1, 0, 0)]
    assert orders.first_wins == pytest.approx(np.mean(first))


def test_cycles_and_certain_verdicts():
    found = check(CheckedOracle(Cycle()), ["x"], [["a", "bb", "ccc"]])
    assert found.cyclic_triples == 1
    assert found.orders == {}
    sure = FirstLiking()
    sure.logits = lambda prompts, responses: np.array([[[0.0, np.inf], [-np.inf, 0.0]]])
    sure.probabilities = lambda logits: np.array([[[0.5, 1.0], [0.0, 0.5]]])
    (orders,) = check(CheckedOracle(sure), ["x"], [["a", "b"]]).orders.values()
    assert (orders.inconsistency, orders.flips, orders.first_wins) == (0, 0, pytest.approx(0.5))


def test_members_that_are_asked_in_both_orders_are_found():
    panel = CheckedOracle(Panel([CheckedOracle(FirstLiking()), CheckedOracle(Cycle())]))
    found = check(panel, ["x"], [["aaaa", "a", ""]])
    assert list(found.orders) == ["FirstLiking"]
    assert found.counts == {"texts": 3}


def test_nothing_to_check():
    with pytest.raises(OracleError, match="no prompts"):
        check(CheckedOracle(Cycle()), [], [])
    with pytest.raises(OracleError, match="the prompt 'x' has 1 responses; 2 are needed"):
        check(CheckedOracle(Cycle()), ["x"], [["a"]])


# the command


@pytest.fixture
def sppo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        found = CliRunner().invoke(app, ["oracle", "check", *arguments])
        return found.exit_code, found.stdout, found.stderr

    return run


ROWS = [
    {"prompt": "Tell me about a fox.", "responses": ["A fox.", "A fox is a wild animal.", "No."]},
    {
        "prompt": [{"role": "user", "content": "Describe rain."}],
        "responses": ["Rain is water.", "I like rain!"],
    },
]


def test_an_oracle_on_a_files_responses(sppo, tmp_path):
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    code, out, _ = sppo("panel", "--responses", "r.jsonl", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["prompts"], found["pairs"]) == (2, 4)
    code, out, _ = sppo("panel", "--responses", "r.jsonl", "--limit", "1")
    assert code == 0
    for line in (
        "pairs of responses",
        "near ties",
        "rank correlation",
        "fitted length penalty",
        "pairs per second",
    ):
        assert line in out


def test_a_run_has_two_oracles_and_the_check_says_which_it_is_of(sppo, tmp_path):
    """The one that the run learns from, or with --held-out the one that it never learns from."""
    second = {"type": "near_tie", "oracle": {"type": "panel"}, "delta": 0.5}
    texts = ("A fox.", "A fox is a clever wild animal.", "A fox hunts in the dark. It has red fur.")
    write_run(
        tmp_path / "run",
        recipe={**RECIPE, "evaluation": {"oracle": second}},
        text=lambda iteration, prompt, k: texts[k],
    )
    found = {}
    for options, words in (
        ([], "checking panel, the oracle that the run learns from"),
        (["--held-out"], "checking near_tie (panel), the held-out oracle"),
    ):
        code, out, err = sppo("run", *options, "--json")
        assert code == 0, err
        assert words in err.replace("\n", " ")
        found[words] = json.loads(out)
    learnt, held_out = found.values()
    assert learnt["prompts"] == held_out["prompts"] == 6
    assert learnt["near_ties"] < held_out["near_ties"], "which makes near ties nearer"
    write_run(tmp_path / "alone")
    for arguments, message in (
        (["alone", "--held-out"], "the recipe has no evaluation.oracle; leave --held-out out"),
        (["panel", "--held-out"], "--held-out: panel is no run"),
    ):
        code, _, err = sppo(*arguments)
        assert code == 1
        assert message in err.replace("\n", " ")


def test_a_judge_that_always_takes_the_first(sppo, tmp_path):
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    with serve(lambda path, body: said("[[A]]")) as server:
        (tmp_path / "judge.yaml").write_text(
            f"oracle: {{type: judge, verdict: samples, endpoint: {{url: '{server.url}', model: m}}}}"
        )
        code, out, err = sppo("judge.yaml", "--responses", "r.jsonl", "--json")
        assert code == 0, err
        found = json.loads(out)
        assert found["near_ties"] == 1
        assert found["orders"]["Judge"] == {
            "inconsistency": 20.0,
            "flips": 1.0,
            "first_wins": pytest.approx(1, abs=1e-4),
        }
        assert found["counts"]["requests"] == 8
        assert len(server.asked) == 8
    assert (tmp_path / "cache" / "sppo" / "answers.sqlite").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.jsonl: it is empty"),
        ('{"prompt": "x"}', "r.jsonl, line 1: not a prompt with responses: there is no 'responses'"),
        (
            '{"prompt": "x", "responses": ["a"]}',
            "line 1: not a prompt with responses: 1 responses; at least 2",
        ),
        ('{"prompt": "x", "responses": ["a", 3]}', "responses must be a list of texts"),
        ('{"prompt": 3, "responses": ["a", "b"]}', "line 1: not a prompt with responses"),
        ("[1]", "line 1: not a prompt with responses"),
        ("{", "line 1: not a prompt with responses"),
        ("[" * 100000, "line 1: not a prompt with responses"),
    ],
)
def test_files_that_are_something_else(sppo, tmp_path, text, message):
    (tmp_path / "r.jsonl").write_text(text)
    code, _, err = sppo("panel", "--responses", "r.jsonl")
    assert code == 1
    assert message in err.replace("\n", " ")


def test_nothing_to_compare(sppo, tmp_path):
    code, _, err = sppo("panel")
    assert code == 1
    assert "give a run, or --responses FILE" in err
    code, _, err = sppo("panel", "--responses", "none.jsonl")
    assert code == 1
    assert "cannot be read" in err


# the docs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "oracles.md"
SNIPPETS = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_oracle_in_the_docs_is_one(snippet):
    parse_oracle(yaml.safe_load(snippet)["oracle"])


def test_the_docs_show_every_type_and_the_report_as_it_is(sppo, tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    shown = {yaml.safe_load(snippet)["oracle"]["type"] for snippet in SNIPPETS}
    types = {
        "function",
        "panel",
        "reward_model",
        "general_preference",
        "judge",
        "policy_judge",
        "verifiable",
        "length_controlled",
        "length_matched",
        "near_tie",
        "similarity",
    }
    assert shown == types
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    _, out, _ = sppo("panel", "--responses", "r.jsonl")
    for line in out.splitlines():
        name = line.strip().rsplit("  ", 1)[0].strip()
        assert name in page or line.startswith("oracle check:"), name
