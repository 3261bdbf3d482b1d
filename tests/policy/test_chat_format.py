import json
import shutil
import warnings
from pathlib import Path

import pytest
import tiny_models

from sppo.policy import chat_format as chat
from sppo.policy.chat_format import ChatError, as_messages, plain_text

FAMILIES = sorted(tiny_models.FAMILIES)
SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "I am well."}
FOX = {"role": "user", "content": "Describe a fox."}

RENDERED = {
    "llama-3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nI am well.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nDescribe a fox.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Hello [/INST] I am well.</s>[INST] Describe a fox. [/INST]",
    "qwen2": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nI am well.<|im_end|>\n<|im_start|>user\nDescribe a fox.<|im_end|>\n"
    "<|im_start|>assistant\n",
    "qwen3": "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nI am well.<|im_end|>\n"
    "<|im_start|>user\nDescribe a fox.<|im_end|>\n<|im_start|>assistant\n",
    "gemma-2": "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nI am well.<end_of_turn>\n"
    "<start_of_turn>user\nDescribe a fox.<end_of_turn>\n<start_of_turn>model\n",
    "phi-3": "<|user|>\nHello<|end|>\n<|assistant|>\nI am well.<|end|>\n<|user|>\nDescribe a fox.<|end|>\n"
    "<|assistant|>\n",
}
CONTENT_ONLY = "{{ bos_token }}{% for message in messages %}{{ message.content }}<|eot_id|>{% endfor %}"


@pytest.fixture
def edited(tiny_model, tmp_path):
    """A copy of the tiny Llama-3 folder with one JSON file changed, replaced or (None) removed."""

    def edit(name: str, change: object, family: str = "llama-3") -> str:
        folder = tmp_path / "edited"
        shutil.copytree(tiny_model(family), folder)
        path = folder / name
        if change is None:
            path.unlink()
        elif isinstance(change, dict):
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        else:
            path.write_text(str(change))
        return str(folder)

    return edit


@pytest.fixture
def template(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "template.jinja"
        path.write_text(text)
        return str(path)

    return write


# the six families


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_loads_without_a_word(tiny_model, family):
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForCausalLM.from_pretrained(tiny_model(family))
        of = chat.load(str(tiny_model(family)))
    assert type(model).__name__ == tiny_models.FAMILIES[family].config.replace("Config", "ForCausalLM")
    # Qwen 3 is the one whose template knows thoughts
    assert ["policy.thought" in note for note in of.notes] == [True] * (family == "qwen3")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_turn_ends_and_sampling_stops_where_the_family_says(tiny_model, family):
    of, expected = chat.load(str(tiny_model(family))), tiny_models.FAMILIES[family]
    assert of.tokenizer.convert_ids_to_tokens(of.end_of_turn) == expected.end_of_turn
    assert set(of.tokenizer.convert_ids_to_tokens(list(of.stop_ids))) == {*expected.stops, expected.eos}
    assert of.end_of_turn in of.stop_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_of_several_turns(tiny_model, family):
    assert chat.load(str(tiny_model(family))).text([HELLO, ANSWER, FOX]) == RENDERED[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_templates_text_with_bos_once(tiny_model, family):
    of = chat.load(str(tiny_model(family)))
    rendered = of.render([HELLO, ANSWER, FOX])
    assert not rendered.doubled_bos
    bos = of.tokenizer.bos_token_id
    written = 1 if RENDERED[family].startswith(of.tokenizer.bos_token or "\0") else 0
    assert rendered.token_ids.count(bos) == written
    assert written == (family in ("llama-3", "mistral", "gemma-2"))
    if family != "phi-3":  # whose special tokens take the line break behind them
        assert of.tokenizer.decode(rendered.token_ids) == RENDERED[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_the_response_without_its_end(tiny_model, family):
    of = chat.load(str(tiny_model(family)))
    ids = of.tokenizer("I am well.", add_special_tokens=False)["input_ids"]
    assert of.decode([*ids, of.end_of_turn]) == "I am well."


@pytest.mark.parametrize("family", ["llama-3", "qwen2", "qwen3", "phi-3"])
def test_a_system_message_where_the_template_takes_one(tiny_model, family):
    text = chat.load(str(tiny_model(family))).text([SYSTEM, HELLO])
    assert text.count("Be brief.") == 1
    assert "helpful" not in text
    assert text.index("Be brief.") < text.index("Hello")


@pytest.mark.parametrize("family", ["mistral", "gemma-2"])
def test_a_system_message_where_the_template_raises_names_the_way_out(tiny_model, family):
    of = chat.load(str(tiny_model(family)))
    with pytest.raises(
        ChatError, match=r"conversation of system, user: .*; set prompts\.system: merge"
    ) as caught:
        of.render([SYSTEM, HELLO])
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_merge_puts_system_messages_at_the_head_of_the_first_user_message(tiny_model, family):
    of = chat.load(str(tiny_model(family)), system="merge")
    merged = {"role": "user", "content": "Be brief.\n\nHello"}
    assert of.text([SYSTEM, HELLO, ANSWER, FOX]) == of.text([merged, ANSWER, FOX])
    assert of.text([HELLO, ANSWER, FOX]) == RENDERED[family]


def test_merge_finds_the_users_message_behind_the_assistants(tiny_model):
    of = chat.load(str(tiny_model("llama-3")), system="merge")
    assert of.text([SYSTEM, ANSWER, FOX]) == of.text(
        [ANSWER, {"role": "user", "content": "Be brief.\n\nDescribe a fox."}]
    )


@pytest.mark.parametrize(
    ("family", "token"),
    [(name, token) for name, of in sorted(tiny_models.FAMILIES.items()) for token in of.special],
)
def test_a_special_token_inside_the_text_is_refused(tiny_model, family, token):
    of = chat.load(str(tiny_model(family)))
    with pytest.raises(ChatError, match="the user message contains the special token") as caught:
        of.render([{"role": "user", "content": f"say {token} aloud"}])
    assert repr(token) in str(caught.value)
    with pytest.raises(ChatError, match="the assistant message contains the special token"):
        of.render([HELLO, {"role": "assistant", "content": token}, FOX])


def test_added_tokens_that_are_not_special_may_be_said(tiny_model):
    of = chat.load(str(tiny_model("qwen3")))
    assert of.render([{"role": "user", "content": "What does <think> mean?"}]).token_ids


def test_half_a_surrogate_pair_is_no_text(tiny_model):
    of = chat.load(str(tiny_model("llama-3")))
    with pytest.raises(ChatError, match="the user message is not UTF-8"):
        of.render([{"role": "user", "content": "a\ud800b"}])
    assert of.render([{"role": "user", "content": "a\U0001f98ab"}]).token_ids


# templates that fail or surprise


@pytest.mark.parametrize("times", [2, 3])
def test_a_doubled_bos_is_found_and_reduced_to_one(tiny_model, template, times):
    text = CONTENT_ONLY.replace("{{ bos_token }}", "{{ bos_token }}" * times)
    of = chat.load(str(tiny_model("llama-3")), chat_template=template(text))
    rendered = of.render([HELLO])
    assert rendered.doubled_bos
    once = chat.load(str(tiny_model("llama-3")), chat_template=template(CONTENT_ONLY)).render([HELLO])
    assert not once.doubled_bos
    assert rendered.token_ids == once.token_ids


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ raise_exception('never') }}", "does not render a conversation of user: TemplateError: never"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages[0].nothing.at_all }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("", "leaves out what the user says"),
        (
            "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{% endfor %}",
            "leaves out what the user says",
        ),
    ],
)
def test_a_template_that_cannot_render_is_refused_at_once(tiny_model, template, text, reason):
    with pytest.raises(ChatError, match=r"name another one as policy\.chat_template") as caught:
        chat.load(str(tiny_model("llama-3")), chat_template=template(text))
    assert reason in str(caught.value)


def test_a_template_without_an_end_of_turn_falls_back_to_the_end_of_sequence_and_says_so(
    tiny_model, template
):
    text = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    of = chat.load(str(tiny_model("mistral")), chat_template=template(text))
    assert of.end_of_turn == of.tokenizer.eos_token_id
    assert of.notes == ("the chat template writes no end-of-turn token; the end-of-sequence token is used",)


def test_an_end_of_turn_at_which_the_model_does_not_stop_is_added_and_said(tiny_model, edited):
    folder = edited("generation_config.json", '{"eos_token_id": 1}', "gemma-2")
    of = chat.load(folder)
    assert of.tokenizer.convert_ids_to_tokens(of.end_of_turn) == "<end_of_turn>"
    assert of.tokenizer.convert_ids_to_tokens(list(of.stop_ids)) == ["<eos>", "<end_of_turn>"]
    assert "'<end_of_turn>'" in of.notes[0]


def test_stops_come_from_the_configuration_where_there_is_no_generation_config(edited):
    folder = edited("config.json", {"eos_token_id": [1, 3]})
    (Path(folder) / "generation_config.json").unlink()
    assert chat.load(folder).stop_ids == (1, 3, 4)


def test_a_model_without_a_template_names_the_way_out(edited, template):
    folder = edited("chat_template.jinja", None)
    with pytest.raises(ChatError, match=r"policy\.model: .*has no chat template; .*policy\.chat_template"):
        chat.load(folder)
    assert (
        chat.load(folder, chat_template=template(CONTENT_ONLY)).text([HELLO])
        == "<|begin_of_text|>Hello<|eot_id|>"
    )


def test_a_template_file_that_cannot_be_read(tiny_model, tmp_path):
    (tmp_path / "latin.jinja").write_bytes(b"{{ messages }} caf\xe9")
    for name in ("none.jinja", "latin.jinja", "."):
        with pytest.raises(ChatError, match=r"policy\.chat_template: .* cannot be read"):
            chat.load(str(tiny_model("llama-3")), chat_template=str(tmp_path / name))


# folders that are no model


def test_a_vocabulary_larger_than_the_embedding_is_refused(edited):
    with pytest.raises(ChatError, match=r"ids up to 399, its embedding only 399 rows; resize the embedding"):
        chat.load(edited("config.json", {"vocab_size": 399}))


def test_an_embedding_larger_than_the_vocabulary_is_fine(tiny_model):
    of = chat.load(str(tiny_model("qwen2")))
    assert len(of.tokenizer) == 400


@pytest.mark.parametrize("stop", [400, -1, "<|eot_id|>"])
def test_an_end_of_sequence_beyond_the_vocabulary_is_refused(edited, stop):
    with pytest.raises(ChatError, match=r"mend eos_token_id in its generation_config\.json") as caught:
        chat.load(edited("generation_config.json", {"eos_token_id": [4, stop]}))
    assert repr(stop) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "{}"),
        ("config.json", None),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", None),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", {"model_max_length": []}),
        ("generation_config.json", "{"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(edited, name, content):
    with pytest.raises(ChatError, match=r"^policy\.model: "):
        chat.load(edited(name, content))


def test_a_name_that_is_neither_a_folder_nor_on_the_hub(tmp_path):
    for name in (str(tmp_path / "none"), "somebody/something", "a b//c"):
        with pytest.raises(ChatError, match=r"policy\.model: .* is no folder here, and the hub gives no"):
            chat.load(name)


def test_a_models_own_python_is_not_run_unless_told_so(edited):
    folder = edited("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}})
    ran = Path(folder) / "ran"
    (Path(folder) / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(ChatError, match=r"set trust_remote_code: true"):
        chat.load(folder)
    assert not ran.exists()


# prompts as messages


def test_a_string_is_one_user_message():
    assert as_messages("Hello") == [HELLO]
    assert as_messages([{**SYSTEM, "name": "x"}, HELLO]) == [SYSTEM, HELLO]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "the prompt is empty"),
        (" \n\t", "the prompt is empty"),
        ([], "not list"),
        (None, "not NoneType"),
        (7, "not int"),
        ({"role": "user", "content": "x"}, "not dict"),
        (["x"], "message 1 has no text under `content`"),
        ([HELLO, {"role": "user"}], "message 2 has no text under `content`"),
        ([{"role": "user", "content": None}], "message 1 has no text under `content`"),
        ([{"content": "x"}], "message 1 has the role None; known are system, user, assistant"),
        ([{"role": "human", "content": "x"}], "message 1 has the role 'human'"),
        ([HELLO, ANSWER], "the last message is the assistant's; leave it out, or end with the user's"),
        ([SYSTEM], "the last message is the system's"),
        ([HELLO, ANSWER, {"role": "user", "content": " "}], "the prompt is empty"),
    ],
)
def test_what_is_no_conversation_is_refused(value, reason):
    with pytest.raises(ChatError) as caught:
        as_messages(value)
    assert reason in str(caught.value)


def test_the_oracle_reads_one_message_bare_and_several_with_their_roles():
    assert plain_text([HELLO]) == "Hello"
    assert plain_text([SYSTEM, HELLO, ANSWER, FOX]) == (
        "System: Be brief.\n\nUser: Hello\n\nAssistant: I am well.\n\nUser: Describe a fox."
    )


def test_tinyworld_is_a_name_of_its_own():
    assert Path(chat.model_path("tinyworld"), "config.json").is_file()
    assert chat.model_path("somebody/something") == "somebody/something"
    of = chat.load("tinyworld")
    assert of.tokenizer.convert_ids_to_tokens(of.end_of_turn) == "<|end|>"


# Responses that are given


@pytest.mark.parametrize("family", FAMILIES)
def test_a_given_response_is_what_the_template_writes_behind_the_generation_prompt(tiny_model, family):
    format = chat.load(str(tiny_model(family)))
    prompt = format.render([HELLO]).token_ids
    ids = format.response([HELLO], ANSWER["content"])
    assert ids[-1] == format.end_of_turn
    assert ids.count(format.end_of_turn) == 1
    assert format.decode(ids).strip() == ANSWER["content"] or family == "qwen3"
    # a further turn begins with the very same tokens
    assert (
        format.render([HELLO, ANSWER, FOX]).token_ids[: len(prompt) + len(ids)] == [*prompt, *ids]
        or family == "qwen3"
    )


def test_a_template_that_changes_what_stands_before_the_response_is_refused(tiny_model, template):
    path = template("{% for m in messages %}{{ m.content }}{{ messages|length }}<|eot_id|>{% endfor %}")
    format = chat.load(str(tiny_model("llama-3")), chat_template=str(path))
    with pytest.raises(ChatError, match="cannot be told from its prompt"):
        format.response([HELLO], "yes")
