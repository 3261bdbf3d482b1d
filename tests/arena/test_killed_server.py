"""A real server that is killed while people vote."""

import collections
import itertools
import os
import re
import signal
import subprocess
import sys

import pytest
from run_folders import write_run

from sppo.rundir import votes as vote_files


class Server:
    def __init__(self, run, *options):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sppo.cli.main", "arena", str(run), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        )
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if "Ctrl-C ends" in line:
                break
        (self.address,) = re.findall(r"http://\S+", "".join(lines)) or [None]
        assert self.address, lines
        self.port = re.search(r":(\d+)/", self.address).group(1)

    def end(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait(60)
        self.process.stdout.close()


class Person:
    """Somebody with a name of their own at a browser, and everything that went wrong on their page."""

    def __init__(self, chromium, server, name, width, scheme):
        self.name, self.votes, self.complaints = name, 0, []
        self.context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.context.add_init_script(f"localStorage.setItem('voter', '{name}')")
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url, f":{server.port}/"))
        self.page.goto(server.address)
        self.page.wait_for_selector("body[data-ready=true]")

    def _note(self, url, own):
        if own not in url and not url.startswith("data:"):
            self.complaints.append(url)

    def press(self, key):
        self.votes += 1
        self.page.keyboard.press(key)
        self.page.wait_for_selector(f"body[data-ready=true][data-votes='{self.votes}']")


@pytest.mark.slow
def test_a_hundred_votes_by_key_from_two_browsers_survive_a_kill(tmp_path, chromium):
    hostile = "<script>document.title='owned'</script>\x1b[31m \u202etxt"
    run = write_run(
        tmp_path / "run", held_out=60, text=lambda t, p, k: f"{hostile} {'x' * 3000 if k else ''} {t} {p}"
    )
    server = Server(run, "--port", "0")
    people = []
    try:
        for name, width, scheme in (("ann", 1280, "light"), ("ben", 400, "dark")):
            people.append(Person(chromium, server, name, width, scheme))
            page = people[-1].page
            assert "key=" not in page.url and "owned" not in page.title()
            text = page.locator("#left").inner_text()
            assert "<script>" in text and "\\u202e" in text
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        keys = itertools.cycle(["1", "2", "t", "ArrowLeft", "ArrowRight", "0"])
        for _, person in itertools.product(range(25), people):
            person.press(next(keys))
        people[0].page.keyboard.press("s")
        people[0].page.wait_for_timeout(300)
        people[0].page.wait_for_selector("body[data-ready=true]")
        server.end()
        for person in people:  # their votes find no server
            person.page.keyboard.press("1")
            person.page.wait_for_function(
                "document.getElementById('status').textContent.includes('does not answer')"
            )
        server = Server(run, "--port", server.port)
        for person in people:
            person.page.wait_for_selector("body[data-ready=true][data-votes='26']")
            person.votes = 26
        for _, person in itertools.product(range(24), people):
            person.press(next(keys))
        server.end(signal.SIGINT)
        assert [person.complaints for person in people] == [[], []]
    finally:
        server.end()
        for person in people:
            person.context.close()
    kept = vote_files.read(run / "arena" / "votes.parquet")
    assert collections.Counter(row["voter"] for row in kept) == {"ann": 50, "ben": 50}
    assert len({(row["voter"], row["prompt_id"]) for row in kept}) == 100
    assert all({row["policy_a"], row["policy_b"]} == {"base", "iteration 2"} for row in kept)
    assert all(
        row["response_a"].endswith(f"{0 if row['policy_a'] == 'base' else 2} {row['prompt_id'][5:]}")
        for row in kept
    )
    assert len(vote_files.read(run / "arena" / "skips.parquet")) == 1
