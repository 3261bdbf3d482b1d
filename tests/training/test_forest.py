import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training_jobs import TREES

from sppo.policy import load as policies
from sppo.training import log_probs, tree_attention
from sppo.training.forest import LEAST_SHARED, SHARED_WITH_NONE, Forest, Tree, families
from sppo.training.layout import Layout
from sppo.training.log_probs import Capabilities, measure_capabilities, packs, response_log_probs

SYSTEM, QUESTION, ANSWER, FURTHER = (list(range(low, low + 40)) for low in (100, 150, 200, 250))
TURN = SYSTEM + QUESTION
CONVERSATION = [
    Tree(TURN, [ANSWER, [7] * 9, [*ANSWER[:35], 8, 3]]),
    Tree(TURN + ANSWER + FURTHER, [[9, 3], [5] * 40]),  # goes on from a response to the tree above
    Tree(TURN + ANSWER + FURTHER + [9, 3] + QUESTION, [[6, 3]]),
    Tree(TURN + [7] * 9 + QUESTION, [[11, 12]]),  # goes on from a response that is too short to be shared
    Tree([*SYSTEM, 61, 62, 63], [[64]]),
    Tree([*SYSTEM, 61, 62, 63], [[64], [65, 3]]),  # the same prompt again
    Tree(SYSTEM, [[4, 3]]),  # a prompt that others continue
    Tree([5, 6, 7], [[40, 41], [50]]),  # shares with none
]


def spelled(node):
    """All tokens up to the end of a node."""
    return [] if node is None else spelled(node.parent) + node.tokens


def runs(trees, least_shared):
    return [(node.tokens, node.parent and node.parent.tokens) for node in Forest(trees, least_shared).nodes()]


def test_the_example_of_the_module_by_hand():
    s, a, p, q, b, r, c = [1, 1], [2, 2], [3, 4], [5, 5], [6], [7], [8]
    trees = [Tree(s + a, [p, q]), Tree(s + a + p + b, [r]), Tree(s + c, [[9]])]
    forest = Forest(trees, 2)
    assert runs(trees, 2) == [(s, None), (a, s), (p, a), (b, p), (r, b), (q, a), (c, s), ([9], c)]
    assert [node.tokens for node in forest.nodes() if node.shared] == [s, a, p]
    assert forest.tokens == 12
    # a, b and c follow what is shared, and so does each response: 2 + 6 + 2 for the nodes of prompts, 4 + 6 + 4 + 2 for p, r, q, s
    assert forest.copies == 2 + 6 + 2 + 4 + 6 + 4 + 2
    # Three tokens are the least: only s a, and then p is too short to be part of another prompt.
    assert runs(trees, 3) == [
        (s + a, None),
        (p + b, s + a),
        (r, p + b),
        (p, s + a),
        (q, s + a),
        (s + c, None),
        ([9], s + c),
    ]
    assert runs(trees, SHARED_WITH_NONE)[:3] == [(s + a, None), (p, s + a), (q, s + a)]


def test_a_conversation_in_one_row_by_hand():
    """The example of layout.py."""
    layout = Layout(
        [Tree([10, 11], [[12, 13], [14]]), Tree([10, 11, 12, 13, 15], [[16]])],
        in_one_row=True,
        least_shared=2,
    )
    assert layout.ids.tolist() == [[10, 11, 12, 13, 15, 16, 14]]
    assert layout.positions.tolist() == [[0, 1, 2, 3, 4, 5, 2]]
    assert layout.node.tolist() == [[0, 0, 1, 1, 2, 3, 4]]
    assert layout.end.tolist() == [[7, 7, 6, 6, 6, 6, 7]]
    targets = layout.targets(torch.device("cpu"))
    assert targets.token.tolist() == [12, 13, 14, 16]
    assert targets.source.tolist() == [1, 2, 1, 4]
    assert targets.response.tolist() == [0, 0, 1, 2]
    seen = torch.ones(7, 7).tril()
    seen[6, 2:6] = 0
    assert torch.equal(layout.visible()[0].float(), seen)


def test_short_beginnings_are_not_shared():
    begin = list(range(LEAST_SHARED))
    for count, shared in ((LEAST_SHARED - 1, False), (LEAST_SHARED, True)):
        trees = [Tree([*begin[:count], 50], [[1]]), Tree([*begin[:count], 60], [[2]])]
        assert Forest(trees).tokens == 2 * count + 4 - shared * count
        assert len(families(trees, LEAST_SHARED)) == 2 - shared


tokens_of = st.lists(st.integers(1, 2), min_size=1, max_size=9)
any_trees = st.lists(
    st.builds(Tree, tokens_of, st.lists(tokens_of, min_size=1, max_size=3)), min_size=1, max_size=7
)


@given(any_trees, st.sampled_from([1, 2, 3, SHARED_WITH_NONE]))
def test_each_response_sees_its_own_sequence(trees, least_shared):
    forest = Forest(trees, least_shared)
    for tree, ends in zip(trees, forest.ends, strict=True):
        assert [spelled(end) for end in ends] == [tree.prompt + response for response in tree.responses]
    assert forest.tokens <= sum(tree.tokens for tree in trees)
    layout = Layout(trees, in_one_row=True, least_shared=least_shared)
    visible, targets = layout.visible()[0], layout.targets(torch.device("cpu"))
    number = 0
    for tree in trees:
        for response in tree.responses:
            sources = targets.source[targets.response == number].tolist()
            assert targets.token[targets.response == number].tolist() == response
            for length, source in enumerate(sources, len(tree.prompt)):
                assert layout.ids[0, visible[source]].tolist() == (tree.prompt + response)[:length]
                assert layout.positions[0, visible[source]].tolist() == list(range(length))
            number += 1


@given(any_trees, st.randoms(use_true_random=False))
def test_the_order_of_trees_does_not_change_what_prompts_share(trees, random):
    once = [Tree(tree.prompt, [[3 + number]]) for number, tree in enumerate(trees)]  # no response continues
    shuffled = random.sample(once, len(once))
    assert Forest(once, 2).tokens == Forest(shuffled, 2).tokens


def values_and_gradients(model, trees, capabilities):
    model.zero_grad()
    values = response_log_probs(model, trees, capabilities)
    (values * torch.linspace(-1, 2, len(values))).sum().backward()
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    return values.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def assert_as_separate_rows(model, trees, capabilities):
    expected, gradient = values_and_gradients(model, trees, Capabilities("rows", capabilities.logits))
    values, found = values_and_gradients(model, trees, capabilities)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert (found - gradient).norm() <= 1e-5 * gradient.norm()


@pytest.fixture
def model(tiny_model, request):
    """A tiny model by its family's name; Mistral has a window in each layer, Gemma 2 in every second one."""
    return policies.load(tiny_model(request.param), dtype="float32", device="cpu")


@pytest.mark.parametrize("model", ["llama-3", "mistral", "gemma-2", "qwen3"], indirect=True)
@pytest.mark.parametrize("least_shared", [1, LEAST_SHARED])
@pytest.mark.parametrize("method", ["pieces", "mask"])
def test_conversations_have_the_values_and_gradients_of_separate_rows(
    model, least_shared, method, monkeypatch
):
    found = measure_capabilities(model)
    assert found.attention == "pieces" and found.least_shared == LEAST_SHARED
    assert Forest(CONVERSATION, least_shared).tokens < 0.6 * sum(tree.tokens for tree in CONVERSATION)
    if method == "mask":  # in one row, where it shares as much, though packs give each tree a row
        model.set_attn_implementation("sdpa")
        monkeypatch.setattr(Capabilities, "in_one_row", True)
        monkeypatch.setattr(
            log_probs,
            "Layout",
            lambda trees, in_one_row, least_shared: Layout(
                trees, in_one_row=len(trees) == len(CONVERSATION), least_shared=least_shared
            ),
        )
    assert_as_separate_rows(model, CONVERSATION, Capabilities(method, found.logits, least_shared))


@pytest.mark.parametrize("model", ["mistral"], indirect=True)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_trees)
def test_any_trees_have_the_values_and_gradients_of_separate_rows(model, trees):
    logits = measure_capabilities(model).logits
    assert_as_separate_rows(model, trees, Capabilities("pieces", logits, least_shared=1))


@pytest.mark.parametrize("model", ["llama-3"], indirect=True)
def test_a_model_that_is_wrong_for_shared_prefixes_alone_shares_none(model, monkeypatch):
    """An attention that is right for a prompt and its responses, but not for what follows a response."""
    right = tree_attention._causal

    def forgetful(query, key, value, **further):
        lengths = (query.shape[2], key.shape[2])
        return right(query, key, value * (lengths != (2, 5 + 2 + 2)), **further)

    measure = log_probs._measure_capabilities.__wrapped__  # without the memory of what was measured before
    assert measure(model, "no").attention == "pieces"
    monkeypatch.setattr(tree_attention, "_causal", forgetful)
    assert measure(model, "no").attention == "mask"


def conversations(count, turns, system):
    """Conversations below one system message, each turn going on from a response to the one before."""
    found = []
    for number in range(count):
        prompt = [*system, *([1000 + number] * 40)]
        for turn in range(turns):
            responses = [[2000 + turn] * (40 + number % 5), [3000 + turn] * 10]
            found.append(Tree(prompt, responses))
            prompt = prompt + responses[0] + [4000 + turn] * 20
    return found


@pytest.mark.parametrize("method", ["pieces", "flex"])
def test_packs_keep_what_shares_together_within_the_budget(method):
    trees = [*conversations(6, 4, []), *TREES]
    capabilities = Capabilities(method, None)
    found = list(packs(trees[::2] + trees[1::2], 600, capabilities))
    assert sorted(index for pack in found for index in pack.indices) == list(range(len(trees)))
    for pack in found:
        assert capabilities.tokens(pack.trees) <= 600
        assert [(trees[::2] + trees[1::2])[index] for index in pack.indices] == pack.trees
    apart = list(packs(trees, 600, Capabilities(method, None, least_shared=SHARED_WITH_NONE)))
    assert len(found) < 0.7 * len(apart)


@pytest.mark.parametrize("method", ["pieces", "flex", "mask", "rows"])
def test_packs_are_in_the_order_of_lengths_where_nothing_is_shared(method):
    trees = [Tree([number, *range(100, 100 + number % 7)], [[1] * (number % 5 + 1)]) for number in range(40)]
    order = [index for pack in packs(trees, 50, Capabilities(method, None)) for index in pack.indices]
    assert order == sorted(range(40), key=lambda index: (-trees[index].tokens, index))


def test_copies_of_shared_keys_count_in_packs():
    document = list(range(1000))
    trees = [Tree([*document, 2000 + number], [[1, 2]]) for number in range(3)]
    assert Capabilities("flex", None).tokens(trees) == 1000 + 3 * 3
    # The document's keys are copied for the rest of each prompt and for each response.
    assert Capabilities("pieces", None).tokens(trees) == 1000 + 3 * 3 + 6 * 1000 // 12
    assert Capabilities("pieces", None, queries_per_key=3).tokens(trees) == 1000 + 3 * 3 + 6 * 1000 // 36
    # A tree with many responses copies its prompt for each of them also where it shares nothing.
    many = [Tree(tree.prompt, [[1]] * 30) for tree in trees]
    assert Capabilities("pieces", None).tokens(many) == sum(tree.tokens for tree in many)


def test_packing_many_conversations_is_not_quadratic(monkeypatch):
    trees = conversations(1500, 2, list(range(200)))
    counted = []
    tokens = Capabilities.tokens
    monkeypatch.setattr(
        Capabilities, "tokens", lambda self, some: counted.append(len(some)) or tokens(self, some)
    )
    assert sum(len(pack.indices) for pack in packs(trees, 4096, Capabilities("flex", None))) == len(trees)
    assert sum(counted) < 30 * len(trees)


def test_no_trees_are_a_forest_without_tokens():
    """A process whose share of a step has no prompts counts its operations as well."""
    assert Forest([]).tokens == 0 and Forest([]).roots == []
