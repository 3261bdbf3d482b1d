"""One HTML page about one or several runs: it needs no server, no network, and no other file."""

import base64
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sppo import __version__
from sppo.progress import printable
from sppo.report import (
    benchmark_results,
    browser,
    certificate_section,
    evaluation_sections,
    head_to_head,
    human_votes,
    oracle_section,
    run_figures,
    samples,
    sections,
    several_runs,
    training_sections,
)
from sppo.report.examples import Example, examples
from sppo.report.overview import Overview, overview
from sppo.report.run_figures import RunFigures
from sppo.report.sections import Section
from sppo.rundir.folder import RunError, write_text
from sppo.rundir.records import with_digest

T = TypeVar("T")
RESPONSE_BYTES = 1_500_000
"""The bytes of responses on a page, shared by its runs; everything else of a run takes a fraction of that."""


@dataclass(frozen=True)
class Article:
    """The part of the page about one run.

    Attributes:
        id: unique on the page.
        run: the run's figures.
        overview: the first screen.
        examples: typical responses before and after.
        first: the sections above the browser of responses.
        sections: the sections below it.
        browse: the data of the browser of responses.
        notes: what could not be read or shown.
    """

    id: str
    run: RunFigures
    overview: Overview = field(default_factory=Overview)
    examples: Sequence[Example] = ()
    first: Sequence[Section] = ()
    sections: Sequence[Section] = ()
    browse: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def data(self) -> Markup:
        """The responses, for the browser's script."""
        return browser.embedded(self.browse)


def write(
    runs: Sequence[Path],
    output: Path,
    *,
    evaluations: Sequence[Path] = (),
    all_pairs: bool = False,
    reload: float | None = None,
) -> None:
    """Writes the page.

    Args:
        runs: the run folders.
        output: the HTML file; an older one is replaced once the new one is whole.
        evaluations: folders, besides RUN/evaluations, in which results of `sppo evaluate` are looked for.
        all_pairs: whether to ask the oracle about the pairs of policies that the run has not compared.
        reload: the seconds after which the page reloads itself; None: never.

    Raises:
        RunError: a path is no run folder, or a run is named twice.
    """
    if len({path.resolve() for path in runs}) < len(runs):
        raise RunError("a run is named twice; name each run once")
    budget = RESPONSE_BYTES // len(runs)
    articles = [
        _article(f"run{number}", path, evaluations, all_pairs, budget) for number, path in enumerate(runs, 1)
    ]
    write_text(output, with_digest(render(articles, reload=reload) + "\n", "<!-- {} -->"))


def render(articles: Sequence[Article], *, reload: float | None = None) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("sppo.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= sections.FILTERS | {"duration": training_sections.duration}
    script = _file("page.js")
    names = [article.run.name for article in articles]
    return environment.get_template("page.html.jinja").render(
        title=f"{', '.join(names)} - sppo",
        articles=articles,
        together=several_runs.section([article.run for article in articles]) if len(articles) > 1 else None,
        style=Markup(_file("page.css")),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        reload=reload,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=__version__,
    )


def _article(prefix: str, path: Path, evaluations: Sequence[Path], all_pairs: bool, budget: int) -> Article:
    run = run_figures.read(path)
    if all_pairs:
        head_to_head.compare_all(run)
    notes = list(run.notes)

    def made(name: str, make: Callable[[], T | None]) -> T | None:
        """The result of `make`; None, with a note, if the records are invalid, so that the other parts are still shown."""
        try:
            return make()
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            notes.append(f"What the run recorded cannot be shown under {name}: {error!r}")
            return None

    def sampled(name: str, read: Callable[[Path, int, list[str]], T | None], first: int) -> dict[int, T]:
        numbers = [iteration.number for iteration in run.iterations[first:]]
        samples = {n: made(f"{name} {n}", lambda n=n: read(path, n, notes)) for n in numbers}  # type: ignore[misc]
        return {n: sample for n, sample in samples.items() if sample is not None}

    def shown(parts: dict[str, Callable[[], Section | None]]) -> list[Section]:
        return [part for name, make in parts.items() if (part := made(name, make)) is not None]

    compared = sampled("responses of iteration", samples.compared, 1)
    held_out = sampled("held-out responses of iteration", samples.held_out, 0)
    folders = [path / "evaluations", *evaluations]
    own = head_to_head.of_run(run, notes)
    matrices = [] if own is None else [(f"On held-out prompts, by {sections.measuring_oracle(run)}", own)]
    first = shown(
        {
            "win rates": lambda: evaluation_sections.win_rates(run, prefix),
            "watched tasks": lambda: evaluation_sections.tasks(run, prefix),
        }
    )
    rest = shown(
        {
            "head to head": lambda: sections.head_to_head(
                prefix, [*matrices, *benchmark_results.matrices(path, folders, notes)]
            ),
            "training": lambda: training_sections.training(run, prefix),
            "lengths": lambda: evaluation_sections.lengths(run, prefix, held_out),
            "oracle": lambda: oracle_section.section(run, prefix, compared),
            "people": lambda: human_votes.section(path, prefix, notes),
            "certificate": lambda: certificate_section.section(path, prefix, notes),
            "benchmarks": lambda: sections.benchmarks(prefix, benchmark_results.tables(path, folders, notes)),
            "cost": lambda: training_sections.cost(run, prefix),
            "recipe": lambda: sections.recipe(run, prefix),
            "fingerprints": lambda: sections.fingerprints(run, prefix),
        }
    )
    browse = made("responses", lambda: browser.browse(compared, held_out, budget))
    return Article(
        prefix,
        run,
        made("overview", lambda: overview(run)) or Overview(),
        made("examples", lambda: examples(held_out)) or (),
        first,
        rest,
        browse or browser.browse({}, {}, budget),
        list(dict.fromkeys(map(printable, notes))),
    )


@cache
def _file(name: str) -> str:
    """The text of a file of this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
