"""The embedded default world: a tiny policy, its prompts, a panel of three annotators, and a PairRM trained on the panel.

``grammar`` defines the facts of the world and the mistakes of its writer, ``annotators`` compares responses, and
``build`` makes the files below from the two. Nothing here imports torch until a policy is built.
"""

from pathlib import Path

_HERE = Path(__file__).parent

#: Transformers folder of the base policy (Llama, about a million parameters) with tokenizer and chat template.
POLICY: Path = _HERE / "policy"
#: A PairRM of about 0.3 million parameters, trained on the panel's preferences between the writer's responses.
PAIRRM: Path = _HERE / "pairrm"
#: 1,200 training instructions, one {"prompt_id", "prompt", "completion"} on each line; the completion is a demonstration.
TRAIN_PROMPTS: Path = _HERE / "prompts" / "train.jsonl"
#: 240 held-out instructions without demonstrations. Training has their topics and templates, but never together.
HELD_OUT_PROMPTS: Path = _HERE / "prompts" / "held_out.jsonl"

__all__ = ["HELD_OUT_PROMPTS", "PAIRRM", "POLICY", "TRAIN_PROMPTS"]
