"""The model card of an exported policy: its run, the measures of each iteration, and the recipe that reproduces it."""

import re
from pathlib import Path

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader

from sppo.policy.opening import OpenPolicy
from sppo.progress import printable
from sppo.report import run_figures
from sppo.report.sections import FILTERS
from sppo.rundir.reader import is_run, run_and_iteration


def card(name: str, policy: OpenPolicy) -> str:
    """Writes the card as Markdown, with the hub's metadata above it.

    Args:
        name: the model's name.
        policy: the policy that was exported; the card describes the run that its folder lies in.
    """
    home, iteration = run_and_iteration(policy.folder.resolve()) or (policy.folder, None)
    run = run_figures.read(home) if iteration is not None and is_run(home) else None
    base = "" if run is None or run.recipe is None else run.recipe.policy.model
    is_on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["sppo", "self-play", "preference-optimisation"],
        base_model=base if is_on_hub else None,
    )
    loader = PackageLoader("sppo.report", ".")
    environment = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters |= FILTERS | {"plain": _plain}
    return environment.get_template("model_card.md.jinja").render(
        metadata=metadata.to_yaml(),
        name=name,
        run=run,
        iteration=iteration,
        fence=_fence("" if run is None else run.recipe_text),
        settings=policy.not_in_folder,
        arguments=_arguments(policy),
    )


def _arguments(policy: OpenPolicy) -> str:
    """The arguments of `apply_chat_template` that write prompts as the run did, as Python."""
    settings = policy.settings
    values = [f"{key}={value!r}" for key, value in settings.template_arguments.items()]
    if settings.template_date is not None:
        values.append(f"strftime_now=datetime.date.fromisoformat({settings.template_date!r}).strftime")
    return "".join(f", {printable(value)}" for value in values)


def _plain(text: str) -> str:
    """Escapes a text so that Markdown shows it as it is, in one line, and makes no links of addresses in it."""
    line = printable(text).replace("\n", " ")
    return re.sub(r"([\\`*_~\[\]<>|#&]|:(?=//)|(?<=www)\.)", r"\\\1", line)


def _fence(text: str) -> str:
    """A fence that is longer than every row of backticks in the text."""
    return "`" * max([3, *(len(row) + 1 for row in re.findall("`+", text))])
