"""IFEval's checks beside lm-eval's, on texts that people's models have written.

    pip install --target OTHERS langdetect immutabledict
    PYTHONPATH=OTHERS python measurements/ifeval.py [--texts 10] [--seed 0]

Each of the benchmark's prompts is paired with texts that the seed draws from the answers of MT-Bench's models (../shared
beside the checkout), so that constraints are kept and broken by chance; both programs check every constraint strictly. lm-eval's
module downloads nltk's punkt_tab when it is imported. With a network: `python -m nltk.downloader punkt_tab`. Where the data are
missing, an untrained punkt tokenizer of nltk counts sentences in their place, and the output says so. The figures stand in
docs/experiments.md under "IFEval's checks beside lm-eval's".
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nltk
import numpy as np

from sppo.benchmarks.ifeval import constraints

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def stand_in_for_missing_data() -> bool:
    """Let nltk count sentences without its data if they are missing, and return whether they are."""
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        nltk.data.find = lambda *_, **__: None
        nltk.data.load = lambda *_, **__: nltk.tokenize.punkt.PunktSentenceTokenizer()
        nltk.word_tokenize = nltk.tokenize.wordpunct_tokenize
        return True
    return False


def written_texts() -> list[str]:
    """The texts of all answers of MT-Bench's models."""
    files = sorted((SHARED / "mt_bench" / "model_answer").glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [text for row in rows for text in row["choices"][0]["turns"] if text.strip()]


def theirs(line: dict[str, Any], text: str, checkers: Any) -> list[bool]:
    """lm-eval's strict checks of a text."""
    example = SimpleNamespace(**{name: line[name] for name in ("instruction_id_list", "kwargs", "prompt")})
    return list(checkers.test_instruction_following_strict(example, text).follow_instruction_list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--texts", type=int, default=10, help="texts for each prompt")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    missing = stand_in_for_missing_data()
    import langdetect
    from lm_eval.tasks.ifeval import utils as checkers

    langdetect.DetectorFactory.seed = 0
    path = SHARED / "prompts" / "ifeval_input_data.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    texts, rng = written_texts(), np.random.default_rng(given.seed)
    total, differ, shown = Counter[str](), Counter[str](), []
    for line, prompt in zip(lines, constraints.read_prompts(path), strict=True):
        for number in rng.choice(len(texts), given.texts, replace=False):
            ours = constraints.kept(prompt.constraints, texts[number])
            for name, mine, other in zip(
                line["instruction_id_list"], ours, theirs(line, texts[number], checkers), strict=True
            ):
                total[name] += 1
                if mine != other:
                    differ[name] += 1
                    shown.append({"kind": name, "key": line["key"], "ours": mine, "text": texts[number]})
    print(f"{total.total() - differ.total():,} of {total.total():,} checks agree")
    for name, count in differ.most_common():
        print(f"  {name}: {count} of {total[name]:,} differ")
    if missing:
        print("nltk's punkt_tab is missing: an untrained punkt tokenizer counted the sentences")
    for one in shown[:40]:
        print(json.dumps(one)[:300], file=sys.stderr)


if __name__ == "__main__":
    main()
