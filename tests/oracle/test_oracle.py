import sys
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo import oracle
from sppo.oracle import CheckedOracle, OracleError, checked
from sppo.oracle.panel import Panel
from sppo.recipe import RecipeError, parse_oracle

LENGTHS = """
def compare(prompts, responses):
    return [[[0.5 if a == b else len(a) > len(b) for b in of] for a in of] for of in responses]
"""


class Fixed:
    """An oracle with one answer for every prompt."""

    def __init__(self, matrix):
        self.matrix = matrix

    def compare(self, prompts, responses):
        return [self.matrix for _ in prompts]


def _pair(probability):
    return np.array([[0.5, probability], [1 - probability, 0.5]])


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Writes a module of a new name into the working folder; says the name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = []

    def write(content: str | bytes = LENGTHS) -> str:
        name = f"oracle_{abs(hash(request.node.name))}_{len(made)}"
        (tmp_path / f"{name}.py").write_bytes(content if isinstance(content, bytes) else content.encode())
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def _load(module_name: str, function: str = "compare", **more):
    # in this process, which is quicker; tests/oracle/test_own_process.py asks functions in processes of their own
    own = {"own_process": False, **more}
    return oracle.load({"type": "function", "function": f"{module_name}:{function}", **own})


# the protocol


def test_an_answer_passes_unchanged_and_exactly_antisymmetric():
    matrix = np.array([[0.5, 0.25, 1.0], [0.75, 0.5, 0.0], [0.0, 1.0, 0.5]])
    found = checked([matrix, matrix.T], ["x", "y"], 3)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [matrix, matrix.T])


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.sampled_from([np.float64, np.float32]))
def test_the_slips_of_rounding_are_mended_to_the_last_bit(seed, k, dtype):
    generator = np.random.default_rng(seed)
    above = np.triu(generator.random((k, k)).round(generator.integers(0, 8)), 1)
    exact = above + np.tril(1 - above.T, -1) + np.eye(k) / 2
    answer = (exact + generator.uniform(-4e-7, 4e-7, (k, k))).astype(dtype)
    found = checked([answer], ["x"], k)[0]
    np.testing.assert_allclose(found, exact, atol=1e-6)
    np.testing.assert_array_equal(found + found.T, np.ones((k, k)))
    np.testing.assert_array_equal(np.diagonal(found), np.full(k, 0.5))
    assert found.min() >= 0
    assert found.max() <= 1
    order = generator.permutation(k)
    np.testing.assert_array_equal(checked([answer[order][:, order]], ["x"], k)[0], found[order][:, order])


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        (
            np.full((2, 3), 0.5),
            "has the shape [2, 3] instead of [2, 2, 2]: one K x K matrix of probabilities",
        ),
        (np.full((1, 2, 2), 0.5), "has the shape [1, 2, 2] instead of [2, 2, 2]"),
        (np.full((2, 3, 3), 0.5), "has the shape [2, 3, 3] instead of [2, 2, 2]"),
        (np.full((2, 2), 0.5), "has the shape [2, 2] instead of [2, 2, 2]"),
        (0.5, "has the shape []"),
        (None, "has the shape []"),
        ([[0.5], [0.5, 0.5]], "is not an array of numbers"),
        ("abc", "is not an array of numbers"),
        ({}, "is not an array of numbers"),
        ((row for row in [[0.5]]), "is not an array of numbers"),
        ([[["0.5", "0.5"], ["0.5", "0.5"]]] * 2, "is not an array of numbers: its entries are <U3"),
        (np.full((2, 2, 2), 0.5 + 0j), "is not an array of numbers: its entries are complex128"),
        (np.full((2, 2, 2), object()), "is not an array of numbers"),
        ([_pair(0.5), _pair(np.nan)], "P[0, 1] = nan is not finite; the prompt was 'second'"),
        ([_pair(0.5), [[0.5, None], [0.5, 0.5]]], "P[0, 1] = nan is not finite; the prompt was 'second'"),
        ([_pair(0.5), [[0.5, 0.5], [-np.inf, 0.5]]], "P[1, 0] = -inf is not finite; the prompt was 'second'"),
        ([_pair(0.5), _pair(1.01)], "P[0, 1] = 1.01 is not a probability in [0, 1]; the prompt was 'second'"),
        ([_pair(-0.5), _pair(0.5)], "P[0, 1] = -0.5 is not a probability in [0, 1]; the prompt was 'first'"),
        (
            [_pair(0.5), [[0.5, 0.6], [0.6, 0.5]]],
            "P[0, 1] = 0.6 and the entry on the other side of the diagonal",
        ),
        ([_pair(0.5), [[0.5, 0.3], [0.7, 0.4]]], "P[1, 1] = 0.4 is on the diagonal, where 1/2 belongs"),
        (np.zeros((2, 2, 2)), "P[0, 0] = 0 is on the diagonal, where 1/2 belongs; the prompt was 'first'"),
        ([[[0.5, True], [True, 0.5]]] * 2, "P[0, 1] = 1 and the entry on the other side"),
    ],
)
def test_an_answer_that_is_no_preference_is_refused_with_its_prompt(answer, refusal):
    with pytest.raises(OracleError) as caught:
        checked(answer, ["first", "second"], 2)
    assert refusal in str(caught.value)
    if "prompt was" in refusal:
        assert caught.value.prompt_index == ["first", "second"].index(refusal.split("'")[-2])


def test_a_missing_score_is_never_a_number():
    masked = np.ma.masked_array([_pair(0.9)], mask=[[[False, True], [False, False]]])
    with pytest.raises(OracleError, match=r"P\[0, 1\] = nan is not finite"):
        checked(masked, ["x"], 2)


def test_whatever_converts_to_numbers_is_an_answer():
    import torch

    for answer in (
        torch.tensor([[[0.5, 1.0], [0.0, 0.5]]], dtype=torch.float16),
        [[[Fraction(1, 2), 1], [0, Fraction(1, 2)]]],
        np.array([[[0.5, 1.0], [0.0, 0.5]]], dtype=np.float32),
    ):
        np.testing.assert_array_equal(checked(answer, ["x"], 2), [[[0.5, 1.0], [0.0, 0.5]]])
    with pytest.raises(OracleError, match="not an array of numbers: Can't call numpy"):
        checked(torch.full((1, 2, 2), 0.5, requires_grad=True), ["x"], 2)


def test_an_error_shows_the_head_of_a_long_prompt_in_one_line():
    with pytest.raises(OracleError) as caught:
        checked([_pair(2.0)], ["line\n\x1b[31m" + "word " * 1000], 2)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "responses", "refusal"),
    [
        (["x"], [], "responses: 0 lists for 1 prompts"),
        (
            ["x", "y"],
            [["a", "b"], ["a", "b", "c"]],
            r"responses: prompts with \[2, 3\] responses in one call",
        ),
        (["x"], [["a"]], "responses: K = 1; at least 2"),
    ],
)
def test_a_question_that_cannot_be_asked(prompts, responses, refusal):
    with pytest.raises(ValueError, match=refusal):
        CheckedOracle(Fixed(_pair(0.5))).compare(prompts, responses)


def test_no_prompts_no_answers():
    assert CheckedOracle(Fixed(_pair(0.5))).compare([], []).size == 0


# a function of one's own


def test_a_function_in_the_working_folder(module):
    found = _load(module()).compare(["x", "y"], [["a", "aaa", "aa"], ["b", "b", "bb"]])
    np.testing.assert_array_equal(found[0], [[0.5, 0, 0], [1, 0.5, 1], [1, 0, 0.5]])
    np.testing.assert_array_equal(found[1], [[0.5, 0.5, 0], [0.5, 0.5, 0], [1, 1, 0.5]])


@pytest.mark.parametrize("function", ["instance", "partial", "Nested.compare"])
def test_whatever_can_be_called(module, function):
    name = module(
        LENGTHS
        + "import functools\n"
        + "class Nested:\n    compare = staticmethod(compare)\n"
        + "    def __call__(self, p, r): return compare(p, r)\n"
        + "instance = Nested()\npartial = functools.partial(compare)\n"
    )
    assert _load(name, function).compare(["x"], [["a", "bb"]])[0, 1, 0] == 1
    assert oracle.identity(parse_oracle({"type": "function", "function": f"{name}:{function}"}))["source"]


def test_what_the_function_does_to_its_arguments_stays_with_it(module):
    name = module(
        "def compare(p, r):\n    p.clear(); r[0].clear(); r.clear(); return [[[0.5, 0.5], [0.5, 0.5]]]\n"
    )
    prompts, responses = ["x"], [["a", "b"]]
    _load(name).compare(prompts, responses)
    assert (prompts, responses) == (["x"], [["a", "b"]])


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ("raise KeyError('x')", "KeyError: 'x'"),
        ("raise StopIteration", "StopIteration"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("return {}[p[0]]", "KeyError: 'why?'"),
    ],
)
def test_a_function_that_raises(module, body, refusal):
    name = module(f"def compare(p, r):\n    {body}\n")
    with pytest.raises(OracleError) as caught:
        _load(name).compare(["why?", "how?"], [["a", "b"]] * 2)
    assert str(caught.value) == (
        f"the oracle {name}:compare raised {refusal} ({name}.py, line 2);"
        " among 2 prompts, the first of them 'why?'"
    )


def test_a_function_that_takes_other_arguments(module):
    with pytest.raises(OracleError, match="takes 1 positional argument but 2 were given"):
        _load(module("def compare(pairs): return pairs\n")).compare(["x"], [["a", "b"]])


def test_an_error_that_cannot_say_what_it_is(module):
    name = module(
        "class Mute(Exception):\n    def __str__(self): raise ValueError\ndef compare(p, r): raise Mute\n"
    )
    with pytest.raises(OracleError, match=r"Mute: <exception str\(\) failed>"):
        _load(name).compare(["x"], [["a", "b"]])


def test_a_function_that_hangs_is_given_up(module):
    name = module("import time\ndef compare(p, r): time.sleep(60)\n")
    begun = time.monotonic()
    with pytest.raises(
        OracleError, match=r"has not answered within 0\.2 s; .*'x'; raise oracle\.timeout_seconds"
    ):
        _load(name, timeout_seconds=0.2).compare(["x"], [["a", "b"]])
    assert time.monotonic() - begun < 5


def test_a_limit_longer_than_the_system_can_wait(module):
    assert _load(module(), timeout_seconds=1e300).compare(["x"], [["a", "bb"]]).shape == (1, 2, 2)


def test_a_wrong_answer_of_a_function_is_refused(module):
    name = module("def compare(p, r): return [[[0.5, 0.7], [0.4, 0.5]]] * len(p)\n")
    with pytest.raises(OracleError, match="do not sum to 1; the prompt was 'x'"):
        _load(name).compare(["x"], [["a", "b"]])


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (b"def compare(:\n", "SyntaxError: invalid syntax ({name}.py, line 1)"),
        (b"x = 1\n1 / 0\n", "ZeroDivisionError: division by zero ({name}.py, line 2)"),
        (b"import sys\nsys.exit(4)\n", "SystemExit: 4 ({name}.py, line 2)"),
        (
            b"import no_such_module\n",
            "ModuleNotFoundError: No module named 'no_such_module' ({name}.py, line 1)",
        ),
        (b"\x00", "SyntaxError: source code string cannot contain null bytes"),
        (b"x = 'caf\xe9'\n", "SyntaxError: "),
    ],
)
def test_a_module_that_cannot_be_imported(module, content, refusal):
    name = module(content)
    with pytest.raises(OracleError) as caught:
        _load(name)
    message = str(caught.value)
    assert f"oracle.function: '{name}:compare': the module '{name}' cannot be imported: " in message
    assert refusal.format(name=name) in message


def test_a_module_or_function_that_is_not_there(module):
    with pytest.raises(
        OracleError, match=r"cannot be imported: .*; it is looked for in the working folder and among"
    ):
        _load("no_such_module_at_all")
    with pytest.raises(OracleError, match="has no function 'compere'"):
        _load(module(), "compere")
    with pytest.raises(OracleError, match="has no function 'three'"):
        _load(module("three = 3\n"), "three")


# panels


def test_a_panel_is_the_mean_of_its_members():
    panel = Panel([Fixed(_pair(1.0)), Fixed(_pair(0.5)), Fixed(_pair(0.0))])
    np.testing.assert_allclose(
        panel.compare(["x", "y"], [["a", "b"]] * 2), [_pair(0.5)] * 2, rtol=0, atol=1e-15
    )


def test_weights_are_scaled_to_a_mixture():
    panel = Panel([Fixed(_pair(1.0)), Fixed(_pair(0.5)), Fixed(_pair(0.0))], [3, 1, 0])
    np.testing.assert_allclose(panel.compare(["x"], [["a", "b"]]), [_pair(3 / 4 + 1 / 8)])


def test_members_that_rank_can_go_round_together():
    a_b_c = np.array([[0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5]])
    members = [Fixed(np.roll(a_b_c, shift, (0, 1))) for shift in range(3)]
    matrix = Panel(members).compare(["x"], [["a", "b", "c"]])[0]
    np.testing.assert_allclose(matrix, [[1 / 2, 2 / 3, 1 / 3], [1 / 3, 1 / 2, 2 / 3], [2 / 3, 1 / 3, 1 / 2]])


@given(
    st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=8).filter(lambda w: sum(w) > 0)
)
def test_members_who_agree_are_certain_whatever_their_weights(weights):
    panel = CheckedOracle(Panel([Fixed(_pair(1.0))] * len(weights), weights))
    np.testing.assert_allclose(panel.compare(["x"], [["a", "b"]]), [_pair(1.0)], atol=1e-12)


def test_a_panel_of_functions_from_a_recipe(module):
    name = module(
        LENGTHS
        + "def against(p, r):\n    return [[[1 - x for x in row] for row in m] for m in compare(p, r)]\n"
    )
    members = [{"type": "function", "function": f"{name}:{function}"} for function in ("compare", "against")]
    panel = oracle.load({"type": "panel", "members": members, "weights": [3.0, 1.0]})
    np.testing.assert_array_equal(panel.compare(["x"], [["a", "bb"]]), [_pair(0.25)])


def test_a_members_wrong_answer_is_told_from_the_others(module):
    name = module(LENGTHS + "def wrong(p, r): return [[[0.5, 3], [-2, 0.5]]]\n")
    members = [{"type": "function", "function": f"{name}:{function}"} for function in ("compare", "wrong")]
    with pytest.raises(OracleError, match=r"panel member 1: .*P\[0, 1\] = 3 is not a probability") as caught:
        oracle.load({"type": "panel", "members": members}).compare(["x"], [["a", "bb"]])
    assert caught.value.prompt_index == 0


def test_the_embedded_panel_goes_round():
    from sppo.tinyworld.annotators import CYCLE

    prompt, responses = CYCLE
    matrix = oracle.load({"type": "panel"}).compare([prompt], [list(responses)])[0]
    assert matrix[0, 1] > 0.5
    assert matrix[1, 2] > 0.5
    assert matrix[2, 0] > 0.5


def test_an_oracle_that_is_not_described_rightly():
    with pytest.raises(RecipeError, match="did you mean `function`"):
        oracle.load({"type": "function", "functon": "a:b"})


# what an oracle's answers depend on


def _identity(name: str, **more):
    return oracle.identity(
        parse_oracle({"type": "function", "function": f"{name}:compare", "own_process": False, **more})
    )


def test_an_edited_function_is_another_oracle(module, tmp_path):
    name = module()
    before = _identity(name)
    assert _identity(name) == before
    (tmp_path / f"{name}.py").write_text(LENGTHS + "changed = 1\n")
    assert _identity(name)["source"] != before["source"]


def test_a_function_from_elsewhere_is_known_by_both_files(module, tmp_path):
    inner = module()
    outer = module(f"from {inner} import compare\n")
    before = _identity(outer)
    (tmp_path / f"{inner}.py").write_text(LENGTHS + "changed = 1\n")
    after = _identity(outer)
    (tmp_path / f"{outer}.py").write_text(f"from {inner} import compare; changed = 1\n")
    assert len({before["source"], after["source"], _identity(outer)["source"]}) == 3


def test_a_member_edited_is_another_panel_and_a_limit_is_none(module, tmp_path):
    name = module()

    def panel(**more):
        member = {"type": "function", "function": f"{name}:compare"}
        return oracle.identity(parse_oracle({"type": "panel", "members": [member], **more}))

    before = panel()
    assert panel(weights=[1.0]) != before
    (tmp_path / f"{name}.py").write_text(LENGTHS + "changed = 1\n")
    assert panel() != before
    assert _identity(name, timeout_seconds=1) == _identity(name)
    assert _identity(name, text="chat") != _identity(name)


def test_a_builtin_has_no_file():
    assert oracle.identity(parse_oracle({"type": "function", "function": "math:fsum"}))["source"] == ""
