"""Heads on frozen backbones: what they learn, that the oracles load them, and what cannot be trained."""

import json
import shutil
from io import StringIO

import pytest
from rich.console import Console

from sppo.oracle import OracleError, load
from sppo.oracle.training import backbones, heads, train
from sppo.oracle.training.pairs import published_votes, read
from sppo.progress import Terminal
from sppo.recipe import RecipeError, load_oracle_training
from sppo.recipe.oracle_training import Pairs

CYCLE = ("rock", "paper", "scissors")


def trained(tmp_path, rows, head, **pairs):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"pairs": {"source": str(tmp_path / "pairs.jsonl"), "held_out": 0.25, **pairs}, "head": head}
    output = tmp_path / f"oracle-{head['type']}"
    return output, train(
        load_oracle_training(settings), output, Terminal(Console(file=StringIO(), width=200))
    )


def games(prompts=24):
    """Each text beats the one before it, and the first beats the last."""
    return [
        {
            "prompt": f"Game {n}.",
            "response_a": CYCLE[(k + 1 - n % 2) % 3],
            "response_b": CYCLE[(k + n % 2) % 3],
            "label": "ab"[n % 2],
        }
        for n in range(prompts)
        for k in range(3)
    ]


@pytest.mark.parametrize(("kind", "pad"), [("reward_model", None), ("general_preference", 0)])
def test_a_cycle_is_learnt_by_the_one_that_can_hold_it(tmp_path, tiny_model, kind, pad):
    """And the folder is an oracle like any other, also from a backbone without a padding token."""
    shutil.copytree(tiny_model("llama-3"), backbone := tmp_path / "backbone")
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps({**config, "pad_token_id": pad}))
    head = {"type": kind, "model": str(backbone), "l2": 1e-4}
    folder, result = trained(tmp_path, games(), head)
    matrices = load({"type": kind, "model": str(folder)}).compare(
        [f"Game {n}." for n in range(24)], [CYCLE] * 24
    )
    wins = matrices[:, [1, 2, 0], [0, 1, 2]]
    if kind == "reward_model":  # a transitive order breaks at least one side of each triangle
        assert result["held_out"]["accuracy"] <= 2 / 3 + 1e-9
        assert result["cycles"] == {"triples": 6, "cyclic": 0, "judged_cyclic": 6}
        assert ((wins > 0.5).sum(axis=1) <= 2).all()
    else:
        assert result["held_out"]["accuracy"] > 0.9 and result["cycles"]["cyclic"] >= 5
        assert (wins > 0.5).mean() > 0.95
    again = trained(tmp_path, games(), head)[1]
    assert again["held_out"]["calibration"] == result["held_out"]["calibration"]


def test_votes_are_counted_and_the_fit_is_calibrated(tmp_path, tiny_model):
    """Three of four voters prefer the same text: P is 3/4, and the baseline of lengths, which are equal, knows nothing."""
    rows = [
        {"prompt": f"Which {n}?", "response_a": "cat", "response_b": "dog", "label": label}
        for n in range(24)
        for label in ("a", "a", "a", "b")
    ]
    rows += [{**row, "label": "tie", "response_b": "cow"} for row in rows[:40:4]]
    head = {"type": "reward_model", "model": str(tiny_model("llama-3")), "l2": 1e-3}
    folder, result = trained(tmp_path, rows, head)
    oracle = load({"type": "reward_model", "model": str(folder)})
    (matrix,) = oracle.compare(["Which 100?"], [["cat", "dog"]])
    assert matrix[0, 1] == pytest.approx(0.75, abs=0.05)
    assert result["length_only"]["auc"] == 0.5 < result["held_out"]["auc"]


def test_features_that_are_there_are_not_computed_again(tmp_path, tiny_model, monkeypatch):
    head = {"type": "reward_model", "model": str(tiny_model("llama-3"))}
    with monkeypatch.context() as patch:
        patch.setattr(heads, "fit", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, games(), head)
    monkeypatch.setattr(backbones.Backbone, "features", None)
    assert trained(tmp_path, games(), head)[1]["held_out"]["pairs"] == 18
    with pytest.raises(OracleError, match="trained from other pairs or settings"):
        trained(tmp_path, games(12), head)


def test_what_cannot_be_trained_is_said(tmp_path, tiny_model):
    ties = [{**row, "label": "tie"} for row in games()]
    backbone = str(tiny_model("llama-3"))
    with pytest.raises(OracleError, match="all 72 pairs are ties"):
        trained(tmp_path, ties, {"type": "reward_model", "model": backbone})
    with pytest.raises(RecipeError, match="encoder belong to a PairRM"):
        load_oracle_training(
            {
                "pairs": {"source": "x"},
                "encoder": {"layers": 1},
                "head": {"type": "reward_model", "model": "x"},
            }
        )
    with pytest.raises(RecipeError, match=r"head\.dimensions"):
        load_oracle_training(
            {"pairs": {"source": "x"}, "head": {"type": "general_preference", "model": "x", "dimensions": 3}}
        )


PANDALM = {
    "instruction": "Rewrite.",
    "input": "Me go.",
    "response1": "I go.",
    "response2": "Me.",
    "annotator1": 1,
    "annotator2": 0,
    "annotator3": 2,
}
TURNS = [[{"role": r, "content": f"{s}{n}"} for n, r in enumerate(("user", "assistant") * 2)] for s in "xy"]
MT_BENCH = {"conversation_a": TURNS[0], "conversation_b": TURNS[1], "winner": "model_b", "turn": 1}


def test_published_files_of_votes_are_read_as_they_are(tmp_path):
    rows = [PANDALM, MT_BENCH, {**MT_BENCH, "turn": 2, "winner": "tie (inconsistent)"}]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(Pairs(source=str(tmp_path / "votes.jsonl")))
    assert [pair.votes for pair in found] == [(1, 1, 1), (0, 1, 0), (0, 0, 1)]
    assert (found[0].prompt, found[0].response_a) == ("Rewrite.\n\nMe go.", "I go.")
    assert (found[1].prompt, found[1].response_a, found[1].response_b) == ("x0", "x1", "y1")
    assert found[2].response_b == "Assistant: y1\n\nUser: y2\n\nAssistant: y3"


def written(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mt_bench(folder):
    """MT-Bench's layout with two questions and two models, of which a third has votes and no answers."""
    questions = [{"question_id": n, "turns": [f"q{n}", f"r{n}"]} for n in (81, 82)]
    written(folder / "question.jsonl", questions)
    for model in "mn":
        turns = [[f"{model}{n}", f"{model}{n}, then"] for n in (81, 82)]
        rows = [{"question_id": 81 + n, "choices": [{"turns": texts}]} for n, texts in enumerate(turns)]
        written(folder / "model_answer" / f"{model}.jsonl", rows)
    votes = [
        {"question_id": n, "model_a": a, "model_b": b, "turn": turn, "winner": winner, "judge": "someone"}
        for n, a, b, turn, winner in (
            (81, "m", "n", 1, "model_a"),
            (81, "n", "m", 1, "model_a"),
            (82, "m", "n", 2, "tie"),
            (82, "m", "absent", 1, "model_b"),
        )
    ]
    return written(folder / "votes" / "human.jsonl", votes)


def test_votes_that_name_their_texts_are_joined_with_them(tmp_path):
    votes = mt_bench(tmp_path / "mt")
    columns = {"source": str(votes), "texts": str(tmp_path / "mt"), "without_text": "leave_out"}
    said = []
    found = read(Pairs(**columns), said.append)
    assert [(pair.prompt, pair.response_a, pair.response_b, pair.votes) for pair in found] == [
        ("q81", "m81", "n81", (1, 1, 0)),
        ("q82", "Assistant: m82\n\nUser: r82\n\nAssistant: m82, then",
         "Assistant: n82\n\nUser: r82\n\nAssistant: n82, then", (0, 0, 1)),
    ]  # fmt: skip
    assert said == [
        "1 vote left out (pairs.without_text: leave_out), since a response named there has no text: absent on 82"
    ]
    with pytest.raises(
        OracleError, match=r"line 4: .* has no text of absent on 82; .*pairs\.without_text: leave_out"
    ):
        read(Pairs(**{**columns, "without_text": "error"}))
    with pytest.raises(OracleError, match=r"pairs\.texts: .* has no model_answer"):
        read(Pairs(**{**columns, "texts": None}))
    written(tmp_path / "mt" / "question.jsonl", [{"question_id": 81}])
    with pytest.raises(OracleError, match=r"pairs\.texts: .* cannot be read .*turns"):
        read(Pairs(**columns))

    crowd = tmp_path / "crowd"
    written(crowd / "prompts.jsonl", [{"id": 8, "text": "Argue."}, {"id": 9, "text": "Sing."}])
    results = [
        {"id": n, "model": m, "prompt": p, "result": f"{m} {p}"}
        for n, m, p in ((0, 1, 8), (1, 2, 8), (2, 1, 9))
    ]
    written(crowd / "results.jsonl", [*results, {"id": 3, "model": 2, "prompt": 9, "result": "2 9"}])
    lines = [
        "id,prompt,model_x,model_y,worker,winner,left,right",
        "0,8,1,2,7,left,x,y",
        "0,8,1,2,8,tie,x,y",
        "1,9,2,1,7,right,y,x",
    ]
    (crowd / "crowd.csv").write_text("\n".join(lines))
    found = read(Pairs(source=str(crowd / "crowd.csv"), group="model_y"))
    assert [(pair.prompt, pair.response_a, pair.response_b, pair.votes, pair.group) for pair in found] == [
        ("Argue.", "1 8", "2 8", (1, 0, 1), "2"),
        ("Sing.", "2 9", "1 9", (0, 1, 0), "1"),
    ]
    (crowd / "crowd.csv").write_text("\n".join([*lines, "1,9,2,1,7,both,y,x"]))
    with pytest.raises(OracleError, match="line 5: winner: 'both'; known are left, right and tie"):
        read(Pairs(source=str(crowd / "crowd.csv")))


@pytest.mark.slow
def test_the_published_files_give_the_votes_that_they_hold(shared):
    """3,355 votes in MT-Bench's file, of which some name a model whose answers are not there; PandaLM's 999 pairs of three."""
    data = shared / "data" / "human_votes"
    if not data.is_dir():
        pytest.skip("shared/data has no human votes")
    pandalm = read(Pairs(source=str(data / "pandalm" / "testset-v1.json")))
    assert sum(pair.judgments for pair in pandalm) == 2997
    crowd = read(Pairs(source=str(data / "llmfao" / "crowd-comparisons.csv")))
    assert sum(pair.judgments for pair in crowd) == 8931
    people = Pairs(
        source=str(data / "mt_bench_human" / "human.jsonl"),
        texts=str(shared / "data" / "mt_bench"),
        without_text="leave_out",
    )
    said = []
    found = read(people, said.append)
    left_out = int(said[0].split(" ")[0].replace(",", ""))
    assert left_out + sum(pair.judgments for pair in found) == 3355 and "vicuna-13b-v1.2" in said[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**PANDALM, "annotator2": 3}, r"annotator2: '3'; a vote is 0 \(tie\), 1 or 2"),
        ({**PANDALM, "annotator2": True}, "annotator2: 'True'"),
        ({**MT_BENCH, "winner": "model_c"}, "winner: 'model_c'; known are"),
        ({**MT_BENCH, "turn": 3}, "conversation_a: it has no turn 3"),
        ({**MT_BENCH, "turn": 0}, "turn: '0' is no number"),
        ({**MT_BENCH, "conversation_b": "x"}, "conversation_b: it has no turn 1"),
    ],
)
def test_votes_that_contradict_their_format_are_named(row, message):
    with pytest.raises(OracleError, match=f"row 7: {message}"):
        published_votes(row, Pairs(source="x"), "row 7")
