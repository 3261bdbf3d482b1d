"""The time that sampling without barriers saves: the idle share of the batch, and annotation beside sampling.

    OMP_NUM_THREADS=1 python measurements/overlap.py --idle [--prompts 256] [--shard 32]
    OMP_NUM_THREADS=1 python measurements/overlap.py --annotation [--policy FOLDER] [--prompts 64] [--repeats 3]

Its figures stand in docs/experiments.md under "No waiting between shards". The idle share counts steps of the sampler, not
seconds, so other work on the machine does not change it: 1 - (rows that are running) / (the most rows that ran), over all
steps. The second measurement needs a quiet machine: a judge on this machine takes 200 ms for each answer, and so many requests
are in flight that annotation alone takes as long as sampling alone. Both use prompts of ../shared, and instruct-6m of there unless
another policy is given.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rich.console import Console

from sppo import sampling
from sppo.executors.local import Local
from sppo.policy import chat_format
from sppo.progress import Terminal
from sppo.recipe import parse, parse_sampling
from sppo.rundir.folder import RunFolder
from sppo.rundir.shards import file_digest
from sppo.sampling import PromptBatch
from sppo.sampling.key_values import Cohorts
from sppo.stages.annotate import Annotate
from sppo.stages.prompts import all_prompts
from sppo.stages.run import Run
from sppo.stages.sample import Sample
from sppo.stages.stage import make_together

SHARED = Path(__file__).resolve().parents[2] / "shared"
JUDGE_SECONDS = 0.2
FIRST = 16
"""The number of requests in flight of the first annotation, which shows how many make it as long as sampling."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--annotation", action="store_true")
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--policy", type=Path, default=SHARED / "models/instruct-6m")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument(
        "--shard", type=int, help="prompts of a shard: 32, and 8 with --annotation, unless given"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"{SHARED} is not there: this measurement needs its model and prompts")
    if options.idle:
        idle(options, texts(options.prompts or 256))
    if options.annotation:
        annotation(options, texts(options.prompts or 64))


def texts(count: int) -> list[str]:
    """The first UltraFeedback prompts that fit into the model's context."""
    with (SHARED / "data/prompts/ultrafeedback/prompts.jsonl").open(encoding="utf-8") as file:
        found = [json.loads(line)["prompt"] for line in file]
    return [text for text in found if len(text) < 1000][:count]


def idle(options: argparse.Namespace, prompts: list[str]) -> None:
    chat = chat_format.load(str(options.policy))
    k, shard, max_new_tokens = options.k, options.shard or 32, options.max_new_tokens
    ids = [chat.render([{"role": "user", "content": text}]).token_ids for text in prompts]
    ids = [prompt for prompt in ids if len(prompt) + max_new_tokens <= 1024]
    settings = parse_sampling({"engine": "transformers", "k": k, "max_new_tokens": max_new_tokens})
    running: list[int] = []

    class Counted(Cohorts):
        def step(self, tokens: Any) -> Any:
            running.append(self.rows)
            return super().step(tokens)

    for crosses in (False, True):
        sampler: Any = sampling.load(
            settings, options.policy, stop_ids=chat.stop_ids, decode=chat.decode, dtype="float32"
        )
        sampler._key_values, sampler.crosses_batches = Counted, crosses
        batches = [
            PromptBatch(
                ids[start : start + shard], [(n,) for n in range(start, min(start + shard, len(ids)))]
            )
            for start in range(0, len(ids), shard)
        ]
        running.clear()
        tokens = sum(
            len(response.token_ids)
            for _, drawn in sampler.stream(batches, k)
            for of_prompt in drawn
            for response in of_prompt
        )
        name = "across shards" if crosses else "shard by shard"
        share = 1 - sum(running) / (max(running) * len(running))
        print(
            f"{name}: {len(ids)} prompts, K = {k}, {tokens:,} tokens in {len(running):,} steps, at most"
            f" {max(running)} rows; idle share {share:.3f}",
            flush=True,
        )


class _Judge(BaseHTTPRequestHandler):
    """Prefers the answer that is shown second where the texts' bytes add up to an odd number."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(JUDGE_SECONDS)
        text = "[[B]]" if sum(json.dumps(body["messages"]).encode()) % 2 else "[[A]]"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: Any) -> None:
        pass


def _serve(port: Any) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Judge)
    server.daemon_threads = True
    port.put(server.server_address[1])
    server.serve_forever()


def annotation(options: argparse.Namespace, prompts: list[str]) -> None:
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    server = context.Process(target=_serve, args=(port,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{port.get()}/v1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "prompts.jsonl"
        source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
        warm = seconds(options, folder / "warm", source, url, FIRST, together=False)
        # Annotation takes what the judge takes, which the number of requests in flight divides, and what the client takes.
        of_judge = len(prompts) * options.k * (options.k - 1) * JUDGE_SECONDS
        of_client = warm["annotate"] - of_judge / FIRST
        concurrency = max(1, round(of_judge / (warm["sample"] - of_client)))
        print(f"{concurrency} requests in flight")
        ratios = []
        for repeat in range(options.repeats):
            apart = seconds(options, folder / f"apart-{repeat}", source, url, concurrency, together=False)
            beside = seconds(options, folder / f"beside-{repeat}", source, url, concurrency, together=True)
            assert apart["digests"] == beside["digests"], "what is stored differs"
            both = apart["sample"] + apart["annotate"]
            ratios.append(beside["both"] / both)
            print(
                f"sample {apart['sample']:.1f} s, annotate {apart['annotate']:.1f} s, one after the other {both:.1f} s,"
                f" side by side {beside['both']:.1f} s: {ratios[-1]:.2f}",
                flush=True,
            )
    server.kill()
    print(f"median ratio {statistics.median(ratios):.2f}")


def seconds(
    options: argparse.Namespace, folder: Path, source: Path, url: str, concurrency: int, *, together: bool
) -> dict[str, Any]:
    """The seconds of both stages in a new run, and the digests of what they store."""
    recipe = parse(
        {
            "iterations": 1,
            "policy": {"model": str(options.policy)},
            "prompts": {"train": str(source), "held_out": 1, "invalid": "skip"},
            "sampling": {"k": options.k, "max_new_tokens": options.max_new_tokens},
            "oracle": {
                "type": "judge",
                "verdict": "samples",
                "samples": 1,
                "endpoint": {"url": url, "model": "judge", "concurrency": concurrency},
            },
            "shard_prompts": options.shard or 8,
        }
    )
    run = Run(recipe, RunFolder(folder), Terminal(Console(quiet=True)), Local(recipe))
    prompts = list(all_prompts(run))
    for each in prompts:
        each.make()
    sample = Sample(run, 1, prompts[-1], run.base)
    annotate = Annotate(run, 1, sample)
    found: dict[str, Any] = {}
    groups = {"both": [sample, annotate]} if together else {"sample": [sample], "annotate": [annotate]}
    for name, stages in groups.items():
        begin = time.perf_counter()
        make_together(stages)
        found[name] = time.perf_counter() - begin
    found["digests"] = [
        file_digest(path)
        for stage in (sample, annotate)
        for path in sorted(stage.files.folder.glob("part-*"))
    ]
    return found


if __name__ == "__main__":
    main()
