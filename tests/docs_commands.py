"""What the README and the pages of docs/ tell their readers to type: commands, and the YAML of files."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_PROGRAMS = r"(?:sppo|python|pip|make)"


class Command(NamedTuple):
    """A command of a page.

    Attributes:
        page: the page's file name.
        line: what is typed, without a comment behind it, and without variables of the environment before it.
        whole: whether it stands in a block, as something to type, rather than in a sentence, perhaps without its arguments.
    """

    page: str
    line: str
    whole: bool


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page that are of one of the languages; "" is a block that names none."""
    text = page.read_text(encoding="utf-8")
    # all of them are matched, since the end of a block looks like the beginning of one without a language
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S)
    return [block for language, block in fenced if language in languages]


def commands() -> list[Command]:
    """Every command of every page, in their order."""
    return [command for page in PAGES for command in of_page(page)]


def of_page(page: Path) -> list[Command]:
    """The commands of a page: lines of its blocks, fenced or indented, and code within sentences."""
    text = page.read_text(encoding="utf-8")
    found = []
    fenced = "".join(f"    {line}\n" for block in blocks(page, "", "sh") for line in block.splitlines())
    sentences = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for part in (fenced, sentences):
        for line in re.findall(
            rf"^ {{4}}(?:[A-Z_]+=\S+ )*((?:\.venv/bin/)?{_PROGRAMS} [\w'-].*)$",
            re.sub(r"\\\n *", "", part),
            flags=re.M,
        ):
            line = line.split("  #")[0].strip().removeprefix(".venv/bin/")
            if not re.search(r" {3}", line):  # a table that is printed
                found.append(Command(page.name, line, whole=True))
    in_sentences = re.findall(rf"`((?:\.venv/bin/)?{_PROGRAMS} [^`]+)`", " ".join(sentences.split()))
    return found + [Command(page.name, line.removeprefix(".venv/bin/"), whole=False) for line in in_sentences]
