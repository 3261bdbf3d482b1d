"""CPU seconds that a second `sppo run` on a finished run folder takes, and what it imports.

    python measurements/finished_run.py [--prompts 60000] [--tokens 100] [--folder FOLDER]

The folder is written by the loop itself, with an executor that invents the rows of every shard instead of computing
them, so that a run of 60,000 prompts exists within minutes. Fingerprints, records, digests and metrics are genuine; the
texts and the numbers are not. The policy is the embedded one, whose weights are small: a policy of B gigabytes adds the
time in which B gigabytes are read and hashed, for each iteration.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml
from rich.console import Console

from sppo import selfplay
from sppo.progress import Terminal
from sppo.recipe import load
from sppo.rundir.folder import RunFolder
from sppo.rundir.tables import (
    EvaluationRow,
    PreferencesRow,
    PromptRow,
    ResponseRecord,
    ResponsesRow,
    SelectedResponse,
    TrainingRow,
    WinRate,
    read_rows,
    to_table,
)
from sppo.tinyworld import POLICY

K = 5
ITERATIONS = 3


class InventingExecutor:
    """Writes shards of the right schema and size without computing anything."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.random = np.random.default_rng(0)

    def check(self) -> None:
        """Nothing is computed, so nothing can be refused."""

    def run(self, jobs, models, terminal, on_made) -> None:
        """Publish invented rows for every missing shard."""
        for job in jobs:
            for shard in job.shards:
                if not shard.is_whole():
                    shard.write(self._table(job, shard.sources))
            on_made(job)

    def training_devices(self) -> int:
        """The number of training processes."""
        return 1

    def train(self, job, on_step, say) -> None:
        """Publish a copy of the base policy."""
        shutil.copytree(POLICY, job.output)
        on_step(job.steps.kept)

    def _table(self, job, sources) -> pa.Table:
        if job.kind == "sample":
            return to_table(
                [self._responses(row, job.work.k) for row in read_rows(sources[0], PromptRow)], ResponsesRow
            )
        rows = read_rows(sources[0], ResponsesRow)
        if job.kind == "annotate":
            compared = [PreferencesRow(row.prompt_id, self._matrix(), {}) for row in rows]
            return to_table(compared, PreferencesRow)
        if job.kind == "select":
            return to_table([self._training(row, job.work.fingerprint) for row in rows], TrainingRow)
        evaluated = [
            EvaluationRow(
                row.prompt_id,
                [response.log_prob - 1 for response in row.responses],
                [
                    WinRate(opponent, oracle, 0.75)
                    for opponent in job.work.opponents
                    for oracle in job.work.oracles
                ],
            )
            for row in rows
        ]
        return to_table(evaluated, EvaluationRow)

    def _responses(self, row: PromptRow, k: int) -> ResponsesRow:
        log_probs = -self.random.exponential(size=(k, self.tokens))
        token_ids = self.random.integers(300, size=(k, self.tokens))
        responses = [
            ResponseRecord(ids, " ".join(map(str, ids)), "stop", float(terms.sum()), terms.tolist())
            for ids, terms in zip(token_ids.tolist(), log_probs, strict=True)
        ]
        return ResponsesRow(row.prompt_id, row.messages, row.prompt_token_ids, None, responses)

    def _matrix(self) -> np.ndarray:
        upper = np.triu(self.random.random((K, K)), 1)
        return upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(K)

    def _training(self, row: ResponsesRow, opponent: str) -> TrainingRow:
        responses = [
            SelectedResponse(k, row.responses[k].token_ids, rate, row.responses[k].log_prob, [], None, 0.0)
            for k, rate in ((0, 0.75), (1, 0.25))
        ]
        return TrainingRow(row.prompt_id, row.prompt_token_ids, opponent, [], 5.0, responses)


def write_finished_run(folder: Path, prompts: int, tokens: int) -> None:
    """Write the prompts, the recipe and the finished run."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for number in range(prompts):
            file.write(json.dumps({"prompt": f"Describe fox number {number} in a sentence."}) + "\n")
    recipe = {
        "iterations": ITERATIONS,
        "policy": {"model": "tinyworld"},
        "prompts": {"train": str(folder / "prompts.jsonl"), "held_out": 200},
        "sampling": {"k": K, "max_new_tokens": 96},
        "oracle": {"type": "panel"},
        "guard": {"on_failure": "keep"},
        "cpu_threads": 1,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with open(os.devnull, "w") as nowhere:
        terminal = Terminal(Console(file=nowhere))
        run = RunFolder(folder / "run")
        selfplay.run(load(folder / "recipe.yaml"), run, terminal, InventingExecutor(tokens))


def main() -> None:
    """Write the folder where it is missing, run `sppo run` on it twice, and print the seconds of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=60_000)
    parser.add_argument("--tokens", type=int, default=100, help="tokens of each invented response")
    parser.add_argument("--folder", type=Path, default=None, help="keep the folder here")
    arguments = parser.parse_args()
    folder = (arguments.folder or Path(tempfile.mkdtemp())).resolve()
    if not (folder / "run" / "summary.json").is_file():
        begin = time.perf_counter()
        write_finished_run(folder, arguments.prompts, arguments.tokens)
        print(f"written in {time.perf_counter() - begin:.0f} s")
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{len(files)} files, {size / 1e6:,.0f} MB")
    command = ["run", str(folder / "recipe.yaml"), "--run-dir", str(folder / "run"), "--no-report"]
    code = (
        "import sys\nfrom sppo.cli.main import app\n"
        "try:\n    app()\nfinally:\n"
        "    print('imported:', *sorted({'torch', 'transformers', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    for _ in range(2):
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{spent:.2f} CPU s, {time.perf_counter() - begin:.2f} s by the clock; {done.stderr.strip()}")
    if arguments.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
