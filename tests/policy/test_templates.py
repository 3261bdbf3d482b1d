"""Templates that leave out, add or change parts of conversations, and the refusal of some of them."""

import datetime
import json
import shutil
from pathlib import Path

import pytest
import tiny_models

from sppo.endpoint.exchange import after_thought
from sppo.policy import chat_format as chat
from sppo.policy.chat_format import ChatError
from sppo.policy.thought import KNOWN_THOUGHTS

SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "I am well."}
FOX = {"role": "user", "content": "Describe a fox."}

MESSAGE = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
PROMPT = "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
ALL = "{% for m in messages %}" + MESSAGE + "{% endfor %}"


@pytest.fixture
def load(tiny_model, tmp_path):
    """Load the chat format of a tiny family with a template of its own and other settings."""

    def loaded(
        template: str | None = None, *, family: str = "llama-3", **settings: object
    ) -> chat.ChatFormat:
        if template is not None:
            path = tmp_path / "template.jinja"
            path.write_text(template)
            settings["chat_template"] = str(path)
        return chat.load(str(tiny_model(family)), **settings)

    return loaded


# Messages that a template leaves out


@pytest.mark.parametrize(
    ("template", "messages", "who"),
    [
        (
            "{% for m in messages if m.role != 'system' %}" + MESSAGE + "{% endfor %}",
            [SYSTEM, HELLO],
            "system",
        ),
        (
            "{% for m in messages %}{% if m.role != 'system' or loop.first %}"
            + MESSAGE
            + "{% endif %}{% endfor %}",
            [SYSTEM, SYSTEM, HELLO],
            "system",
        ),
        (
            "{% for m in messages %}{% if m.role != 'system' or loop.first %}"
            + MESSAGE
            + "{% endif %}{% endfor %}",
            [HELLO, ANSWER, SYSTEM, FOX],
            "system",
        ),
        (
            "{% for m in messages if m.role != 'assistant' %}" + MESSAGE + "{% endfor %}",
            [HELLO, ANSWER, FOX],
            "assistant",
        ),
        ("{% for m in messages[-1:] %}" + MESSAGE + "{% endfor %}", [HELLO, ANSWER, FOX], "user"),
    ],
)
def test_a_message_that_the_template_leaves_out_is_refused(load, template, messages, who):
    format = load(template + PROMPT)
    assert format.render([HELLO]).token_ids
    remedy = (
        r"set prompts\.system: merge" if who == "system" else r"name another one as policy\.chat_template"
    )
    for written in (format.render, format.text):
        with pytest.raises(ChatError, match=f"leaves out what the {who} says .*; .*{remedy}"):
            written(messages)


def test_merged_system_messages_are_not_left_out(load):
    format = load(
        "{% for m in messages if m.role != 'system' %}" + MESSAGE + "{% endfor %}" + PROMPT, system="merge"
    )
    assert "Be brief.\n\nHello" in format.text([SYSTEM, HELLO])


@pytest.mark.parametrize(
    "endless",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    ],
    ids=["loops", "doubling"],
)
def test_a_template_that_computes_for_ever_is_ended(load, monkeypatch, endless):
    monkeypatch.setattr("sppo.policy.template.SECONDS", 0.05)
    with pytest.raises(ChatError, match=r"TimeoutError: it computes for longer than 0\.05 seconds"):
        load(endless + PROMPT).render([HELLO])


# The end of a turn


def following(load_folder, template: str, stops: list[str]) -> chat.ChatFormat:
    folder = load_folder(stops)
    path = Path(folder) / "chat_template.jinja"
    path.write_text(template)
    return chat.load(folder)


@pytest.fixture
def folder_that_stops_at(tiny_model, tmp_path):
    def folder(stops: list[str], family: str = "phi-3") -> str:
        copy = tmp_path / "stops"
        shutil.copytree(tiny_model(family), copy)
        tokenizer = tiny_models.make_tokenizer(family)
        config = json.loads((copy / "generation_config.json").read_text())
        config["eos_token_id"] = tokenizer.convert_tokens_to_ids(stops)
        (copy / "generation_config.json").write_text(json.dumps(config))
        return str(copy)

    return folder


@pytest.mark.parametrize(
    ("template", "stops", "end"),
    [
        # as GLM-4 does it: a turn ends where the next one's role begins
        (
            "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}",
            ["<|endoftext|>", "<|user|>"],
            "<|user|>",
        ),
        (
            "{% for m in messages %}{{ '<|end|>' if loop.index0 else '' }}{{ m.content }}{% endfor %}",
            ["<|end|>"],
            "<|end|>",
        ),
        ("{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}", ["<s>"], "<s>"),
        (
            "{% for m in messages %}{{ m.content }}{{ '' if loop.last else '\n</s>' }}{% endfor %}",
            ["<|endoftext|>", "</s>"],
            "</s>",
        ),
    ],
)
def test_a_turn_may_end_with_the_token_that_begins_the_next(folder_that_stops_at, template, stops, end):
    format = following(folder_that_stops_at, template, stops)
    assert format.tokenizer.convert_ids_to_tokens(format.end_of_turn) == end
    assert format.notes == ()
    assert format.response([HELLO], "I am well.")[-1] == format.end_of_turn


def test_a_next_turns_token_at_which_the_model_does_not_stop_ends_nothing(folder_that_stops_at):
    template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    format = following(folder_that_stops_at, template, ["<|endoftext|>"])
    assert format.tokenizer.convert_ids_to_tokens(format.end_of_turn) == "<|endoftext|>"
    assert "writes no end-of-turn token" in format.notes[0]


# Arguments and dates


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ({"persona": "poet"}, "You are a poet."),
        ({"budget": 7}, "Think for 7 tokens."),
        ({"tone": {"formal": True}}, "Be formal."),
        ({"persona": "cook", "budget": 1}, "You are a cook."),
    ],
)
def test_arguments_reach_the_template(load, arguments, written):
    template = (
        "{% if persona %}You are a {{ persona }}.{% endif %}{% if budget %}Think for {{ budget }} tokens.{% endif %}"
        "{% if tone and tone.formal %}Be formal.{% endif %}" + ALL + PROMPT
    )
    assert written not in load(template).text([HELLO])
    assert written in load(template, template_arguments=arguments).text([HELLO])


def test_thinking_is_switched_off_by_the_templates_own_argument(load):
    assert "<think>" not in load(family="qwen3").text([HELLO])
    silent = load(family="qwen3", template_arguments={"enable_thinking": False})
    assert silent.text([HELLO]).endswith("assistant\n<think>\n\n</think>\n\n")
    assert silent.notes == ()


@pytest.mark.parametrize(
    "name", ["enable_thinkin", "messages", "add_generation_prompt", "bos_token", "strftime_now"]
)
def test_an_argument_that_the_template_does_not_read_is_refused(load, name):
    with pytest.raises(ChatError, match=rf"policy\.template_arguments: .*no argument '{name}'"):
        load(family="qwen3", template_arguments={name: False})


TODAY = "{{ strftime_now('%d %b %Y') }}"


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        ("Today is " + TODAY + "." + ALL + PROMPT, [HELLO]),
        (
            "{% if messages[0].role == 'system' %}Today Date: " + TODAY + "{% endif %}" + ALL + PROMPT,
            [SYSTEM, HELLO],
        ),
        (ALL + "{% if add_generation_prompt %}(" + TODAY + "){% endif %}" + PROMPT, [HELLO]),
        ("At {{ strftime_now('%H:%M') }} of {{ strftime_now('%d %b %Y') }}." + ALL + PROMPT, [HELLO]),
        (
            "{% if strftime_now is defined %}{% set day = "
            + TODAY[3:-3]
            + " %}{% else %}{% set day = '' %}{% endif %}"
            "{{ day }}" + ALL + PROMPT,
            [HELLO],
        ),
    ],
)
def test_a_template_that_writes_todays_date_says_so_and_can_be_given_one(load, template, messages):
    today = load(template)
    assert "policy.template_date" in today.notes[0]
    assert datetime.date.today().strftime("%b %Y") in today.text(messages)
    pinned = load(template, template_date="2024-07-26")
    assert pinned.notes == ()
    assert "26 Jul 2024" in pinned.text(messages)
    assert datetime.date.today().strftime("%b %Y") not in pinned.text(messages)


@pytest.mark.parametrize("template", [ALL, "{% if strftime_now is defined %}{% endif %}" + ALL])
def test_a_date_for_a_template_that_writes_none_is_refused(load, template):
    assert load(template).notes == ()
    with pytest.raises(
        ChatError,
        match=r"policy\.template_date: 2024-07-26, but the chat template does not read today.s date",
    ):
        load(template, template_date="2024-07-26")


def test_a_date_that_is_an_argument_of_the_template(load):
    template = (
        "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
        + ALL
    )
    assert load(template).notes == ()
    assert "1 May 2025" in load(template, template_arguments={"date_string": "1 May 2025"}).text([HELLO])
    with pytest.raises(ChatError, match=r"set policy\.template_arguments if the date is an argument"):
        load(template, template_date="2025-05-01")


def test_a_template_that_writes_only_the_time_of_day_depends_on_the_clock(load):
    assert "policy.template_date" in load("{{ strftime_now('%H') }}" + ALL).notes[0]


# Text that becomes markup on its way to the ids


@pytest.fixture
def normalising(tiny_model, tmp_path):
    """A tiny Llama 3 whose tokenizer normalises text before it looks for special tokens."""

    def folder(normalizer: dict[str, object] | None, template: str | None) -> str:
        copy = tmp_path / "normalising"
        shutil.copytree(tiny_model("llama-3"), copy)
        path = copy / "tokenizer.json"
        content = json.loads(path.read_text())
        if normalizer is not None:
            content["normalizer"] = normalizer
            for token in content["added_tokens"]:
                token["normalized"] = True
        path.write_text(json.dumps(content))
        if template is not None:
            (copy / "chat_template.jinja").write_text(template)
        return str(copy)

    return folder


def changed(filter: str) -> str:
    return ALL.replace("m.content", f"m.content | {filter}") + PROMPT


@pytest.mark.parametrize(
    ("normalizer", "template", "text"),
    [
        ({"type": "NFKC"}, None, "stop \uff1c\uff5ceot_id\uff5c\uff1e here"),
        ({"type": "Lowercase"}, None, "stop <|EOT_ID|> here"),
        (
            {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""},
            None,
            "stop <|eot\u200b_id|> here",
        ),
        (None, changed("lower"), "stop <|EOT_ID|> here"),
        (None, changed("replace('\u200b', '')"), "stop <|eot\u200b_id|> here"),
        (None, changed("replace('&lt;', '<')"), "stop &lt;|eot_id|> here"),
    ],
)
def test_text_that_becomes_a_special_token_is_refused(normalising, normalizer, template, text):
    format = chat.load(normalising(normalizer, template))
    with pytest.raises(ChatError, match=r"special token '<\|eot_id\|>'.*; remove it from the text"):
        format.render([{"role": "user", "content": text}])
    with pytest.raises(ChatError, match=r"special token '<\|eot_id\|>'"):
        format.response([HELLO], text)
    assert format.render([{"role": "user", "content": "stop here"}]).token_ids


# The policy's own turns


def spelled(format: chat.ChatFormat, text: str) -> list[int]:
    """The token ids of a text whose special tokens are spelled letter by letter, as a policy may write them."""
    return [
        token for letter in text for token in format.tokenizer(letter, add_special_tokens=False)["input_ids"]
    ]


@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_a_turn_of_the_policys_own_is_what_the_template_writes_of_the_same_text(load, family):
    format = load(family=family)
    ids = format.response([HELLO], ANSWER["content"])
    first = format.render([HELLO]).token_ids
    whole = format.render([HELLO, {**ANSWER, "token_ids": ids}, FOX]).token_ids
    assert whole[: len(first) + len(ids) - 1] == [*first, *ids[:-1]]
    if (
        family != "mistral"
    ):  # whose template writes a space between prompt and answer that ends up in the answer's ids
        assert whole == format.render([HELLO, ANSWER, FOX]).token_ids


@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_what_the_policy_wrote_is_not_read_again(load, family):
    format = load(family=family)
    for special in tiny_models.FAMILIES[family].special:
        ids = spelled(format, f"Try {special}!")
        assert not set(ids) & set(format.tokenizer.all_special_ids)
        text = format.decode(ids)
        assert special in text
        conversation = [
            HELLO,
            {"role": "assistant", "content": text, "token_ids": [*ids, format.end_of_turn]},
            FOX,
        ]
        rendered = format.render(conversation).token_ids
        first = len(format.render([HELLO]).token_ids)
        assert rendered[first : first + len(ids)] == ids
        assert rendered[first + len(ids)] == format.end_of_turn
        # the same text of other origin is refused
        with pytest.raises(ChatError, match="the assistant message contains the special token"):
            format.render([HELLO, {"role": "assistant", "content": text}, FOX])
        # and so is a user's, behind the policy's turn
        with pytest.raises(ChatError, match="the user message contains the special token"):
            format.render([*conversation[:2], {"role": "user", "content": special}])


@pytest.mark.parametrize(
    "written",
    [
        "",  # nothing but the end of the turn
        "\n\n  spaces  ",
        "half a word and \u00e9",
        "sentinel1word",  # what stands for a turn while the template writes it
    ],
)
def test_several_turns_stand_as_they_were_sampled(load, written):
    format = load()
    ids = spelled(format, written)
    own = {"role": "assistant", "content": written, "token_ids": [*ids, format.end_of_turn]}
    first = format.render([HELLO]).token_ids
    second = format.render([HELLO, own, FOX]).token_ids
    third = format.render([HELLO, own, FOX, own, HELLO]).token_ids
    assert second[: len(first) + len(ids) + 1] == [*first, *ids, format.end_of_turn]
    assert third[: len(second) + len(ids) + 1] == [*second, *ids, format.end_of_turn]


def test_a_turn_that_was_truncated_is_closed_by_the_template(load):
    format = load()
    ids = spelled(format, "I am")
    whole = format.render([HELLO, {**ANSWER, "token_ids": ids}, FOX]).token_ids
    first = format.render([HELLO]).token_ids
    assert whole[: len(first) + len(ids) + 1] == [*first, *ids, format.end_of_turn]


# Thoughts


@pytest.mark.parametrize("marks", [("<think>", "</think>"), ("[A", "B]"), ("Hm,", "So:")])
def test_what_is_read_of_a_response_is_its_answer(load, marks):
    format = load(family="qwen3", thought=marks)
    text = f"{marks[0]}Is it a dog?{marks[1]}\n\nA fox."
    ids = [*format.tokenizer(text, add_special_tokens=False)["input_ids"], format.end_of_turn]
    assert format.decode(ids) == text
    assert format.answer(format.decode(ids)) == "A fox."
    assert format.answer(f"{marks[0]}Is it a d") is None
    assert load(family="qwen3").answer(text) == text


def test_marks_that_are_special_tokens_are_kept_until_the_thought_is_left_out(load):
    # phi-3's swallow the white space behind them, which is no part of the answer anyway
    format = load(family="phi-3", thought=("<|system|>", "<|assistant|>"))
    ids = format.tokenizer("<|system|>Is it a dog?<|assistant|>A fox.<|end|>", add_special_tokens=False)[
        "input_ids"
    ]
    assert "<|end|>" not in format.decode(ids)
    assert format.answer(format.decode(ids)) == "A fox."


def test_a_thought_that_the_template_begins(load):
    format = load(
        ALL + PROMPT + "{% if add_generation_prompt %}<think>\n{% endif %}", thought=("<think>", "</think>")
    )
    assert format.answer("Is it a dog?</think>A fox.") == "A fox."
    assert format.answer("Is it a d") is None


def test_earlier_thoughts_are_left_out_where_the_template_leaves_them_out(load):
    def turn(format: chat.ChatFormat) -> dict[str, object]:
        ids = format.tokenizer("<think>Is it a dog?</think>\n\nI am well.", add_special_tokens=False)[
            "input_ids"
        ]
        return {**ANSWER, "token_ids": [*ids, format.end_of_turn]}

    leaving = load(family="qwen3", thought=("<think>", "</think>"))
    assert leaving.render([HELLO, turn(leaving), FOX]) == leaving.render([HELLO, ANSWER, FOX])
    keeping = load(ALL + PROMPT, thought=("<think>", "</think>"))
    assert keeping.decode(keeping.render([HELLO, turn(keeping), FOX]).token_ids).count("Is it a dog?") == 1


CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if '<|channel|>analysis' in m.content %}{{ raise_exception('thoughts have a field of their own') }}{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
"""After the form of gpt-oss: an answer stands in a channel of its own, and thoughts may not stand in a message."""
SPOKEN = ALL + PROMPT + "{#- the system message should ask for {start} and {end} -#}"


@pytest.fixture
def channels(tiny_model, tmp_path):
    """A tiny model with the tokens of gpt-oss's format."""
    from transformers import AutoTokenizer, GenerationConfig

    folder = tmp_path / "channels"
    shutil.copytree(tiny_model("qwen2"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.eos_token = "<|return|>"
    tokenizer.chat_template = CHANNELS
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("marks", [None, ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")])
def test_a_thought_in_a_channel_of_its_own(channels, marks):
    format = chat.load(channels, thought=marks)
    assert format.tokenizer.convert_ids_to_tokens(format.end_of_turn) == "<|return|>"
    written = "<|channel|>analysis<|message|>Is it a dog?<|end|><|start|>assistant<|channel|>final<|message|>I am well."
    ids = [*format.tokenizer(written, add_special_tokens=False)["input_ids"], format.end_of_turn]
    if marks is None:
        assert "policy.thought: ['<|channel|>analysis', '<|channel|>final<|message|>']" in format.notes[0]
    else:
        assert format.notes == ()
        assert format.answer(format.decode(ids)) == "I am well."
        assert format.answer(format.decode(ids[:8])) is None
    # the next prompt is what the template writes of the answer alone
    whole = format.render([HELLO, {**ANSWER, "token_ids": ids}, FOX]).token_ids
    assert whole == format.render([HELLO, ANSWER, FOX]).token_ids


@pytest.mark.parametrize(("start", "end"), KNOWN_THOUGHTS.items())
def test_a_template_that_knows_thoughts_says_how_to_leave_them_out(load, start, end):
    template = SPOKEN.replace("{start}", start).replace("{end}", end)
    assert f"set policy.thought: [{start!r}, {end!r}]" in load(template).notes[0]
    format = load(template, thought=(start, end))
    assert format.notes == ()
    assert format.answer(f"{start}Is it a dog?{end}\n\nA fox.") == "A fox."
    assert format.answer(f"{start}Is it a d") is None
    assert after_thought(f"{start}[[A]] if so{end}[[B]]") == "[[B]]"
    assert after_thought(f"{start}[[A]] if") is None
