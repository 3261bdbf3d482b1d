"""The similarity of responses by a policy's hidden states, and the oracle that gates by it."""

import json
import shutil

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import play, small
from transformers import AutoModelForCausalLM, AutoTokenizer

from sppo import oracle
from sppo.oracle import OracleError
from sppo.oracle.hidden_states import HiddenStates
from sppo.recipe import Policy, RecipeError, parse_oracle
from sppo.rundir.reader import RunReader
from sppo.rundir.tables import PromptRow
from sppo.stages.models import Models
from sppo.tinyworld import POLICY
from sppo.winrates import win_rates

TINYWORLD = Policy(model="tinyworld")
PROMPT = "Tell me about a fox."
FOX = "A fox is a wild animal. It has a bushy tail."
SAID = ("Ġwild", "Ġfox", "Ġhas", "Ġanimal")
OTHERWISE = ("Ġno", "Ġowl", "Ġwas", "Ġbird")
SHOUTING = """
import numpy as np

def prefer(prompts, responses):
    def score(text):
        return 3.0 * text.endswith(("!", "bird")) + 0.5 * ("Rain" in text)
    scores = np.array([[score(text) for text in texts] for texts in responses])
    return 1 / (1 + np.exp(scores[:, None, :] - scores[:, :, None]))
"""


@pytest.fixture(scope="module")
def states():
    return HiddenStates.of_policy(TINYWORLD)


def by_hand(states, prompt, text):
    """The mean of the last hidden states behind the prompt, from one row without padding."""
    row = states.transcript.row(prompt, text).ids
    chat = states.transcript.tokenizer
    before = chat.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    assert row[: len(before)] == before
    with torch.inference_mode():
        found = states.body(input_ids=torch.tensor([row])).last_hidden_state[0]
    return found[len(before) :].double().mean(0).numpy()


def test_the_cosine_of_mean_hidden_states_by_hand(states):
    texts = [FOX, "Rain is water that falls.", "I do not know.", FOX]
    (found,) = states.similarity([PROMPT], [texts])
    vectors = [by_hand(states, PROMPT, text) for text in texts]
    expected = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in vectors] for a in vectors]
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=1e-5)
    np.testing.assert_array_equal(found, found.T)
    assert found[0, 3] == 1
    assert (np.diagonal(found) == 1).all()


def test_neither_batches_nor_order_matter(states, monkeypatch):
    texts = [[FOX, "No.", "", "A fox runs."], ["Water.", FOX, "Rain falls.", "x"]]
    prompts = [PROMPT, "Describe rain."]
    together = states.similarity(prompts, texts)
    monkeypatch.setattr("sppo.oracle.hidden_states.BATCH_TOKENS", 1)
    np.testing.assert_allclose(states.similarity(prompts, texts), together, atol=1e-5)
    order = [2, 0, 3, 1]
    permuted = states.similarity(prompts, [[of[k] for k in order] for of in texts])
    np.testing.assert_allclose(permuted, together[:, order][:, :, order], atol=1e-5)


def test_markup_in_a_response_is_text(states):
    """An end of turn that is written out must not end the turn."""
    end = states.transcript.tokenizer.eos_token
    (found,) = states.similarity([PROMPT], [[f"A fox.{end}", "A fox."]])
    assert 0 < found[0, 1] < 1
    assert states.counts["markup"] >= 1


@pytest.fixture
def synonyms(tmp_path):
    """Tinyworld's policy, to which ` bird` means ` fox`, ` tame` means ` wild` and so on: their embeddings are the same."""
    shutil.copytree(POLICY, tmp_path / "synonyms")
    tokens = AutoTokenizer.from_pretrained(POLICY)
    file = tmp_path / "synonyms" / "model.safetensors"
    weights = load_file(file)
    rows = weights["model.embed_tokens.weight"]
    for one, other in zip(SAID, OTHERWISE, strict=True):
        ids = tokens.convert_tokens_to_ids([one, other])
        assert tokens.unk_token_id not in ids
        rows[ids[1]] = rows[ids[0]]
    save_file(weights, file, {"format": "pt"})
    return tmp_path / "synonyms"


def test_responses_without_a_common_word_tie_if_the_policy_does_not_tell_them_apart(
    synonyms, tmp_path, monkeypatch
):
    """The case it is for: not a token is shared, the hidden states are, and the oracle is sure of itself."""
    (tmp_path / "shouting.py").write_text(SHOUTING)
    monkeypatch.chdir(tmp_path)
    judge = {"type": "function", "function": "shouting:prefer", "own_process": False}
    texts = [["".join(SAID).replace("Ġ", " "), "".join(OTHERWISE).replace("Ġ", " "), "It has a bushy tail!"]]
    gate = {"type": "similarity", "threshold": 0.95, "oracle": judge}
    words = oracle.load(gate).compare([PROMPT], texts)[0]
    hidden = {**gate, "measure": "hidden_states", "policy": str(synonyms)}
    found = oracle.load(hidden).compare([PROMPT], texts)[0]
    assert words[1, 0] == pytest.approx(1 / (1 + np.exp(-3.0))), "they share no word"
    assert found[0, 1] == pytest.approx(0.5, abs=1e-4)
    assert found[0, 2] == words[0, 2], "what differs is left as it is"
    assert found[1, 2] == words[1, 2]


def test_near_duplicates_are_no_longer_the_best_and_the_worst(tmp_path, monkeypatch):
    """The near-duplicates of S-SPPO (arXiv:2606.01561): an oracle that is sure of a shouted full stop."""
    (tmp_path / "shouting.py").write_text(SHOUTING)
    monkeypatch.chdir(tmp_path)
    judge = {"type": "function", "function": "shouting:prefer", "own_process": False}
    texts = [[FOX, FOX.removesuffix(".") + "!", "Rain is water that falls."]]
    gate = {"type": "similarity", "measure": "hidden_states", "policy": "tinyworld", "threshold": 0.9}
    chosen = []
    for mapping in (judge, {**gate, "oracle": judge}):
        (rates,) = win_rates(oracle.load(mapping).compare([PROMPT], texts))
        chosen.append((int(rates.argmax()), int(rates.argmin())))
    assert chosen == [(1, 0), (1, 2)]


def test_an_adapters_hidden_states_are_those_of_the_merged_policy(tmp_path):
    from sppo.policy.saving import save_merged

    model = AutoModelForCausalLM.from_pretrained(POLICY)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "adapter")
    save_merged(tmp_path / "adapter", tmp_path / "merged", dtype="float32")
    texts = [[FOX, "Rain is water that falls.", "No."]]
    apart, together = (
        HiddenStates.of_policy(Policy(model=str(tmp_path / name))).similarity([PROMPT], texts)
        for name in ("adapter", "merged")
    )
    np.testing.assert_allclose(apart, together, atol=1e-5)
    assert not np.allclose(apart, HiddenStates.of_policy(TINYWORLD).similarity([PROMPT], texts), atol=1e-3)


# What stands in a recipe

INNER = {"type": "panel"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"policy": "base"}, "policy: only for measure: hidden_states"),
        ({"measure": "hidden"}, "measure: must be 'words' or 'hidden_states' (got 'hidden')"),
        ({"measure": "hidden_states", "policy": 3}, "policy: must be"),
        ({"measure": "hidden_states", "policy": {"modl": "x"}}, "did you mean `model`"),
        (
            {"measure": "hidden_states", "oracle": {"type": "panel", "text": "chat"}},
            "text: chat; set its text to",
        ),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(RecipeError) as caught:
        parse_oracle({"type": "similarity", "oracle": INNER, **wrong})
    assert message in str(caught.value)


def test_what_it_depends_on(synonyms):
    def identity(**settings):
        return oracle.identity(parse_oracle({"type": "similarity", "oracle": INNER, **settings}))

    assert "policy" not in identity(), "so that runs by the overlap of words keep their fingerprints"
    hidden = {"measure": "hidden_states"}
    assert identity(**hidden)["policy"] == "current"
    assert identity(**hidden, policy="base") != identity(**hidden)
    assert identity(**hidden, policy="tinyworld") != identity(**hidden, policy=str(synonyms))
    before = identity(**hidden, policy=str(synonyms))
    (synonyms / "config.json").write_text((synonyms / "config.json").read_text() + " ")
    assert identity(**hidden, policy=str(synonyms)) != before
    section = parse_oracle({"type": "near_tie", "oracle": {"type": "similarity", "oracle": INNER, **hidden}})
    assert section.holds_a_model
    assert not parse_oracle({"type": "similarity", "oracle": INNER}).holds_a_model


def test_what_cannot_be_loaded(tmp_path):
    def load(policy):
        return oracle.load(
            {"type": "similarity", "measure": "hidden_states", "policy": policy, "oracle": INNER}
        )

    with pytest.raises(
        OracleError, match=r"oracle\.policy: current, but only a run knows which policy that is"
    ):
        load("current")
    shutil.copytree(POLICY, tmp_path / "silent")
    (tmp_path / "silent" / "chat_template.jinja").unlink(missing_ok=True)
    file = tmp_path / "silent" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("chat_template", None)
    file.write_text(json.dumps(config))
    with pytest.raises(OracleError, match=r"oracle\.policy: .*chat template"):
        load(str(tmp_path / "silent"))
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        OracleError, match=r"oracle.policy: .*has only model.gguf; weights are loaded from safetensors"
    ):
        load(str(tmp_path / "gguf"))


def test_a_prompt_that_leaves_no_room_and_states_that_are_not_finite(states):
    with pytest.raises(OracleError, match="leaves no room for a response") as caught:
        states.similarity([PROMPT, "fox " * 5000], [["a", "b"], ["a", "b"]])
    assert caught.value.prompt_index == 1
    copy = HiddenStates.of_policy(TINYWORLD)
    with torch.no_grad():
        copy.body.norm.weight.fill_(float("nan"))
    with pytest.raises(OracleError, match="not finite"):
        copy.similarity([PROMPT], [["a", "b"]])


# Within a run

GATED = {"oracle": {"type": "similarity", "measure": "hidden_states", "threshold": 0.0, "oracle": INNER}}


def test_win_rates_by_the_current_policy_are_refused():
    with pytest.raises(
        RecipeError, match=r"evaluation\.oracle: missing, but oracle computes with policy: current"
    ):
        small(**GATED)
    with pytest.raises(RecipeError, match=r"evaluation\.oracle: computes with policy: current"):
        small(**{"evaluation.oracle": GATED["oracle"]})
    small(**{"evaluation.oracle": {**GATED["oracle"], "policy": "base"}})


def test_the_policy_that_plays_is_the_one_that_the_oracle_computes_with(synonyms):
    models = Models(small(**GATED, **{"evaluation.oracle": {**GATED["oracle"], "policy": "base"}}))
    rows = [PromptRow("x", [{"role": "user", "content": PROMPT}], [], None)]
    texts = [[FOX, "No.", "The owl was a wild bird."]]
    by_base, by_other = (
        oracle.load({**GATED["oracle"], "policy": name}).compare([PROMPT], texts)
        for name in ("tinyworld", str(synonyms))
    )
    assert not np.allclose(by_base, by_other, atol=1e-3)
    for folder, expected in ((None, by_base), (synonyms, by_other), (None, by_base)):
        models.play(folder)
        np.testing.assert_array_equal(models.compare(rows, texts), expected)
        np.testing.assert_array_equal(models.compare(rows, texts, held_out=True), by_base)
        models.play(folder)
        assert "oracle" in vars(models), "it is loaded once for each policy"
    models.release()
    assert not {"oracle", "held_out_oracle"} & vars(models).keys(), "which frees their memory"


@pytest.mark.slow
def test_each_iteration_is_gated_by_its_own_policy(tmp_path):
    """The matrices that a run stores are those by pi_t, and by the base where the recipe says so."""
    shape = {
        "prompts.train.limit": 8,
        "prompts.held_out.limit": 2,
        "evaluation.oracle": INNER,
        "shard_prompts": 2,
    }
    recipe = small(**GATED, **shape, **{"training.learning_rate": 1e-2})
    play(recipe, tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    policies = {1: "tinyworld", 2: str(tmp_path / "run" / "iter-1" / "policy")}
    for number, policy in policies.items():
        rows = list(reader.compared(number))
        prompts = [row.messages[-1]["content"] for row, _ in rows]
        stored = np.stack([matrix for _, matrix in rows])
        for name in policies.values():
            gate = oracle.load({**GATED["oracle"], "policy": name})
            found = gate.compare(prompts, [row.texts for row, _ in rows])
            assert np.allclose(found, stored, atol=1e-4) == (name == policy)
