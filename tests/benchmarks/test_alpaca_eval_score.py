import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from sppo.benchmarks.alpaca_eval import score as ae
from sppo.benchmarks.alpaca_eval.files import in_order, read_annotations, read_length_control
from sppo.benchmarks.outputs import OutputsError

JUDGED = [
    "alpaca-7b",
    "gemma-7b-it",
    "vicuna-13b-v1.5",
    "OpenHermes-2.5-Mistral-7B",
    "claude-2.1",
    "FuseChat-Llama-3.2-3B-Instruct",
    "gpt-3.5-turbo-1106",
    "minotaur-13b",
    "gpt4_gamed",
    "NullModel",
]


@pytest.fixture(scope="module")
def published(shared):
    folder = shared / "data" / "alpacaeval"
    return folder, json.loads((folder / "dev" / "published.json").read_text())


@pytest.fixture(scope="module")
def control(published):
    return read_length_control(published[0])


def tiny_control(instructions=20, gamed=40):
    generator = np.random.default_rng(0)
    return ae.LengthControl(
        generator.normal(size=instructions),
        generator.normal(size=gamed),
        generator.normal(size=gamed),
        generator.uniform(size=gamed),
    )


@pytest.mark.parametrize("model", JUDGED)
def test_the_leaderboards_figures_come_out(published, control, model):
    folder, rows = published
    found = read_annotations(folder / "dev" / f"{model}.parquet")
    raw = ae.win_rate(found.preferences)
    expected = rows[model]
    for name in (
        "win_rate",
        "standard_error",
        "n_wins",
        "n_wins_base",
        "n_draws",
        "n_total",
        "discrete_win_rate",
    ):
        assert getattr(raw, name) == pytest.approx(expected[name], abs=1e-8), name
    controlled = ae.length_controlled_win_rate(
        found.preferences, found.output_lengths, found.baseline_lengths, control
    )
    assert controlled.win_rate == pytest.approx(expected["length_controlled_winrate"], abs=0.2)
    if expected["lc_standard_error"] is not None:
        assert controlled.standard_error == pytest.approx(expected["lc_standard_error"], abs=1e-3)
    row = ae.leaderboard_row(raw, controlled, found.output_lengths)
    # over all outputs, one of which was never judged in minotaur's file
    assert row["avg_length"] == pytest.approx(expected["avg_length"], abs=expected["n_total"] < 805)


def test_published_coefficients_give_the_published_figure(published, control):
    """All rows of the leaderboard that have coefficients; those of two are of another fit than their figure."""
    folder, _ = published
    checked = 0
    for row in pq.read_table(folder / "common" / "leaderboard_all.parquet").to_pylist():
        if row["w_bias"] is None or row["model"] in ("NullModel", "dbrx-instruct"):
            continue
        weights = ae.Weights(row["w_len"], row["w_difficulty"], row["w_bias"])
        # a file may lack an instruction, or have it without a preference; the leaderboard says only how many it counted
        found = [ae.from_weights(control, weights, range(rows)).win_rate for rows in (805, row["n_total"])]
        assert min(abs(np.array(found) - row["length_controlled_winrate"])) < 1e-6, row["model"]
        checked += 1
    assert checked == 184


def test_preferences_are_counted_as_the_leaderboard_counts_them():
    """Hand-made: one loss, one draw written 0, one draw written 1.5, two wins, one not judged."""
    found = ae.win_rate([1.0, 0, 1.5, 2.0, 1.75, None])
    y = [0, 0.5, 0.5, 1, 0.75]
    assert found.win_rate == pytest.approx(55)
    assert found.standard_error == pytest.approx(100 * np.std(y, ddof=1) / math.sqrt(5))
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_total) == (2, 1, 2, 5)
    assert found.discrete_win_rate == pytest.approx(60)


def test_a_longer_answer_that_wins_for_its_length_is_controlled_down():
    generator = np.random.default_rng(1)
    control = tiny_control(instructions=400)
    baseline = generator.integers(500, 1500, 400)
    extra = generator.normal(400, 600, 400)
    output = np.maximum(baseline + extra, 1).astype(int)
    preferences = 1 + 1 / (1 + np.exp(-extra / 400))
    raw = ae.win_rate(preferences)
    found = ae.length_controlled_win_rate(preferences, output, baseline, control)
    assert raw.win_rate > 65
    # t is measured from equal lengths, where the judge is indifferent
    assert found.win_rate < raw.win_rate - 10
    assert found.weights.length < 0


def test_the_order_of_rows_that_keep_their_difficulties_moves_nothing_but_folds():
    generator = np.random.default_rng(2)
    control = tiny_control(instructions=200)
    preferences = 1 + generator.uniform(size=200)
    output, baseline = generator.integers(1, 999, (2, 200))
    order = generator.permutation(200)
    one = ae.length_controlled_win_rate(preferences, output, baseline, control)
    other = ae.length_controlled_win_rate(
        preferences[order], output[order], baseline[order], control, rows=order.tolist()
    )
    assert one.win_rate == pytest.approx(other.win_rate, abs=1)


def test_equal_lengths_are_no_division_by_zero():
    found = ae.length_controlled_win_rate([1.2] * 20, [7] * 20, [7] * 20, tiny_control())
    assert 0 < found.win_rate < 50


def test_the_baseline_ties_with_itself():
    assert ae.against_itself(3).win_rate == 50


@pytest.mark.parametrize(
    ("preferences", "lengths", "rows", "message"),
    [
        ([1.0] * 9 + [2.5], 10, None, "judgment 9: preference = 2.5"),
        ([0.5] * 10, 10, None, "judgment 0"),
        ([1.0] * 10, 9, None, "10 preferences, 9 lengths"),
        ([1.0] * 4, 4, None, "at least 5"),
        ([1.0] * 21, 21, None, "difficulties of 20 instructions"),
        ([1.0] * 10, 10, [0] * 10, "row 0 is there twice"),
        ([None] * 10, 10, None, "0 judgments"),
    ],
)
def test_judgments_that_cannot_be_used_are_refused(preferences, lengths, rows, message):
    with pytest.raises(ae.AlpacaEvalError, match=message):
        ae.length_controlled_win_rate(preferences, [5] * lengths, [5] * lengths, tiny_control(), rows=rows)


def row(number, **changes):
    return {
        "instruction": f"question {number}",
        "output_1": "the baseline's",
        "generator_1": "baseline",
        "output_2": "mine" * number,
        "generator_2": "model",
        "annotator": "judge",
        "preference": 1.5,
    } | changes


def written(tmp_path, rows, name="annotations.json"):
    path = tmp_path / name
    path.write_text(json.dumps(rows))
    return path


def test_an_annotations_file_of_the_leaderboard_is_read(tmp_path):
    path = written(tmp_path, [row(0), row(2, preference=None), row(1, preference=2)])
    found = read_annotations(path)
    assert (found.model, found.baseline, found.judge) == ("model", "baseline", "judge")
    assert found.output_lengths == [0, 8, 4]  # an empty output is an output
    assert found.baseline_lengths == [14] * 3
    assert found.preferences == [1.5, None, 2]
    ordered = in_order(found, ["question 0", "question 1", "question 2"])
    assert ordered.preferences == [1.5, 2, None]
    assert ordered.output_lengths == [0, 4, 8]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no judgments"),
        ([row(0), row(0)], "two judgments"),
        ([row(0), row(1, annotator="another")], "annotator.*mixed"),
        ([row(0), row(1, annotator=None)], "'annotator' .judge, none.*mixed"),
        ([row(0, row=3), row(1, row=3)], "row 1: a second judgment of row 3"),
        ([row(0, row=3), row(1)], "row 1: row = None"),
        ([row(0), row(1, generator_2="another")], "generator_2.*mixed"),
        ([row(0, preference="2")], "no number"),
        ([{"instruction": "q"}], "no `preference`"),
        ([row(0, output_2=None)], "output_2"),
    ],
)
def test_a_wrong_annotations_file_is_refused(tmp_path, rows, message):
    with pytest.raises(ae.AlpacaEvalError, match=message):
        read_annotations(written(tmp_path, rows))


def test_positions_that_a_file_states_go_with_their_judgments(tmp_path):
    found = read_annotations(written(tmp_path, [row(2, row=1), row(0, row=0), row(1, row=2)]))
    assert found.rows == [1, 0, 2]
    assert in_order(found, ["question 0", "question 1", "question 2"]).rows == [0, 2, 1]


def test_a_judgment_of_another_benchmark_is_refused(tmp_path):
    found = read_annotations(written(tmp_path, [row(7)]))
    with pytest.raises(ae.AlpacaEvalError, match="no instruction 'question 7'"):
        in_order(found, ["question 0"])


def test_a_cut_file_is_refused(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text('[{"preference": 1.0')
    with pytest.raises(OutputsError, match="not a whole"):
        read_annotations(path)


def test_a_number_that_no_float_holds_is_refused(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text('[{"preference": 1.5, "output_len": 1' + "0" * 400 + ', "baseline_len": 3}]')
    with pytest.raises(OutputsError, match="too large a number"):
        read_annotations(path)


def test_the_hubs_table_is_read(tmp_path):
    path = tmp_path / "df_gamed.csv"
    path.write_text(
        "model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
        "concise,0,0.25,1.5,0.0,False\nconcise,1,0.5,1.0,-2.0,False\nverbose,0,0.75,-1.0,0.0,False\n"
    )
    for place in (path, tmp_path):
        found = read_length_control(place)
        assert found.difficulties.tolist() == [0, -2]
        assert found.gamed_wins.tolist() == [0.25, 0.5, 0.75]
        assert found.gamed_lengths.tolist() == [1.5, 1, -1]


@pytest.mark.parametrize(
    "text", ["index\n0\n", "index,preference,std_delta_len,instruction_difficulty\n0,,1,1\n"]
)
def test_a_wrong_table_is_refused(tmp_path, text):
    path = tmp_path / "df_gamed.csv"
    path.write_text(text)
    with pytest.raises(ae.AlpacaEvalError):
        read_length_control(path)
