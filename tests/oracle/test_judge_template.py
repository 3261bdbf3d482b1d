import pytest

from sppo.oracle import OracleError
from sppo.oracle.judge_template import Template, source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ prompt }} {{ response_a }}", r"does not show \{\{ response_b \}\}; a judge must see"),
        ("Which is better?", r"does not show \{\{ prompt \}\}, \{\{ response_a \}\}, \{\{ response_b \}\}"),
        ("{{ prompt }} {{ answer }}", "UndefinedError: 'answer' is undefined"),
        ("{{ prompt", "not a template"),
        ("{{ ().__class__.__bases__ }}{{ prompt }}{{ response_a }}{{ response_b }}", "SecurityError"),
    ],
)
def test_a_template_that_cannot_be_used(text, message):
    with pytest.raises(OracleError, match=message):
        Template(text, "mine.jinja")


def test_the_packages_own_templates_show_everything():
    for verdict in ("logprobs", "samples"):
        shown = Template(source(None, verdict), "own").render("the prompt", "the first", "the second")
        assert all(text in shown for text in ("the prompt", "the first", "the second"))
