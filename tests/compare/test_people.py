"""`sppo oracle inspect` on files of votes."""

import itertools
import json

import pytest
from arena_votes import vote
from typer.testing import CliRunner

from sppo.cli.oracle import oracle_app
from sppo.game import GameError
from sppo.rundir import votes as arena
from sppo.rundir.folder import RunError

CIRCLE = {("a", "b"): "a", ("b", "c"): "b", ("a", "c"): "c"}


@pytest.fixture
def circle(tmp_path):
    """Votes that go in a circle on each of eight prompts, but for one voter, who ranks; and a judge who never decides."""
    rows = ["question_id,judge,model_a,model_b,winner"]
    for prompt, voter, (left, right) in itertools.product(range(8), ("p", "q", "r"), CIRCLE):
        winner = min(left, right) if voter == "r" else CIRCLE[left, right]
        rows.append(f"{prompt},{voter},{left},{right},{winner}")
    rows += [f"{prompt},s,a,b,inconsistent" for prompt in range(8)] + ["0,s,a,c,error"]
    path = tmp_path / "people.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def run(*arguments):
    result = CliRunner().invoke(oracle_app, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_a_circle_is_told_from_chance_and_voters_stand_beside_it(circle, tmp_path):
    figure = tmp_path / "cycles.svg"
    result = run(circle, "--by-voter", "--sets", 100, "--json", "--figure", figure)
    sides = {side["name"]: side for side in json.loads(result.stdout)["sides"]}
    assert list(sides) == ["people", "p", "q", "r"]
    together = sides["people"]
    assert (together["votes"], together["ties"], together["voters"], together["left_out"]) == (80, 8, 4, 1)
    assert together["cyclic"]["found"] == 1
    assert together["cyclic"]["p"] < 0.05
    assert together["predicted"]["low"] > 0
    assert sides["r"]["cyclic"]["found"] == 0
    assert "1 voter left out" in result.stderr
    assert "1 row left out" in result.stderr
    assert "cycles within prompts" in figure.read_text()


def test_the_tables_are_printed(circle):
    text = run(circle, "--sets", 20).stdout
    assert "Cycles within prompts, share of triples" in text
    assert "100.00%" in text


def test_votes_of_one_voter_are_named_as_such(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("prompt,worker,left,right,winner\nx,me,a,b,a\ny,me,b,c,b\nz,me,a,c,c\n", encoding="utf-8")
    said = run(path, "--sets", 20).stderr
    assert "all votes are one voter's" in said
    assert "no three items were all compared on one prompt" in said
    assert "too few prompts" in said


def test_votes_of_an_arena_are_read(tmp_path):
    path = tmp_path / "votes.parquet"
    names = ("base", "iteration 1", "iteration 2")
    pairs = itertools.product(range(6), itertools.combinations(names, 2))
    arena.write(
        path,
        [vote(number, a=a, b=b, prompt=f"prompt {prompt}") for number, (prompt, (a, b)) in enumerate(pairs)],
    )
    side = json.loads(run(path, "--sets", 20, "--json").stdout)["sides"][0]
    assert (side["votes"], side["triples"], side["cyclic"]["found"]) == (18, 6, 0)


def test_what_cannot_be_inspected_is_said(circle, tmp_path):
    ties = tmp_path / "ties.csv"
    ties.write_text("prompt,worker,left,right,winner\nx,me,a,b,tie\n", encoding="utf-8")
    with pytest.raises(GameError, match=r"ties\.csv: all 1 votes are ties"):
        run(ties)
    with pytest.raises(RunError, match="is a file of votes"):
        run(circle, "--iteration", 1)
    with pytest.raises(RunError, match="a run is inspected alone"):
        run(tmp_path, circle)
