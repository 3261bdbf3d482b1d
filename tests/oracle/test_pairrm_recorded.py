"""PairRM against the recorded answers of the original."""

import hashlib
import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from pairrm_checkpoints import FIXTURES, as_shards, recorded

from sppo import oracle
from sppo.oracle.pairrm import PairRM, averaged
from sppo.oracle.pairrm_input import Limits


@pytest.fixture(scope="module")
def expected():
    return json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def groups():
    return json.loads((FIXTURES / "inputs.json").read_text(encoding="utf-8"))["groups"]


@pytest.fixture(scope="module")
def original():
    return PairRM.from_pretrained(FIXTURES / "PairRM", device="cpu")


@pytest.fixture(scope="module")
def logits_of(original):
    """M of one prompt, computed once for each different input: most recorded calls share theirs."""
    known = {}

    def answer(prompt, candidates):
        ids = json.dumps(original.inputs.parts(prompt, candidates))
        if ids not in known:
            known[ids] = original.logits([prompt], [candidates])[0]
        return known[ids]

    return answer


def sha(ids):
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class BatchLimits(Limits):
    """The original's limit of a candidate: that of the longest source of its batch."""

    longest: int = 0

    def of_candidate(self, source_length):
        return super().of_candidate(self.longest)


@recorded
@pytest.mark.parametrize("call", range(35))
def test_every_logit_and_every_id_is_the_originals(call, original, logits_of, expected, groups, monkeypatch):
    call = expected["calls"][call]
    default = Limits()
    size = call["batch_size"]
    for start in range(0, len(call["group_ids"]), size):
        batch = [groups[g] for g in call["group_ids"][start : start + size]]
        sources = [(g["instruction"] if call["use_instruction"] else "") + g["source"] for g in batch]
        limits = {
            "source": call.get("source_max_length") or default.source,
            "candidate": call.get("candidate_max_length") or default.candidate,
        }
        monkeypatch.setattr(original.inputs, "limits", Limits(**limits))
        longest = max(len(original.inputs.parts(source, [])[0]) for source in sources)
        monkeypatch.setattr(original.inputs, "limits", BatchLimits(**limits, longest=longest))
        for n, (group, source) in enumerate(zip(batch, sources, strict=True), start):
            if call["call"] == "rank":
                ids = original.inputs.parts(source, group["candidates"])
                recorded_ids = call["tokens"][n]
                assert len(ids[0]) == recorded_ids["source_len"]
                assert [len(candidate) for candidate in ids[1]] == recorded_ids["candidate_lens"]
                assert sha(list(ids)) == recorded_ids["sha"]
                if "source_ids" in recorded_ids:
                    assert list(ids) == [recorded_ids["source_ids"], recorded_ids["candidate_ids"]]
                found = logits_of(source, group["candidates"])
            else:
                candidates = [group["candidates"][call[name]] for name in ("a", "b")]
                (_, forth), (back, _) = logits_of(source, candidates)
                found = {"[A,B]": forth, "[B,A]": back, "[A,B]+[B,A]": forth - back}[call["mode"]]
            np.testing.assert_allclose(found, call["logits"][n], rtol=0, atol=1e-5)


@recorded
def test_all_recorded_calls_are_compared(expected):
    assert len(expected["calls"]) == 35


@recorded
def test_averaged_is_the_released_codes_probability(logits_of, expected, groups):
    for record in expected["sppo_compute_prob"]:
        group = groups[record["group_id"]]
        logits = logits_of(group["source"], group["candidates"])
        scores = (logits - logits.T).mean(-1)
        np.testing.assert_allclose(scores, record["rm_scores"], atol=1e-5)
        probability = averaged(logits)
        np.testing.assert_allclose(probability, record["probability"], atol=1e-5)
        win_rates = probability.mean(-1)
        chosen, rejected = scores.argmax(), scores.argmin()
        assert (chosen, rejected) == (record["chosen_index"], record["rejected_index"])
        found = probability[chosen, rejected], win_rates[chosen], win_rates[rejected]
        names = "chosen_probs", "chosen_probs_win", "chosen_probs_lose"
        np.testing.assert_allclose(found, [record[name] for name in names], atol=1e-5)


@recorded
def test_the_hf_layout_gives_the_same_answers(logits_of, expected, groups):
    oracle = PairRM.from_pretrained(FIXTURES / "PairRM-hf", device="cpu")
    for record in expected["hf_native_pair01"]:
        group = groups[record["group_id"]]
        prompt, pair = group["source"], group["candidates"][:2]
        if "[SEP]" in prompt + "".join(pair):
            continue  # that recorder left it in the text
        source, candidates = oracle.inputs.parts(prompt, pair)
        ids, _ = oracle.inputs.pair(source, *candidates)
        assert (len(ids), sha(ids)) == (record["n_tokens"], record["sha"])
        if len(ids) > 500:
            continue  # slow, and of the same weights
        logits = oracle.logits([prompt], [pair])[0]
        np.testing.assert_array_equal(logits, logits_of(prompt, pair))
        assert logits[0, 1] == pytest.approx(record["logit"], abs=1e-5)


@recorded
def test_comparison_with_the_longest_candidate(logits_of, expected, groups):
    record = expected["rank_with_ref_longest"]
    for n, group in enumerate(record["group_ids"]):
        candidates = groups[group]["candidates"]
        reference = max(range(len(candidates)), key=lambda index: len(candidates[index]))
        logits = logits_of(groups[group]["source"], candidates)
        found = logits[:, reference] - logits[reference]
        np.testing.assert_allclose(found, record["scores"][n], atol=1e-5)


@recorded
def test_conversations_as_the_original_writes_them_out(logits_of, expected):
    conversations = json.loads((FIXTURES / "inputs.json").read_text(encoding="utf-8"))["conversations"]
    task = "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
    for n, conversation in enumerate(conversations):
        users = [turn["content"] for turn in conversation["a"][::2]]
        turns = [f"USER: {text}\nAssistant: <Response {i}>" for i, text in enumerate(users, 1)]
        replies = [[turn["content"] for turn in conversation[name][1::2]] for name in ("a", "b")]
        candidates = ["\n".join(f"<Response {i}>: {t}" for i, t in enumerate(texts, 1)) for texts in replies]
        (_, forth), (back, _) = logits_of(task + "\n".join(turns), candidates)
        recorded_logits = expected["compare_conversations"]
        assert forth == pytest.approx(recorded_logits["[A,B]"][n], abs=1e-5)
        assert forth - back == pytest.approx(recorded_logits["[A,B]+[B,A]"][n], abs=1e-5)


@recorded
def test_the_hf_layout_in_several_files(tmp_path, expected, groups, logits_of):
    folder = tmp_path / "hf"
    shutil.copytree(FIXTURES / "PairRM-hf", folder)
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
    as_shards(folder)
    group = groups[expected["hf_native_pair01"][0]["group_id"]]
    found = PairRM.from_pretrained(folder, device="cpu").logits([group["source"]], [group["candidates"][:2]])
    wanted = logits_of(group["source"], group["candidates"][:2])
    np.testing.assert_allclose(found[0], wanted, atol=1e-6)  # rounding depends on where weights lie in memory


def test_limits_that_a_checkpoint_does_not_state_are_assumed_aloud_and_can_be_given(shared, caplog):
    """PairRM-hf has none in its config.json; the original layout of the same weights has them."""
    folder = shared / "data" / "pairrm" / "PairRM-hf"
    if not folder.is_dir():
        pytest.skip("there is no PairRM in shared/data/pairrm")
    silent = oracle.load(
        {"type": "pairrm", "model": str(folder), "source_maxlength": 40, "candidate_maxlength": 20}
    )
    assert "assumed" not in caplog.text
    texts = [["word " * 60, "another " * 60]]
    assumed = oracle.load({"type": "pairrm", "model": str(folder)})
    assert "source_maxlength 1224, candidate_maxlength 412" in caplog.text
    for loaded, truncated in ((silent, 1), (assumed, 0)):
        loaded.compare(["long " * 100], texts)
        assert loaded.counts["prompts_truncated"] == truncated
