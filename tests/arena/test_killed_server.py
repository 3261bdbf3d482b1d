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

from sppo.arena import votes as vote_files


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


@pytest.mark.slow
def test_a_hundred_votes_by_key_from_two_browsers_survive_a_kill(tmp_path, chromium):
    hostile = "<script>document.title='owned'</script>\x1b[31m \u202etxt"
    run = write_run(
        tmp_path / "run", held_out=60, text=lambda t, p, k: f"{hostile} {'x' * 3000 if k else ''} {t} {p}"
    )
    server = Server(run, "--port", "0")
    people = []
    complaints = []
    try:
        for name, width, scheme in (("ann", 1280, "light"), ("ben", 400, "dark")):
            context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            context.add_init_script(f"localStorage.setItem('voter', '{name}')")
            one = context.new_page()
            one.on("pageerror", lambda error: complaints.append(str(error)))
            one.on(
                "request",
                lambda request: (
                    complaints.append(request.url)
                    if f":{server.port}/" not in request.url and not request.url.startswith("data:")
                    else None
                ),
            )
            one.goto(server.address)
            one.wait_for_selector("body[data-ready=true]")
            assert "key=" not in one.url and "owned" not in one.title()
            assert (
                "<script>" in one.locator("#left").inner_text()
                and "\\u202e" in one.locator("#left").inner_text()
            )
            assert one.evaluate("document.documentElement.scrollWidth <= innerWidth")
            people.append((name, one))
        keys = itertools.cycle(["1", "2", "t", "ArrowLeft", "ArrowRight", "0"])

        def press(one, count):
            one.keyboard.press(next(keys))
            one.wait_for_selector(f"body[data-ready=true][data-votes='{count}']")

        for count in range(1, 26):
            for _, one in people:
                press(one, count)
        people[0][1].keyboard.press("s")
        people[0][1].wait_for_timeout(300)
        people[0][1].wait_for_selector("body[data-ready=true]")
        server.end()
        for _, one in people:  # their votes find no server
            one.keyboard.press("1")
            one.wait_for_function("document.getElementById('status').textContent.includes('does not answer')")
        server = Server(run, "--port", server.port)
        for _, one in people:
            one.wait_for_selector("body[data-ready=true][data-votes='26']")
        for count in range(27, 51):
            for _, one in people:
                press(one, count)
        server.end(signal.SIGINT)
        assert complaints == []
    finally:
        server.end()
        for _, one in people:
            one.context.close()
    kept = vote_files.read(run / "arena" / "votes.parquet")
    assert collections.Counter(row["voter"] for row in kept) == {"ann": 50, "ben": 50}
    assert len({(row["voter"], row["prompt_id"]) for row in kept}) == 100
    assert all({row["policy_a"], row["policy_b"]} == {"base", "iteration 2"} for row in kept)
    assert all(
        row["response_a"].endswith(f"{0 if row['policy_a'] == 'base' else 2} {row['prompt_id'][5:]}")
        for row in kept
    )
    assert len(vote_files.read(run / "arena" / "skips.parquet")) == 1
