"""What is counted of the responses that are drawn."""

import io

import pytest
import tiny_models
from rich.console import Console
from small_runs import small

from sppo.policy import chat_format
from sppo.progress import Terminal
from sppo.rundir.folder import RunFolder
from sppo.rundir.tables import ResponsesRow, read_rows
from sppo.stages.single import run_stage


@pytest.mark.parametrize(
    ("family", "rows"), [("llama-3", 448), ("qwen2", 512), ("gemma-2", 440), ("phi-3", 400)]
)
def test_tokens_that_the_tokenizer_has_no_text_for_are_counted(tmp_path, family, rows):
    policy = tiny_models.make(family, tmp_path / "policy", vocab_size=rows)
    changes = {"prompts.train.limit": 4, "prompts.held_out.limit": 2, "sampling.max_new_tokens": 60}
    said, folder = io.StringIO(), RunFolder(tmp_path / "run")
    recipe = small(**{"policy.model": str(policy), "iterations": 1, **changes})
    run_stage(recipe, folder, Terminal(Console(file=said, width=500)), "sample", 1)
    tokens = [
        token
        for shard in sorted((tmp_path / "run" / "iter-1" / "responses").glob("*.parquet"))
        for row in read_rows(shard, ResponsesRow)
        for response in row.responses
        for token in response.token_ids
    ]
    known = chat_format.load(str(policy)).tokenizer
    without_text = sum(known.convert_ids_to_tokens(token) is None for token in tokens)
    assert (without_text > 0) == (rows > 400)
    warning = f"warning: {without_text} of {len(tokens)} tokens are rows of the policy's embedding that"
    assert (warning in said.getvalue()) == (rows > 400)
