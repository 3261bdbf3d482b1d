"""The file of votes, the ballot that writes it, and the oracle that is asked about them."""

import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arena_votes import vote
from run_folders import write_run
from typer.testing import CliRunner

from sppo.arena.ballot import Ballot
from sppo.arena.referee import Referee
from sppo.arena.votes import agreement
from sppo.benchmarks.head_to_head.play import of_votes
from sppo.cli.main import app
from sppo.oracle import OracleError
from sppo.oracle.training import pairs
from sppo.recipe.oracle_training import Pairs
from sppo.report import page
from sppo.rundir import votes as vote_files
from sppo.rundir.shards import read_shard, write_shard
from sppo.rundir.votes import VotesError


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
    found = agreement(rows)
    assert found["votes"] == 3 and found["mean"] == pytest.approx(2 / 3)
    assert found["low"] < 2 / 3 < found["high"]
    assert agreement(rows[3:]) is None


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


def altered(path, **columns):
    """A file of two votes with other values in some columns."""
    vote_files.write(path, [vote(0), vote(1)])
    changed = read_shard(path)
    for name, values in columns.items():
        changed = changed.set_column(changed.column_names.index(name), name, [values])
    pq.write_table(changed.replace_schema_metadata({}), path)


WRONG = {
    "null ids": {"vote_id": pa.array([None, None], pa.string())},
    "empty ids": {"vote_id": ["", ""]},
    "one id for all": {"vote_id": ["v", "v"]},
    "ids that are numbers": {"vote_id": [1, 2]},
    "ids of bytes": {"vote_id": [b"a", b"b"]},
    "a null voter": {"voter": ["ann", None]},
    "lists for voters": {"voter": [["ann"], ["ben"]]},
    "times": {"time": pa.array([1 << 62, 0], pa.timestamp("us"))},
    "a null prompt": {"prompt": ["x", None]},
    "a null response": {"response_a": [None, "x"]},
    "a policy against itself": {"policy_b": ["base", "base"]},
    "an unknown label": {"label": ["a", "A"]},
    "a label that is a number": {"label": [1.0, 0.0]},
    "both_bad as text": {"both_bad": ["no", "yes"]},
    "NaN of the oracle": {"oracle": [float("nan"), 0.5]},
    "an oracle beyond 1": {"oracle": [0.5, 1.5]},
    "an oracle as text": {"oracle": ["0.5", "0.5"]},
    "prompts of another type": {"prompt_id": [{"a": 1}, {"a": 2}]},
}


@pytest.mark.parametrize("columns", WRONG.values(), ids=WRONG)
def test_votes_with_a_wrong_value_are_refused_by_every_reader(tmp_path, columns):
    path = tmp_path / "votes.parquet"
    altered(path, **columns)
    before = path.read_bytes()
    for read in (vote_files.read, lambda path: of_votes([path]), lambda path: Ballot(tmp_path)):
        with pytest.raises(VotesError, match=r"votes\.parquet"):
            read(path)
    with pytest.raises(OracleError, match=r"pairs\.source"):
        pairs.read(Pairs.model_validate({"source": str(path)}))
    assert path.read_bytes() == before


def test_a_column_that_nobody_asked_for_is_no_matter(tmp_path):
    path = tmp_path / "votes.parquet"
    vote_files.write(path, [vote(0)])
    far = pa.array([1 << 62], pa.timestamp("us"))
    pq.write_table(read_shard(path).append_column("seen", far).replace_schema_metadata({}), path)
    assert len(vote_files.read(path)) == 1


def test_a_vote_in_two_files_counts_once_and_another_one_under_its_id_is_refused(tmp_path):
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    vote_files.write(first, [vote(0), vote(1)])
    vote_files.write(second, [vote(1, oracle=0.5), vote(2)])
    assert [row["vote_id"] for row in vote_files.read(first, second)] == ["v0", "v1", "v2"]
    vote_files.write(second, [vote(1, label="b")])
    with pytest.raises(VotesError, match=r"b\.parquet, vote 1: its vote_id 'v1' is that of another vote"):
        of_votes([first, second])


def test_a_person_has_one_vote_on_a_pair_whatever_the_file_holds(tmp_path):
    """Nine votes of ann for one side from tabs that were open, in both orders, and one of ben for the other."""
    path = tmp_path / "votes.parquet"
    rows = [vote(n, prompt="p", label="a") for n in range(5)]
    rows += [vote(n, a="iteration 1", b="base", prompt="p", label="b") for n in range(5, 9)]
    rows += [vote(9, prompt="p", label="b", voter="ben"), vote(10, label="a")]
    rows = [{**row, "prompt": row["prompt_id"]} for row in rows]
    vote_files.write(path, rows)
    assert of_votes([path]).payoff[0, 1] == pytest.approx((0.5 + 1) / 2)
    judged = pairs.read(Pairs.model_validate({"source": str(path)}))
    assert [pair.votes for pair in judged] == [(1, 1, 0), (1, 0, 0)]
    assert agreement([{**row, "oracle": 0.9} for row in rows])["votes"] == 3


def test_the_ballot_counts_a_person_once_for_a_pair_until_the_vote_is_withdrawn(tmp_path):
    ballot = Ballot(tmp_path)
    assert ballot.record(vote(0, prompt="p", label="skip")) and ballot.record(vote(1, prompt="p"))
    assert not ballot.record(vote(2, prompt="p", label="b"))
    assert not ballot.record(vote(3, a="iteration 1", b="base", prompt="p"))
    assert ballot.record(vote(4, prompt="p", voter="ben")) and ballot.record(vote(5, prompt="q"))
    assert len(vote_files.read(tmp_path / "votes.parquet")) == 3
    assert ballot.withdraw("v1") and ballot.record(vote(2, prompt="p", label="b"))
