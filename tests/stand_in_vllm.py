"""A stand-in for the package vllm, small and quick, which the real process of an engine can import in vLLM's place.

It draws tokens from the request's seed and the first byte of the model's weights. A prompt that begins with a negative token is
never finished.
"""

import os
from pathlib import Path

_FILES = {
    "__init__.py": """
class EngineArgs:
    def __init__(self, **arguments):
        self.arguments = arguments

class SamplingParams:
    def __init__(self, n, seed, output_kind, max_tokens, stop_token_ids, **settings):
        self.n, self.seed, self.max_tokens, self.stop = n, seed, max_tokens, stop_token_ids[0]
""",
    "inputs.py": "TokensPrompt = dict",
    "platforms.py": """
class current_platform:
    is_cpu = staticmethod(lambda: True)
""",
    "sampling_params.py": "class RequestOutputKind: FINAL_ONLY = 1",
    "v1/engine/llm_engine.py": """
import random, time
from pathlib import Path
from types import SimpleNamespace as Record

class LLMEngine:
    @classmethod
    def from_engine_args(cls, args):
        if "no_such" in args.arguments:
            raise TypeError("no_such is no argument")
        engine = cls()
        engine.vllm_config = Record(scheduler_config=Record(max_num_seqs=args.arguments.get("max_num_seqs", 4)))
        engine.requests = []
        engine.collective_rpc("reload_weights", {"weights_path": args.arguments["model"]})
        return engine

    def collective_rpc(self, method, kwargs=None):
        if method == "reload_weights":
            self.weights = Path(kwargs["weights_path"], "model.safetensors").read_bytes()[0]

    def reset_prefix_cache(self):
        return not self.requests

    def has_unfinished_requests(self):
        return bool(self.requests)

    def add_request(self, name, prompt, params):
        self.requests.append((name, prompt["prompt_token_ids"], params))

    def step(self):
        if self.requests[0][1][0] < 0:
            time.sleep(0.05)
            return []
        name, _, params = self.requests.pop(0)
        return [Record(request_id=name, finished=True, outputs=[self.response(k, params) for k in range(params.n)])]

    def response(self, k, params):
        generator = random.Random(params.seed + k + self.weights)
        length = generator.randrange(1, params.max_tokens)
        tokens = [generator.randrange(10, 100) for _ in range(length)] + [params.stop]
        return Record(
            index=k, token_ids=tokens, finish_reason="stop", logprobs=[{token: Record(logprob=-2.0)} for token in tokens]
        )
""",
}


def write(folder: Path) -> None:
    """Write the package into a folder, which is to stand on the path that Python imports from."""
    for name, source in _FILES.items():
        file = folder / "vllm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)


def environment(folder: Path) -> dict[str, str]:
    """This process's environment, in which programs find the package in a folder."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}
