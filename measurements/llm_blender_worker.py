"""The process in which measurements/oracles.py runs the original PairRM: llm-blender 0.0.2 in its own environment.

It reads a JSON request from each line, {"prompts": [...], "responses": [[...]], "batch_size": 1, "cpu_time": false}, and
answers with {"seconds": ..., "scores": [N][K]}. It imports nothing of sppo. The environment is made by:

    python3 -m venv VENV
    VENV/bin/pip install torch==2.13.0 numpy
    VENV/bin/pip install --no-deps llm-blender==0.0.2 transformers==4.38.2 tokenizers==0.15.2
    VENV/bin/pip install 'huggingface-hub<1' accelerate==0.27.2 safetensors sentencepiece protobuf \
        dataclasses-json regex requests pyyaml filelock packaging tqdm
"""

import contextlib
import json
import os
import sys
import time

os.environ["CUDA_VISIBLE_DEVICES"] = ""
answers = sys.stdout
with contextlib.redirect_stdout(sys.stderr):
    import llm_blender
    import torch
    import transformers

    torch.set_num_threads(int(sys.argv[2]))
    blender = llm_blender.Blender()
    blender.loadranker(sys.argv[1], device="cpu", fp16=False)


def main():
    versions = f"llm-blender 0.0.2, transformers {transformers.__version__}, torch {torch.__version__}"
    print(json.dumps({"versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            clock = time.process_time if request["cpu_time"] else time.perf_counter
            began = clock()
            scores = blender.rank(
                request["prompts"],
                request["responses"],
                return_scores=True,
                batch_size=request["batch_size"],
                disable_tqdm=True,
            )
            seconds = clock() - began
        print(json.dumps({"seconds": seconds, "scores": scores.tolist()}), file=answers, flush=True)


main()
