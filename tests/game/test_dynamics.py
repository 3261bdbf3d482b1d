"""Each dynamic's update is the exact minimiser of the loss that its file names, and behaves as claimed."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize

from sppo.game import (
    GameError,
    exploitability,
    nash,
    random_game,
    regularised_exploitability,
    rock_paper_scissors,
)
from sppo.game.dynamics import (
    COMAL,
    INPO,
    MNPO,
    REBEL,
    RSPO,
    SPPO,
    DPOSelfPlay,
    Dynamic,
    Extragradient,
    IPOSelfPlay,
    MagneticMirrorDescent,
    MultiplicativeWeights,
    NashMD,
    NashProx,
    OptimisticMultiplicativeWeights,
    Policy,
    SampledMultiplicativeWeights,
    as_policy,
    dpo,
    egpo,
    inpo,
    ipo,
    log_spaced,
    magnetic_mirror_descent,
    multiplicative_weights,
    nash_md,
    normalised,
    onpo,
    play,
    sampled,
    sppo,
)
from sppo.game.preference_games import Array

GAME = random_game(4, seed=5)
POLICY = as_policy([0.4, 0.3, 0.2, 0.1])
REFERENCE = as_policy([0.1, 0.2, 0.3, 0.4])
RPS = rock_paper_scissors()
START = [0.8, 0.15, 0.05]
UNIFORM = np.full(3, 1 / 3)
BIASED = rock_paper_scissors(rock=0.9, paper=0.7, scissors=0.6)


def minimiser(loss: Callable[[Policy], float]) -> Array:
    """Policy of least loss over the logits, without any knowledge of the closed form."""
    starts = np.random.default_rng(0).normal(size=(3, 4))
    found = [
        minimize(lambda logits: loss(normalised(logits)), start, method="BFGS", options={"gtol": 1e-9})
        for start in starts
    ]
    return normalised(min(found, key=lambda result: float(result.fun)).x).probability


def pairwise(log_ratio: Array) -> Array:
    return np.asarray(log_ratio[:, None] - log_ratio[None, :])


def sampled_pairs(policy: Policy) -> Array:
    """Weights of the pairs (y, y') of two independent draws."""
    return np.outer(policy.probability, policy.probability)


def chosen_pairs_loss(h: Array, target: float, pairs: Array) -> float:
    """Mean of (h(winner, loser) - target)^2 when the oracle draws the winner of each pair."""
    return float((pairs * (GAME * (h - target) ** 2 + GAME.T * (-h - target) ** 2)).sum())


WINS = GAME @ POLICY.probability


def test_multiplicative_weights_by_hand() -> None:
    policy = multiplicative_weights.update(as_policy([0.5, 0.3, 0.2]), RPS, eta=2.0)
    weights = np.array([0.5, 0.3, 0.2]) * np.exp(2 * np.array([0.45, 0.65, 0.4]))
    np.testing.assert_allclose(policy.probability, weights / weights.sum())
    np.testing.assert_allclose(np.exp(policy.log), policy.probability)


def test_multiplicative_weights_minimises_the_regression_with_the_true_normaliser() -> None:
    eta = 1.3
    log_z = np.log(POLICY.probability @ np.exp(eta * WINS))
    new = multiplicative_weights.update(POLICY, GAME, eta=eta)
    np.testing.assert_allclose(new.log - POLICY.log, eta * WINS - log_z, atol=1e-12)
    found = minimiser(lambda p: float(POLICY.probability @ (p.log - POLICY.log - eta * WINS + log_z) ** 2))
    np.testing.assert_allclose(found, new.probability, atol=1e-6)
    target = eta * pairwise(WINS)
    found = minimiser(lambda p: float(((pairwise(p.log - POLICY.log) - target) ** 2).sum()))
    np.testing.assert_allclose(found, new.probability, atol=1e-6)


@pytest.mark.parametrize("eta", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_sppo_minimises_its_loss_with_half_eta_for_the_normaliser(eta: float, weighted: bool) -> None:
    weights = np.array([0.1, 0.4, 0.25, 0.25]) if weighted else None
    shares = POLICY.probability if weights is None else weights
    new = sppo.update(POLICY, GAME, eta=eta, weights=weights)

    def loss(policy: Policy) -> float:
        return float(shares @ (policy.log - POLICY.log - eta * (WINS - 0.5)) ** 2)

    np.testing.assert_allclose(minimiser(loss), new.probability, atol=3e-6)
    # the gradient on the simplex vanishes: 2 w (f - g) is proportional to the new policy
    gradient = shares * (new.log - POLICY.log - eta * (WINS - 0.5)) / new.probability
    np.testing.assert_allclose(gradient, gradient.mean(), rtol=1e-6)


def test_sppo_differs_from_multiplicative_weights_in_second_order_only() -> None:
    def distance(eta: float) -> float:
        ours, theirs = (
            sppo.update(POLICY, GAME, eta=eta),
            multiplicative_weights.update(POLICY, GAME, eta=eta),
        )
        return float(np.abs(ours.log - theirs.log).max())

    assert distance(1e-3) < 1e-5
    assert distance(1e-1) / distance(1e-2) > 50
    assert distance(1.0) > 1e-3


def test_sppo_at_the_papers_step_size() -> None:
    new = sppo.update(as_policy(np.full((10, 5), 0.2)), random_game(5, games=10, seed=1), eta=1000.0)
    assert np.isfinite(new.log).all()
    np.testing.assert_allclose(new.probability.sum(-1), 1)


def test_ipo_minimises_its_population_loss_and_is_multiplicative_weights() -> None:
    tau = 0.4

    def loss(policy: Policy, reference: Policy) -> float:
        return chosen_pairs_loss(pairwise(policy.log - reference.log), 1 / (2 * tau), sampled_pairs(POLICY))

    for reference in (POLICY, REFERENCE):
        new = ipo.update(POLICY, GAME, reference, tau=tau)
        found = minimiser(lambda p, reference=reference: loss(p, reference))  # type: ignore[misc]
        np.testing.assert_allclose(found, new.probability, atol=1e-6)
    same = multiplicative_weights.update(POLICY, GAME, eta=1 / tau)
    np.testing.assert_allclose(ipo.update(POLICY, GAME, POLICY, tau=tau).log, same.log, atol=1e-12)


def test_dpo_minimises_its_population_loss() -> None:
    beta = 0.7
    pairs = sampled_pairs(POLICY)

    def loss(policy: Policy) -> float:
        return float((pairs * GAME * np.logaddexp(0, -beta * pairwise(policy.log - REFERENCE.log))).sum())

    new = dpo.update(POLICY, GAME, REFERENCE, beta=beta)
    np.testing.assert_allclose(minimiser(loss), new.probability, atol=1e-5)


def test_inpo_minimises_its_own_loss() -> None:
    eta, tau = 1.5, 0.3

    def loss(policy: Policy) -> float:
        h = pairwise(policy.log - eta * tau * REFERENCE.log - (1 - eta * tau) * POLICY.log)
        return chosen_pairs_loss(h, eta / 2, sampled_pairs(POLICY))

    new = inpo.update(POLICY, GAME, REFERENCE, eta=eta, tau=tau)
    np.testing.assert_allclose(minimiser(loss), new.probability, atol=1e-6)


def test_magnetic_mirror_descent_maximises_its_proximal_objective() -> None:
    eta, tau = 1.5, 0.3

    def loss(policy: Policy) -> float:
        to_magnet = policy.probability @ (policy.log - REFERENCE.log)
        to_policy = policy.probability @ (policy.log - POLICY.log)
        return float(to_policy - eta * (policy.probability @ WINS - tau * to_magnet))

    new = magnetic_mirror_descent.update(POLICY, GAME, REFERENCE, eta=eta, tau=tau)
    np.testing.assert_allclose(minimiser(loss), new.probability, atol=1e-6)
    same = inpo.update(POLICY, GAME, REFERENCE, eta=eta / (1 + eta * tau), tau=tau)
    np.testing.assert_allclose(new.log, same.log, atol=1e-12)


def test_nash_md_maximises_its_objective() -> None:
    eta, tau = 1.5, 0.3
    mixture = normalised((1 - eta * tau) * POLICY.log + eta * tau * REFERENCE.log)

    def loss(policy: Policy) -> float:
        gain = policy.probability @ (GAME @ mixture.probability)
        return float(policy.probability @ (policy.log - mixture.log) - eta * gain)

    new = nash_md.update(POLICY, GAME, REFERENCE, eta=eta, tau=tau)
    np.testing.assert_allclose(minimiser(loss), new.probability, atol=1e-6)


def test_extragradient_steps_twice_from_the_same_place() -> None:
    eta, tau = 1.5, 0.3
    ahead = inpo.update(POLICY, GAME, REFERENCE, eta=eta, tau=tau)
    target = eta * pairwise(GAME @ ahead.probability)

    def loss(policy: Policy) -> float:
        h = pairwise(policy.log - eta * tau * REFERENCE.log - (1 - eta * tau) * POLICY.log)
        return float(((h - target) ** 2).sum())

    new = egpo.update(POLICY, GAME, REFERENCE, eta=eta, tau=tau)
    np.testing.assert_allclose(minimiser(loss), new.probability, atol=1e-6)


def test_optimistic_counts_the_last_win_rates_twice() -> None:
    before = GAME @ REFERENCE.probability
    new = onpo.update(POLICY, GAME, before, eta=0.5)
    logits = POLICY.log + 0.5 * (2 * WINS - before)
    np.testing.assert_allclose(new.log, normalised(logits).log, atol=1e-12)
    first = multiplicative_weights.update(POLICY, GAME, eta=0.5)
    np.testing.assert_allclose(onpo.update(POLICY, GAME, None, eta=0.5).log, first.log, atol=1e-12)


def test_sampled_update_by_hand() -> None:
    # draws rock, rock, scissors from (0.5, 0.3, 0.2)
    policy = as_policy([0.5, 0.3, 0.2])
    uniforms = np.array([0.1, 0.4999, 0.81])
    estimate = np.array([(0.5 + 0.5 + 1) / 3, (1 + 1 + 0) / 3, (0 + 0 + 0.5) / 3])
    drawn = sampled.update(policy, RPS, uniforms, eta=1.0)
    moved = policy.log + (estimate - 0.5) * [1, 0, 1]
    np.testing.assert_allclose(drawn.log, normalised(moved).log, atol=1e-12)
    everything = sampled.update(policy, RPS, uniforms, eta=1.0, responses="all")
    np.testing.assert_allclose(everything.log, normalised(policy.log + estimate - 0.5).log, atol=1e-12)


def test_many_samples_approach_the_exact_update() -> None:
    uniforms = sampled.keyed_uniforms(0, np.arange(1), 1, 200_000)[0]
    assert uniforms.mean() == pytest.approx(0.5, abs=3e-3)
    new = sampled.update(POLICY, GAME, uniforms, eta=1.0)
    exact = multiplicative_weights.update(POLICY, GAME, eta=1.0)
    np.testing.assert_allclose(new.probability, exact.probability, atol=2e-3)


def test_draws_are_keyed() -> None:
    games = np.arange(50)
    words = np.stack([sampled.keyed_uniforms(seed, games, step, 4) for seed in (0, 1) for step in (1, 2)])
    assert len(np.unique(words)) == words.size
    np.testing.assert_array_equal(sampled.keyed_uniforms(0, games[7:9], 2, 4), words[1, 7:9])
    np.testing.assert_array_equal(sampled.keyed_uniforms(0, games, 2, 3), words[1, :, :3])


ALL: list[Dynamic] = [
    MultiplicativeWeights(0.3),
    SPPO(0.3),
    SampledMultiplicativeWeights(0.3),
    OptimisticMultiplicativeWeights(0.3),
    NashMD(0.3, 0.1),
    NashProx(0.3, 0.1, 0.5, inner=3),
    MagneticMirrorDescent(0.3, 0.1, magnet_rate=0.1),
    INPO(0.3, 0.1),
    COMAL(0.3, 0.1, inner=3),
    Extragradient(0.3, 0.1),
    MNPO(0.3, 0.1, opponents=3),
    IPOSelfPlay(2.0),
    DPOSelfPlay(2.0),
    REBEL(0.3),
]


@pytest.mark.parametrize("dynamic", ALL, ids=lambda dynamic: dynamic.name)
def test_a_batch_is_its_games_one_by_one(dynamic: Dynamic, monkeypatch: pytest.MonkeyPatch) -> None:
    games = random_game(6, games=(2, 4), seed=2)
    initial = np.random.default_rng(0).dirichlet(np.ones(6), size=(2, 4))
    whole = play(dynamic, games, 12, initial=initial, record=[1, 5, 12])
    assert whole.last.shape == whole.average.shape == (3, 2, 4, 6)
    monkeypatch.setattr("sppo.game.dynamics.trajectory._CACHE_BYTES", 3 * games[0, 0].nbytes)
    parts = play(dynamic, games, 12, initial=initial, record=[1, 5, 12])
    np.testing.assert_allclose(parts.last, whole.last, rtol=1e-10)
    np.testing.assert_allclose(parts.average, whole.average, rtol=1e-10)
    if not isinstance(dynamic, SampledMultiplicativeWeights):  # whose draws depend on the game's number
        alone = play(dynamic, games[1, 2], 12, initial=initial[1, 2])
        np.testing.assert_allclose(alone.last[0], whole.last[-1, 1, 2], rtol=1e-9)


@pytest.mark.parametrize("dynamic", ALL, ids=lambda dynamic: dynamic.name)
def test_a_von_neumann_winner_stays(dynamic: Dynamic) -> None:
    soft = 0.98 * RPS + 0.01
    run = play(dynamic, soft, 30)
    if isinstance(dynamic, SampledMultiplicativeWeights):
        assert exploitability(soft, run.last[0]) > 1e-3
    else:
        np.testing.assert_allclose(run.last[0], UNIFORM, atol=1e-12)


def test_parameters_may_differ_per_game() -> None:
    games = random_game(4, games=3, seed=2)
    eta = np.array([0.1, 0.2, 0.3])
    together = play(MultiplicativeWeights(eta), games, 20).last[0]
    for game, step, policy in zip(games, eta, together, strict=True):
        np.testing.assert_allclose(
            play(MultiplicativeWeights(float(step)), game, 20).last[0], policy, rtol=1e-12
        )


def test_the_average_is_of_the_policies_that_were_played() -> None:
    run = play(MultiplicativeWeights(1.0), RPS, 3, initial=START, record=[1, 2, 3])
    np.testing.assert_allclose(run.average[0], START)
    np.testing.assert_allclose(run.average[2], (np.array(START) + run.last[0] + run.last[1]) / 3)


def test_a_response_of_zero_probability_stays_out() -> None:
    game = random_game(4, seed=3)
    for dynamic in ALL:
        if isinstance(dynamic, SPPO | DPOSelfPlay | REBEL):
            continue
        run = play(dynamic, game, 50, initial=[0.5, 0.5, 0, 0])
        assert np.array_equal(run.last[0][2:], [0, 0])
        assert np.isfinite(run.last).all()
    with pytest.raises(GameError, match="zero probability"):
        play(SPPO(0.3), game, 2, initial=[0.5, 0.5, 0, 0])


LAST_ITERATE: list[tuple[Dynamic, int]] = [
    (OptimisticMultiplicativeWeights(0.5), 2000),
    (NashMD(0.02, 0.1), 5000),
    (MagneticMirrorDescent(0.2, 0.05), 2000),
    (MagneticMirrorDescent(0.2, 0.05, magnet_rate=0.01), 2000),
    (INPO(0.2, 0.1), 2000),
    (COMAL(0.3, 0.1, inner=50), 2000),
    (Extragradient(0.5, 0.1), 2000),
    (MNPO(0.2, 0.1, opponents=2), 2000),
    (Extragradient(0.5, 0.0), 2000),
]


@pytest.mark.parametrize(("dynamic", "steps"), LAST_ITERATE, ids=lambda value: getattr(value, "name", value))
def test_convergent_methods_bring_the_last_iterate_below_a_thousandth(dynamic: Dynamic, steps: int) -> None:
    run = play(dynamic, RPS, steps, initial=START, reference=UNIFORM)
    assert exploitability(RPS, run.last[0]) < 1e-3


@pytest.mark.parametrize(
    ("dynamic", "steps"),
    [
        (OptimisticMultiplicativeWeights(1.0), 4000),
        (MagneticMirrorDescent(0.5, 0.1, magnet_rate=0.02), 2000),
        (COMAL(0.5, 0.1, inner=50), 4000),
        (Extragradient(1.0, 0.0), 4000),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_methods_without_a_fixed_reference_find_the_winner_itself(dynamic: Dynamic, steps: int) -> None:
    run = play(dynamic, BIASED, steps, initial=START, reference=UNIFORM)
    assert exploitability(BIASED, run.last[0]) < 1e-3
    np.testing.assert_allclose(run.last[0], nash(BIASED), atol=0.02)


@pytest.mark.parametrize(
    "dynamic",
    [
        INPO(0.2, 0.1),
        MagneticMirrorDescent(0.2, 0.1),
        Extragradient(0.5, 0.1),
        NashProx(0.5, 0.1, 1.0, inner=5),
    ],
    ids=lambda dynamic: dynamic.name,
)
def test_methods_with_a_fixed_reference_find_the_regularised_equilibrium(dynamic: Dynamic) -> None:
    policy = play(dynamic, BIASED, 3000, initial=START, reference=[0.6, 0.2, 0.2]).last[0]
    assert regularised_exploitability(BIASED, policy, [0.6, 0.2, 0.2], tau=0.1) < 1e-9
    assert exploitability(BIASED, policy) > 1e-2


def test_rspo_under_reverse_kl_finds_it_too_and_forward_kl_stays_nearer_the_reference() -> None:
    reference = [0.6, 0.2, 0.2]
    free, reverse, forward = (
        play(dynamic, BIASED, 100, initial=START, reference=reference).last[0]
        for dynamic in (RSPO(0.8), RSPO(0.8, reverse_kl=0.16), RSPO(0.8, forward_kl=0.16))
    )
    assert regularised_exploitability(BIASED, reverse, reference, tau=0.1) < 1e-6
    assert np.abs(forward - reference).sum() < np.abs(free - reference).sum()


def test_nash_md_comes_as_near_to_it_as_its_step_is_small() -> None:
    def miss(eta: float) -> float:
        policy = play(
            NashMD(eta, 0.1), BIASED, round(60 / eta), initial=START, reference=[0.6, 0.2, 0.2]
        ).last[0]
        return float(regularised_exploitability(BIASED, policy, [0.6, 0.2, 0.2], tau=0.1))

    assert 0 < miss(0.02) < miss(0.2) < 0.05


def test_dpo_and_ipo_self_play_do_not_converge_on_a_cycle() -> None:
    soft = 0.98 * RPS + 0.01
    for dynamic in (IPOSelfPlay(5.0), IPOSelfPlay(0.05, reference="first"), DPOSelfPlay(20.0)):
        run = play(dynamic, soft, 1000, initial=START, reference=UNIFORM, record=range(900, 1001))
        assert exploitability(soft, run.last).min() > 0.1


def test_dpo_has_no_minimiser_where_some_win_everything() -> None:
    with pytest.raises(GameError, match=r"responses \[0\] win every comparison"):
        play(DPOSelfPlay(1.0), [[0.5, 1.0], [0.0, 0.5]], 1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MultiplicativeWeights(0.0), "eta = 0.0 must be positive"),
        (lambda: MultiplicativeWeights(np.nan), "eta = nan"),
        (lambda: SPPO(-1.0), "eta"),
        (lambda: NashMD(2.0, 1.0), "eta \\* tau = 2 must be at most 1"),
        (lambda: INPO(1.0, 0.0), "tau = 0.0"),
        (lambda: Extragradient(1.0, -1.0), "tau"),
        (lambda: NashProx(1.0, 0.4, 0.7), "eta \\* tau = 1.1 must be at most 1"),
        (lambda: NashProx(1.0, 0.1, 0.1, inner=0), "inner = 0 must be at least 1"),
        (lambda: COMAL(0.1, 0.1, inner=0), "inner = 0"),
        (lambda: MNPO(0.1, 0.1, opponents=0), "opponents = 0"),
        (lambda: RSPO(0.1, reverse_kl=-1.0), "reverse_kl = -1.0"),
        (lambda: play(RSPO(0.1), RPS, 1, initial=[1.0, 0.0, 0.0]), "gives a response the probability 0"),
        (lambda: MagneticMirrorDescent(0.1, 0.1, magnet_rate=2.0), "magnet_rate = 2.0"),
        (lambda: SampledMultiplicativeWeights(0.1, samples=0), "samples = 0"),
        (lambda: SampledMultiplicativeWeights(0.1, responses="some"), "responses"),  # type: ignore[arg-type]
        (lambda: IPOSelfPlay(1.0, reference="other"), "reference"),  # type: ignore[arg-type]
        (lambda: DPOSelfPlay(0.0), "beta"),
        (lambda: play(MultiplicativeWeights(1.0), RPS, 0), "record = \\[0\\]"),
        (lambda: play(MultiplicativeWeights(1.0), RPS, 5, record=[6]), "record = \\[6\\]"),
        (lambda: play(MultiplicativeWeights(1.0), RPS, 5, initial=[0.5, 0.5, 0.5]), "initial sum to 1.5"),
        (lambda: play(MultiplicativeWeights(1.0), RPS, 5, reference=[1.0]), "reference has shape"),
        (lambda: play(MultiplicativeWeights(1.0), [[0.5, 0.9], [0.9, 0.5]], 5), "P\\[0, 1\\]"),
        (lambda: sppo.update(POLICY, GAME, eta=1.0, weights=np.array([0, 0.5, 0.25, 0.25])), "zero weight"),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(GameError, match=said):
        make()


def test_log_spaced_steps() -> None:
    assert log_spaced(1) == [1]
    steps = log_spaced(10_000)
    assert steps[0] == 1
    assert steps[-1] == 10_000
    assert 40 < len(steps) <= 60
