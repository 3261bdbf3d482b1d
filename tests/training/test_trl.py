"""The trainer's losses and gradients against TRL's DPOTrainer: the same model, tokens and pairs, its own code."""

import numpy as np
import pytest
import torch
import transformers
import trl_peer

from sppo.algorithms.dpo import DPO
from sppo.algorithms.ipo import IPO
from sppo.algorithms.sppo import SPPO
from sppo.objectives import Responses
from sppo.rundir.shards import table
from sppo.rundir.tables import TRAINING
from sppo.training.examples import StepBatches
from sppo.training.log_probs import Tree, log_probs
from sppo.training.schedule import plan
from sppo.training.trainer import SelfPlayTrainer
from sppo.winrates import win_rates

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
EOS = 2


def model_of(seed):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def moved(model):
    """A policy that has left its opponent: the same noise on all its weights each time."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def draw(lengths):
    generator = np.random.default_rng(0)
    return [
        (
            generator.integers(3, 300, prompt).tolist(),
            *([*generator.integers(3, 300, length - 1).tolist(), EOS] for length in of_pair),
        )
        for prompt, *of_pair in lengths
    ]


def theirs(pairs, folder, **settings):
    """TRL's loss and gradients; its references are those of the model before it moved."""
    peer = trl_peer.trainer(
        model_of(0),
        pairs,
        folder,
        eos=EOS,
        use_cpu=True,
        precompute_ref_log_probs=True,
        per_device_train_batch_size=len(pairs),
        dataloader_pin_memory=False,
        **settings,
    )
    peer.current_gradient_accumulation_steps = 1
    (batch,) = peer.get_train_dataloader()
    loss = peer.training_step(moved(peer.model), batch)
    return float(loss), gradients(peer.model)


def ours(pairs, folder, algorithm, pack_tokens=64):
    model = model_of(0).eval()
    trees = [Tree(prompt, [chosen, rejected]) for prompt, chosen, rejected in pairs]
    opponent = log_probs(model, trees, pack_tokens=1000)
    loaded = algorithm
    rows = [
        {
            "prompt_id": str(number),
            "prompt_token_ids": tree.prompt,
            "opponent": "pi_1",
            "log_partition": loaded.compute_log_partition(np.array([1.0, 0.0])),
            "responses": [
                {"k": k, "token_ids": ids, "win_rate": rate, "opponent_log_prob": value}
                for k, (ids, rate, value) in enumerate(zip(tree.responses, (1.0, 0.0), opponent[number]))
            ],
        }
        for number, tree in enumerate(trees)
    ]
    steps = plan(len(rows), batch_prompts=len(rows), epochs=1, keep_epochs=None, warmup_ratio=0)
    batches = StepBatches(table(rows, TRAINING), batch_prompts=len(rows), steps=steps, seed=0)
    trainer = SelfPlayTrainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder), max_steps=1, use_cpu=True, report_to="none", remove_unused_columns=False
        ),
        batches=batches,
        algorithm=loaded,
        pack_tokens=pack_tokens,
        mixed_precision="no",
    )
    loss = trainer.training_step(moved(model), {"step": batches[0]})
    return float(loss), gradients(model)


def gradients(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()


@pytest.mark.parametrize(
    ("settings", "algorithm"),
    [
        # eta is 1/beta, and the loss is the sum over the pair
        ({"loss_type": "sppo_hard", "beta": 0.4}, SPPO(eta=2.5, reduction="sum")),
        ({"loss_type": "sigmoid", "beta": 0.3}, DPO(beta=0.3)),
    ],
)
def test_losses_and_gradients_are_trls(tmp_path, settings, algorithm):
    pairs = draw([(5, 7, 12), (9, 3, 4), (3, 20, 2), (17, 6, 6)])
    loss, gradient = theirs(pairs, tmp_path / "trl", **settings)
    for pack_tokens in (1, 64, 1000):
        mine, my_gradient = ours(pairs, tmp_path / f"sppo-{pack_tokens}", algorithm, pack_tokens)
        assert mine == pytest.approx(loss, rel=1e-5)
        assert (my_gradient - gradient).norm() <= 1e-5 * gradient.norm()


def test_ipo_is_trls_where_its_division_by_length_is_one_number(tmp_path):
    """TRL takes log-ratios per token: with responses of n tokens its beta is ours over n, its loss ours over n^2."""
    length, beta = 8, 0.2
    pairs = draw([(5, length, length), (9, length, length), (3, length, length)])
    loss, gradient = theirs(pairs, tmp_path / "trl", loss_type="ipo", beta=beta)
    mine, my_gradient = ours(pairs, tmp_path / "sppo", IPO(tau=beta / length))
    assert mine / length**2 == pytest.approx(loss, rel=1e-5)
    assert (my_gradient / length**2 - gradient).norm() <= 1e-5 * gradient.norm()


def test_with_the_released_codes_win_rates_the_loss_is_the_released_codes():
    """Scores to probabilities of winning, best and worst, the mean of both squares, by its formulas written out."""
    scores = np.random.default_rng(1).normal(size=(6, 5)) * 2
    log_ratios = np.random.default_rng(2).normal(size=(6, 5))
    beta = 0.001
    expected, found = [], []
    algorithm = SPPO(eta=1 / beta, reduction="mean")
    for score, ratio in zip(scores, log_ratios):
        wins = [np.mean([1 / (1 + np.exp(other - one)) for other in score]) for one in score]
        best, worst = int(np.argmax(score)), int(np.argmin(score))
        expected.append(
            0.5 * (ratio[best] - (wins[best] - 0.5) / beta) ** 2
            + 0.5 * (ratio[worst] - (wins[worst] - 0.5) / beta) ** 2
        )
        rate = win_rates(1 / (1 + np.exp(score[None, :] - score[:, None])))
        chosen = [best, worst]
        responses = Responses(
            log_ratio=torch.from_numpy(ratio[chosen]),
            opponent=torch.zeros(2, dtype=torch.float64),
            win_rate=torch.from_numpy(rate[chosen]),
            demonstration=torch.zeros(2, dtype=torch.bool),
            references=torch.zeros((0, 2), dtype=torch.float64),
            reward=torch.full((2,), torch.nan, dtype=torch.float64),
            prompt=torch.tensor([0, 0]),
            log_partition=torch.tensor([algorithm.compute_log_partition(rate)], dtype=torch.float64),
            winner=torch.tensor([0]),
            loser=torch.tensor([1]),
        )
        found.append(float(algorithm.loss(responses)))
    assert found == pytest.approx(expected, rel=1e-6)
