"""IFEval: its 25 checks on responses made by hand, its scores, and the oracle that is made of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from sppo import oracle
from sppo.benchmarks.ifeval import constraints
from sppo.benchmarks.ifeval.constraints import CHECKS, Constraint, ConstraintError, kept
from sppo.benchmarks.ifeval.languages import detect, may_be
from sppo.benchmarks.ifeval.score import score
from sppo.cli.main import app
from sppo.oracle import OracleError

CASES = [
    ("keywords:existence", {"keywords": ["fox", "owl"]}, ["The Fox met an OWL."], ["The fox."]),
    (
        "keywords:frequency",
        {"keyword": "fox", "frequency": 2, "relation": "at least"},
        ["Fox, fox"],
        ["one fox"],
    ),
    (
        "keywords:frequency",
        {"keyword": "fox", "frequency": 2, "relation": "less than"},
        ["one fox", "none"],
        ["fox fox"],
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, ["A category."], ["The Cat sat."]),
    (
        "keywords:letter_frequency",
        {"letter": "z", "let_frequency": 2, "let_relation": "at least"},
        ["Zz top"],
        ["one z"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist ein Fuchs und er ist nicht im Haus."],
        ["This is a fox and it is not in the house."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        ["Dr. Fox came. He saw! Did he win?"],
        ["Mr. Fox met Mrs. Owl at 5 p.m. yesterday. They talked."],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        ["two words"],
        ["now three words"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["one\n***\ntwo", "***\none\n***\ntwo\n***"],
        ["one", "one *** *** two"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        ["First.\n\n'Then' it ends."],
        ["First.\n\nIt ends.", "First.\n\nThen.\n\nMore."],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] lives in [city]"],
        ["[name]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP. S. Write."],
        ["Bye. PS write."],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["p.p.s. more"], ["P.S. more"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n- b", " * a\n * b"],
        ["* a", "**a**\n* b"],
    ),
    ("detectable_format:constrained_response", {}, ["My answer is maybe. So."], ["My answer is perhaps."]),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** and *b*"],
        ["*a*", "** ** and *a*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1 a Section 2 b"],
        ["Section 1 a Section two b"],
    ),
    ("detectable_format:json_format", {}, ['```json\n{"a": 1}\n```', "[1]"], ["{a: 1}"]),
    ("detectable_format:title", {}, ["<<A fox>>\ntext"], ["<A fox>", "<< >>"]),
    ("combination:two_responses", {}, ["a******b"], ["a******a", "a", "a****** ******b"]),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Tell me."},
        ["tell me. Yes."],
        ["Yes. Tell me."],
    ),
    ("startend:end_checker", {"end_phrase": "the end."}, ['"So. The End."'], ["The end"]),
    ("startend:quotation", {}, ['"a"'], ['"a', '"']),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["THE FOX ran", "I like COVID-19"],
        ["THE fox"],
    ),
    ("change_case:english_capital", {}, ["THE FOX IS IN THE HOUSE."], ["The fox", "DER FUCHS IST IM HAUS."]),
    ("change_case:english_lowercase", {}, ["the fox is in the house."], ["The fox is in the house."]),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_a_constraint_is_kept_or_broken(name, arguments, good, bad):
    for responses, expected in ((good, True), (bad, False)):
        for response in responses:
            assert kept([Constraint(name, arguments)], response) == [expected], response


def test_every_check_has_a_case():
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_an_empty_response_keeps_nothing_and_the_loose_check_forgives_an_introduction():
    commas, quoted = Constraint("punctuation:no_comma", {}), Constraint("startend:quotation", {})
    assert kept([commas], "  ") == [False]
    response = 'Sure, here it is:\n"A fox."'
    assert kept([commas, quoted], response) == [False, False]
    assert kept([commas, quoted], response, loose=True) == [True, True]
    assert kept([quoted], '**"A fox."**', loose=True) == [True]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The fox is in the house and it is not for you.", "en"),
        ("Le renard est dans la maison et il ne sort pas.", "fr"),
        ("Kettu on talossa ja se ei ole iso, mutta se on nopea.", "fi"),
        ("Mbweha yuko katika nyumba na ni mkubwa sana kwa hiyo wao ni wengi.", "sw"),
        ("Con cáo là một con vật và không có trong nhà của tôi.", "vi"),
        ("लोमड़ी घर में है और वह बहुत तेज है।", "hi"),
        ("कोल्हा घरामध्ये आहे आणि तो खूप वेगवान आहे.", "mr"),
        ("स्यालको घर ठूलो छ र यो राम्रो छ।", "ne"),
        ("روباه در خانه است و این خانه برای آن است.", "fa"),
        ("الثعلب في البيت مع أن هذا البيت ليس من الخشب على الأرض.", "ar"),
        ("لومڑی گھر میں ہے اور یہ بہت تیز ہے۔", "ur"),
        ("Лиса в доме, и она не на улице, это так.", "ru"),
        ("Лисицата е в къщата и не се страхува от това.", "bg"),
        ("여우는 집에 있습니다.", "ko"),
        ("จิ้งจอกอยู่ในบ้าน", "th"),
        ("狐狸在房子里。", "zh"),
        ("狐は家の中にいます。", "ja"),
        ("12345", None),
    ],
)
def test_languages(text, language):
    assert detect(text) == language


def test_a_text_without_known_words_may_be_any_language_of_its_script():
    assert may_be("Confusion.", "de") and may_be("123", "de")
    assert not may_be("Confusion.", "kn")


def test_the_scores_by_hand():
    """Two prompts with three instructions: strictly one prompt and two instructions are followed."""
    found = score([[True], [True, False]], [[True], [True, True]])
    assert (found.prompt_strict, found.prompt_loose, found.instruction_loose) == (50, 100, 100)
    assert found.instruction_strict == pytest.approx(200 / 3)
    # deviations of the prompts' sums from 2/3 of their instructions: 1 - 2/3 and 1 - 4/3
    assert found.instruction_strict_error == pytest.approx(100 * np.sqrt(2 * 2 * (1 / 3) ** 2) / 3)
    assert found.prompt_strict_error == pytest.approx(100 * np.sqrt(2 * 2 * 0.25) / 2)
    assert (found.prompts, found.instructions) == (2, 3)


def prompts_file(path):
    rows = [
        {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {
            "key": 2,
            "prompt": "Two words and quotes.",
            "instruction_id_list": ["length_constraints:number_words", "startend:quotation"],
            "kwargs": [{"relation": "less than", "num_words": 3, "language": None}, {}],
        },
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", "ifeval", *map(str, arguments)])
    shown = capsys.readouterr()
    assert ended.value.code == code, shown.err
    return shown.out if code == 0 else " ".join(shown.err.split())


def test_a_file_of_responses_and_a_policy(capsys, tmp_path, tiny_model):
    data, mine = prompts_file(tmp_path / "input_data.jsonl"), tmp_path / "mine.jsonl"
    rows = [
        {"prompt": "Two words and quotes.", "response": '"three short words"'},
        {"prompt": "No commas.", "response": "none"},
    ]
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [mine, f"tiny={tiny_model('llama-3')}", "--data", data, "-o", tmp_path / "out"]
    shown = evaluate(capsys, *arguments, "--sampling", "{max_new_tokens: 8}")
    assert "prompt strict" in shown
    first, second = json.loads((tmp_path / "out" / "ifeval.json").read_text())["results"]
    assert (first["prompt_strict"], first["instruction_strict"]) == (50, pytest.approx(200 / 3))
    assert first["by_instruction"]["startend:quotation"] == 100
    assert second["name"] == "tiny" and second["prompts"] == 2
    written = [json.loads(line) for line in Path(second["checks"]).read_text().splitlines()]
    assert [row["key"] for row in written] == [1, 2]
    # what was written is read back as responses
    again = evaluate(capsys, f"again={second['checks']}", "--data", data, "-o", tmp_path / "again")
    assert f"{second['instruction_strict']:.2f}" in again


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1"),
        ('{"prompt": "a", "instruction_id_list": [], "kwargs": []}', "no instruction"),
        ('{"prompt": "a", "instruction_id_list": ["x:y"], "kwargs": [{}]}', "'x:y' is unknown"),
        (
            '{"prompt": "a", "instruction_id_list": ["keywords:existence"], "kwargs": [{}]}',
            "missing 1 required keyword-only argument: 'keywords'",
        ),
        (
            '{"prompt": "a", "instruction_id_list": ["length_constraints:number_words"],'
            ' "kwargs": [{"num_words": 1, "relation": "about"}]}',
            "'about' is neither",
        ),
        ("", "no prompts"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(ConstraintError, match=message):
        constraints.read_prompts(tmp_path / "p.jsonl")


def test_the_benchmarks_own_prompts_are_read(shared):
    path = shared / "data" / "prompts" / "ifeval_input_data.jsonl"
    if not path.is_file():
        pytest.skip("there are no prompts of IFEval in shared/")
    prompts = constraints.read_prompts(path)
    assert len(prompts) == 540
    assert sum(len(prompt.constraints) for prompt in prompts) == 832


def verifiable(tmp_path, **more):
    path = prompts_file(tmp_path / "constraints.jsonl")
    return oracle.load({"type": "verifiable", "constraints": str(path), **more})


RESPONSES = [['"two words"', '"three little words"', "four words without quotes", "x y"]]


def test_the_oracle_prefers_what_keeps_more(tmp_path):
    """Kept of the two constraints: 2, 1, 0, 1."""
    prompts = ["Two words and quotes."]
    hard = verifiable(tmp_path).compare(prompts, RESPONSES)[0]
    np.testing.assert_array_equal(hard[0], [0.5, 1, 1, 1])
    np.testing.assert_array_equal(hard[1], [0, 0.5, 1, 0.5])
    soft = verifiable(tmp_path, comparison="soft").compare(prompts, RESPONSES)[0]
    np.testing.assert_allclose(soft[0], [0.5, 0.75, 1, 0.75])


def test_a_second_oracle_decides_between_equals(tmp_path, monkeypatch):
    (tmp_path / "longer_oracle.py").write_text(
        "import numpy as np\n\ndef longer(prompts, responses):\n"
        "    n = np.array([[len(text) for text in texts] for texts in responses])\n"
        "    return 0.5 + 0.3 * np.sign(n[:, :, None] - n[:, None, :])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    second = {"type": "function", "function": "longer_oracle:longer"}
    loaded = verifiable(tmp_path, tie_break=second)
    found = loaded.compare(["Two words and quotes."], RESPONSES)[0]
    assert found[1, 3] == pytest.approx(0.8)
    np.testing.assert_array_equal(found[0], [0.5, 1, 1, 1])


def test_a_prompt_without_constraints_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(
        OracleError, match=r"oracle\.constraints: the file states no constraints for .*'Hello'"
    ):
        verifiable(tmp_path).compare(["Hello"], [["a", "b"]])
    with pytest.raises(OracleError, match=r"oracle\.constraints: nowhere\.jsonl"):
        oracle.load({"type": "verifiable", "constraints": "nowhere.jsonl"})
