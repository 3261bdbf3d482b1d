"""From tables to networks: the trainer, run to the end, makes the update that the tables state.

The model's responses are single tokens and its vocabulary is exactly the responses, so that a policy is one row of
a table: what the neural loss minimises and what the tabular update computes are the same thing.
"""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sppo import objectives, recipe
from sppo.algorithms.rlhf import RLHF
from sppo.game import rock_paper_scissors
from sppo.game.dynamics import (
    INPO,
    blackwell,
    dpo,
    egpo,
    inpo,
    ipo,
    mnpo,
    multiplicative_weights,
    nash_md,
    nash_prox,
    onpo,
    play,
    rebel,
    rspo,
    rspo_released,
    sppo,
)
from sppo.game.dynamics.policies import as_policy, normalised
from sppo.oracle import CheckedOracle
from sppo.oracle.fixed_opponent import FixedOpponent, Recorded
from sppo.rundir.shards import table, write_shard
from sppo.rundir.tables import TRAINING
from sppo.training import TrainingJob, train
from sppo.winrates import win_rates

PROMPT = [0]
# multiples of 1/8, so that the oracle's choices of a winner can be written out in their proportions
CYCLIC = np.array([[4, 7, 2, 5], [1, 4, 6, 5], [6, 2, 4, 6], [3, 3, 2, 4]]) / 8


def make_policy(folder, log_weights):
    """A tiny Llama that answers the prompt with token y with probability softmax(log_weights)[y]."""
    torch.manual_seed(0)
    n = len(log_weights)
    config = LlamaConfig(
        vocab_size=n,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        hidden = model.model(torch.tensor([PROMPT])).last_hidden_state[0, -1]
        model.lm_head.weight.copy_(
            torch.tensor(log_weights, dtype=torch.float32)[:, None] * hidden[None] / (hidden @ hidden)
        )
    model.save_pretrained(folder)
    return folder


def log_policy(folder):
    with torch.no_grad():
        return (
            AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([PROMPT]))
            .logits[0, -1]
            .double()
            .log_softmax(-1)
        )


TO_THE_END = {"learning_rate": 3e-2, "epochs": 500, "warmup_ratio": 0.05, "logging_steps": 500}


def trained_log_ratio(
    tmp_path, log_weights, examples, algorithm, log_partition=0.0, past=(), rewards=None, training=TO_THE_END
):
    """log pi_{t+1} - log pi_t after training to the end on examples of (responses, win rates).

    A win rate of None stands for a response that the oracle was not asked about, "given" for a demonstration.
    `past`: log-probabilities of reference policies, as the loss takes them. `rewards`: the algorithm's own, of each response.
    `training`: settings of the training, which otherwise goes on to the end.
    """
    base = make_policy(tmp_path / "base", log_weights)
    before = log_policy(base).numpy()
    rows = [
        {
            "prompt_id": str(number),
            "prompt_token_ids": PROMPT,
            "opponent": "pi_1",
            "reference_policies": [str(number) for number in range(len(past))],
            "log_partition": log_partition,
            "responses": [
                {
                    "k": None if rate == "given" else y,
                    "token_ids": [y],
                    "win_rate": None if rate in (None, "given") else float(rate),
                    "opponent_log_prob": float(before[y]),
                    "reference_log_probs": [float(log[y]) for log in past],
                    "reward": None if rewards is None else float(rewards[y]),
                }
                for y, rate in zip(responses, rates, strict=True)
            ],
        }
        for number, (responses, rates) in enumerate(examples)
    ]
    write_shard(tmp_path / "part-00000.parquet", table(rows, TRAINING), {})
    (tmp_path / "work").mkdir()
    job = TrainingJob(
        policy=str(base),
        opponent="pi_1",
        reference_policies=[str(number) for number in range(len(past))],
        shards=[str(tmp_path / "part-00000.parquet")],
        output=str(tmp_path / "next"),
        work=str(tmp_path / "work"),
        metrics=str(tmp_path / "metrics.jsonl"),
        prompts=len(rows),
        seed=0,
        dtype="float32",
        attn_implementation=None,
        trust_remote_code=False,
        chat_template=None,
        algorithm=recipe.parse_algorithm(algorithm),
        settings=recipe.Training(batch_prompts=len(rows), **training),
    )
    train(job)
    return log_policy(tmp_path / "next").numpy() - before, before


def own_win_rates(payoff, log_weights):
    weights = np.exp(log_weights - np.logaddexp.reduce(log_weights))
    return payoff @ weights


def pairs(payoff):
    """Every pair of different responses, each winner as often as the oracle names it in eight choices."""
    found = []
    n = len(payoff)
    for i in range(n):
        for j in range(i + 1, n):
            wins = round(8 * payoff[i, j])
            found += [((i, j), (1.0, 0.0))] * wins + [((i, j), (0.0, 1.0))] * (8 - wins)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("eta", [1.0, 4.0])
def test_sppo_with_half_eta_follows_its_tabular_minimiser(tmp_path, eta):
    log_weights = [0.7, -0.3, 0.1, -0.6]
    rates = own_win_rates(CYCLIC, np.array(log_weights))
    found, before = trained_log_ratio(
        tmp_path, log_weights, [(range(4), rates)], {"type": "sppo", "eta": eta}, log_partition=eta / 2
    )
    policy = as_policy(np.exp(before))
    # the example holds each response once: the loss weighs them alike
    expected = sppo.update(policy, CYCLIC, eta=eta, weights=np.full(4, 0.25)).log - policy.log
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("eta", [1.0, 4.0])
def test_sppo_with_the_exact_partition_is_multiplicative_weights(tmp_path, eta):
    uniform = np.zeros(3)
    game = rock_paper_scissors(rock=0.9, paper=0.7, scissors=0.6)
    rates = own_win_rates(game, uniform)
    partition = float(np.log(np.mean(np.exp(eta * rates))))
    found, before = trained_log_ratio(
        tmp_path, uniform, [(range(3), rates)], {"type": "sppo", "eta": eta}, log_partition=partition
    )
    policy = as_policy(np.exp(before))
    expected = multiplicative_weights.update(policy, game, eta=eta).log - policy.log
    np.testing.assert_allclose(found, expected, atol=2e-3)


class Table:
    """An oracle over responses that are the numbers of a table's rows."""

    def compare(self, prompts, responses):
        index = np.array([[int(text) for text in texts] for texts in responses])
        return CYCLIC[index[:, :, None], index[:, None, :]]


@pytest.mark.slow
def test_a_fixed_opponent_makes_the_win_rates_against_it_the_goal(tmp_path):
    eta, uniform, opponent = 6.0, np.zeros(4), ["0", "1", "1", "3"]
    fixed = FixedOpponent(CheckedOracle(Table()), Recorded({"x": opponent}))
    rates = win_rates(fixed.compare(["x"], [["0", "1", "2", "3"]]))[0]
    partition = float(np.log(np.mean(np.exp(eta * rates))))
    found, _ = trained_log_ratio(
        tmp_path, uniform, [(range(4), rates)], {"type": "sppo", "eta": eta}, log_partition=partition
    )
    # multiplicative weights with the payoffs against the opponent, at half the step size
    expected = eta / 2 * CYCLIC @ np.array([1, 2, 0, 1]) / 4
    np.testing.assert_allclose(found, expected - np.log(np.mean(np.exp(expected))), atol=2e-3)


@pytest.mark.slow
def test_ipo_on_all_pairs_is_multiplicative_weights_with_one_over_tau(tmp_path):
    found, before = trained_log_ratio(tmp_path, np.zeros(4), pairs(CYCLIC), {"type": "ipo", "tau": 0.5})
    policy = as_policy(np.exp(before))
    expected = ipo.update(policy, CYCLIC, policy, tau=0.5).log - policy.log
    np.testing.assert_allclose(found, expected, atol=2e-3)
    weights = multiplicative_weights.update(policy, CYCLIC, eta=2.0).log - policy.log
    np.testing.assert_allclose(expected, weights, atol=1e-9)


@pytest.mark.slow
def test_dpo_on_all_pairs_follows_the_bradley_terry_fit(tmp_path):
    found, before = trained_log_ratio(tmp_path, np.zeros(4), pairs(CYCLIC), {"type": "dpo", "beta": 0.7})
    policy = as_policy(np.exp(before))
    expected = dpo.update(policy, CYCLIC, policy, beta=0.7).log - policy.log
    np.testing.assert_allclose(found, expected, atol=2e-3)


REAL = np.array([3, 1, 2, 2]) / 8


def demonstrations(generated=()):
    """Eight prompts whose demonstrations are distributed as REAL, each with the same generated responses."""
    given = np.repeat(np.arange(4), (8 * REAL).astype(int)).tolist()
    return [((*generated, y), (*[None] * len(generated), "given")) for y in given]


@pytest.mark.slow
def test_spin_on_demonstrations_against_all_that_pi_t_draws(tmp_path):
    lam = 2.0
    found, before = trained_log_ratio(
        tmp_path, np.zeros(4), demonstrations(range(4)), {"type": "spin", "lam": lam}
    )
    # Bradley-Terry between demonstrations and draws has strengths log(p/pi_t)
    expected = normalised(before + (np.log(REAL) - before) / lam)
    np.testing.assert_allclose(found, expected.log - before, atol=2e-3)


@pytest.mark.slow
def test_fine_tuning_on_demonstrations_ends_at_their_distribution(tmp_path):
    found, before = trained_log_ratio(tmp_path, [0.7, -0.3, 0.1, -0.6], demonstrations(), {"type": "sft"})
    np.testing.assert_allclose(found + before, np.log(REAL), atol=2e-3)


def minimiser(loss, n):
    """Log-policy over n responses that minimises a loss of log-probabilities, by gradient descent to the end."""
    logits = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure():
        optimiser.zero_grad()
        value = loss(logits.log_softmax(0))
        value.backward()
        return value

    optimiser.step(closure)
    return logits.detach().log_softmax(0)


@pytest.mark.parametrize("lam", [1.0, 2.5])
def test_spin_moves_towards_the_demonstrations_by_the_power_one_over_lambda(lam):
    r"""Real y ~ p against generated y' ~ pi_t is a Bradley-Terry fit with strengths log(p / pi_t).

    So lambda log(pi/pi_t) = log(p/pi_t) up to a constant: pi_{t+1} is proportional to pi_t (p/pi_t)^(1/lambda).
    """
    real = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    opponent = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)

    def loss(log_policy):
        ratio = log_policy - opponent.log()
        pairs = objectives.spin(ratio[:, None].expand(4, 4).flatten(), ratio.repeat(4), lam=lam)
        return (pairs * torch.outer(real, opponent).flatten()).sum()

    expected = (opponent.log() + (real / opponent).log() / lam).log_softmax(0)
    torch.testing.assert_close(minimiser(loss, 4), expected, atol=1e-5, rtol=0)


def test_supervised_fine_tuning_ends_at_the_demonstrations():
    real = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    found = minimiser(lambda log_policy: (objectives.sft(log_policy) * real).sum(), 4)
    torch.testing.assert_close(found, real.log(), atol=1e-5, rtol=0)


# Past policies in the loss: what each algorithm's own loss is least at, found by gradient descent to the end

POLICY, BASE, EARLIER = (
    as_policy(weights) for weights in ([0.35, 0.15, 0.3, 0.2], [0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.4, 0.1])
)
ETA, TAU = 3.0, 0.1


def least(algorithm, past=(), policy=POLICY, payoff=CYCLIC):
    """The policy that minimises an algorithm's loss on one prompt that has each response once.

    Args:
        algorithm: as in a recipe.
        past: the policies that its section asks for.
        policy: pi_t, which the win rates are against.
        payoff: the game; those of the annotators, for an algorithm of several.
    """
    section = recipe.parse_algorithm(algorithm)
    return minimiser(lambda log: loss_of(section, log, past, policy, payoff=payoff), len(policy.log)).numpy()


def loss_of(section, log_policy, past, policy, *, payoff=CYCLIC, rates=None):
    """An algorithm's loss on one prompt that has each response once; `rates`: other win rates than those against `policy`."""
    n = len(policy.log)
    opponent = torch.from_numpy(policy.log)
    ratios = np.array([one.log for one in past]).reshape(len(past), n) - policy.log
    rewards = section.rewards(payoff, ratios)
    win_rates = payoff @ policy.probability if rates is None else rates
    return section.loss(
        objectives.Responses(
            log_ratio=log_policy - opponent,
            opponent=opponent,
            win_rate=torch.from_numpy(win_rates.mean(0) if win_rates.ndim > 1 else win_rates),
            demonstration=torch.zeros(n, dtype=torch.bool),
            references=torch.from_numpy(ratios),
            reward=torch.from_numpy(np.full(n, np.nan) if rewards is None else rewards),
            prompt=torch.zeros(n, dtype=torch.int64),
            log_partition=torch.zeros(1, dtype=torch.float64),
            winner=torch.tensor([0]),
            loser=torch.tensor([1]),
        )
    ).sum()


def test_inpo_is_mirror_descent_on_the_regularised_game():
    found = least({"type": "inpo", "eta": ETA, "tau": TAU}, [BASE])
    np.testing.assert_allclose(found, inpo.update(POLICY, CYCLIC, BASE, eta=ETA, tau=TAU).log, atol=1e-6)


def test_comal_is_inpo_from_the_policy_at_the_references_last_move():
    section = recipe.parse_algorithm({"type": "comal", "inner": 2})
    assert [section.reference_policies(t) for t in range(1, 7)] == [(1,), (1,), (3,), (3,), (5,), (5,)]
    found = least({"type": "comal", "eta": ETA, "tau": TAU}, [EARLIER])
    np.testing.assert_allclose(found, inpo.update(POLICY, CYCLIC, EARLIER, eta=ETA, tau=TAU).log, atol=1e-6)


def test_two_iterations_of_egpo_are_one_step_of_the_extragradient():
    section = recipe.parse_algorithm({"type": "egpo", "eta": ETA, "tau": TAU})
    assert [section.reference_policies(t) for t in range(1, 5)] == [(1, 1), (1, 1), (3, 1), (3, 1)]
    halfway = least(section.model_dump(), [POLICY, BASE])
    found = least(section.model_dump(), [POLICY, BASE], policy=normalised(halfway))
    expected = egpo.update(POLICY, CYCLIC, BASE, eta=ETA, tau=TAU)
    np.testing.assert_allclose(found, expected.log, atol=1e-6)


def test_a_gradient_step_of_egpo_as_released_is_one_of_the_extragradient():
    section = recipe.parse_algorithm({"type": "egpo_released", "tau": TAU})
    assert [section.initial_policy(t) for t in range(1, 5)] == [1, 1, 3, 3]
    assert [section.reference_policies(t) for t in (1, 2)] == [(1,), (1,)]
    learning_rate = 0.02
    eta = 4 * learning_rate / 3 / TAU
    halfway = policy = POLICY
    for _ in range(
        2
    ):  # both steps are taken from POLICY, by the win rates against it and then against the halfway policy
        logits = torch.from_numpy(policy.log.copy()).requires_grad_()
        loss = loss_of(section, logits.log_softmax(0), [BASE], halfway)
        (gradient,) = torch.autograd.grad(loss, logits)
        halfway = normalised((logits - learning_rate * gradient).detach().numpy())
    expected = egpo.update(POLICY, CYCLIC, BASE, eta=eta, tau=TAU)
    np.testing.assert_allclose(halfway.log, expected.log, atol=1e-6)


def test_the_trainer_takes_the_step_of_egpo_as_released(tmp_path):
    """One step of plain gradient descent, of all the network's weights, by the win rates against another policy."""
    algorithm, log_weights = {"type": "egpo_released", "tau": 0.5}, [0.7, -0.3, 0.1, -0.6]
    training = {
        "optimizer": "sgd",
        "learning_rate": 0.02,
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "epochs": 1,
    }
    found, before = trained_log_ratio(
        tmp_path,
        log_weights,
        [(range(4), CYCLIC @ EARLIER.probability)],
        algorithm,
        past=[BASE.log],
        training={**training, "max_grad_norm": 0.0},
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    log_policy = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    section = recipe.parse_algorithm(algorithm)
    opponent = as_policy(np.exp(before))
    loss_of(section, log_policy, [BASE], opponent, rates=CYCLIC @ EARLIER.probability).backward()
    torch.optim.SGD(model.parameters(), 0.02).step()
    with torch.no_grad():
        after = model(torch.tensor([PROMPT])).logits[0, -1].double().log_softmax(-1)
    assert np.abs(found).max() > 0.05
    np.testing.assert_allclose(found, after.numpy() - before, atol=1e-5)


def test_nash_prox_pulls_to_the_base_and_to_the_centre():
    section = recipe.parse_algorithm({"type": "nash_prox", "inner": 2})
    assert [section.reference_policies(t) for t in range(1, 6)] == [(1, 1), (1, 1), (1, 3), (1, 3), (1, 5)]
    found = least({"type": "nash_prox", "eta": ETA, "tau": TAU, "proximal": 0.2}, [BASE, EARLIER])
    expected = nash_prox.update(POLICY, CYCLIC, BASE, EARLIER, eta=ETA, tau=TAU, proximal=0.2)
    np.testing.assert_allclose(found, expected.log, atol=1e-6)


def test_mnpo_steps_from_the_geometric_mean_of_the_last_policies():
    section = recipe.parse_algorithm({"type": "mnpo", "opponents": 2})
    assert [section.reference_policies(t) for t in range(1, 5)] == [(1, 1), (1, 2, 1), (1, 3, 2), (1, 4, 3)]
    found = least({"type": "mnpo", "eta": ETA, "tau": TAU}, [BASE, POLICY, EARLIER])
    expected = mnpo.update(POLICY, CYCLIC, BASE, [POLICY, EARLIER], eta=ETA, tau=TAU)
    np.testing.assert_allclose(found, expected.log, atol=1e-6)


def test_three_iterations_of_onpo_are_optimistic_multiplicative_weights():
    policies, before = [BASE], None
    for t in range(1, 4):
        past = [policies[s - 1] for s in recipe.parse_algorithm({"type": "onpo"}).reference_policies(t)]
        assert len(past) == t - 1
        found = least({"type": "onpo", "eta": ETA}, past, policy=policies[-1])
        expected = onpo.update(policies[-1], CYCLIC, before, eta=ETA)
        np.testing.assert_allclose(found, expected.log, atol=1e-6)
        before = CYCLIC @ policies[-1].probability
        policies.append(expected)


def test_nash_md_is_multiplicative_weights_from_and_against_the_mixture():
    # the responses of the prompt stand for pi_t: each once, for the uniform one
    uniform = as_policy(np.full(4, 0.25))
    found = least({"type": "nash_md", "eta": ETA, "tau": TAU}, [BASE], policy=uniform)
    expected = nash_md.update(uniform, CYCLIC, BASE, eta=ETA, tau=TAU)
    np.testing.assert_allclose(found, expected.log, atol=1e-6)


@pytest.mark.parametrize(("forward", "reverse"), [(0.0, 0.0), (2.0, 0.0), (0.0, 3.0), (1.0, 0.5)])
def test_rspo_follows_its_tabular_minimiser(forward, reverse):
    uniform = as_policy(np.full(4, 0.25))
    weights = {"forward_kl": forward, "reverse_kl": reverse}
    found = least({"type": "rspo", "eta": ETA, **weights}, [BASE], policy=uniform)
    expected = rspo.update(uniform, CYCLIC, BASE, eta=ETA, **weights)
    np.testing.assert_allclose(found, expected.log, atol=1e-6)
    if forward == reverse == 0:
        np.testing.assert_allclose(expected.log, sppo.update(uniform, CYCLIC, eta=ETA).log, atol=1e-6)


def test_rspo_under_reverse_kl_stands_still_at_the_regularised_equilibrium():
    policy = play(INPO(eta=0.5, tau=0.3), CYCLIC, 2000, reference=BASE.probability).last[0]
    still = rspo.update(as_policy(policy), CYCLIC, BASE, eta=2.0, forward_kl=0.0, reverse_kl=1.2)
    np.testing.assert_allclose(still.probability, policy, atol=1e-6)


PENALTIES = [
    {"reverse_kl": 0.4},
    {"forward_kl": 0.3},
    {"chi_squared": 0.2},
    {"chi_squared_smoothed": 0.5},
    {"entropy": 0.05},
    {"reverse_kl": 0.2, "forward_kl": 0.01},
]


@pytest.mark.parametrize("weights", PENALTIES, ids=str)
def test_rspo_as_released_follows_its_tabular_minimiser(weights):
    uniform = as_policy(np.full(4, 0.25))
    found = least({"type": "rspo_released", "eta": ETA, "reverse_kl": 0.0, **weights}, [BASE], policy=uniform)
    expected = rspo_released.update(uniform, CYCLIC, BASE, eta=ETA, **weights)
    np.testing.assert_allclose(found, expected.log, atol=1e-6)


def test_rspo_as_released_stands_still_at_the_same_equilibrium():
    policy = play(INPO(eta=0.5, tau=0.3), CYCLIC, 2000, reference=BASE.probability).last[0]
    still = rspo_released.update(as_policy(policy), CYCLIC, BASE, eta=2.0, reverse_kl=0.3)
    np.testing.assert_allclose(still.probability, policy, atol=1e-6)


def test_rebel_is_mirror_descent_on_its_reward():
    for policy, reward in ((POLICY, "win_rate"), (as_policy(np.full(4, 0.25)), "bradley_terry")):
        found = least({"type": "rebel", "eta": 0.8, "reward": reward}, policy=policy)
        expected = rebel.update(policy, CYCLIC, eta=0.8, reward=reward)
        np.testing.assert_allclose(found, expected.log, atol=1e-6)
    fitted = dpo.update(POLICY, CYCLIC, POLICY, beta=1 / 0.8)
    np.testing.assert_allclose(rebel.update(POLICY, CYCLIC, eta=0.8).log, fitted.log, atol=1e-9)


def test_dno_is_multiplicative_weights_by_another_loss():
    found = least({"type": "dno", "eta": ETA})
    np.testing.assert_allclose(found, multiplicative_weights.update(POLICY, CYCLIC, eta=ETA).log, atol=1e-6)


ANNOTATORS = np.stack([CYCLIC, CYCLIC.T, CYCLIC[np.ix_([3, 1, 0, 2], [3, 1, 0, 2])]])
"""Three annotators of the same four responses; the first two contradict each other in everything."""


@pytest.mark.parametrize("eta", [ETA, 1e3])
def test_blackwell_is_the_proximal_step_against_the_worst_mixture(eta):
    uniform = as_policy(np.full(4, 0.25))
    found = least({"type": "blackwell", "eta": eta}, policy=uniform, payoff=ANNOTATORS)
    expected = blackwell.update(uniform, ANNOTATORS, eta=eta)
    np.testing.assert_allclose(np.exp(found), expected.probability, atol=1e-6)
    assert (
        np.abs(
            expected.probability
            - multiplicative_weights.update(uniform, ANNOTATORS.mean(0), eta=eta).probability
        ).max()
        > 0.01
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    [
        {"type": "blackwell", "eta": ETA},
        {"type": "rspo_released", "eta": ETA, "reverse_kl": 0.2, "forward_kl": 0.05},
        {"type": "rebel", "eta": 0.8},
        {"type": "dno", "eta": ETA},
    ],
    ids=lambda algorithm: algorithm["type"],
)
def test_the_trainer_makes_the_update_of(tmp_path, algorithm):
    past = [BASE] if algorithm["type"] == "rspo_released" else []
    payoff = ANNOTATORS if algorithm["type"] == "blackwell" else CYCLIC
    rewards = recipe.parse_algorithm(algorithm).rewards(payoff, np.zeros((0, 4)))
    rates = own_win_rates(CYCLIC, np.zeros(4))
    found, before = trained_log_ratio(
        tmp_path, np.zeros(4), [(range(4), rates)], algorithm, past=[one.log for one in past], rewards=rewards
    )
    expected = least(algorithm, past, policy=as_policy(np.exp(before)), payoff=payoff)
    np.testing.assert_allclose(found, expected - before, atol=2e-3)


@pytest.mark.slow
def test_the_trainer_follows_grpo_to_the_edge_of_its_clip(tmp_path):
    rates = own_win_rates(CYCLIC, np.zeros(4))
    found, _ = trained_log_ratio(
        tmp_path,
        np.zeros(4),
        [(range(4), rates)],
        {"type": "grpo", "beta": 0.0},
        past=[np.log(np.full(4, 0.25))],
    )
    assert (found[rates > rates.mean() + 1e-6] > np.log(1.2) - 0.02).all()
    assert (found[rates < rates.mean() - 1e-6] < np.log(0.8) + 0.02).all()


def test_rlhf_climbs_to_the_base_tilted_by_its_reward():
    # a policy gradient is followed, not minimised: R is fixed in each step
    uniform = torch.full((4,), 0.25, dtype=torch.float64).log()
    beta, base = 0.5, torch.from_numpy(BASE.log)
    of = RLHF(beta=beta)
    reward = torch.from_numpy(of.rewards(CYCLIC, np.zeros((1, 4))))
    logits = uniform.clone().requires_grad_()
    for _ in range(4000):
        loss = of.loss(
            objectives.Responses(
                log_ratio=logits.log_softmax(0) - uniform,
                opponent=uniform,
                win_rate=reward,
                demonstration=torch.zeros(4, dtype=torch.bool),
                references=(base - uniform)[None],
                reward=reward,
                prompt=torch.zeros(4, dtype=torch.int64),
                log_partition=torch.zeros(1, dtype=torch.float64),
                winner=torch.tensor([0]),
                loser=torch.tensor([1]),
            )
        ).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 0.5 * gradient).detach().requires_grad_()
    torch.testing.assert_close(
        logits.detach().log_softmax(0), (base + reward / beta).log_softmax(0), atol=1e-5, rtol=0
    )


def test_the_trainer_hands_the_reference_policies_to_the_loss(tmp_path):
    log_weights = [0.7, -0.3, 0.1, -0.6]
    algorithm = {"type": "egpo", "eta": ETA, "tau": TAU}
    rates = own_win_rates(CYCLIC, np.array(log_weights))
    found, before = trained_log_ratio(
        tmp_path, log_weights, [(range(4), rates)], algorithm, past=[EARLIER.log, BASE.log]
    )
    expected = least(algorithm, [EARLIER, BASE], policy=as_policy(np.exp(before)))
    np.testing.assert_allclose(found, expected - before, atol=2e-3)
