"""Pages about several runs and about runs under way, and the command that writes them."""

import shutil

import pytest
from run_folders import interval, write_run
from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.rundir.folder import RunError


@pytest.mark.slow
def test_several_runs_stand_on_one_page(tmp_path, run, visit):
    other = write_run(tmp_path / "other", measures={2: {"win_rate_vs_base": interval(0.8)}})
    done = CliRunner().invoke(app, ["report", str(run), str(other), "-o", str(tmp_path / "both.html")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    for name in ("all-wins", "all-kl", "all-tokens", "run1-win-rates", "run2-win-rates"):
        assert f'<figure id="{name}" ' in text
    assert "0.800 [0.780, 0.820]" in text
    seen = visit(tmp_path / "both.html")
    assert seen.complaints == []
    assert seen.page.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map((one) => one.id)).size == document.querySelectorAll('[id]').length"
    )


@pytest.mark.slow
def test_watching_ends_with_the_run(tmp_path):
    from rich.console import Console

    from sppo.progress import Terminal
    from sppo.report.watching import watch

    run = write_run(tmp_path / "run", iterations=1)
    other = write_run(tmp_path / "other")
    pages, waits = [], []

    def wait(seconds):
        waits.append(seconds)
        pages.append((tmp_path / "report.html").read_text(encoding="utf-8"))
        if len(waits) == 2:
            shutil.copytree(other / "iter-2", run / "iter-2")

    with open(tmp_path / "log", "w") as log:
        watch([run], tmp_path / "report.html", Terminal(Console(file=log, width=200)), seconds=3, wait=wait)
    assert waits == [3, 3]
    assert 'data-reload="3"' in pages[0] and "Follow the run" in pages[0]
    last = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "data-reload" not in last.split("<script>")[0] and "Finished" in last
    assert (tmp_path / "log").read_text().count("run:") == 2


def test_a_page_that_fails_is_no_reason_for_a_run_to_fail(tmp_path):
    from rich.console import Console

    from sppo.progress import Terminal
    from sppo.report.end_of_run import reported

    with (
        open(tmp_path / "log", "w") as log,
        reported(tmp_path, Terminal(Console(file=log, width=200)), RunError),
    ):
        pass
    assert "no report could be written" in (tmp_path / "log").read_text()
