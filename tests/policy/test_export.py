import datetime
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import fastapi
import pytest
import torch
import uvicorn
import yaml
from huggingface_hub import ModelCard
from run_folders import RECIPE, write_run
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.policy import adapter as adapters
from sppo.policy import load as policies
from sppo.policy.adapter import BasePolicy
from sppo.policy.opening import OpenPolicy
from sppo.recipe import load
from sppo.recipe import parse as load_recipe
from sppo.report import model_card
from sppo.tinyworld import POLICY

IDS = torch.arange(20, 40)[None]


def sppo(*arguments):
    found = CliRunner().invoke(app, ["export", *map(str, arguments)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def of_folder(folder, system="template", **settings):
    return OpenPolicy(folder, load_recipe({**RECIPE, "policy": {"model": "a/b", **settings}}).policy, system)


@pytest.fixture
def adapter(tmp_path):
    return make_adapter(tmp_path / "adapter")


def make_adapter(folder, quantization=None, base=None):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(
        policies.load(POLICY, dtype="float32", device="cpu", quantization=quantization), config
    )
    known = BasePolicy(
        str(base or "tinyworld"), sha256=policies.weights_digest(base or POLICY), quantization=quantization
    )
    adapters.save(model, folder, known)
    return folder


def test_an_adapter_becomes_an_ordinary_policy(adapter, tmp_path):
    done = sppo(adapter, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "merged into tinyworld" in done.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not names & {adapters.CONFIG, adapters.BASE, adapters.WEIGHTS}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(
        logits(merged), logits(policies.load(adapter, dtype="float32")), atol=1e-4, rtol=1e-4
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert not list(tmp_path.glob(".*")), "leftovers"


def test_a_type_and_a_size_can_be_chosen(tmp_path):
    done = sppo(POLICY, tmp_path / "out", "--dtype", "bfloat16", "--max-shard-size", "500KB")
    assert done.exit_code == 0, done.output
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert {value.dtype for shard in shards for value in load_file(shard).values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    policies.load(tmp_path / "out", dtype="bfloat16")


@pytest.mark.parametrize(
    ("recipe", "dtype"),
    [
        ({}, torch.float32),
        ({"policy": {"model": "tinyworld", "dtype": "bfloat16"}}, torch.bfloat16),
        ({"training": {"save_dtype": "bfloat16"}}, torch.bfloat16),
        (None, torch.bfloat16),
    ],
)
def test_a_merged_update_is_rounded_only_as_its_run_rounds_policies(tmp_path, recipe, dtype):
    base = tmp_path / "base"
    policies.load(POLICY, dtype="bfloat16").save_pretrained(base)
    adapter = make_adapter(tmp_path / "adapter", base=base)
    if recipe is not None:
        run = write_run(tmp_path / "run", recipe={**RECIPE, **recipe})
        shutil.rmtree(run / "iter-2" / "policy")
        adapter = adapter.rename(run / "iter-2" / "policy")
    assert sppo(adapter, tmp_path / "out").exit_code == 0
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {dtype}
    if dtype == torch.float32:
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype).eval()
        trained = logits(policies.load(adapter, dtype="float32"))
        torch.testing.assert_close(logits(merged), trained, atol=1e-4, rtol=1e-4)


def test_a_quantised_adapter_is_merged_into_what_it_was_trained_on(tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = make_adapter(tmp_path / "adapter", quantization="nf4")
    done = sppo(folder, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "quantised to nf4" in done.output
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    trained = policies.load(folder, dtype="float32", device="cpu")
    torch.testing.assert_close(logits(exported), logits(trained), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere", "out"],
            "'nowhere' is neither a folder here nor a model that can be downloaded from the hub",
        ),
        ([POLICY, "."], "exists already"),
        ([POLICY, "out", "--max-shard-size", "big"], "a number and a unit"),
        ([POLICY, "out", "--dtype", "int4"], "float32"),
    ],
)
def test_what_cannot_be_exported_is_said(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    done = sppo(*arguments)
    assert done.exit_code != 0
    assert message in done.output
    assert not (tmp_path / "out").exists()


def test_a_policy_of_a_run_has_a_card_with_its_table_and_recipe(tmp_path):
    run = write_run(tmp_path / "run", measures={2: {"response_tokens": 400.0}})
    shutil.rmtree(run / "iter-2" / "policy")
    shutil.copytree(POLICY, run / "iter-2" / "policy")
    (run / "iter-2" / "policy" / "README.md").write_text("of the base")
    done = sppo(run, tmp_path / "my-model_2")
    assert done.exit_code == 0, done.output
    loaded = ModelCard.load(tmp_path / "my-model_2" / "README.md")
    assert loaded.data.library_name == "transformers" and "sppo" in loaded.data.tags
    assert "base_model" not in loaded.data.to_dict()  # tinyworld is no name of the hub
    for text in (
        "# my-model\\_2",
        "| 1 | 0.600 [0.580, 0.620] | 0.600 [0.580, 0.620] | 5.0 | 0.25 |",
        "| 2 | 0.700 [0.680, 0.720] | 0.550 [0.530, 0.570] | 400.0 | 0.50 |",
        "after iteration 2",
        "length growth",
        "transformers",
    ):
        assert text in loaded.text, text
    recipe = loaded.text.split("```yaml\n")[1].split("\n```")[0]
    assert load_recipe(yaml.safe_load(recipe)) == load(run / "recipe.yaml")


def test_a_card_is_plain_markdown_whatever_the_recipe_says(tmp_path):
    recipe = {
        **RECIPE,
        "policy": {"model": "a/b"},
        "prompts": {"train": "```\n# owned"},
    }
    run = write_run(tmp_path / "run", recipe=recipe)
    text = model_card.card("<script>|x|", of_folder(run / "iter-1" / "policy"))
    assert "\\<script\\>\\|x\\|" in text
    assert "base_model: a/b" in text
    assert "````yaml" in text
    assert "belongs to no run" in model_card.card("x", of_folder(POLICY))


MARKUP = (
    "<b>*x*</b> [x](http://x) ![x](http://x) `x` | # ~~x~~ &lt; http://x.org www.x.org _x_ \x1b[2J \r\n> x"
)


@pytest.mark.parametrize("place", ["name", "versions", "model"])
def test_a_card_shows_markup_in_any_text_of_the_run_as_it_is(tmp_path, place):
    from markdown_it import MarkdownIt

    changes = {"policy": {"model": MARKUP.replace("\r\n", "")}} if place == "model" else {}
    run = write_run(tmp_path / "run", recipe={**RECIPE, **changes}, measures={2: {"response_tokens": 400.0}})
    if place == "versions":
        file = run / "recipe.yaml"
        rest = file.read_text().partition("\n")[2]
        file.write_text(f"# sppo 1, {MARKUP.partition(chr(13))[0]}\n{rest}")
    name = MARKUP.replace("/", "") if place == "name" else "x"
    text = model_card.card(name, of_folder(run / "iter-2" / "policy"))
    prose = (
        text.partition("## Recipe")[0].rpartition("---\n")[2] + text.partition("Made with")[2].split("\n")[0]
    )
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(prose)
    for tag in ("<b>", "<em>", "<img", "<code>x", "<s>", "<blockquote>", 'href="http://x'):
        assert tag not in html, tag
    for address in ("http://x", "www.x"):
        assert address not in prose


class Hub:
    """As much of the hub's interface as an upload needs."""

    def __init__(self, files=()):
        self.calls, self.files, self.made = [], list(files), []
        app = fastapi.FastAPI()

        @app.get("/api/whoami-v2")
        def whoami():
            orgs = [{"name": "ours", "roleInOrg": "write"}, {"name": "theirs", "roleInOrg": "read"}]
            return {"type": "user", "name": "me", "orgs": orgs}

        @app.post("/api/repos/create")
        async def create(request: fastapi.Request):
            self.made.append(await request.json())
            return {"url": f"{self.url}/me/model", "name": "me/model"}

        @app.get("/api/models/{owner}/{name}")
        @app.get("/api/models/{owner}/{name}/revision/{revision}")
        def info(owner: str, name: str, revision: str = "main"):
            return {"id": f"{owner}/{name}", "siblings": [{"rfilename": file} for file in self.files]}

        @app.get("/api/models/{owner}/{name}/tree/{revision}")
        def tree(owner: str, name: str, revision: str):
            return [{"type": "file", "path": file, "size": 1, "oid": "0"} for file in self.files]

        @app.post("/api/models/{owner}/{name}/preupload/{revision}")
        async def preupload(request: fastapi.Request):
            return {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in (await request.json())["files"]
                ]
            }

        @app.post("/api/validate-yaml")
        def validate():
            return {"errors": [], "warnings": []}

        @app.post("/api/models/{owner}/{name}/commit/{revision}")
        async def commit(request: fastapi.Request):
            lines = [json.loads(line) for line in (await request.body()).splitlines()]
            self.files += [line["value"]["path"] for line in lines if line["key"] == "file"]
            return {"commitUrl": f"{self.url}/me/model/commit/1", "commitOid": "1", "pullRequestUrl": None}

        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()

    def sppo(self, *arguments):
        """In a process of its own: the client reads where the hub is once."""
        environment = {**os.environ, "HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "secret"}
        command = [sys.executable, "-m", "sppo.cli.main", "export", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_a_policy_goes_to_its_owner_and_to_nobody_else(tmp_path):
    with Hub() as hub:
        refused = hub.sppo(POLICY, tmp_path / "no", "--push-to-hub", "theirs/model")
        assert refused.returncode == 1 and "you do not own theirs; use one of me, ours" in refused.stderr
        assert not hub.made and not (tmp_path / "no").exists()
        done = hub.sppo(POLICY, tmp_path / "out", "--push-to-hub", "me/model")
        assert done.returncode == 0, done.stderr
        assert [made["visibility"] for made in hub.made] == ["private"]
        assert {"model.safetensors", "README.md", "config.json", "tokenizer.json"} <= set(hub.files)
        again = hub.sppo(POLICY, tmp_path / "out2", "--push-to-hub", "me/model")
        assert again.returncode == 1 and "the repository has files already" in again.stderr
        assert (tmp_path / "out2" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--push-to-hub", "me/model"], "you are not logged in"),
        (["--push-to-hub", "model"], "OWNER/NAME"),
        (["--public"], "works only with --push-to-hub"),
    ],
)
def test_nothing_is_pushed_that_was_not_asked_for(arguments, message, tmp_path):
    done = sppo(POLICY, tmp_path / "out", *arguments)
    assert done.exit_code == 1 and message in done.output
    assert not (tmp_path / "out").exists()


DATED = "{{ strftime_now('%d %b %Y') }}{% if loud %}LOUD{% endif %}"
SETTINGS = {
    "policy.template_arguments={loud: true}": "loud=True",
    "policy.template_date=2024-07-26": "strftime_now=datetime.date.fromisoformat('2024-07-26').strftime",
    "prompts.system=merge": "prompts.system: merge (system messages stand at the head of the first user message)",
    "policy.thought=[<t>, </t>]": "(what is between these texts is no part of a response)",
}


@pytest.mark.parametrize("chosen", [[setting] for setting in SETTINGS] + [list(SETTINGS)])
def test_what_prompts_were_written_with_is_said_where_the_folder_does_not_hold_it(tmp_path, chosen):
    template = (POLICY / "chat_template.jinja").read_text()
    (tmp_path / "own.jinja").write_text(DATED + template)
    overrides = [
        item
        for setting in [f"policy.chat_template={tmp_path / 'own.jinja'}", *chosen]
        for item in ("--set", setting)
    ]
    done = sppo(POLICY, tmp_path / "out", *overrides)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "README.md").read_text()
    for setting in chosen:
        assert SETTINGS[setting].replace("<", "\\<").replace(">", "\\>") in text or SETTINGS[setting] in text
        assert setting.partition("=")[0] in done.output.replace("\n", " ")
    assert not [part for setting, part in SETTINGS.items() if setting not in chosen and part in text]
    if len(chosen) > 1:  # the code of the card writes the prompts of the run
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
        code = next(line for line in text.splitlines() if line.startswith("text = "))
        messages = [{"role": "user", "content": "Hello."}]
        names = {"datetime": datetime, "tokenizer": tokenizer, "messages": messages}
        exec(code, names)
        assert names["text"] == of_folder(
            tmp_path / "out", template_arguments={"loud": True}, template_date="2024-07-26"
        ).chat.text(messages)
        assert names["text"].startswith("26 Jul 2024LOUD")


def test_nothing_is_said_of_settings_that_the_folder_holds(tmp_path):
    (tmp_path / "own.jinja").write_text("own" + (POLICY / "chat_template.jinja").read_text())
    done = sppo(POLICY, tmp_path / "out", "--set", f"policy.chat_template={tmp_path / 'own.jinja'}")
    assert (
        "cannot hold" not in done.output and "do not hold" not in (tmp_path / "out" / "README.md").read_text()
    )
    assert (tmp_path / "out" / "chat_template.jinja").read_text().startswith("own")
