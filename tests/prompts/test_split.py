import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prompt_files import all_rows, all_texts, texts_of, write, write_lines

from sppo import prompts
from sppo.policy import chat_format as chat
from sppo.prompts import PromptError
from sppo.recipe import PromptSource


def test_every_prompt_is_dealt_once_and_evenly(split):
    found = split(write_lines("a.txt", 25), 4, iterations=4)
    assert [part.num_rows for part in found.iterations] == [5, 5, 5, 6]
    assert found.held_out.num_rows == 4
    assert all_texts(found) == sorted(f"prompt {number}" for number in range(25))


def test_per_iteration_takes_so_many_of_each(split):
    found = split(write_lines("a.txt", 25), 4, iterations=3, per_iteration=7)
    assert [part.num_rows for part in found.iterations] == [7, 7, 7]
    assert len(set(all_texts(found))) == 25


def test_more_prompts_per_iteration_than_there_are(split):
    with pytest.raises(
        PromptError, match=r"prompts\.per_iteration: 8, but iteration 3 has only 5 prompts; lower it"
    ):
        split(write_lines("a.txt", 25), 4, iterations=3, per_iteration=8)


def test_more_iterations_than_prompts(split):
    with pytest.raises(PromptError, match=r"iterations: 5, but only 3 prompts .*; lower iterations or give"):
        split(write_lines("a.txt", 4), 1, iterations=5)


@pytest.mark.parametrize("count", [4, 5])
def test_no_prompt_left_to_train_on(split, count):
    with pytest.raises(
        PromptError, match=rf"prompts\.held_out: {count} to set aside of 4 prompts leaves none"
    ):
        split(write_lines("a.txt", 4), count)


def test_a_held_out_source_without_a_prompt(split):
    with pytest.raises(PromptError, match=r"prompts\.held_out: it has no prompt that can be used"):
        split(write_lines("a.txt", 4), write("none.txt", ""))


def test_one_source_for_each_iteration(split):
    sources = [write_lines("a.txt", 10), write_lines("b.txt", 6, start=10), write_lines("c.txt", 4, start=16)]
    found = split(sources, 5, iterations=3)
    assert [part.num_rows for part in found.iterations] == [7, 5, 3]
    for part, name in zip(found.iterations, (range(10), range(10, 16), range(16, 20)), strict=True):
        assert set(texts_of(part)) <= {f"prompt {number}" for number in name}
    assert all_texts(found) == sorted(f"prompt {number}" for number in range(20))


def test_what_is_set_aside_leaves_a_small_source_alone(split):
    sources = [write_lines("a.txt", 1), write_lines("b.txt", 1, start=1), write_lines("c.txt", 50, start=2)]
    assert [part.num_rows for part in split(sources, 20, iterations=3).iterations] == [1, 1, 30]


def test_the_same_prompt_in_two_iterations_sources_is_a_duplicate(split):
    sources = [write_lines("a.txt", 3), write_lines("b.txt", 3, start=2)]
    with pytest.raises(PromptError, match=r"b\.txt, line 1: a duplicate of a\.txt, line 3"):
        split(sources, iterations=2)
    found = split(sources, iterations=2, skip_invalid=True)
    assert len(set(all_texts(found))) == len(all_texts(found)) == 5


def test_the_split_depends_on_the_seed_and_not_on_the_files_order(split):
    lines = [f"prompt {number}\n" for number in range(40)]
    first = all_rows(split(write("a.txt", "".join(lines)), 5, iterations=3))
    random.Random(1).shuffle(lines)
    assert all_rows(split(write("b.txt", "".join(lines)), 5, iterations=3)) == first
    as_json = "".join(json.dumps({"prompt": line.strip()}) + "\n" for line in lines)
    assert all_rows(split(write("c.jsonl", as_json), 5, iterations=3)) == first
    assert all_rows(split("a.txt", 5, iterations=3, seed=1)) != first


def test_ids_of_ones_own_are_kept(split):
    rows = [{"prompt_id": f"mine-{number}", "id": 7, "prompt": f"prompt {number}"} for number in range(4)]
    found = split(write("a.jsonl", "\n".join(map(json.dumps, rows))))
    ids = [row["prompt_id"] for table in all_rows(found) for row in table]
    assert sorted(ids) == ["mine-0", "mine-1", "mine-2", "mine-3"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    held_out=st.integers(1, 12),
    iterations=st.integers(1, 4),
)
def test_no_prompt_is_ever_lost_or_dealt_twice(split, counts, held_out, iterations):
    starts = [sum(counts[:index]) for index in range(len(counts))]
    sources = [write_lines(f"{index}.txt", count, starts[index]) for index, count in enumerate(counts)]
    iterations = len(sources) if len(sources) > 1 else iterations
    fewest = min(counts) if len(counts) > 1 else (counts[0] - held_out) // iterations
    if sum(counts) - held_out < len(counts) or fewest < 1:
        with pytest.raises(PromptError, match=r"^(prompts\.held_out|prompts\.train|iterations): "):
            split(sources, held_out, iterations=iterations)
        return
    found = split(sources, held_out, iterations=iterations)
    assert all_texts(found) == sorted(f"prompt {number}" for number in range(sum(counts)))
    assert found.held_out.num_rows == held_out
    assert all(part.num_rows for part in found.iterations)


def test_doubled_bos_is_counted(tiny_model, tmp_path):
    template = tmp_path / "twice.jinja"
    template.write_text(
        "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"
    )
    of = chat.load(str(tiny_model("llama-3")), chat_template=str(template))
    (tmp_path / "a.txt").write_text("alpha\nbeta\ngamma\n")
    found = prompts.split(
        PromptSource(source=str(tmp_path / "a.txt")),
        1,
        iterations=2,
        per_iteration=None,
        chat=of,
        max_tokens=50,
        skip_invalid=False,
        seed=0,
    )
    assert found.counts.doubled_bos == 3
    for part in [*found.iterations, found.held_out]:
        for ids in part["prompt_token_ids"].to_pylist():
            assert ids.count(of.tokenizer.bos_token_id) == 1
