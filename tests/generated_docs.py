"""The parts of the documentation that are generated: `python tests/generated_docs.py --write` renews them."""

import re
import sys
from pathlib import Path

from sppo.recipe import Recipe, reference, trl_names

DOCS = Path(__file__).resolve().parents[1] / "docs"
PARTS = {
    "recipes.md": ("sppo.recipe.reference", lambda: reference.markdown(Recipe)),
    "trl.md": ("sppo.recipe.trl_names", trl_names.markdown_table),
}
"""Each page with the module that generates a part of it; the part stands between two comments that name the module."""


def renewed(page: str) -> str:
    """The page with its generated part as it is now."""
    module, generate = PARTS[page]
    text = (DOCS / page).read_text(encoding="utf-8")
    begin, end = f"<!-- {module} -->\n", f"<!-- end of {module} -->\n"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.S)
    assert len(pattern.findall(text)) == 1, page
    return pattern.sub(lambda match: f"{begin}{generate()}{end}", text)


if __name__ == "__main__" and "--write" in sys.argv:
    for name in PARTS:
        (DOCS / name).write_text(renewed(name), encoding="utf-8")
