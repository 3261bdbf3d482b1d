"""TRL's DPOTrainer on given token ids, to which measurements/training.py and the tests of the losses compare ours.

TRL tokenises text itself. Here a word stands for every token id, so that TRL's own code arrives at the given ids.
"""

from pathlib import Path


def word_tokenizer(vocabulary, *, eos):
    """A tokenizer whose words are `<0>`, `<1>`, ... and whose ids are the numbers in them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"<{n}>": n for n in range(vocabulary)}, unk_token=f"<{eos}>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"<{eos}>", pad_token=f"<{eos}>")


def words(ids):
    return " ".join(f"<{token}>" for token in ids)


def trainer(model, pairs, folder, *, eos, **settings):
    """A DPOTrainer of a model.

    Args:
        model: a causal language model of transformers.
        pairs: (prompt, chosen, rejected) token ids; the responses end with `eos`, which TRL would add.
        folder: for what the Trainer writes.
        eos: token id.
        settings: of DPOConfig.
    """
    from datasets import Dataset, disable_progress_bars
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    rows = {
        "prompt": [words(prompt) + " " for prompt, _, _ in pairs],
        "chosen": [words(chosen) for _, chosen, _ in pairs],
        "rejected": [words(rejected) for _, _, rejected in pairs],
    }
    of_model = model.config.get_text_config()
    return DPOTrainer(
        model=model,
        args=DPOConfig(
            **{
                "output_dir": str(Path(folder)),
                "max_length": None,
                "bf16": False,
                "gradient_checkpointing": False,
                "report_to": "none",
                "disable_tqdm": True,
                "save_strategy": "no",
                **settings,
            }
        ),
        train_dataset=Dataset.from_dict(rows),
        processing_class=word_tokenizer(of_model.vocab_size, eos=eos),
    )
