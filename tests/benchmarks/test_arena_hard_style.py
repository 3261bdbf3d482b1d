"""Arena-Hard's style control, and the categories of its later versions."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize

from sppo.benchmarks.arena_hard import style
from sppo.benchmarks.question_files import ModelResponses
from sppo.cli.main import app


def drawn(strengths, weights, questions=4000, seed=0):
    """Games of models whose wins follow the style-controlled model, with differences of style that differ by model."""
    generator = np.random.default_rng(seed)
    models = []
    for number, _ in enumerate(strengths):
        models.append(generator.normal(0.1 * number, [0.3, 0.1, 0.1, 0.05], (questions, 4)))
    together = np.concatenate(models)
    mean, deviation = together.mean(axis=0), together.std(axis=0, ddof=1)
    games = []
    for strength, differences in zip(strengths, models):
        chance = 1 / (1 + np.exp(-strength - (differences - mean) / deviation @ weights))
        wins = generator.binomial(2, chance).astype(float)
        games.append(style.Games(wins, 2 - wins, differences))
    return games


def test_strengths_and_weights_of_style_are_found_again(monkeypatch):
    monkeypatch.setattr(style, "_ROUNDS", 30)
    strengths, weights = [-0.5, 0.4], np.array([1.0, 0.3, 0.0, -0.2])
    scores = style.style_scores(drawn(strengths, weights), seed=1)
    for score, strength in zip(scores, strengths):
        assert score.style_win_rate == pytest.approx(100 / (1 + np.exp(-strength)), abs=1.5)
        assert score.style_low < score.style_win_rate < score.style_high
        assert score.style_high - score.style_low < 5
        assert list(score.style_weights.values()) == pytest.approx(weights.tolist(), abs=0.06)


def test_it_is_the_maximum_of_the_likelihood():
    games = drawn([0.2, -0.3, 0.0], np.array([0.5, 0.0, 0.2, 0.0]), questions=60, seed=3)
    wins, losses = (np.concatenate([getattr(of, name) for of in games]) for name in ("wins", "losses"))
    z = np.concatenate([of.differences for of in games])
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    features = np.hstack([np.repeat(np.eye(3), 60, axis=0), z])

    def loss(coefficients):
        logits = features @ coefficients
        return wins @ np.logaddexp(0, -logits) + losses @ np.logaddexp(0, logits)

    # every question has two games, so the weights of the standard deviation are 2, with one degree of freedom of 360
    found = style._fit(games)
    expected = minimize(loss, np.zeros(7), tol=1e-12).x
    np.testing.assert_allclose(found[:3], expected[:3], atol=1e-4)
    np.testing.assert_allclose(found[3:], expected[3:] * np.sqrt(360 / 359), atol=1e-3)


def test_without_differences_of_style_it_is_the_share_of_wins():
    games = style.Games(np.array([3.0, 0.5, 2.0]), np.array([0.0, 1.5, 1.0]), np.zeros((3, 4)))
    (score,) = style.style_scores([games], seed=0)
    assert score.style_win_rate == pytest.approx(100 * 5.5 / 8, abs=1e-3)
    assert set(score.style_weights.values()) == {0.0}


def test_differences_by_hand():
    ours, theirs = np.array([[30.0, 3, 0, 6]]), np.array([[10.0, 0, 2, 2]])
    expected = [20 / 40, 0.1 / 1.1, -0.2 / 1.2, 0.0]
    np.testing.assert_allclose(style.differences(ours, theirs), [expected])


def test_what_a_file_counts_is_taken_and_markdown_is_counted_otherwise():
    text = "# One\n\n**two** and __three__\n\n- a\n- b\n\n1. c\n\n```\n# no heading\n- no item\n```\n"
    counted = {
        "token_len": 9,
        "header_count": {"h1": 1, "h2": 4},
        "list_count": {"ordered": 2, "unordered": 0},
        "bold_count": 7,
    }
    responses = ModelResponses(
        "m", {"a": (text,), "b": (text,), "c": (text,)}, {"a": 9, "b": 20}, {"a": counted}
    )
    assert style.style(responses, "a") == [9, 5, 2, 7]
    assert style.style(responses, "b") == [20, 1, 3, 2]
    with pytest.raises(ValueError, match=r"number of tokens in the response of m to question c"):
        style.style(responses, "c")
    with pytest.raises(ValueError, match=r"needs the response of m to question d"):
        style.style(responses, "d")


def test_the_files_of_the_later_version_are_scored_by_category(capsys, tmp_path):
    """Two categories with a baseline each; the model wins the first by its length alone, and loses the second."""
    baselines = {"hard_prompt": "o3", "creative_writing": "gemini"}
    tables = {"model_answer/m.jsonl": [], "model_judgment/judge/m.jsonl": []}
    for category, baseline in baselines.items():
        tables[f"model_answer/{baseline}.jsonl"] = []
        for n in range(40):
            identity, won = f"{category}{n}", category == "hard_prompt" and n % 4 != 0
            verdicts = ["B>A", "A>B"] if won else ["A>B", "B>A"]
            tables["model_judgment/judge/m.jsonl"].append(
                {
                    "uid": identity,
                    "category": category,
                    "judge": "judge",
                    "model": "m",
                    "baseline": baseline,
                    "games": [{"score": verdict} for verdict in verdicts],
                }
            )
            length = {"m": 100 + n + 40 * won, baseline: 100}
            for model in ("m", baseline):
                exchange = [
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": {"answer": "x"}},
                ]
                row = {"uid": identity, "model": model, "messages": exchange}
                tables[f"model_answer/{model}.jsonl"].append(row | {"metadata": {"token_len": length[model]}})
    for name, rows in tables.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["evaluate", "arena-hard", "--judgments", tmp_path / "model_judgment/judge/m.jsonl", "--json"]

    def rows(*more, code=0):
        with pytest.raises(SystemExit) as ended:
            app([*map(str, arguments), *map(str, more)])
        shown = capsys.readouterr()
        assert ended.value.code == code, shown.err
        return json.loads(shown.out) if code == 0 else shown.err

    assert [(row["name"], row["win_rate"]) for row in rows()] == [
        ("m (hard_prompt)", 75.0),
        ("m (creative_writing)", 0.0),
    ]
    controlled = rows("--data", tmp_path, "--style-control")
    assert controlled[0]["style_weights"]["length"] > 1
    assert controlled[1]["style_win_rate"] < 1
    (tmp_path / "model_answer/o3.jsonl").unlink()
    assert "o3.jsonl" in rows("--data", tmp_path, "--style-control", code=1)
