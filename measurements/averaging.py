"""Does averaging help on networks? The averaged policy against the last one, under judges that go in circles more and more.

    python measurements/averaging.py [--seeds 8] [--figure docs/figures/average-last.svg]

A prompt has five responses of one token. The judge's log-odds are (1 - c) times differences of scores, which are normal with a
deviation of 2, plus c times a circle of size 4, in a random order on each prompt. Networks that read the prompt's matrix are
trained by SPPO's loss on K = 5 drawn responses, 256 prompts and 32 iterations, with the eta of Theorem 4.1; what the averaged
policy serves is, for each response anew, that of an iteration drawn uniformly. Exploitability is exact, on 500 further prompts.
Beside the networks stands the rule of the theorem in tables, from the same first policies. Intervals are Student's t over seeds.
The figures stand in docs/experiments.md under "The average and the last policy of networks".
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from certificate import drawn, network, policy_of

from sppo import objectives
from sppo.benchmarks.head_to_head.score import over_seeds
from sppo.cli.tables import show_table
from sppo.game import exploitability
from sppo.game.convergence import save
from sppo.game.dynamics import MultiplicativeWeights, play
from sppo.progress import Terminal

N, K, ITERATIONS, STEPS = 5, 5, 32, 20
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SIDES = ("network, last", "network, averaged", "table, last", "table, averaged")


def games(count: int, strength: float, generator: np.random.Generator) -> np.ndarray:
    """[count, N, N]"""
    scores = generator.normal(0, 2, (count, N))
    places = generator.random((count, N)).argsort(1)
    circle = 4 * np.sin(2 * np.pi * (places[:, :, None] - places[:, None, :]) / N)
    log_odds = (1 - strength) * (scores[:, :, None] - scores[:, None, :]) + strength * circle
    return 1 / (1 + np.exp(-log_odds))


def self_play(strength: float, seed: int) -> tuple[list[float], float]:
    """The mean exploitability of each of :data:`SIDES`, and the bound of the theorem."""
    generator = np.random.default_rng([seed, int(100 * strength)])
    training, fresh = games(256, strength, generator), games(500, strength, generator)
    model = network(N, seed)
    with torch.no_grad():
        model[2].weight *= 4  # far from uniform, as language models are
    first = policy_of(model, fresh)
    size = float(np.mean(-np.log(first.min(-1))))  # the theorem has ln n, for a uniform first policy
    eta = float(np.sqrt(8 * size / ITERATIONS))
    features = torch.from_numpy(training.reshape(len(training), -1) - 0.5).float()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    served = np.zeros_like(first)
    for _ in range(ITERATIONS):
        served += policy_of(model, fresh) / ITERATIONS
        before = model(features).log_softmax(-1).detach()
        index = drawn(before.double().exp().numpy(), K, generator)
        wins = training[np.arange(len(training))[:, None, None], index[:, :, None], index[:, None, :]]
        target, chosen = torch.from_numpy(wins.mean(-1)).float(), torch.from_numpy(index)
        for _ in range(STEPS):
            ratio = (model(features).log_softmax(-1) - before).gather(1, chosen)
            loss = objectives.sppo(ratio, target, eta=eta).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    run = play(MultiplicativeWeights(eta), fresh, ITERATIONS, initial=first)
    policies = (policy_of(model, fresh), served, run.last, run.average)
    gaps = [float(exploitability(fresh, np.asarray(policy)).mean()) for policy in policies]
    return gaps, float(np.sqrt(size / (2 * ITERATIONS)))


def draw(found: np.ndarray, bounds: Sequence[float], path: Path) -> None:
    """`found` is [strengths, seeds, sides]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for side, name in enumerate(SIDES):
        rows = [over_seeds(values, confidence=0.95) for values in found[:, :, side]]
        ends = [[row["mean"] - row["low"] for row in rows], [row["high"] - row["mean"] for row in rows]]
        style = {"color": f"C{side % 2}", "linestyle": "-" if side < 2 else ":", "capsize": 2}
        shift = 0.008 * (side - 1.5)
        axes.errorbar(
            [of + shift for of in STRENGTHS], [row["mean"] for row in rows], ends, label=name, **style
        )
    axes.plot(STRENGTHS, bounds, color="grey", linewidth=0.8, label="Theorem 4.1, for the average")
    axes.set(xlabel="share of circles in the judge's log-odds", ylabel="exploitability", ylim=(0, None))
    axes.legend(fontsize=7)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    played = [[self_play(strength, seed) for seed in range(given.seeds)] for strength in STRENGTHS]
    found = np.array([[gaps for gaps, _ in of] for of in played])
    bounds = [float(np.mean([bound for _, bound in of])) for of in played]
    rows = []
    for strength, values, bound in zip(STRENGTHS, found, bounds, strict=True):
        shown = [over_seeds(of, confidence=0.95) for of in (*values.T, values[:, 0] - values[:, 1])]
        rows.append(
            [
                f"{strength:g}",
                *(f"{of['mean']:.3f} ({of['low']:.3f} to {of['high']:.3f})" for of in shown),
                f"{bound:.3f}",
            ]
        )
    heads = ["circles", *SIDES, "network, last minus averaged", "bound"]
    show_table(Terminal(), f"Exploitability after {ITERATIONS} iterations, {given.seeds} seeds", heads, rows)
    if given.figure is not None:
        draw(found, bounds, given.figure)


if __name__ == "__main__":
    main()
