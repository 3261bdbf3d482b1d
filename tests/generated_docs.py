"""The parts of the documentation that are generated: `python tests/generated_docs.py --write` renews them."""

import re
import sys
from pathlib import Path

from sppo import cost, dry_run
from sppo.recipe import PACKAGED, Recipe, load, reference, trl_names

DOCS = Path(__file__).resolve().parents[1] / "docs"


def hours() -> str:
    """The GPU-hours of each large recipe by the cost model, and the memory of its training."""
    rates = dry_run.read_rates("h100", "120,350")
    rows = [
        "| recipe | " + " | ".join(cost.STAGES) + " | H100-hours | GB to train |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(PACKAGED.glob("*.yaml")):
        recipe = load(path)
        if (recipe.policy.parameters or 0) < 1e9:
            continue
        estimated = dry_run.estimate(recipe)
        by_iteration = dry_run.seconds(recipe, estimated, rates)
        spent = [sum(of[stage] for of in by_iteration if of is not None) / 3600 for stage in cost.STAGES]
        cells = [path.stem, *(f"{value:.1f}" for value in (*spent, sum(spent)))]
        rows.append(f"| {' | '.join(cells)} | {(estimated.training_bytes or 0) / 1e9:.0f} |")
    return "\n".join(rows) + "\n"


PARTS = {
    "scaling.md": ("sppo.cost", hours),
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
