"""docs/data.md does what it says."""

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.prompts import COLUMNS
from sppo.recipe import PromptSource

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def block(language, having=""):
    """The only code block of a language that has these words in it."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.M | re.S)
    (text,) = [text for name, text in blocks if name == language and having in text]
    return text


def test_the_dry_run_shows_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("questions.jsonl").write_text(block("jsonl"))
    Path("recipes").symlink_to(ROOT / "recipes")
    command = shlex.split(block("", "--dry-run"))
    result = CliRunner().invoke(app, command[1:])
    assert result.exit_code == 0, result.output
    for line in block("", "prompts     ").splitlines():
        assert line in result.output
    for phrase in (
        "JSON text",
        "a transcript",
        "`conversations`",
        "`instruction` and `input`",
        ", after `system`",
        "the beginning of",
    ):
        assert phrase in result.output


def test_the_table_of_keys_is_that_of_the_recipe():
    table = PAGE.partition("| key | meaning |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.M)) == set(PromptSource.model_fields)
    assert "The first of " + ", ".join(f"`{name}`" for name in COLUMNS[:-1]) in " ".join(PAGE.split())
