"""The deviation of a judge's probabilities by a real server's log-probabilities from the same model computed here.

    vllm serve MODEL --dtype float32 --max-logprobs 500
    python measurements/judge.py --url http://127.0.0.1:8000/v1 --model MODEL

Its figures stand in docs/experiments.md under "A judge behind a real server". MODEL is a folder. The server has to list
its whole vocabulary only for models that give A, B and C next to no probability, such as random ones.
"""

import argparse
import tempfile
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
import transformers

from sppo import oracle
from sppo.endpoint.exchange import Choice
from sppo.oracle.judge_template import Template, source, verdict_probabilities

PROMPTS = ["What is the capital of France?", "Hello, how are you?"]
RESPONSES = [["Paris.", "The sea.", "a fox"], ["I am well.", "no", ""]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--top-logprobs", type=int, default=440)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        endpoint = {
            "url": given.url,
            "model": given.model,
            "cache": str(Path(folder, "answers.sqlite")),
            "extra_body": {"top_logprobs": given.top_logprobs},
        }
        settings = {"type": "judge", "min_mass": 1e-9, "endpoint": endpoint}
        for _ in range(2):  # the second time from the disk
            judge = oracle.load(settings)
            begin = time.perf_counter()
            found = judge.compare(PROMPTS, RESPONSES)
            print(f"{time.perf_counter() - begin:.2f} s", judge.counts)

    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(given.model).eval()
    template = Template(source(None, "logprobs"), "own")

    def first(prompt: str, a: str, b: str) -> float:
        message = [{"role": "user", "content": template.render(prompt, a, b)}]
        text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            log_probs = model(ids).logits[0, -1].log_softmax(-1)
        tokens = [
            {"token": tokenizer.decode([i]), "logprob": float(log_probs[i])} for i in range(len(tokenizer))
        ]
        first_token = {"token": "", "logprob": 0.0, "top_logprobs": tokens}
        mass = verdict_probabilities(Choice.model_validate({"logprobs": {"content": [first_token]}}))
        return (mass["A"] + mass["C"] / 2) / sum(mass.values())

    worst = 0.0
    for n, (prompt, texts) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        for i, j in permutations(range(len(texts)), 2):
            p = (first(prompt, texts[i], texts[j]) + 1 - first(prompt, texts[j], texts[i])) / 2
            worst = max(worst, abs(found[n, i, j] - p))
    print(f"largest deviation of P {worst:.1e}; P from {np.min(found):.4f} to {np.max(found):.4f}")


if __name__ == "__main__":
    main()
