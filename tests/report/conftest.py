from pathlib import Path

import pytest
from run_folders import write_run

from sppo.report import page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "known")


@pytest.fixture(scope="module")
def written(run):
    page.write([run], run / "report.html")
    return (run / "report.html").read_text(encoding="utf-8")


class Visit:
    """A page in the browser, with every request that it made and every error that it reported."""

    def __init__(self, chromium, url, width=1280, **options):
        self.requests, self.complaints = [], []
        self.context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)

    def fits(self):
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.fixture
def visit(chromium):
    visits = []

    def go(path, **options):
        visits.append(Visit(chromium, Path(path).resolve().as_uri(), **options))
        return visits[-1]

    yield go
    for visited in visits:
        visited.context.close()
