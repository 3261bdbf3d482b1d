"""The file of votes, the ballot that writes it, and the oracle that is asked about them."""

import threading

import numpy as np
import pytest
from arena_votes import vote
from run_folders import write_run
from typer.testing import CliRunner

from sppo.arena import votes as vote_files
from sppo.arena.ballot import Ballot
from sppo.arena.referee import Referee
from sppo.arena.votes import VotesError
from sppo.benchmarks.head_to_head.play import of_votes
from sppo.cli.main import app
from sppo.oracle.training import pairs
from sppo.recipe.oracle_training import Pairs
from sppo.report import page
from sppo.rundir.shards import read_shard, write_shard


def test_win_rates_of_votes_by_hand(tmp_path):
    """p0: a win and a tie against the base make 3/4; p1: a loss. Mean over prompts: 3/8."""
    rows = [
        vote(0, label="b", prompt="p0"),
        vote(1, label="tie", prompt="p0", voter="ben"),
        vote(2, a="iteration 1", b="base", label="b", prompt="p1"),
        vote(3, a="base", b="iteration 2", label="a", prompt="p1"),
    ]
    vote_files.write(tmp_path / "votes.parquet", rows)
    found = of_votes([tmp_path / "votes.parquet"])
    assert found.names == ["base", "iteration 1", "iteration 2"] and found.prompts == 2
    assert found.payoff[1, 0] == 0.375 and found.payoff[0, 1] == 0.625
    assert found.payoff[2, 0] == 0 and np.isnan(found.payoff[1, 2]) and np.isnan(found.winner).all()
    assert found.low[1, 0] <= 0.375 <= found.high[1, 0]


def test_agreement_leaves_ties_out_on_either_side():
    rows = [
        vote(0, label="a", oracle=0.9),
        vote(1, label="b", oracle=0.9),
        vote(2, label="b", oracle=0.2),
        vote(3, label="tie", oracle=0.9),
        vote(4, label="a", oracle=0.5),
        vote(5, label="a"),
    ]
    found = vote_files.agreement(rows)
    assert found["votes"] == 3 and found["mean"] == pytest.approx(2 / 3)
    assert found["low"] < 2 / 3 < found["high"]
    assert vote_files.agreement(rows[3:]) is None


def test_votes_are_preference_data_for_an_oracle(tmp_path):
    path = tmp_path / "votes.parquet"
    vote_files.write(path, [vote(0, label="a"), vote(1, label="b"), vote(2, label="tie")])
    found = pairs.read(Pairs.model_validate({"source": str(path)}))
    assert [pair.probability for pair in found] == [1.0, 0.0, 0.5]
    assert (found[0].prompt, found[0].response_a) == ("prompt 0", "base says")


def test_head_to_head_reads_votes(tmp_path):
    path = tmp_path / "votes.parquet"
    vote_files.write(path, [vote(n, label="b") for n in range(3)])
    done = CliRunner().invoke(app, ["evaluate", "head-to-head", "--votes", str(path)])
    assert done.exit_code == 0 and "1.000 [1.000, 1.000]" in done.output
    refused = CliRunner().invoke(app, ["evaluate", "head-to-head", str(tmp_path), "--votes", str(path)])
    assert refused.exit_code == 1


def test_a_vote_is_on_the_disk_and_counted_once(tmp_path):
    ballot = Ballot(tmp_path)
    assert ballot.record(vote(0))
    assert vote_files.read(tmp_path / "votes.parquet")[0]["vote_id"] == "v0"
    assert ballot.record(vote(0)) and not ballot.record(vote(0, label="b"))
    assert ballot.record(vote(1, label="skip")) and len(ballot.votes()) == 1 and len(ballot.seen()) == 2
    again = Ballot(tmp_path)
    assert again.record(vote(0)) and not again.record(vote(1, label="a"))
    again.add_oracle("v0", 0.75)
    assert Ballot(tmp_path).votes()[0]["oracle"] == 0.75


def test_a_withdrawn_vote_leaves_the_disk(tmp_path):
    ballot = Ballot(tmp_path)
    ballot.record(vote(0))
    ballot.record(vote(1, label="skip"))
    assert ballot.withdraw("v0") and ballot.withdraw("v1") and not ballot.withdraw("v0")
    assert Ballot(tmp_path).seen() == []
    ballot.add_oracle("v0", 0.9)  # the oracle's preference may come after the vote was withdrawn
    assert Ballot(tmp_path).seen() == []


def test_votes_of_an_older_file_are_read(tmp_path):
    path = tmp_path / "votes.parquet"
    vote_files.write(path, [vote(0)])
    write_shard(path, read_shard(path).drop_columns(["both_bad", "oracle"]), {})
    (found,) = vote_files.read(path)
    assert found["both_bad"] is False and found["oracle"] is None
    assert Ballot(tmp_path).record(vote(1)) and len(vote_files.read(path)) == 2


def test_several_people_at_once_lose_no_vote(tmp_path):
    ballot = Ballot(tmp_path)
    people = [
        threading.Thread(
            target=lambda start=start: [ballot.record(vote(n)) for n in range(start, start + 10)]
        )
        for start in (0, 10, 20)
    ]
    for one in people:
        one.start()
    for one in people:
        one.join()
    assert {row["vote_id"] for row in vote_files.read(tmp_path / "votes.parquet")} == {
        f"v{n}" for n in range(30)
    }


def test_a_damaged_file_is_not_written_over(tmp_path):
    (tmp_path / "votes.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(VotesError, match="left as it is"):
        Ballot(tmp_path)
    assert (tmp_path / "votes.parquet").read_bytes() == b"PAR1 damaged"


def test_a_vote_that_cannot_be_written_does_not_count(tmp_path, monkeypatch):
    ballot = Ballot(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vote_files, "write", full)
    with pytest.raises(OSError, match="space"):
        ballot.record(vote(0))
    assert ballot.votes() == []


def test_the_oracle_is_asked_behind_the_votes(tmp_path):
    class Longer:
        def compare(self, prompts, responses):
            return np.array([[[0.5, 0.8], [0.2, 0.5]]])

    ballot = Ballot(tmp_path)
    ballot.record(vote(0))  # of a session before, left unasked
    referee = Referee(Longer, ballot, print)
    referee.start()
    ballot.record(vote(1))
    referee.ask(vote(1))
    referee.finish()
    assert [row["oracle"] for row in Ballot(tmp_path).votes()] == [0.8, 0.8]
    said = []

    def fails():
        raise ValueError("no such model")

    broken = Referee(fails, ballot, said.append)
    broken.start()
    broken.finish()
    assert "no such model" in said[0]


def test_the_report_tells_what_people_said(tmp_path):
    run = write_run(tmp_path / "run")
    vote_files.write(run / "arena" / "votes.parquet", [vote(0, oracle=0.9), vote(1, label="b", oracle=0.9)])
    page.write([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="run1-people"' in text and "of 2 votes" in text
    (run / "arena" / "votes.parquet").write_bytes(b"broken")
    page.write([run], tmp_path / "report.html")
    assert "not a whole shard" in (tmp_path / "report.html").read_text(encoding="utf-8")
