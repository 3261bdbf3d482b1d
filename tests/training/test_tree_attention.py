import pytest
import torch
from pack_memory import kept_bytes
from torch.nn.functional import scaled_dot_product_attention

from sppo.policy import load as policies
from sppo.training import tree_attention
from sppo.training.forest import Tree
from sppo.training.layout import Layout
from sppo.training.log_probs import Capabilities, measure_capabilities, response_log_probs
from sppo.training.tree_attention import additive, block_mask, masks

TREES = [Tree(list(range(9)), [[1] * 4, [2] * 5, [3]]), Tree([7, 8], [[4] * 3, [5] * 8])]
LONG = [
    Tree(list(range(100)), [list(range(200)), list(range(50)), list(range(90))]),
    Tree([7, 8], [[4] * 140]),
]
TURNS = [  # a conversation of two turns, below a beginning that another prompt shares
    Tree([*range(60), *range(100, 140)], [list(range(50)), list(range(90))]),
    Tree([*range(60), *range(100, 140), *range(50), *range(200, 240)], [[5] * 70, [6] * 3]),
    Tree([*range(60), *range(300, 310)], [[7] * 20]),
]


def test_a_tree_in_one_row_by_hand():
    layout = Layout([Tree([10, 11], [[12, 13], [14]]), Tree([15], [[16]])], in_one_row=True)
    assert layout.ids.tolist() == [[10, 11, 12, 13, 14, 15, 16]]
    assert layout.positions.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    targets = layout.targets(torch.device("cpu"))
    assert targets.token.tolist() == [12, 13, 14, 16]
    assert targets.source.tolist() == [1, 2, 1, 5]
    assert targets.response.tolist() == [0, 0, 1, 2]
    seen = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert layout.visible()[0].int().tolist() == seen
    for row, column in ((2, 0), (3, 0), (3, 1), (4, 0)):  # two back by position, not by column
        seen[row][column] = 0
    assert layout.visible(window=2)[0].int().tolist() == seen


def test_a_row_for_each_tree_is_the_same_but_for_its_padding():
    rows, row = Layout(TREES, in_one_row=False), Layout(TREES, in_one_row=True)
    assert row.ids.shape == (1, sum(tree.tokens for tree in TREES)) and row.real.all()
    first = TREES[0].tokens
    for window in (None, 5):
        assert torch.equal(rows.visible(window)[0], row.visible(window)[0, :first, :first])
        second = TREES[1].tokens
        assert torch.equal(rows.visible(window)[1, :second, :second], row.visible(window)[0, first:, first:])
        assert rows.visible(window).any(-1).all()  # no softmax over nothing
        assert not row.visible(window)[0, first:, :first].any()


def attention(layout, way, window, queries, keys, values):
    """By each way's own kernel."""
    if way == "mask":
        return scaled_dot_product_attention(
            queries, keys, values, attn_mask=additive(layout, window, queries.dtype)
        )
    mask = tree_attention._pieces(layout, window)
    found, _ = tree_attention._attend(None, queries, keys, values, mask)
    return found.transpose(1, 2)


@pytest.fixture(params=[16, 512])
def block(request, monkeypatch):
    """The number of queries in a call with a mask: several calls for each response, or one."""
    monkeypatch.setattr(tree_attention, "_BLOCK", request.param)
    tree_attention._strip.cache_clear()
    yield request.param
    tree_attention._strip.cache_clear()


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("window", [None, 3, 64, 1000])
@pytest.mark.parametrize("trees", [TREES, LONG, TURNS])
def test_pieces_attend_as_the_additive_mask_says(trees, window, heads):
    layout = Layout(trees, in_one_row=True)
    generator = torch.Generator().manual_seed(0)
    columns = layout.ids.shape[1]
    operands = [
        torch.randn(1, count, columns, 8, generator=generator, dtype=torch.float64) for count in (heads, 2, 2)
    ]
    results = []
    for way in ("pieces", "mask"):
        inputs = [value.clone().requires_grad_() for value in operands]
        shared = [inputs[0], *(value.repeat_interleave(heads // 2, dim=1) for value in inputs[1:])]
        found = attention(layout, way, window, *(inputs if way == "pieces" else shared))
        found.square().sum().backward()
        results.append([found.detach(), *(value.grad for value in inputs)])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("trees", [TREES, LONG, TURNS])
def test_pieces_of_bfloat16_are_as_near_as_their_rounding_whatever_their_length(trees, autocast):
    """Short ones are computed in float32 on a CPU, long ones in bfloat16; the result has the values' type."""
    layout = Layout(trees, in_one_row=True)
    generator = torch.Generator().manual_seed(0)
    columns = layout.ids.shape[1]
    operands = [torch.randn(1, count, columns, 8, generator=generator).bfloat16() for count in (4, 2, 2)]
    inputs = [value.clone().requires_grad_() for value in operands]
    if autocast:  # as of a rotation in float32
        inputs[:2] = [value.float().detach().requires_grad_() for value in operands[:2]]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = attention(layout, "pieces", None, *inputs)
    assert found.dtype == torch.bfloat16
    found.double().square().sum().backward()
    exact = [value.double().requires_grad_() for value in operands]
    shared = [exact[0], *(value.repeat_interleave(2, dim=1) for value in exact[1:])]
    wanted = attention(layout, "mask", None, *shared)
    wanted.square().sum().backward()
    for one, two in zip(
        [found, *(value.grad for value in inputs)], [wanted, *(value.grad for value in exact)], strict=True
    ):
        assert (one.double() - two).norm() < 0.01 * two.norm()


def test_the_attention_of_short_sequences_is_computed_in_float32_and_that_of_long_ones_is_not(monkeypatch):
    kinds = set()

    def spy(query, key, value, **further):
        kinds.add((key.shape[2] <= 256, query.dtype, key.dtype, value.dtype))
        return scaled_dot_product_attention(query, key, value, **further)

    monkeypatch.setattr(tree_attention.F, "scaled_dot_product_attention", spy)
    layout = Layout(LONG, in_one_row=True)
    operands = [torch.randn(1, 2, layout.ids.shape[1], 8).bfloat16() for _ in range(3)]
    attention(layout, "pieces", None, *operands)
    assert kinds == {(True, *[torch.float32] * 3), (False, *[torch.bfloat16] * 3)}


@pytest.mark.parametrize("window", [None, 3, 64])
@pytest.mark.parametrize(("trees", "in_one_row"), [(LONG, True), (LONG, False), (TURNS, True)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attentions_block_mask_is_the_additive_mask(trees, in_one_row, window):
    from torch.nn.attention.flex_attention import create_mask, flex_attention

    layout = Layout(trees, in_one_row=in_one_row)  # several blocks
    rows, columns = layout.ids.shape
    blocks = block_mask(layout, window)
    assert blocks.shape == (rows, 1, columns, columns)
    seen = create_mask(blocks.mask_mod, rows, None, columns, columns, device="cpu")
    assert torch.equal(seen[:, 0], layout.visible(window))
    if in_one_row:
        assert blocks.sparsity() > 0  # what no token sees is left out
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(rows, 2, columns, 16, generator=generator) for _ in range(3)]
    torch.testing.assert_close(
        flex_attention(*operands, block_mask=blocks),
        attention(layout, "mask", window, *operands),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("family", ["llama-3", "mistral"])
def test_what_is_kept_for_a_long_response_grows_with_its_length_and_not_with_the_square(tiny_model, family):
    model = policies.load(tiny_model(family), dtype="float32", device="cpu")
    found = measure_capabilities(model)
    lengths = (1024, 2048, 4096)
    one, two, four = (kept_bytes(model, [Tree([7] * 64, [[8] * length])], found) for length in lengths)
    assert four - two < 2.3 * (two - one)


def test_each_kind_of_layer_gets_its_window(tiny_model):
    config = policies.load(tiny_model("gemma-2"), dtype="float32", device="cpu").config
    layout = Layout(LONG, in_one_row=True)
    found = masks("mask", config, layout, torch.float32)
    assert set(found) == {"sliding_attention", "full_attention"}
    for kind, window in (("sliding_attention", config.sliding_window), ("full_attention", None)):
        assert torch.equal(found[kind] == 0, layout.visible(window)[:, None])


def test_an_attention_that_was_asked_for_is_kept(tiny_model):
    model = policies.load(tiny_model("llama-3"), dtype="float32", device="cpu", attn_implementation="eager")
    assert measure_capabilities(model).attention == "mask"
    assert model.config._attn_implementation == "eager"


def test_ordinary_calls_of_the_model_are_as_before(tiny_model, tmp_path):
    model = policies.load(tiny_model("mistral"), dtype="float32", device="cpu")
    ids = torch.arange(3, 83).view(2, 40)
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    before = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert measure_capabilities(model).attention == "pieces"
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits[mask.bool()], before)
    model.save_pretrained(tmp_path)
    assert "sppo" not in (tmp_path / "config.json").read_text()


def test_the_order_of_responses_and_of_trees_does_not_matter(tiny_model):
    model = policies.load(tiny_model("qwen2"), dtype="float32", device="cpu")
    found = Capabilities("pieces", measure_capabilities(model).logits)
    values = response_log_probs(model, TREES, found)
    turned = [Tree(tree.prompt, tree.responses[::-1]) for tree in TREES[::-1]]
    torch.testing.assert_close(response_log_probs(model, turned, found).flip(0), values)
