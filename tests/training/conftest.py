import pytest
from training_jobs import OPPONENT, examples_table

from sppo import recipe
from sppo.algorithms.sppo import SPPO
from sppo.policy import load as policies
from sppo.rundir.shards import write_shard
from sppo.training import TrainingJob


@pytest.fixture
def job(tiny_model, tmp_path):
    folder = tiny_model("llama-3")
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
