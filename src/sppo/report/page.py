"""One HTML page of one or several runs: no server, no network, nothing outside the file."""

import base64
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sppo import __version__
from sppo.progress import printable
from sppo.report import browser, matrix, measured, people, run_figures, samples, sections, together
from sppo.report.run_figures import RunFigures
from sppo.report.sections import Sampled, Section
from sppo.rundir.folder import RunError, write_text

T = TypeVar("T")
TEXTS = 1_500_000
"""Bytes of responses on a page, shared by its runs; what a page has beside them is a fraction of that a run."""


@dataclass(frozen=True)
class Article:
    """What the page says of one run."""

    id: str
    run: RunFigures
    sections: Sequence[Section]
    browse: dict[str, Any]
    notes: Sequence[str]

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
    """Write the page.

    Args:
        runs: run folders.
        output: the HTML file; it takes the place of an older one when it is whole.
        evaluations: folders beside RUN/evaluations in which results of `sppo evaluate` are looked for.
        all_pairs: ask the oracle about the pairs of policies that the run has not compared.
        reload: seconds after which the page reads itself anew; None: never.

    Raises:
        RunError: a path is no run folder, or two runs have the same one.
    """
    if len({path.resolve() for path in runs}) < len(runs):
        raise RunError("a run is named twice")
    articles = [
        _article(f"run{number}", path, evaluations, all_pairs, TEXTS // len(runs))
        for number, path in enumerate(runs, 1)
    ]
    write_text(output, render(articles, reload=reload))


def render(articles: Sequence[Article], *, reload: float | None = None) -> str:
    """The page as text."""
    files = Environment(
        loader=PackageLoader("sppo.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _own("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = [article.run.name for article in articles]
    return files.get_template("page.html.jinja").render(
        title=f"{', '.join(names)} - sppo",
        articles=articles,
        together=together.section([article.run for article in articles]) if len(articles) > 1 else None,
        style=Markup(_own("page.css")),
        script=Markup(script),
        script_digest=digest,
        reload=reload,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=__version__,
    )


def _article(prefix: str, path: Path, evaluations: Sequence[Path], all_pairs: bool, budget: int) -> Article:
    run = run_figures.read(path)
    if all_pairs:
        matrix.compare_all(run)
    notes = list(run.notes)
    numbers = [one.number for one in run.iterations]
    sampled = {
        n: _made(f"responses of iteration {n}", partial(samples.compared, path, n, notes), notes)
        for n in numbers[1:]
    }
    said = {
        n: _made(f"held-out responses of iteration {n}", partial(samples.held_out, path, n, notes), notes)
        for n in numbers
    }
    compared = {n: found for n, found in sampled.items() if found is not None}
    held_out = {n: answers for n, answers in said.items() if answers is not None}
    folders = [path / "evaluations", *evaluations]
    own = matrix.of_run(run, notes)
    matrices = [] if own is None else [("On held-out prompts, by what measures the run", own)]
    parts: list[tuple[str, Callable[[], Section | None]]] = [
        ("win rates", lambda: sections.win_rates(run, prefix)),
        (
            "head to head",
            lambda: sections.head_to_head(run, prefix, [*matrices, *measured.matrices(path, folders, notes)]),
        ),
        ("examples", lambda: sections.examples(run, prefix)),
        ("training", lambda: sections.training(run, prefix)),
        ("lengths", lambda: sections.lengths(run, prefix, Sampled(compared, held_out))),
        ("oracle", lambda: sections.oracle(run, prefix, compared)),
        ("people", lambda: people.section(path, prefix, notes)),
        ("benchmarks", lambda: sections.benchmarks(prefix, measured.tables(path, folders, notes))),
        ("cost", lambda: sections.cost(run, prefix)),
        ("recipe", lambda: sections.recipe(run, prefix)),
        ("fingerprints", lambda: sections.fingerprints(run, prefix)),
    ]
    made = [_made(name, make, notes) for name, make in parts]
    shown = [section for section in made if section is not None]
    nothing = browser.browse({}, {}, budget)
    browse = _made("responses", partial(browser.browse, compared, held_out, budget), notes) or nothing
    return Article(prefix, run, shown, browse, list(dict.fromkeys(map(printable, notes))))


def _made(name: str, make: Callable[[], T | None], notes: list[str]) -> T | None:
    """A part of the page, or a note that what the run recorded cannot be read as one: the others are wanted still."""
    try:
        return make()
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        notes.append(f"What the run recorded cannot be shown under {name}: {error!r}")
        return None


@cache
def _own(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
