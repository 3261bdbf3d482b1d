import json
import subprocess
import sys

import pytest

# Sampling 60,000 prompts x 5 with a model that takes no time, through the real stage.
SCRIPT = """
import json, os, re, sys
from pathlib import Path
from rich.console import Console
from sppo.stages.models import Models
from sppo.progress import Terminal
from sppo.recipe import parse
from sppo.rundir.folder import RunFolder
from sppo.sampling import Response, Sampler
from sppo.executors.local import Local
from sppo.stages.prompts import Prompts
from sppo.stages.run import Run
from sppo.stages.sample import Sample

class Instant(Sampler):
    def close(self):
        pass

    def sample(self, prompts, keys, k, on_response=lambda count: None):
        on_response(k * len(prompts))
        return [[Response([7 + (number + i) % 900 for i in range(200)] + [5], "stop", [-0.5] * 201) for number in range(k)]
                for _ in prompts]

Models._load_sampler = lambda self, policy: Instant()
folder = Path(sys.argv[1])
with open(folder / "prompts.jsonl", "w") as file:
    for number in range(60_000):
        text = f"Prompt number {number}. " + "Describe a fox in the forest, please. " * 12
        file.write(json.dumps({"prompt": text}) + "\\n")
recipe = parse({
    "iterations": 1,
    "policy": {"model": "tinyworld"},
    "prompts": {"train": str(folder / "prompts.jsonl"), "held_out": 10},
    "sampling": {"k": 5, "max_new_tokens": 300},
    "oracle": {"type": "panel"},
})
run = Run(recipe, RunFolder(folder / "run"), Terminal(Console(file=open(os.devnull, "w"))), Local(recipe))
import torch, transformers

# Not getrusage: its peak is also that of the process that started this one.
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024

before = peak()
prompts = Prompts(run, 1)
prompts.make()
Sample(run, 1, prompts, run.base).make()
record = json.loads((folder / "run" / "iter-1" / "sample.json").read_text())
print(json.dumps({"before": before, "peak": peak(), "responses": record["responses_drawn"]}))
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_sampling_streams_sixty_thousand_prompts_in_less_than_a_gigabyte(tmp_path):
    found = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    measured = json.loads(found.stdout.splitlines()[-1])
    assert measured["responses"] == 59_990 * 5
    assert measured["peak"] < 1e9, measured
