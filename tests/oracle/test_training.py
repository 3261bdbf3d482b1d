"""Training a PairRM: the data, the split, the measures, the steps, and the folder that comes out."""

import json
import shutil
from io import StringIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from run_folders import CYCLE, write_run
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from sppo.oracle import OracleError, load
from sppo.oracle.pairrm import PairRM
from sppo.oracle.pairrm_encoder import deberta
from sppo.oracle.training import fit, pairs, train
from sppo.oracle.training.measures import LengthBaseline, auc, measures
from sppo.oracle.training.results import show
from sppo.progress import Terminal
from sppo.recipe import OracleTraining, RecipeError, load_oracle_training

GOOD, BAD = ["sun", "fern", "lake"], ["mud", "rust", "smoke"]
PLAIN = ["a", "the", "of", "and", "tall", "stone", "tree", "road"]


def made_up(count=480, prompts=60, seed=0):
    """Preferred is what names more good and fewer bad things; three quarters of them are shorter, too."""
    random = np.random.default_rng(seed)

    def text(liked, length):
        words = list(random.choice(PLAIN, length))
        words[random.integers(length)] = str(random.choice(GOOD if liked else BAD))
        return " ".join(words)

    rows = []
    for number in range(count):
        liked = bool(random.integers(2))
        lengths = sorted(random.choice(np.arange(3, 15), 2, replace=False))
        short = liked if random.random() < 0.75 else not liked
        rows.append(
            {
                "prompt": f"tell me of the stone {number % prompts}",
                "response_a": text(liked, lengths[0] if short else lengths[1]),
                "response_b": text(not liked, lengths[1] if short else lengths[0]),
                "label": "a" if liked else "b",
            }
        )
    return rows


def quiet():
    return Terminal(Console(file=StringIO(), width=200))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(source, **changes):
    values = {
        "pairs": {"source": str(source), "held_out": 0.2, **changes.pop("pairs", {})},
        "encoder": {
            "hidden_size": 32,
            "layers": 1,
            "heads": 2,
            "intermediate_size": 32,
            "vocabulary": 320,
            "position_buckets": 8,
            "dropout": 0.02,
            **changes.pop("encoder", {}),
        },
        "source_maxlength": 24,
        "candidate_maxlength": 24,
        "training": {
            "epochs": 10,
            "batch_pairs": 16,
            "learning_rate": 5e-3,
            "checkpoint_steps": 40,
            "logging_steps": 10,
            **changes.pop("training", {}),
        },
        "cpu_threads": 1,
        **changes,
    }
    return OracleTraining.model_validate(values)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oracle")
    source = write_jsonl(folder / "pairs.jsonl", made_up())
    of = settings(source, pairs={"group": "prompt"})
    return folder / "ranker", of, train(of, folder / "ranker", quiet())


# --- the data ---


def test_no_prompt_is_in_both_parts_and_the_split_is_the_seeds(tmp_path):
    found = pairs.read(settings(write_jsonl(tmp_path / "p.jsonl", made_up())).pairs)
    train_pairs, held_out = pairs.split(found, 0.2, 1)
    assert not {pair.prompt for pair in train_pairs} & {pair.prompt for pair in held_out}
    assert len({pair.prompt for pair in held_out}) == 12
    assert sorted(map(repr, train_pairs + held_out)) == sorted(map(repr, found))
    again = pairs.split(found[::-1], 0.2, 1)[1]
    assert {pair.prompt for pair in again} == {pair.prompt for pair in held_out}
    assert {pair.prompt for pair in pairs.split(found, 0.2, 2)[1]} != {pair.prompt for pair in held_out}


def test_labels_probabilities_columns_and_files(tmp_path):
    rows = [
        {"q": [{"role": "user", "content": "x"}], "one": "a", "two": "", "p": 0.25, "model": "m"},
        {"q": "y", "one": "c", "two": "d", "p": 1, "model": "n"},
    ]
    names = {"prompt": "q", "response_a": "one", "response_b": "two", "probability": "p", "group": "model"}
    found = pairs.read(settings(write_jsonl(tmp_path / "p.jsonl", rows), pairs=names).pairs)
    assert found == [
        pairs.JudgedPair("x", "a", "", 0.25, "m"),
        pairs.JudgedPair("y", "c", "d", 1.0, "n"),
    ]
    pq.write_table(pa.Table.from_pylist(made_up(20)), tmp_path / "p.parquet")
    assert [pair.probability for pair in pairs.read(settings(tmp_path / "p.parquet").pairs)] == [
        {"a": 1.0, "b": 0.0}[row["label"]] for row in made_up(20)
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", made_up(20))
    assert len(pairs.read(settings(folder).pairs)) == 20


def test_the_pairs_that_a_run_has_compared(tmp_path):
    run = write_run(tmp_path / "run", text=lambda iteration, prompt, k: f"{iteration}: {prompt}, {min(k, 1)}")
    found = pairs.read(settings(run, pairs={"group": "iteration"}).pairs)
    # of three responses the last two are the same text
    assert len(found) == 2 * 6 * 2 and {pair.group for pair in found} == {"1", "2"}
    first = [pair for pair in found if pair.response_a == "1: 0, 0"]
    assert {pair.response_b for pair in first} == {"1: 0, 1"}
    assert sorted(pair.probability for pair in first) == sorted(CYCLE[0][1:])
    again = settings(run, pairs={"prompt": "question", "probability": "p"}).pairs
    assert len(pairs.read(again)) == len(found)
    file = write_jsonl(tmp_path / "p.jsonl", made_up(5))
    both = pairs.read(settings(run, pairs={"source": [str(run), str(file)], "limit": 27}).pairs)
    assert both[:24] == pairs.read(settings(run).pairs) and [pair.response_a for pair in both[24:]] == [
        row["response_a"] for row in made_up(5)[:3]
    ]
    shard = run / "iter-2" / "responses" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(OracleError, match=f"pairs.source: {shard}: not a whole shard"):
        pairs.read(settings(run).pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response_a": None}, r"row 3: response_a: 'None' is no text"),
        ({"prompt": 5}, "row 3: prompt: '5' is no text"),
        ({"response_b": "a \ud800"}, r"row 3: response_b: 'a \\ud800' holds half of a surrogate pair"),
        ({"prompt": []}, "row 3: prompt: a prompt is"),
        ({"probability": 1.5}, r"row 3: probability: '1.5' is not a probability in \[0, 1\]"),
        ({"probability": float("nan")}, "row 3: probability: 'nan'"),
        ({"probability": "0.5"}, "row 3: probability: '0.5'"),
        ({"label": "left"}, "row 3: label: 'left'; known are a, b, tie"),
        ({"label": None}, "row 3: label: 'None'"),
    ],
    ids=str,
)
def test_a_wrong_row_is_named(tmp_path, change, message):
    rows = made_up(5)
    rows[2] |= change
    with pytest.raises(OracleError, match=message):
        pairs.read(settings(write_jsonl(tmp_path / "p.jsonl", rows)).pairs)


def test_preferences_are_pairs_whose_first_response_is_preferred(tmp_path):
    def messages(*texts):
        return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts)]

    def shares(*texts):
        return [{"from": name, "value": text} for name, text in zip(("human", "gpt") * 2, texts)]

    rows = [
        {"prompt": "x", "chosen": "a", "rejected": "b"},
        {"prompt": "x", "chosen": "x a", "rejected": "x b"},
        {"prompt": messages("x"), "chosen": messages("x", "a"), "rejected": messages("x", "b")},
        {"prompt": "x", "chosen": messages("x", "a"), "rejected": messages("x", "b")},
        {"chosen": shares("x", "a"), "rejected": json.dumps(messages("x", "b"))},
        {"chosen": "\n\nHuman: x\n\nAssistant: a", "rejected": "\n\nHuman: x\n\nAssistant: b"},
        {"prompt": shares("y", "c", "x"), "chosen": "a", "rejected": "b", "score_chosen": 7.5},
    ]
    found = pairs.read(settings(write_jsonl(tmp_path / "p.jsonl", rows)).pairs)
    assert found[:-1] == [pairs.JudgedPair("x", "a", "b", 1.0)] * 6
    assert found[-1] == pairs.JudgedPair("User: y\n\nAssistant: c\n\nUser: x", "a", "b", 1.0)
    for row, message in (
        ({"chosen": "a", "rejected": "b"}, "name the column of prompts"),
        ({"chosen": messages("x", "a"), "rejected": messages("y", "b")}, "differ before their last message"),
        ({"prompt": "x", "chosen": None, "rejected": "b"}, "must each be a text or messages"),
        ({"prompt": str(messages("x")), "chosen": "a", "rejected": "b"}, "is not JSON"),
    ):
        with pytest.raises(OracleError, match=f"row 8: .*{message}"):
            pairs.read(settings(write_jsonl(tmp_path / "p.jsonl", [*rows, row])).pairs)


def test_wrong_sources_are_named(tmp_path):
    source = write_jsonl(tmp_path / "p.jsonl", made_up(5))
    with pytest.raises(OracleError, match=r"has no column 'question'.*Set pairs.prompt"):
        pairs.read(settings(source, pairs={"prompt": "question"}).pairs)
    with pytest.raises(OracleError, match="neither 'probability' nor 'verdict'"):
        pairs.read(settings(source, pairs={"label": "verdict"}).pairs)
    with pytest.raises(OracleError, match=r"pairs\.source: .* is neither a file here nor a data set"):
        pairs.read(settings(tmp_path / "absent.jsonl").pairs)
    source.write_text('{"prompt": "x"\n')
    with pytest.raises(OracleError, match="line 1: malformed: not a line of JSON"):
        pairs.read(settings(source).pairs)
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(OracleError, match="not a whole parquet file"):
        pairs.read(settings(tmp_path / "p.parquet").pairs)
    with pytest.raises(OracleError, match="at least 2 prompts"):
        pairs.read(settings(write_jsonl(tmp_path / "one.jsonl", made_up(3, prompts=1))).pairs)


def test_what_could_be_learnt_instead_is_said():
    of = pairs.describe(
        [
            pairs.JudgedPair("x", "long", "s", 0.9),
            pairs.JudgedPair("x", "long", "s", 0.8),
            pairs.JudgedPair("y", "s", "long", 1.0),
            pairs.JudgedPair("y", "same", "same", 0.7),
            pairs.JudgedPair("z", "a", "b", 0.5),
            pairs.JudgedPair("z", "a", "lb", 0.75, votes=pairs.Votes(2, 0, 2)),
            pairs.JudgedPair("z", "a", "cc", 0.75, votes=pairs.Votes(3, 1, 0)),
        ]
    )
    assert of == {
        "pairs": 7, "prompts": 3, "judgments": 13, "ties": 3, "several_votes": 2, "contradicted": 1, "identical": 1,
        "a_preferred": 0.9, "longer_preferred": pytest.approx(3 / 9),
    }  # fmt: skip
    said = pairs.warnings(of)
    assert len(said) == 4 and "shorter" in said[1] and "twice" in said[3]
    assert "voters contradict each other on 1 of 2 pairs" in said[2]
    quiet_ones = {"a_preferred": 0.5, "longer_preferred": 0.45, "contradicted": 0, "identical": 0}
    assert pairs.warnings({**of, **quiet_ones}) == []


def test_votes_on_a_pair_are_counted_whichever_way_they_are_given(tmp_path):
    one = {"prompt": "x", "response_a": "p", "response_b": "q"}
    other = {"prompt": "x", "response_a": "q", "response_b": "p"}
    rows = [
        {**one, "label": "a"},
        {"prompt": "y", "response_a": "p", "response_b": "q", "probability": 0.75},
        {**other, "label": "tie"},
        {**other, "label": "a"},
        {**other, "votes_a": 2, "votes_tie": 4.0, "probability": 0.1},
    ]
    found = pairs.read(settings(write_jsonl(tmp_path / "p.jsonl", rows)).pairs)
    assert found == [
        pairs.JudgedPair("x", "p", "q", 3.5 / 9, votes=pairs.Votes(1, 3, 5)),
        pairs.JudgedPair("y", "p", "q", 0.75),
    ]
    number, target = pairs.unfolded(found)
    assert number.tolist() == [0] * 9 + [1] and target.tolist() == [1, *[0] * 3, *[0.5] * 5, 0.75]
    columns = {"votes_a": "left", "votes_b": "right"}
    (tmp_path / "p.csv").write_text("prompt,response_a,response_b,left,right\nx,p,q,2,1\ny,p,q,0,3\n")
    found = pairs.read(settings(tmp_path / "p.csv", pairs=columns).pairs)
    assert [pair.votes for pair in found] == [(2, 1, 0), (0, 3, 0)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"votes_a": -1}, "row 2: votes_a: '-1' is no number of votes"),
        ({"votes_b": 1.5}, "row 2: votes_b: '1.5' is no number"),
        ({"votes_a": True}, "row 2: votes_a: 'True' is no number"),
        ({"votes_a": 0, "votes_tie": 0}, "row 2: votes_a, votes_b, votes_tie are all 0"),
    ],
)
def test_numbers_that_are_no_votes_are_named(tmp_path, changes, message):
    rows = made_up(4)
    rows[1] = {**rows[1], **changes}
    with pytest.raises(OracleError, match=message):
        pairs.read(settings(write_jsonl(tmp_path / "p.jsonl", rows)).pairs)


def test_votes_of_one_class_are_refused_before_training(tmp_path):
    rows = [{**row, "label": "b"} for row in made_up(20)]
    with pytest.raises(
        OracleError, match=r"pairs\.label: all 20 votes .* are for response_b.*`chosen` and `rejected`"
    ):
        train(settings(write_jsonl(tmp_path / "p.jsonl", rows)), tmp_path / "ranker", quiet())
    assert [file.name for file in tmp_path.iterdir()] == ["p.jsonl"]


def test_a_vote_more_counts_as_a_row_more(tmp_path):
    """The fit of the lengths, and the loss of a network, by counts and by rows."""
    lengths, target = np.array([[30.0, 10.0], [10.0, 40.0]]), np.array([1.0, 0.25])
    by_counts = LengthBaseline(lengths, target, np.array([1.0, 4.0]))
    rows = LengthBaseline(lengths[[0, 1, 1, 1, 1]], np.array([1.0, 1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(by_counts.predict(lengths), rows.predict(lengths), atol=1e-3)
    places = fit.Places(
        [
            pairs.JudgedPair("x", "a", "b", 1.0),
            pairs.JudgedPair("x", "a", "c", 0.75, votes=pairs.Votes(2, 0, 2)),
        ],
        [(0, False), (1, True)],
        _Inputs(),
    )
    assert [(item["probability"], item["weight"]) for item in map(places.__getitem__, range(2))] == [
        (1, 0.4),
        (0.25, 1.6),
    ]


class _Inputs:
    def item(self, pair, swapped, weight):
        return fit.item_of(pair, swapped, weight)


def test_settings_that_cannot_be_are_named(tmp_path):
    file = tmp_path / "oracle.yaml"
    file.write_text("pairs: {source: x.jsonl, held_out: 1.0}\nencoder: {heads: 3, layer: 2}\n")
    with pytest.raises(RecipeError, match=r"(?s)pairs.held_out.*encoder.layer: unknown key; did you mean"):
        load_oracle_training(file)
    file.write_text("pairs: {source: x.jsonl}\nencoder: {heads: 3}\n")
    with pytest.raises(RecipeError, match="hidden_size: 128 is not a multiple of heads"):
        load_oracle_training(file)
    assert load_oracle_training(file, {"encoder.heads": 4}).encoder.heads == 4


# --- the measures ---


def test_measures_by_hand():
    predicted, target = np.array([0.9, 0.8, 0.3, 0.6, 0.5]), np.array([1.0, 0.0, 0.2, 0.9, 0.5])
    found = measures(predicted, target, ["m", "m", "m", "n", "n"])
    assert found["accuracy"] == 3 / 4  # the tie does not count
    assert found["auc_as_given"] == 3 / 4  # of 2 x 2 pairs only (0.6, 0.8) is wrong
    # from both sides: wins 0.9 0.6 0.2 0.7, losses 0.1 0.4 0.8 0.3
    assert found["auc"] == (4 + 3 + 1 + 3) / 16
    losses = [-np.log(0.9), -np.log(0.2), -0.2 * np.log(0.3) - 0.8 * np.log(0.7)]
    losses += [-0.9 * np.log(0.6) - 0.1 * np.log(0.4), np.log(2)]
    assert found["log_loss"] == pytest.approx(np.mean(losses))
    assert [(row["from"], row["pairs"], row["target"]) for row in found["calibration"]] == [
        (0.3, 1, 0.2),
        (0.5, 1, 0.5),
        (0.6, 1, 0.9),
        (0.8, 1, 0.0),
        (0.9, 1, 1.0),
    ]
    assert found["calibration_error"] == pytest.approx((0.1 + 0 + 0.3 + 0.8 + 0.1) / 5)
    within = found["within_groups"]
    assert (within["groups"], within["groups_with_both_outcomes"]) == (2, 1)
    assert within["accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert (within["auc"], within["balanced_accuracy"]) == (1.0, 0.75)


def test_ties_of_scores_and_certain_mistakes():
    assert auc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert np.isnan(auc(np.array([0.5, 0.5]), np.array([True, True])))
    assert np.isfinite(measures(np.array([0.0, 1.0]), np.array([1.0, 0.0]))["log_loss"])
    assert measures(np.array([0.5]), np.array([1.0]))["accuracy"] == 0.5


def test_the_length_baseline_is_antisymmetric_and_finds_a_planted_rule():
    random = np.random.default_rng(0)
    lengths = random.integers(0, 3000, (4000, 2)).astype(float)
    truth = 1 / (1 + np.exp(-2 * (lengths[:, 0] - lengths[:, 1]) / 1000))
    baseline = LengthBaseline(lengths, (random.random(4000) < truth).astype(float))
    found = baseline.predict(lengths)
    np.testing.assert_allclose(found, truth, atol=0.06)
    np.testing.assert_allclose(baseline.predict(lengths[:, ::-1]), 1 - found, atol=1e-12)


# --- the steps ---


def test_every_epoch_sees_every_pair_once_in_an_order_of_its_own():
    lengths = list(np.random.default_rng(0).integers(1, 500, 70))
    places = fit.order(lengths, 140, 8, seed=3)
    first, second = places[:70], places[70:]
    assert sorted(n for n, _ in first) == sorted(n for n, _ in second) == list(range(70))
    assert first != second
    assert 45 < sum(swapped for _, swapped in places) < 95
    assert places == fit.order(lengths, 200, 8, seed=3)[:140]
    assert places != fit.order(lengths, 140, 8, seed=4)


def test_it_learns_more_than_length(trained):
    _, _, result = trained
    assert result["data"]["training_pairs"] + result["data"]["held_out_pairs"] == 480
    ours, length = result["held_out"], result["length_only"]
    assert 0.65 < length["accuracy"] < 0.85
    assert ours["accuracy"] > 0.95 and ours["auc"] > 0.98
    assert ours["log_loss"] < 0.2 < length["log_loss"]
    assert ours["within_groups"]["groups"] == 12
    terminal = quiet()
    show(result, terminal)
    shown = terminal.console.file.getvalue()
    for words in ("accuracy", "length only", "log loss", "within 12 groups", "0.9 to 1.0"):
        assert words in shown


def test_the_result_is_an_oracle_like_any_other(trained):
    folder, _, result = trained
    oracle = load({"type": "pairrm", "model": str(folder), "probability": "calibrated"})
    matrix = oracle.compare(["tell me of the stone 3"], [["a tall sun", "a tall mud", "the road and lake"]])[
        0
    ]
    assert matrix[0, 1] > 0.9 and matrix[2, 1] > 0.9
    assert json.loads((folder / "train_oracle.json").read_text())["held_out"] == result["held_out"]
    assert not folder.with_name(f".{folder.name}.training").exists()


class DebertaV2PairRM(deberta.DebertaV2PreTrainedModel):
    """The class that belongs to the layout, as others write it: by transformers' own loading and forward."""

    def __init__(self, config):
        super().__init__(config)
        self.pretrained_model = deberta.DebertaV2Model(config)
        self.head_layer = nn.Sequential(
            nn.Dropout(config.drop_out),
            nn.Linear(2 * config.hidden_size, config.hidden_size),
            nn.Tanh(),
            nn.Dropout(config.drop_out),
            nn.Linear(config.hidden_size, config.n_tasks),
        )
        self.post_init()

    def forward(self, input_ids):
        hidden = self.pretrained_model(input_ids=input_ids).last_hidden_state
        names = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id")
        source, first, second = (hidden[input_ids == getattr(self.config, name)] for name in names)
        scores = [self.head_layer(torch.cat([source, candidate], -1)) for candidate in (first, second)]
        return (scores[0] - scores[1]).mean(-1)


def test_the_documented_class_loads_the_folder(trained):
    folder, _, _ = trained
    model, report = DebertaV2PairRM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    def part(text):
        return [
            tokenizer.cls_token_id,
            *tokenizer.encode(text, add_special_tokens=False),
            tokenizer.sep_token_id,
        ]

    prompt, (a, b) = "tell me of the stone", ("a sun", "the mud of the road")
    ids = part(f"<|source|>{prompt}") + part(f"<|candidate1|>{a}") + part(f"<|candidate2|>{b}")
    with torch.inference_mode():
        logit = model.eval()(torch.tensor([ids])).item()
    assert logit == pytest.approx(
        PairRM.from_pretrained(folder, device="cpu").logits([prompt], [[a, b]])[0, 0, 1], abs=1e-5
    )


def test_a_finished_training_is_read_and_another_is_refused(trained):
    folder, of, result = trained
    assert train(of, folder, quiet()) == json.loads(json.dumps(result))
    with pytest.raises(OracleError, match="other pairs or settings"):
        train(of.model_copy(update={"seed": 1}), folder, quiet())


def test_an_interrupted_training_goes_on_to_the_same_bytes(trained, tmp_path, monkeypatch):
    _, of, _ = trained
    other = of.model_copy(update={"training": of.training.model_copy(update={"epochs": 1.0})})
    whole = tmp_path / "whole"
    train(other, whole, quiet())
    stopped = other.model_copy(
        update={"training": other.training.model_copy(update={"checkpoint_steps": 10, "logging_steps": 1})}
    )

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 17:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fit._Report, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train(stopped, tmp_path / "stopped", quiet())
    assert not (tmp_path / "stopped").exists()
    with pytest.raises(OracleError, match="begun with other pairs or settings"):
        train(of, tmp_path / "stopped", quiet())
    train(stopped, tmp_path / "stopped", quiet())
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    of = settings(
        write_jsonl(tmp_path / "p.jsonl", made_up(40)), training={"learning_rate": 1e9, "logging_steps": 1}
    )
    of = of.model_copy(update={"training": of.training.model_copy(update={"max_grad_norm": 0.0})})
    with pytest.raises(OracleError, match=r"loss is (nan|inf); lower training.learning_rate"):
        train(of, tmp_path / "ranker", quiet())


def test_any_encoder_that_transformers_loads(trained, tmp_path):
    """A BERT with weights of its own and its markers under other names."""
    folder, _, _ = trained
    encoder = tmp_path / "bert"
    text = (folder / "tokenizer.json").read_text().replace("[CLS]", "<s>").replace("[SEP]", "</s>")
    encoder.mkdir()
    (encoder / "tokenizer.json").write_text(text)
    (encoder / "tokenizer_config.json").write_text('{"cls_token": "<s>", "sep_token": {"content": "</s>"}}')
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=320, max_position_embeddings=80, **sizes)).save_pretrained(encoder)
    source = write_jsonl(tmp_path / "p.jsonl", made_up(60))
    of = settings(source, encoder={"model": str(encoder)}, training={"epochs": 1})
    train(of, tmp_path / "ranker", quiet())
    config = json.loads((tmp_path / "ranker" / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["BertPairRM"], "bert")
    before = load_file(encoder / "model.safetensors")["encoder.layer.0.attention.self.query.weight"]
    after = load_file(tmp_path / "ranker" / "model.safetensors")
    change = (after["pretrained_model.encoder.layer.0.attention.self.query.weight"] - before).abs().max()
    assert 0 < change < 0.1  # begun with the encoder's own weights
    oracle = load({"type": "pairrm", "model": str(tmp_path / "ranker")})
    answer = oracle.compare(["x"], [["a sun</s>", "the mud", ""]])
    assert np.isfinite(answer).all()
    one = PairRM.from_pretrained(tmp_path / "ranker", batch_pairs=1, device="cpu").compare(
        ["x"], [["a sun</s>", "the mud", ""]]
    )
    np.testing.assert_allclose(one, answer, atol=1e-6)
    shutil.rmtree(encoder)
    with pytest.raises(OracleError, match="no such folder"):
        train(of, tmp_path / "other", quiet())


def test_the_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from sppo.cli.main import app

    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pairs.jsonl", made_up(60))
    of = settings("pairs.jsonl", training={"epochs": 1}).model_dump(mode="json")
    (tmp_path / "mine.yaml").write_text(json.dumps(of))
    done = CliRunner().invoke(app, ["train-oracle", "mine.yaml", "--set", "seed=3"])
    assert done.exit_code == 0, done.output
    assert "length only" in done.output and "model: oracles/mine" in done.output
    assert (
        json.loads((tmp_path / "oracles" / "mine" / "train_oracle.json").read_text())["settings"]["seed"] == 3
    )
    assert CliRunner().invoke(app, ["train-oracle", "mine.yaml"]).exit_code == 1
