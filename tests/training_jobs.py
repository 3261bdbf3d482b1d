"""Trees of tokens, tables of examples and the results of training, for the tests of training."""

import json

import torch
from transformers import AutoModelForCausalLM

from sppo import recipe
from sppo.algorithms.sppo import SPPO
from sppo.policy import load as policies
from sppo.rundir.shards import table, write_shard
from sppo.rundir.tables import TRAINING
from sppo.training import TrainingJob
from sppo.training.log_probs import Tree, log_probs

FAMILIES = ["llama-3", "mistral", "qwen2", "qwen3", "gemma-2", "phi-3"]
PROMPTS = [[5, 6, 7], list(range(10, 30)), [8, 9, 10, 11]]
RESPONSES = [[40, 41, 42, 3], [50, 3], list(range(60, 90))]


TREES = [
    Tree(PROMPTS[0], [RESPONSES[0], RESPONSES[1], list(range(100, 117))]),
    Tree(PROMPTS[1], [RESPONSES[2]]),
    Tree(PROMPTS[2], [[7], [9, 3], list(range(200, 240)), [9, 3]]),
]


OPPONENT = "pi_1"


def examples_table(
    model, count=12, win_rate=lambda number, k: 0.9 if k == 0 else 0.1, log_partition=lambda number: 1.0
):
    generator = torch.Generator().manual_seed(0)

    def ids(low, high):
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(10, 390, (length,), generator=generator).tolist()

    rows = []
    for number in range(count):
        prompt, responses = ids(3, 12), [ids(2, 15), ids(2, 15)]
        (values,) = log_probs(model, [Tree(prompt, responses)], pack_tokens=10_000)
        rows.append(
            {
                "prompt_id": f"p{number}",
                "prompt_token_ids": prompt,
                "opponent": OPPONENT,
                "log_partition": log_partition(number),
                "responses": [
                    {
                        "k": k,
                        "token_ids": response,
                        "win_rate": win_rate(number, k),
                        "opponent_log_prob": value,
                    }
                    for k, (response, value) in enumerate(zip(responses, values))
                ],
            }
        )
    return table(rows, TRAINING)


def metrics(job):
    with open(job.metrics) as file:
        return [json.loads(line) for line in file]


def weights(job):
    return AutoModelForCausalLM.from_pretrained(job.output).state_dict()


def assert_same_weights(one, two, **tolerance):
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def jobs_on(folder, tmp_path):
    """A function that makes jobs, which train the policy in a folder."""
    model = policies.load(folder, dtype="float32", device="cpu")

    def make(name="run", count=12, win_rate=None, log_partition=None, algorithm=None, **training):
        shard = tmp_path / f"part-{name}.parquet"
        given = {"win_rate": win_rate, "log_partition": log_partition}
        values = {key: value for key, value in given.items() if value is not None}
        write_shard(shard, examples_table(model, count, **values), {})
        work = tmp_path / f"work-{name}"
        work.mkdir()
        return TrainingJob(
            policy=str(folder),
            opponent=OPPONENT,
            shards=[str(shard)],
            output=str(tmp_path / f"out-{name}"),
            work=str(work),
            metrics=str(tmp_path / f"{name}.jsonl"),
            prompts=count,
            seed=7,
            dtype="float32",
            attn_implementation=None,
            trust_remote_code=False,
            chat_template=None,
            algorithm=SPPO(**(algorithm or {"eta": 2.0})),
            settings=recipe.Training(**{"learning_rate": 1e-3, "batch_prompts": 4, "epochs": 2, **training}),
        )

    return make
