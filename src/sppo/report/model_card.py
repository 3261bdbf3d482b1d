"""The model card of an exported policy: its run, the measures of each iteration, and the recipe that reproduces it."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from sppo.progress import printable
from sppo.recipe import Recipe
from sppo.report import run_figures
from sppo.rundir.reader import is_run, run_and_iteration


def card(name: str, policy: Path) -> str:
    """Writes the card as Markdown, with the hub's metadata above it.

    Args:
        name: the model's name.
        policy: the folder that was exported; the card describes the run that it lies in.
    """
    home, iteration = run_and_iteration(policy.resolve()) or (policy, None)
    run = run_figures.read(home) if iteration is not None and is_run(home) else None
    recipe = None if run is None else run.recipe
    base = None if recipe is None else recipe.policy.model
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["sppo", "self-play", "preference-optimisation"],
        base_model=base
        if base is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
        else None,
    )
    files = Environment(
        loader=PackageLoader("sppo.report", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    return files.get_template("model_card.md.jinja").render(
        metadata=metadata.to_yaml(),
        name=_plain(name),
        base=None if base is None else _plain(base),
        run=run,
        algorithm=None if recipe is None else _plain(recipe.algorithm.type),
        oracle=None if recipe is None else _plain(_measuring_oracle(recipe)),
        iteration=iteration,
        rows=[] if run is None else [_row(one) for one in run.evaluated],
        warnings=[] if run is None else [_plain(text) for text in run.warnings],
        fence=_fence("" if run is None else run.recipe_text),
    )


def _measuring_oracle(recipe: Recipe) -> str:
    judge, oracle = recipe.evaluation.oracle, recipe.oracle
    if judge is not None:
        return f"a held-out {judge.type}"
    return "no oracle" if oracle is None else f"the {oracle.type} oracle of its training"


def _row(one: Any) -> list[str]:
    def rate(name: str) -> str:
        found = one.measured.get(name)
        if not isinstance(found, dict):
            return "-"
        return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"

    def number(name: str, digits: int) -> str:
        value = one.measured.get(name)
        return f"{value:.{digits}f}" if isinstance(value, int | float) else "-"

    return [
        str(one.number),
        rate("win_rate_vs_base"),
        rate("win_rate_vs_previous"),
        number("response_tokens", 1),
        number("kl_to_base", 2),
    ]


def _plain(text: str) -> str:
    """Escapes a text so that Markdown shows it as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(text).replace("\n", " "))


def _fence(text: str) -> str:
    """A fence that is longer than every row of backticks in the text."""
    return "`" * max([3, *(len(row) + 1 for row in re.findall("`+", text))])
