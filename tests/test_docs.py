"""The README and the how-tos do what they say."""

import re
import subprocess
import sys

import generated_docs
import pytest
import yaml
from docs_commands import PAGES, ROOT, blocks
from typer.testing import CliRunner

import sppo
from sppo.cli.main import app


def test_the_example_of_ones_own_model_prompts_and_oracle_runs(tmp_path, monkeypatch):
    """Word by word, but for the model's name (there is no hub here) and the size."""
    page = ROOT / "README.md"
    (recipe,) = (text for text in blocks(page, "yaml") if "my_oracle:prefer" in text)
    (oracle,) = (text for text in blocks(page, "python") if "def prefer" in text)
    (tmp_path / "my_oracle.py").write_text(oracle)
    values = yaml.safe_load(recipe)
    values["policy"]["model"] = "tinyworld"
    values["prompts"]["held_out"] = 3
    values |= {"iterations": 1, "sampling": {"max_new_tokens": 40, "k": 3}, "guard": {"on_failure": "keep"}}
    values["training"]["truncated_responses"] = "train"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "prompts.jsonl").write_text(
        "".join(
            f'{{"prompt": "Describe {what}."}}\n'
            for what in ("a fox", "a drum", "rain", "soup", "a tram", "a hat", "snow")
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for arguments in (["run", "--dry-run", "own.yaml"], ["run", "own.yaml"]):
        found = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert found.exit_code == 0, found.output
    assert (tmp_path / "runs" / "own" / "iter-1" / "policy" / "model.safetensors").is_file()


def test_the_oracle_function_of_the_recipes_page_answers_with_probabilities(tmp_path, monkeypatch):
    (oracle,) = (text for text in blocks(ROOT / "docs" / "recipes.md", "python") if "def prefer" in text)
    (tmp_path / "oracle_of_the_page.py").write_text(oracle)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    loaded = sppo.oracle.load(
        {"type": "function", "function": "oracle_of_the_page:prefer", "own_process": False}
    )
    (matrix,) = loaded.compare(["Speak."], [["word " * 50, "word " * 40, "word " * 70]])
    assert matrix[0, 1] > 0.5 and matrix[1, 2] > 0.5


@pytest.mark.slow
def test_the_recipe_of_an_adapter_runs(tmp_path):
    """Word by word, but for its size."""
    (text,) = blocks(ROOT / "docs" / "lora.md", "yaml")
    values = yaml.safe_load(text) | {
        "sampling": {"k": 2, "max_new_tokens": 24},
        "guard": {"on_failure": "keep"},
        "evaluation": {"responses": 1},
        "cpu_threads": 1,
    }
    values["prompts"] = {
        "train": {"source": "tinyworld/train", "limit": 32},
        "held_out": {"source": "tinyworld/held-out", "limit": 3},
    }
    values["training"]["truncated_responses"] = "train"
    (tmp_path / "lora.yaml").write_text(yaml.safe_dump(values))
    for arguments in (
        ["run", "--dry-run", "lora.yaml"],
        ["run", "lora.yaml"],
        ["export", "runs/lora", "out"],
    ):
        found = subprocess.run(
            [sys.executable, "-m", "sppo.cli.main", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
    assert (tmp_path / "runs" / "lora" / "iter-2" / "policy" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_docs_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.slow
def test_the_example_for_those_who_know_trl_runs(tmp_path):
    (program,) = blocks(ROOT / "docs" / "trl.md", "python")
    (tmp_path / "program.py").write_text(
        "import datasets\n"
        "import numpy as np\n"
        f"{program}\n"
        "def prefer(prompts, responses):\n"
        "    words = np.array([[len(text.split()) for text in texts] for texts in responses])\n"
        "    return 1 / (1 + np.exp(words[:, :, None] - words[:, None, :]))\n"
        "things = ['fox', 'drum', 'tram', 'hat', 'bee', 'clock']\n"
        "rows = [{'prompt': f'Describe a {thing}.', 'chosen': 'Yes.', 'rejected': 'No.'} for thing in things]\n"
        "print(play(datasets.Dataset.from_list(rows), prefer).recipe.algorithm.type)\n"
    )
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "dpo"


@pytest.mark.parametrize("page", generated_docs.PARTS)
def test_generated_parts_are_up_to_date(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert text == generated_docs.renewed(page), "renew it with: python tests/generated_docs.py --write"


def test_the_makefile_has_the_readmes_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^make (\S+)", text, flags=re.M))
    assert {"quickstart", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_nothing_is_left_to_fill_in():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(text) > 500, page
        assert not re.search(r"\b(TODO|TBD|FIXME)\b|[A-Z]+_OUTPUT|0\.000 to 0\.000", text), page
