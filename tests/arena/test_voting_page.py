"""The arena's page, in a real browser."""

import pytest
from accessibility import faults
from arena_votes import READY, served, vote


def test_two_arenas_are_open_in_one_browser(tmp_path, person):
    with (
        served(tmp_path / "a", b"one") as (first, at_first),
        served(tmp_path / "b", b"two") as (_, at_second),
    ):
        for address in (at_first, at_second, at_first.partition("?")[0]):
            person.goto(address)
            person.wait_for_selector(READY)
        person.keyboard.press("1")
        person.wait_for_selector(f"{READY}[data-votes='1']")
        assert len(first.ballot.votes()) == 1


def test_enter_commits_the_name_and_keys_are_votes_again(tmp_path, person):
    with served(tmp_path) as (arena, address):
        person.goto(address)
        person.wait_for_selector(READY)
        person.fill("#voter", "ann 1")
        person.keyboard.press("2")  # which belongs to the name
        person.keyboard.press("Enter")
        person.wait_for_selector("#status:has-text('You vote as ann 12')")
        person.wait_for_selector(READY)
        person.keyboard.press("1")
        person.wait_for_selector(f"{READY}[data-votes='1']")
        assert [(row["voter"], row["label"]) for row in arena.ballot.votes()] == [("ann 12", "a")]


def test_both_bad_undo_and_progress(tmp_path, person):
    with served(tmp_path) as (arena, address):
        person.goto(address)
        person.wait_for_selector(READY)
        assert person.inner_text("#seen") == "0 of 4"
        assert person.get_attribute("#undo", "aria-disabled") == "true"
        first = person.inner_text("#left")
        person.keyboard.press("b")
        person.wait_for_selector(f"{READY}[data-votes='1']")
        assert arena.ballot.votes()[0]["both_bad"] and person.inner_text("#seen") == "1 of 4"
        person.keyboard.press("u")
        person.wait_for_selector(f"{READY}[data-votes='0']")
        person.wait_for_function("(text) => document.getElementById('left').innerText === text", arg=first)
        assert arena.ballot.seen() == [] and person.inner_text("#seen") == "0 of 4"
        person.keyboard.press("1")
        person.wait_for_selector(f"{READY}[data-votes='1']")
        assert arena.ballot.votes()[0]["response_a"] == first and arena.ballot.votes()[0]["label"] == "a"
        for count in (2, 3, 4):
            person.keyboard.press("0")
            person.wait_for_selector(f"body[data-votes='{count}']")
        person.click("#undo")  # the last vote can be undone when there is no more to vote on
        person.wait_for_selector(f"{READY}[data-votes='3']")


HOSTILE = """# A head
**bold** and `code`
<script>document.title = 'owned'</script><img src="http://evil.example/x" onerror="document.title='owned'">
[a link](javascript:document.title='owned') ![picture](http://evil.example/x.png) <http://evil.example>

| a | b |
|---|---|
| 1 | 2 |

- one
\x1b[31m \u202etxt

[r]: javascript:1"""


def test_markdown_is_rendered_and_nothing_of_it_is_executed_or_fetched(tmp_path, person):
    given = {
        policy: {"p0": ("<b>a prompt</b> **as it is**", [f"{HOSTILE}\n\n{policy}"])}
        for policy in ("base", "iteration 1")
    }
    requests = []
    person.on("request", lambda request: requests.append(request.url))
    with served(tmp_path, given=given) as (_, address):
        person.goto(address)
        person.wait_for_selector(READY)
        left = person.locator("#left")
        assert left.locator("h1").inner_text() == "A head" and left.locator("strong").inner_text() == "bold"
        assert left.locator("td").all_inner_texts() == ["1", "2"] and left.locator("li").count() == 1
        assert left.locator("script, img, a, [onerror]").count() == 0
        text = left.inner_text()
        assert "<script>document.title = 'owned'</script>" in text and "[a link](javascript:" in text
        assert "\\x1b[31m" in text and "\\u202etxt" in text
        assert person.inner_text("#prompt") == "<b>a prompt</b> **as it is**"
        person.check("#plain")
        assert left.inner_text().startswith("# A head\n**bold**") and left.locator("*").count() == 0
        person.wait_for_timeout(200)
        assert person.title() == "run - sppo arena"
        assert all(url.startswith((address.partition("/?")[0], "data:")) for url in requests)


def test_buttons_stand_under_their_responses(tmp_path, person):
    with served(tmp_path) as (_, address):
        for width in (1280, 400):
            person.set_viewport_size({"width": width, "height": 900})
            person.goto(address)
            person.wait_for_selector(READY)
            for side in ("left", "right"):
                text = person.locator(f"#{side}").bounding_box()
                button = person.locator(f"[data-choice={side}]").bounding_box()
                assert text["y"] + text["height"] <= button["y"]
                assert (button["x"], button["width"]) == (text["x"], text["width"])
            assert person.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_results_are_shown_as_a_matrix(tmp_path, person):
    with served(tmp_path) as (arena, address):
        arena.ballot.record(vote(0, label="b"))
        person.goto(address)
        person.wait_for_selector(READY)
        person.click("summary")
        person.wait_for_selector("#figures table")
        rows = person.locator("#figures tbody tr").all_inner_texts()
        assert [" ".join(row.split()) for row in rows] == [
            "base - 0.000 0.000 to 0.000 prompts: 1",
            "iteration 1 1.000 1.000 to 1.000 prompts: 1 -",
        ]
        assert "too few votes to tell whether iteration 1 or base" in person.inner_text("#figures")


@pytest.mark.slow
def test_axe_finds_no_fault(tmp_path, person):
    given = {
        policy: {f"p{n}": ("a prompt", [f"{HOSTILE}\n\n{policy} {n}"]) for n in range(3)}
        for policy in ("base", "iteration 1")
    }
    with served(tmp_path, given=given) as (arena, address):
        arena.ballot.record(vote(0, label="b"))
        person.goto(address)
        person.wait_for_selector(READY)
        person.click("summary")
        person.wait_for_selector("#figures table")
        assert faults(person) == []
        person.check("#plain")
        person.keyboard.press("Tab")
        for count in (1, 2, 3):
            person.keyboard.press("b")
            person.wait_for_selector(f"body[data-votes='{count}']")
        assert "You have seen every pair" in person.inner_text("#status") and faults(person) == []


def test_the_address_can_be_a_link_on_another_page(tmp_path, person):
    with served(tmp_path) as (_, address):
        person.route(
            "http://other.example/",
            lambda of: of.fulfill(body=f"<a href='{address}'>vote</a>", content_type="text/html"),
        )
        person.goto("http://other.example/")
        person.click("a")
        person.wait_for_selector(READY)


def test_who_votes_with_the_buttons_and_the_keyboard_stays_on_the_button(tmp_path, person):
    with served(tmp_path) as (arena, address):
        person.goto(address)
        person.wait_for_selector(READY)
        person.focus("[data-choice=tie]")
        for count in (1, 2):
            person.keyboard.press("Enter")
            person.wait_for_selector(f"{READY}[data-votes='{count}']")
        person.keyboard.press("T")  # caps lock
        person.wait_for_selector(f"{READY}[data-votes='3']")
        assert person.evaluate("document.activeElement.dataset.choice") == "tie"
        person.keyboard.press("Enter")
        person.wait_for_selector("body[data-votes='4']")
        assert "You have seen every pair" in person.inner_text("#status")
        assert [row["label"] for row in arena.ballot.votes()] == ["tie"] * 4


def test_a_vote_that_does_not_count_is_said_and_one_without_the_key_is_kept(tmp_path, person):
    with served(tmp_path) as (arena, address):
        person.goto(address)
        person.wait_for_selector(READY)
        arena.matches._key, key = b"another", arena.matches._key
        person.keyboard.press("1")
        person.wait_for_selector(READY)
        assert "Your last vote does not count: this pair was not shown by this arena" in person.inner_text(
            "#status"
        )
        arena.matches._key = key
        person.reload()
        person.wait_for_selector(READY)
        person.context.clear_cookies()
        person.keyboard.press("2")
        person.wait_for_selector("#status:has-text('is kept here')")
        person.click("summary")
        person.goto(address)
        person.wait_for_selector(f"{READY}[data-votes='1']")
        assert [row["label"] for row in arena.ballot.votes()] == ["b"]
