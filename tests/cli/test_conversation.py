"""`sppo chat`: what a policy writes stands in the conversation as its tokens, and its template's notes are said."""

import shutil

import pytest
import tiny_models
from typer.testing import CliRunner

from sppo.cli.main import app


def chat(*arguments, lines):
    result = CliRunner().invoke(
        app, ["chat", *map(str, arguments)], input="".join(f"{line}\n" for line in lines)
    )
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("mistral", "Try <s>!"),
        ("mistral", "Try </s>!"),
        ("gemma-2", "Try <eos>!"),
        ("phi-3", "</s>: it"),
    ],
)
def test_a_policy_that_spells_a_special_token_can_be_talked_to(tmp_path, family, text):
    policy = tiny_models.make_writer(family, text, tmp_path / "policy")
    shown = chat(
        policy, "--max-new-tokens", 16, lines=["Hello", "And then?", "", "Describe a fox.", "Again."]
    )
    assert shown.count(text) == 4
    assert "special token" not in shown
    # the same text is refused where the user types it, and the conversation goes on
    shown = chat(policy, "--max-new-tokens", 16, lines=["Hello", f"You wrote {text}", "Again."])
    assert shown.count("the user message contains the special token") == 1
    assert shown.count(text) == 2


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda template: "{{ strftime_now('%d %b %Y') }}" + template, "policy.template_date"),
        (
            lambda template: template.replace("{{- '<|eot_id|>' -}}", "") + "{#- [/THINK] -#}",
            "policy.thought",
        ),
        (
            lambda template: template.replace("<|eot_id|>", "<|end_header_id|>"),
            "sampling stops there all the same",
        ),
    ],
)
def test_the_notes_of_the_chat_format_are_said(tmp_path, tiny_model, change, note):
    shutil.copytree(tiny_model("llama-3"), tmp_path / "policy")
    template = tmp_path / "policy" / "chat_template.jinja"
    assert "note: " not in chat(tmp_path / "policy", "--max-new-tokens", 2, lines=["Hello"])
    template.write_text(change(template.read_text()))
    shown = chat(tmp_path / "policy", "--max-new-tokens", 2, lines=["Hello"])
    assert "note: " in shown
    assert note in shown
