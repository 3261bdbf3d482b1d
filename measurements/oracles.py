"""The time in which PairRM compares responses, side by side with transformers' own encoder and with llm-blender.

    python measurements/oracles.py --shape xsmall --prompts 2 --repeats 5
    python measurements/oracles.py --prompts 8 --vocabulary 127995 --llm-blender VENV/bin/python --opponents 2

Its figures stand in docs/experiments.md under "PairRM on current transformers". The checkpoint has the shape of a
DeBERTa-v3 and random weights, which do not matter for the speed; pairs have about 690 tokens. The baseline is
transformers' DebertaV2Model with one pair at a time, as SPPO's released code runs PairRM. Repeats alternate, so that all
see the same machine; ratios are ratios of medians. The largest deviation of each row's logits is printed as well.

With --llm-blender the original takes part, in an environment and a process of its own (measurements/llm_blender_worker.py
says how to make it), with batch size 1 as in the released code and its tokenisation included. With --opponents, further
rows compare each response with that number of others only.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from sppo.comparisons import pairs_of_opponents, random_pairs
from sppo.oracle.pairrm import PairRM
from sppo.oracle.pairrm_encoder import deberta
from sppo.oracle.pairrm_input import PREFIXES

SHAPES = {  # hidden, layers, heads, intermediate
    "xsmall": (384, 12, 6, 1536),
    "small": (768, 6, 12, 3072),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}


ORIGINAL = "llm-blender, batch 1"


def make_checkpoint(folder, shape, vocabulary=1000):
    """Write a folder in PairRM's original layout and its backbone's, with random weights and one token per word."""
    backbone = folder / "backbone"
    backbone.mkdir()
    pieces = [(piece, 0.0) for piece in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
    pieces += [(f"▁w{n}", -8.0) for n in range(vocabulary)]
    tokenizer = Tokenizer(models.Unigram(pieces, 3, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    write_tokenizer(tokenizer, backbone)
    hidden, layers, heads, intermediate = SHAPES[shape]
    fields = {
        "vocab_size": len(pieces) + 1 + len(PREFIXES),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "max_position_embeddings": 512,
        "position_buckets": 256,
        "relative_attention": True,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
    }
    (backbone / "config.json").write_text(json.dumps({"model_type": "deberta-v2", **fields}))
    ranker = {"ranker_type": "pairranker", "model_type": "deberta", "model_name": str(backbone)}
    ranker |= {"source_maxlength": 1224, "candidate_maxlength": 412, "n_tasks": 1, "num_pos": 5, "num_neg": 5}
    ranker |= {"sub_sampling_mode": "all_pair", "sub_sampling_ratio": 0.4, "loss_type": "instructgpt"}
    ranker |= {"reduce_type": "linear", "inference_mode": "bubble", "drop_out": 0.05, "fp16": False}
    (folder / "config.json").write_text(json.dumps(ranker))
    torch.manual_seed(0)
    model = deberta.DebertaV2Model(deberta.DebertaV2Config(**fields))
    encoder = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(encoder, backbone / "model.safetensors", {"format": "pt"})
    weights = {f"pretrained_model.{name}": value for name, value in model.state_dict().items()}
    weights["head_layer.1.weight"] = torch.randn(hidden, 2 * hidden) / hidden**0.5
    weights["head_layer.1.bias"] = torch.zeros(hidden)
    weights["head_layer.4.weight"] = torch.randn(1, hidden) / hidden**0.5
    weights["head_layer.4.bias"] = torch.zeros(1)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")


def write_tokenizer(tokenizer, folder):
    """Write the tokenizer so that tokenizers 0.15, which does not know Metaspace's `split`, reads it as well."""
    content = json.loads(tokenizer.to_str())
    content["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "add_prefix_space": True,
        "prepend_scheme": "always",
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    config = {"tokenizer_class": "DebertaV2TokenizerFast", "mask_token": "[MASK]", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make_texts(prompts, k, tokens, seed=0):
    """Draw prompts and responses whose pairs have about `tokens` tokens."""
    random = np.random.default_rng(seed)

    def text(mean):
        return " ".join(f"w{n}" for n in random.integers(0, 1000, int(mean * random.uniform(0.7, 1.3))))

    each = (tokens - 9) / 3
    return [text(each) for _ in range(prompts)], [[text(each) for _ in range(k)] for _ in range(prompts)]


class Plain:
    """transformers' DebertaV2Model in the place of our encoder."""

    def __init__(self, model):
        self.model = model

    @torch.inference_mode()
    def __call__(self, ids, lengths, rows):
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        hidden = self.model(ids, attention_mask=mask).last_hidden_state
        return hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))


def plain(folder, dtype, device):
    oracle = PairRM.from_pretrained(folder, dtype=dtype, batch_pairs=1, device=device)
    oracle._encoder = Plain(oracle._encoder.model)
    return oracle


class Original:
    """llm-blender in a process of its own, one pair at a time; it returns scores, not the matrix of logits."""

    def __init__(self, python, folder, threads):
        worker = Path(__file__).with_name("llm_blender_worker.py")
        environment = {
            "PATH": "",
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "HOME": str(folder),
        }
        self.process = subprocess.Popen(
            [python, str(worker), str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(folder / "llm-blender.log", "w"),  # noqa: SIM115
            text=True,
            env=environment,
        )
        self.log = folder / "llm-blender.log"
        self.versions = self._read()["versions"]

    def scores(self, prompts, responses, cpu_time):
        request = {"prompts": prompts, "responses": responses, "batch_size": 1, "cpu_time": cpu_time}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        return answer["seconds"], np.array(answer["scores"])

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"llm-blender ended:\n{self.log.read_text()[-2000:]}")
        return json.loads(line)


def parse_arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="xsmall")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=690, help="mean number of tokens of a pair")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-pairs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--baseline", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure CPU time, for a machine with other work"
    )
    parser.add_argument(
        "--vocabulary", type=int, default=1000, help="number of words, to which ten tokens are added"
    )
    parser.add_argument(
        "--llm-blender", metavar="PYTHON", help="python of an environment with llm-blender 0.0.2"
    )
    parser.add_argument("--opponents", type=int, help="add rows with this number of comparisons per response")
    return parser.parse_args(given)


def take_turns(runners, repeats, clock):
    """Run each in turn, once more than `repeats` since the first turn warms up; seconds and the last result of each.

    A runner returns its result, or its own seconds and its result if it runs in another process.
    """
    seconds, results = {name: [] for name in runners}, {}
    for repeat in range(repeats + 1):
        for name, run in runners.items():
            began = clock()
            result = run()  # on the CPU when it returns
            taken = clock() - began
            results[name] = result
            if isinstance(result, tuple):
                taken, results[name] = result
            if repeat:
                seconds[name].append(taken)
    return seconds, results


def measure(arguments):
    """Print the rows; the median seconds of each, by its name, are returned."""
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    prompts, responses = make_texts(arguments.prompts, arguments.k, arguments.tokens)
    with tempfile.TemporaryDirectory() as holder:  # until the end: the original reads its own copy
        folder = Path(holder)
        make_checkpoint(folder, arguments.shape, arguments.vocabulary)
        oracles = {"transformers, batch 1": plain(folder, arguments.baseline, arguments.device)}
        for dtype, batch in itertools.product(arguments.dtypes, arguments.batch_pairs):
            oracle = PairRM.from_pretrained(folder, dtype=dtype, batch_pairs=batch, device=arguments.device)
            oracles[f"sppo {dtype}, batch {batch}"] = oracle
        runners, original = {}, None
        if arguments.llm_blender:
            original = Original(arguments.llm_blender, folder, torch.get_num_threads())
            runners[ORIGINAL] = lambda: original.scores(prompts, responses, arguments.cpu_time)
        if arguments.opponents:
            generators = map(np.random.default_rng, range(arguments.prompts))
            pairs = pairs_of_opponents(arguments.k, arguments.opponents)
            wanted = np.stack([random_pairs(arguments.k, pairs, one) for one in generators])
            for name in [name for name in oracles if "sppo" in name]:
                runners[f"{name}, opponents {arguments.opponents}"] = partial(
                    oracles[name].logits, prompts, responses, wanted
                )
        runners |= {name: partial(oracle.logits, prompts, responses) for name, oracle in oracles.items()}
        seconds, results = take_turns(runners, arguments.repeats, clock)
        report(arguments, seconds, results)
        if original:
            exact = results["transformers, batch 1"]
            apart = np.abs(results[ORIGINAL] - (exact - exact.swapaxes(1, 2)).mean(-1)).max()
            print(f"{original.versions}: its scores are within {apart:.1e} of ours")
            original.process.stdin.close()
            original.process.wait()
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def report(arguments, seconds, results):
    """Print the median of each row, its ratio to the reference, and the deviation of its logits."""
    reference = ORIGINAL if ORIGINAL in seconds else "transformers, batch 1"
    base, exact = statistics.median(seconds[reference]), results["transformers, batch 1"]
    print(
        f"{arguments.shape}, {arguments.prompts * arguments.k * (arguments.k - 1)} ordered pairs of about"
        f" {arguments.tokens} tokens, {arguments.device}, {torch.get_num_threads()} threads, torch {torch.__version__},"
        f" {arguments.repeats} repeats, seconds of {'all cores together' if arguments.cpu_time else 'a clock'}"
    )
    for name, taken in seconds.items():
        median = statistics.median(taken)
        whole = name != ORIGINAL and "opponents" not in name
        off = f"  max |dM| {np.abs(results[name] - exact).max():.1e}" if whole else ""
        print(
            f"{name:38} {median:8.2f} s  {base / median:5.2f}x"
            f"  (from {min(taken):.2f} to {max(taken):.2f} s){off}"
        )


if __name__ == "__main__":
    measure(parse_arguments())
