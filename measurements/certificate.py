"""Do certificates cover what they claim, on games whose exploitability is known?

    python measurements/certificate.py [--runs 200] [--run runs/quickstart] [--figure docs/figures/certificates.svg]

A game has a matrix for each prompt. The policies respond with single tokens and are networks that read the prompt's matrix, so
that what they have learnt holds on prompts that they have not seen. Best responses are trained by SPPO's loss against the policy
held fixed, with several seeds and step sizes, ten times over; each time prompts and responses are drawn anew for twenty
certificates. The exact win rate of a response, and the exact exploitability of the policy, are means over 20,000 further
prompts. `--run` adds the triples of that run's responses that go in a circle by the panel. `--figure` draws certificates of the
last and the averaged policy of multiplicative weights along its way, and `--runs 0` does nothing else. The figures stand in
docs/experiments.md under "Certificates on known games".
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from sppo import objectives
from sppo.cli.tables import show_table
from sppo.game import exploitability, rock_paper_scissors
from sppo.game.certificate import Bound, enumerated, lower_bound
from sppo.game.convergence import save
from sppo.game.dynamics import MultiplicativeWeights, play
from sppo.progress import Terminal

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
Games = Callable[[int, np.random.Generator], np.ndarray]
"""Draws the matrices of so many prompts, [prompts, n, n]."""
SAMPLES = 4
PROMPTS = 120
POPULATION = 20_000


def biased(count: int, generator: np.random.Generator) -> np.ndarray:
    """Rock-paper-scissors with margins of their own on each prompt."""
    return np.stack(
        [
            rock_paper_scissors(**dict(zip(("rock", "paper", "scissors"), row, strict=True)))
            for row in generator.uniform(0.55, 1.0, (count, 3))
        ]
    )


def soccer() -> Games:
    """Five of ten soccer agents on each prompt."""
    payoff = np.loadtxt(SHARED / "games" / "soccer10" / "soccer.txt")

    def draw(count: int, generator: np.random.Generator) -> np.ndarray:
        chosen = generator.random((count, 10)).argsort(1)[:, :5]
        return payoff[chosen[:, :, None], chosen[:, None, :]]

    return draw


def circles(run: Path) -> Games:
    """Triples of a run's responses that go in a circle by the panel, in a random order."""
    import itertools

    from sppo import oracle
    from sppo.game import cyclic_triples
    from sppo.policy.chat_format import plain_text
    from sppo.rundir.reader import RunReader

    reader = RunReader(run)
    rows = [row for number in reader.iterations for row in reader.responses(number)]
    matrices = oracle.load({"type": "panel"}).compare(
        [plain_text(row.messages) for row in rows], [row.texts for row in rows]
    )
    places = np.array(list(itertools.combinations(range(matrices.shape[-1]), 3)))
    triples = matrices[:, places[:, :, None], places[:, None, :]].reshape(-1, 3, 3)
    found = triples[cyclic_triples(triples) > 0]
    print(f"{len(found)} of {len(triples)} triples of the panel go in a circle")

    def draw(count: int, generator: np.random.Generator) -> np.ndarray:
        chosen = found[generator.integers(len(found), size=count)]
        order = generator.random((count, 3)).argsort(1)
        return chosen[np.arange(count)[:, None, None], order[:, :, None], order[:, None, :]]

    return draw


def network(n: int, seed: int) -> torch.nn.Module:
    """A network from a prompt's matrix to the logits of its n single-token responses."""
    torch.manual_seed(seed)
    layers = torch.nn.Linear(n * n, 32), torch.nn.Tanh(), torch.nn.Linear(32, n)
    return torch.nn.Sequential(*layers)


def policy_of(model: torch.nn.Module, games: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.from_numpy(games.reshape(len(games), -1) - 0.5).float())
    return logits.double().softmax(-1).numpy()


def train(
    games: np.ndarray, opponent: np.ndarray, *, seed: int, rate: float, iterations: int = 12
) -> torch.nn.Module:
    """SPPO's loss on drawn responses, whose win rates are against drawn responses of the fixed opponent."""
    generator = np.random.default_rng(seed)
    n = games.shape[-1]
    model = network(n, seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    features = torch.from_numpy(games.reshape(len(games), -1) - 0.5).float()
    for _ in range(iterations):
        before = model(features).log_softmax(-1).detach()
        own = drawn(before.double().exp().numpy(), 5, generator)
        theirs = drawn(opponent, SAMPLES, generator)
        wins = games[np.arange(len(games))[:, None, None], own[:, :, None], theirs[:, None, :]].mean(-1)
        target, index = torch.from_numpy(wins).float(), torch.from_numpy(own)
        for _ in range(10):
            ratio = (model(features).log_softmax(-1) - before).gather(1, index)
            loss = objectives.sppo(ratio, target, eta=5.0).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model


def drawn(policy: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """[prompts, count] responses."""
    uniform = generator.random((len(policy), count, 1))
    return np.minimum((policy.cumsum(-1)[:, None] < uniform).sum(-1), policy.shape[-1] - 1)


def rates_of(
    games: np.ndarray, own: np.ndarray, opponent: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """The win rate on each prompt of drawn responses against drawn responses."""
    ours, theirs = drawn(own, SAMPLES, generator), drawn(opponent, SAMPLES, generator)
    return games[np.arange(len(games))[:, None, None], ours[:, :, None], theirs[:, None, :]].mean((1, 2))


def covered(draw: Games, runs: int) -> list[float]:
    """What certificates of one game cover; the policy is a network that has learnt nothing."""
    n = draw(1, np.random.default_rng(0)).shape[-1]
    policy = network(n, 99)
    with torch.no_grad():
        policy[2].weight *= 6  # far from uniform
    population = draw(POPULATION, np.random.default_rng(1))
    of_policy = policy_of(policy, population)
    exact = float(exploitability(population, of_policy).mean())
    counts = np.zeros(5)
    found = []
    for repeat in range(10):
        games = draw(256, np.random.default_rng([2, repeat]))
        opponent = policy_of(policy, games)
        trained = [
            train(games, opponent, seed=10 * repeat + seed, rate=rate)
            for seed in range(3)
            for rate in (0.01, 0.03)
        ]
        models = [*trained, *(network(n, 1000 * repeat + number) for number in range(14))]
        against = population @ of_policy[..., None]
        truth = [
            float((policy_of(model, population) * against[..., 0]).sum(-1).mean()) - 0.5 for model in models
        ]
        for certificate in range(runs // 10):
            generator = np.random.default_rng([3, repeat, certificate])
            fresh = draw(PROMPTS, generator)
            theirs = policy_of(policy, fresh)
            rates = np.stack(
                [rates_of(fresh, policy_of(model, fresh), theirs, generator) for model in models], 1
            )
            bound = lower_bound(rates, seed=certificate)
            naive = Bound.of(rates[:, rates.mean(0).argmax()] - 0.5)
            listed = enumerated(fresh, theirs)
            counts += [
                bound.measured.low <= truth[bound.best] <= bound.measured.high,
                bound.measured.low <= exact,
                listed.low <= exact <= listed.high,
                bound.measured.low <= exact <= listed.high,
                naive.low <= truth[int(rates.mean(0).argmax())] <= naive.high,
            ]
            found.append(bound.measured.mean)
    return [exact, float(np.mean(found)), *counts]


def certified(steps: int, prompts: int = PROMPTS) -> dict[str, tuple[float, Bound]]:
    """Exploitability and certificate of multiplicative weights on rock-paper-scissors: the last policy circles."""
    generator = np.random.default_rng(7)
    game = rock_paper_scissors()
    run = play(MultiplicativeWeights(0.05), game, steps, initial=[0.8, 0.15, 0.05])
    found = {}
    for name, weights in (("last", run.last[0]), ("averaged", run.average[0])):
        games = np.broadcast_to(game, (256, 3, 3))
        opponent = np.broadcast_to(weights, (256, 3))
        trained = [train(games, opponent, seed=seed, rate=rate) for seed in range(3) for rate in (0.01, 0.03)]
        fresh, theirs = np.broadcast_to(game, (prompts, 3, 3)), np.broadcast_to(weights, (prompts, 3))
        rates = np.stack(
            [rates_of(fresh, policy_of(model, fresh), theirs, generator) for model in trained], 1
        )
        found[name] = float(exploitability(game, weights)), lower_bound(rates).measured
    return found


def last_and_average() -> None:
    """Show the certificates after 4,000 steps."""
    rows = [
        [name, exact, of.mean, f"{of.low:.3f} to {of.high:.3f}"]
        for name, (exact, of) in certified(4000).items()
    ]
    show_table(Terminal(), "Last against averaged policy", ["policy", "exact", "lower bound", "95%"], rows)


def draw(path: Path, steps: Sequence[int] = (1, 30, 60, 100, 200, 400, 1000)) -> None:
    """Draw certificates with their intervals beside the exact exploitability."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    found = [certified(number) for number in steps]
    for colour, name in (("C0", "last"), ("C1", "averaged")):
        exact, bounds = zip(*(of[name] for of in found), strict=True)
        ends = [[of.mean - of.low for of in bounds], [of.high - of.mean for of in bounds]]
        axes.plot(steps, exact, color=colour, label=f"{name} policy, exactly")
        axes.errorbar(
            steps, [of.mean for of in bounds], ends, color=colour, fmt=".", capsize=3, label="its certificate"
        )
        print(
            name,
            *(
                f"{n}: {e:.3f}, {of.mean:.3f} ({of.low:.3f} to {of.high:.3f});"
                for n, e, of in zip(steps, exact, bounds, strict=True)
            ),
        )
    axes.axhline(0, color="grey", linewidth=0.6)
    axes.set(
        xscale="log", xlabel="steps of multiplicative weights on rock-paper-scissors", ylabel="exploitability"
    )
    axes.legend(fontsize=7)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--run", type=Path, help="a run folder, whose responses the panel compares")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.figure is not None:
        draw(given.figure)
    if not given.runs:
        return
    games: dict[str, Games] = {"biased rock-paper-scissors": biased, "soccer, five of ten agents": soccer()}
    if given.run is not None:
        games["circles of the panel"] = circles(given.run)
    header = [
        "game",
        "exact",
        "mean lower bound",
        "its interval has the response's own",
        "low <= exact",
        "listed interval has exact",
        "low <= exact <= listed high",
        "uncorrected interval",
    ]
    rows = [[name, *covered(draw, given.runs)] for name, draw in games.items()]
    show_table(Terminal(), f"Of {given.runs} certificates", header, rows)
    last_and_average()


if __name__ == "__main__":
    main()
