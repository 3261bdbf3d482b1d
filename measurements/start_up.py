"""The processor seconds that the measurements of a model take when it is loaded, for sampling and for training.

python measurements/start_up.py FOLDER
"""

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sppo.policy import load as policies
from sppo.sampling.probe import fastest_right_way
from sppo.training.log_probs import measure_capabilities, measure_noise


def processor_seconds(compute: Callable[[], Any]) -> tuple[Any, float]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = compute()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(folder: str) -> None:
    model, loading = processor_seconds(lambda: policies.load(Path(folder), dtype="float32", device="cpu"))
    way, sampling = processor_seconds(lambda: fastest_right_way(model))
    model.set_attn_implementation("sdpa")
    capabilities, training = processor_seconds(lambda: measure_capabilities(model))
    _, noise = processor_seconds(lambda: measure_noise(model, capabilities))
    print(f"loading: {loading:.2f} s")
    print(f"sampling, {way.__name__}: {sampling:.2f} s")
    print(f"training, {capabilities.attention}: {training:.2f} s")
    print(f"noise: {noise:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1])
