"""`sppo oracle inspect` on files of votes: do majorities go in circles beyond chance, and what does a reward lose?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.game.convergence import save
from sppo.game.preference_games import GameError
from sppo.game.transitive_votes import LARGEST, Against, CycleTest, cycle_test
from sppo.game.vote_predictions import Predictions, predictions
from sppo.game.votes import Votes, can_cycle
from sppo.progress import Terminal, counted_text
from sppo.rundir.vote_files import Ballot, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Inspected:
    """The votes of a file or of one voter, and what they show.

    Attributes:
        name: the file, or the voter.
        votes: the votes.
        left_out: the number of rows that are no votes.
        is_voter: whether these are the votes of one voter of a file.
        cycles: the cycles beside those of a transitive world.
        predicted: the log losses on prompts that were left out; None with too few prompts.
    """

    name: str
    votes: Votes
    left_out: int
    is_voter: bool
    cycles: CycleTest
    predicted: Predictions | None

    def record(self) -> dict[str, Any]:
        """The values as they are printed with `--json`."""
        counts = {
            "votes": int(self.votes.decided.sum() + self.votes.ties.sum()),
            "ties": int(self.votes.ties.sum()),
            "left_out": self.left_out,
            **{name: getattr(self.votes, name) for name in ("voters", "prompts")},
            "items": len(self.votes.items),
            "pairs": len(self.votes.prompt),
        }
        strength = dict(zip(self.votes.items, self.cycles.model.strength.tolist(), strict=True))
        cycles = {**asdict(self.cycles), "model": {"strength": strength, "spread": self.cycles.model.spread}}
        predicted = None if self.predicted is None else asdict(self.predicted)
        return {"name": self.name, **counts, **cycles, "predicted": predicted}


def inspect(
    files: Sequence[Path], terminal: Terminal, *, by_voter: bool, sets: int, seed: int
) -> list[Inspected]:
    """Inspect the votes of each file, and of each of its voters if `by_voter`.

    Raises:
        sppo.rundir.votes.VotesError: a file cannot be read.
        GameError: a file has no votes that could go in a circle.
    """
    sides: list[tuple[str, Votes, int, bool]] = []
    for path in files:
        ballots, left_out = read(path)
        if any(isinstance(ballot.voter, int) for ballot in ballots):
            terminal.note(
                f"{path}: who voted is not said everywhere; such a row counts as a voter of its own"
            )
        try:
            sides.append((path.stem, can_cycle(Votes.of(ballots)), left_out, False))
        except GameError as error:
            raise GameError(f"{path}: {error}") from error
        if by_voter:
            sides += [(voter, votes, 0, True) for voter, votes in _voters(ballots, path, terminal)]
    found = []
    with terminal.bar("simulating transitive votes", len(sides), "sides") as advance:
        for name, votes, left_out, is_voter in sides:
            test = cycle_test(votes, sets=sets, seed=seed)
            predicted = predictions(votes, seed=seed)
            found.append(Inspected(name, votes, left_out, is_voter, test, predicted))
            advance(1)
    return found


def _voters(ballots: Sequence[Ballot], path: Path, terminal: Terminal) -> list[tuple[str, Votes]]:
    """The votes of each voter of a file who has voted on all three pairs of some items."""
    by_voter: dict[str, list[Ballot]] = {}
    for ballot in ballots:
        if isinstance(ballot.voter, str):
            by_voter.setdefault(ballot.voter, []).append(ballot)
    found, others = [], 0
    for voter, own in sorted(by_voter.items()):
        try:
            found.append((voter, can_cycle(Votes.of(own))))
        except GameError:
            others += 1
    if others:
        terminal.note(
            f"{path}: {counted_text(others, 'voter')} left out, without a vote on all three pairs of some items"
        )
    return found if len(by_voter) > 1 else []


def notes(side: Inspected) -> list[str]:
    """What has to be known in order to read the figures of a side."""
    said = []
    if side.votes.voters == 1 and not side.is_voter:
        said.append("all votes are one voter's, so a cycle is that voter's own and not one of a majority")
    if side.left_out:
        rows = counted_text(side.left_out, "row")
        said.append(f"{rows} left out: skips, errors, and second votes of a voter on a pair")
    if not side.cycles.triples:
        said.append(
            "no three items were all compared on one prompt; only majorities over all prompts can go in a circle"
        )
    if side.cycles.model.spread > 0.95 * LARGEST:
        said.append(
            "the votes contradict each other so little that a transitive world without noise explains them"
        )
    if side.predicted is None:
        said.append("too few prompts for a prediction of votes on prompts that were left out")
    return [f"{side.name}: {text}" for text in said]


def draw(sides: Sequence[Inspected], path: Path) -> None:
    """Draw the cycles of the votes beside those of transitive ones, and what Bradley-Terry loses, to an image file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.3 + 0.42 * len(sides)))
    within, over, lost = figure.subplots(1, 3, sharey=True)
    _draw_against(within, [side.cycles.cyclic for side in sides], "cycles within prompts, % of triples")
    _draw_against(
        over, [side.cycles.pooled_cyclic for side in sides], "cycles over all prompts, % of triples"
    )
    for place, side in enumerate(sides):
        if (of := side.predicted) is not None:
            ends = [[1000 * (of.gain - of.low)], [1000 * (of.high - of.gain)]]
            lost.errorbar(1000 * of.gain, place, xerr=ends, color="C0", marker="o", markersize=4, capsize=2)
    lost.axvline(0, color="grey", linewidth=0.8)
    lost.set_title(
        "what Bradley-Terry loses on new prompts,\n1/1000 nats per vote, 95% over prompts", fontsize=8
    )
    within.set_yticks(range(len(sides)), [side.name for side in sides])
    within.set_ylim(len(sides) - 0.4, -0.6)
    within.legend(*within.get_legend_handles_labels(), fontsize=6, loc="lower right")
    for axes in (within, over, lost):
        axes.tick_params(labelsize=7)
        axes.grid(visible=True, axis="x", alpha=0.3)
    figure.tight_layout()
    save(figure, path)


def _draw_against(axes: "Axes", figures: Sequence[Against], title: str) -> None:
    axes.set_title(title, fontsize=8)
    for place, of in enumerate(figures):
        label = place == 0
        axes.plot(
            [100 * of.low, 100 * of.high],
            [place, place],
            color="0.6",
            linewidth=6,
            solid_capstyle="butt",
            label="transitive votes, 95%" if label else None,
        )
        axes.plot(100 * of.found, place, "o", color="C3", markersize=5, label="votes" if label else None)
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))
