r"""Heads on a frozen backbone: a reward model, or a general preference model, from features that are computed once.

The feature f of an exchange is what the oracle that will load the folder hands to its head, computed by that oracle's own code
(:mod:`sppo.oracle.reward_model`, :mod:`sppo.oracle.general_preference`), so a trained head means the same there. With t_n the judgment
and P_n the probability by the head, a head minimises

.. math:: -\frac{1}{\sum_n w_n} \sum_n w_n (t_n \log P_n + (1 - t_n) \log(1 - P_n)) + \frac{\lambda}{2} \lVert u \rVert^2,

where u is the head's weight times the features' standard deviations. On a pair with votes, w_n is their number and t_n the share of them for
the first response, a tie counting one half: up to a constant the likelihood of the counts. Elsewhere w_n = 1. :math:`\lambda` is the one of :data:`L2` with the least log loss in cross-validation, by prompts, on the
training pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize
from scipy.special import expit

from sppo import randomness
from sppo.oracle import Oracle, OracleError
from sppo.oracle.general_preference import VALUE_HEAD, GeneralPreference, skew_product
from sppo.oracle.model_folder import check_weights, oracle_folder
from sppo.oracle.reward_model import RewardModel
from sppo.oracle.training.pairs import JudgedPair
from sppo.oracle.transcript import Transcript, load_tokenizer, token_limit
from sppo.policy import load as policy
from sppo.policy.model_files import load_errors
from sppo.progress import Terminal
from sppo.recipe.oracle_training import Head
from sppo.winrates import Array

if TYPE_CHECKING:
    from torch import nn

L2 = (1e-3, 1e-2, 1e-1, 1.0)
TAU = 0.1
"""The temperature of a general preference model, the default of the oracle that loads it."""
_FOLDS, _TEXTS, _STEPS, _RATE = 4, 64, 200, 0.05

Features = Float[Array, "texts H"]
Weight = Float[Array, "d H"]


class Backbone(NamedTuple):
    """A frozen model with the functions that its kind of head needs.

    Attributes:
        features: the features of the responses to prompts, one response for each.
        save: writes the folder of the oracle with a head's weight.
        reload: loads that folder as an oracle.
    """

    features: Callable[[Sequence[str], Sequence[str]], Features]
    save: Callable[[Weight, Path], None]
    reload: Callable[[Path], Oracle]


class Trained(NamedTuple):
    """A trained head.

    Attributes:
        probability: P(a > b) of the responses with the given numbers, among the texts whose features were computed.
        weight: [1, H] of a reward model, [d, H] of a general preference model.
        l2: the strength of the penalty.
        cross_validation: the mean log loss by strength.
    """

    probability: Callable[[Any, Any], Array]
    weight: Weight
    l2: float
    cross_validation: dict[str, float]


def load(head: Head) -> Backbone:
    """The backbone, loaded.

    Raises:
        OracleError: it does not load, or other weights than a head's would be random.
    """
    return _reward_model(head) if head.type == "reward_model" else _general_preference(head)


class Texts:
    """The distinct exchanges of some pairs, and their features.

    Args:
        pairs: the pairs.
    """

    def __init__(self, pairs: Sequence[JudgedPair]) -> None:
        both = [(pair.prompt, text) for pair in pairs for text in (pair.response_a, pair.response_b)]
        self.exchanges = list(dict.fromkeys(both))
        self.number = {exchange: n for n, exchange in enumerate(self.exchanges)}

    def of(self, pairs: Sequence[JudgedPair]) -> tuple[Any, Any]:
        """The numbers of the two responses of each pair."""
        first = [self.number[pair.prompt, pair.response_a] for pair in pairs]
        return np.array(first), np.array([self.number[pair.prompt, pair.response_b] for pair in pairs])

    def features(self, backbone: Backbone, folder: Path, terminal: Terminal) -> Features:
        """The features; parts that are in the folder from an interrupted training are read."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = []
        order = sorted(range(len(self.exchanges)), key=lambda n: sum(map(len, self.exchanges[n])))
        with terminal.bar("features", len(order), "texts") as advance:
            for start in range(0, len(order), _TEXTS):
                path = folder / f"{start}.npy"
                chosen = [self.exchanges[n] for n in order[start : start + _TEXTS]]
                if not path.is_file():
                    found = backbone.features([prompt for prompt, _ in chosen], [text for _, text in chosen])
                    temporary = path.with_name(f".{start}.tmp.npy")
                    np.save(temporary, found.astype(np.float32))
                    os.replace(temporary, path)
                parts.append(np.load(path))
                advance(len(chosen))
        sorted_features = np.concatenate(parts).astype(np.float64)
        features = np.empty_like(sorted_features)
        features[order] = sorted_features
        return features


def fit(head: Head, texts: Texts, features: Features, pairs: Sequence[JudgedPair], seed: int) -> Trained:
    """Fit a head to judged pairs."""
    a, b = texts.of(pairs)
    target = np.array([pair.probability for pair in pairs])
    weight = np.array([pair.judgments for pair in pairs], dtype=np.float64)
    used = np.unique(np.concatenate([a, b]))
    scale = features[used].std(axis=0)
    scaled = features / np.where(scale > 0, scale, 1)
    fitted = _bradley_terry if head.type == "reward_model" else _skew_symmetric

    def probability(u: Weight) -> Callable[[Any, Any], Array]:
        return lambda first, second: _probability(head, scaled[first] @ u.T, scaled[second] @ u.T)

    def trained_on(places: Any, l2: float) -> Weight:
        return fitted(head, scaled[a[places]], scaled[b[places]], target[places], weight[places], l2, seed)

    fold = _folds(pairs, seed)
    losses: dict[str, float] = {}
    for l2 in L2 if head.l2 is None else ():
        predicted = np.empty(len(pairs))
        for number in np.unique(fold):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            predicted[outside] = probability(trained_on(inside, l2))(a[outside], b[outside])
        losses[f"{l2:g}"] = _log_loss(predicted, target, weight)
    l2 = head.l2 if head.l2 is not None else min(L2, key=lambda strength: losses[f"{strength:g}"])
    u = trained_on(np.arange(len(pairs)), l2)
    return Trained(probability(u), u / np.where(scale > 0, scale, 1), l2, losses)


def _folds(pairs: Sequence[JudgedPair], seed: int) -> Any:
    """The fold of each pair; all pairs of a prompt are in one."""
    prompts = sorted({pair.prompt for pair in pairs}, key=lambda text: randomness.digest("folds", seed, text))
    number = {prompt: n % min(_FOLDS, len(prompts)) for n, prompt in enumerate(prompts)}
    return np.array([number[pair.prompt] for pair in pairs])


def _log_loss(predicted: Array, target: Array, weight: Array) -> float:
    sure = np.clip(predicted, 1e-12, 1 - 1e-12)
    return float(-np.average(target * np.log(sure) + (1 - target) * np.log(1 - sure), weights=weight))


def _probability(head: Head, first: Array, second: Array) -> Array:
    if head.type == "reward_model":
        return np.asarray(expit(first - second)[..., 0])

    def normalized(v: Array) -> Array:
        return np.asarray(v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12))

    return np.asarray(expit(skew_product(normalized(first), normalized(second)) / TAU))


def _bradley_terry(
    head: Head, first: Array, second: Array, target: Array, weight: Array, l2: float, seed: int
) -> Weight:
    """The weight [1, H] of a reward; the problem is convex."""
    difference = first - second
    share = weight / weight.sum()

    def loss(u: Array) -> tuple[float, Array]:
        score = difference @ u
        value = share @ (np.logaddexp(0, score) - target * score) + l2 / 2 * u @ u
        return float(value), difference.T @ (share * (expit(score) - target)) + l2 * u

    found = optimize.minimize(loss, np.zeros(difference.shape[1]), jac=True, method="L-BFGS-B").x
    return np.asarray(found)[None]


def _skew_symmetric(
    head: Head, first: Array, second: Array, target: Array, weight: Array, l2: float, seed: int
) -> Weight:
    """The weight [d, H] of the embeddings of a general preference model."""
    import torch

    generator = torch.Generator().manual_seed(randomness.seed("train-oracle", seed, "head"))
    u = torch.randn(head.dimensions, first.shape[1], generator=generator) / first.shape[1]
    u.requires_grad_()
    share = weight / weight.mean()
    a, b, t, w = (torch.tensor(values, dtype=torch.float32) for values in (first, second, target, share))
    optimizer = torch.optim.Adam([u], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        embedded = (torch.nn.functional.normalize(values @ u.T, dim=-1) for values in (a, b))
        score = skew_product(*embedded) / TAU
        loss = torch.nn.functional.binary_cross_entropy_with_logits(score, t, w) + l2 / 2 * u.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return np.asarray(u.detach().double().numpy())


def _reward_model(head: Head) -> Backbone:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = oracle_folder(head.model, head.revision)
    with load_errors(f"head.model: {head.model}: does not load as a backbone", OracleError), policy.quiet():
        config = AutoConfig.from_pretrained(folder, num_labels=1)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    names = [
        name
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and part.out_features == 1
    ]
    if not names:
        raise OracleError(
            f"head.model: {head.model}: {type(model).__name__} has no linear head with one score"
        )
    own = names[-1]
    missing = [name for name in report["missing_keys"] if not name.startswith(f"{own}.")]
    check_weights(f"head.model: {head.model}", model, {**report, "missing_keys": missing})
    tokenizer = load_tokenizer(folder)
    linear: nn.Linear = model.get_submodule(own)
    model.set_submodule(own, torch.nn.Identity())
    transcript = Transcript(tokenizer, token_limit(head.max_tokens, config, tokenizer))
    reader = RewardModel(model.to(policy.default_device()).eval(), transcript, head.batch_tokens)

    def save(weight: Weight, output: Path) -> None:
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(weight))
            if linear.bias is not None:
                linear.bias.zero_()
        model.set_submodule(own, linear)
        with policy.quiet():
            model.save_pretrained(output)
            tokenizer.save_pretrained(output)

    return Backbone(
        lambda prompts, responses: reader.outputs(prompts, [[text] for text in responses])[:, 0],
        save,
        lambda output: RewardModel.from_pretrained(output, max_tokens=head.max_tokens),
    )


def _general_preference(head: Head) -> Backbone:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel

    folder = oracle_folder(head.model, head.revision)
    with load_errors(f"head.model: {head.model}: does not load as a backbone", OracleError), policy.quiet():
        model, report = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    check_weights(f"head.model: {head.model}", model, report)
    tokenizer = load_tokenizer(folder)
    if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
        raise OracleError(
            f"head.model: {head.model}: its tokenizer has no chat template or no EOS, and a general preference model needs"
            " both; take another backbone, or head.type: reward_model"
        )
    hidden = model.config.get_text_config().hidden_size
    transcript = Transcript(tokenizer, token_limit(head.max_tokens, model.config, tokenizer), bos_again=True)
    place = policy.default_device()
    reader = GeneralPreference(
        model.to(place).eval(),
        torch.eye(hidden, device=place),
        None,
        transcript,
        batch_tokens=head.batch_tokens,
    )

    def features(prompts: Sequence[str], responses: Sequence[str]) -> Features:
        with torch.inference_mode():
            return reader.embeddings(prompts, [[text] for text in responses])[0][:, 0]

    def save(weight: Weight, output: Path) -> None:
        with policy.quiet():
            model.save_pretrained(output, max_shard_size="1000GB")
            tokenizer.save_pretrained(output)
        (file,) = output.glob("*.safetensors")
        weights = {**load_file(file), VALUE_HEAD: torch.tensor(weight, dtype=torch.float32)}
        save_file(weights, file, metadata={"format": "pt"})

    return Backbone(
        features,
        save,
        lambda output: GeneralPreference.from_pretrained(output, max_tokens=head.max_tokens, tau=TAU),
    )
