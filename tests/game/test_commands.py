import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sppo.cli.game import app
from sppo.game import GameError, nash, read_table


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("kind", ["random", "bradley-terry", "rock-paper-scissors", "cyclic", "majority"])
def test_generated_games_are_solved(tmp_path, kind: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "game.csv"
    run("generate", kind, "-n", 3, "-o", path)
    found = json.loads(run("solve", path, "--json"))
    np.testing.assert_allclose(found["winner"], nash(read_table(path).payoff), atol=1e-9)
    assert found["duality gap of the winner"] <= 1e-9


def test_solve_compares_a_policy(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "game.csv"
    run("generate", "rock-paper-scissors", "--bias", "0.9,0.7,0.6", "-o", path)
    text = run("solve", path, "--policy", "0.2,0.3,0.5")
    assert "0.5714" in text
    assert "best responses to it          rock" in text


def test_many_games(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "games.npy"
    run("generate", "random", "-n", 4, "--games", 20, "-o", path)
    assert json.loads(run("solve", path, "--json"))["games"] == 20
    measures = json.loads(run("inspect", path, "--json"))
    assert 0 < measures["cyclic_triples"] < 1
    assert "games" in run("solve", path)
    assert "Bradley-Terry" in run("inspect", path)


def test_converge_draws_and_writes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    figure, simplex, data = tmp_path / "f.svg", tmp_path / "s.svg", tmp_path / "d.csv"
    text = run("converge", "--iterations", 200, "--figure", figure, "--simplex", simplex, "--data", data)
    assert "extragradient" in text
    assert figure.stat().st_size > 1000
    assert simplex.stat().st_size > 1000
    assert data.read_text().startswith("series,steps,")
    games = tmp_path / "games.npy"
    run("generate", "random", "-n", 3, "--games", 4, "-o", games)
    assert "worst game" in run("converge", games, "--iterations", 20)


def test_strategies(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "policies.csv"
    path.write_text("first,second\n0.5,0.4\n0.6,0.5\n")
    found = json.loads(run("strategies", path, "--json"))
    assert found["last policy"]["gap"] == 0
    assert found["averaged policy"]["exploitability"] == pytest.approx(0.05)
    assert "second" in run("strategies", path)


def test_errors_are_said_in_words(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "game.csv"
    path.write_text("0.5,0.9\n0.2,0.5\n")
    with pytest.raises(GameError, match=r"game\.csv: P\[0, 1\] \+ P\[1, 0\] = 1\.1"):
        run("solve", path)
    run("solve", path, "--tolerance", 0.2)
    result = CliRunner().invoke(app, ["solve", str(path), "--tolerance", "0.2", "--policy", "0.5"])
    assert result.exit_code == 2
    assert "expected 2 numbers" in result.output


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (
            "sppo.game, sppo.game.dynamics, sppo.game.convergence",
            ("torch", "matplotlib", "typer", "rich", "scipy"),
        ),
        ("sppo.cli.game", ("torch", "matplotlib", "scipy")),
    ],
)
def test_importing_the_game_is_light(modules: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


PAGE = Path(__file__).resolve().parents[2] / "docs" / "game.md"
MEASURED = {f"figures/{name}.svg" for name in ("votes-cycles", "certificates", "average-last", "hacking")}
"""The figures that scripts in measurements/ have made."""


@pytest.mark.slow
def test_the_page_does_what_it_says(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    text = PAGE.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("docs/figures").mkdir(parents=True)
    (policies,) = re.findall(r"^```\n(base,1,2,3\n.*?)^```", text, flags=re.M | re.S)
    Path("policies.csv").write_text(policies)
    commands = re.findall(r"^sppo game (?!certify)(.*)$", text, flags=re.M)  # certify takes a run
    assert len(commands) == 6
    said = "".join(run(*shlex.split(command)) for command in commands)
    for block in re.findall(r"^```\n(.*?)^```", text, flags=re.M | re.S):
        for line in block.splitlines():
            # tables and facts of the page, but for rounding noise and what a pipe pads
            if line[:1].isalpha() and "  " in line and "1.7e-17" not in line:
                assert " ".join(line.split()) in " ".join(said.split()), line
    for code in re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
        exec(compile(code, str(PAGE), "exec"), {})
    for figure in re.findall(r"\((figures/\S+\.svg)\)", text):
        assert (PAGE.parent / figure).stat().st_size < 200_000
        assert Path("docs", figure).is_file() or figure in MEASURED
