"""Every command opens every kind of policy: adapters, runs, Python of the model's own, templates and merged system messages."""

import json
import shutil

import pytest
import torch
import yaml
from chat_server import said, serve
from run_folders import write_run
from typer.testing import CliRunner

from sppo.cli.main import app
from sppo.policy import adapter as adapters
from sppo.policy import load as policies
from sppo.policy.adapter import BasePolicy
from sppo.policy.opening import open_policy
from sppo.rundir.folder import RunError
from sppo.tinyworld import POLICY

OWN_PYTHON = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""
NO_SYSTEM = "{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('no system') -}}{%- endif -%}"


def base(folder):
    shutil.copytree(POLICY, folder)
    return folder


def peft_folder(folder):
    """An adapter as peft writes it: no tokenizer, and a base that is named in the configuration."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(policies.load(POLICY, dtype="float32", device="cpu"), config)
    adapters.save(model, folder, BasePolicy("tinyworld", sha256=policies.weights_digest(POLICY)))
    return folder


def own_python(folder):
    config = json.loads((base(folder) / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["Own"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(OWN_PYTHON)
    return folder


def without_template(folder):
    (base(folder) / "chat_template.jinja").unlink()
    return folder


def without_system(folder):
    template = base(folder) / "chat_template.jinja"
    template.write_text(NO_SYSTEM + template.read_text())
    return folder


def run_of(folder, make, policy=None, prompts=None):
    """A run of one iteration with a kind of policy and a recipe that says how it is opened."""
    made = make(folder / "iter-1" / "policy")
    recipe = {
        "policy": {"model": "tinyworld", **(policy or {})},
        "prompts": {"train": "tinyworld/train", **(prompts or {})},
        "oracle": {"type": "panel"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    summary = {"base": {"policy": str(POLICY)}, "iterations": [{"iteration": 1}], "policy": str(made)}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(
    params=["peft", "kept", "python", "run-python", "template", "run-template", "merge", "run-merge"]
)
def kind(request, tmp_path):
    """A kind of policy, the options that open it, and a system message where the kind is about one."""
    template = tmp_path / "template.jinja"
    template.write_text((POLICY / "chat_template.jinja").read_text())
    folder, trust = tmp_path / request.param, {"trust_remote_code": True}
    match request.param:
        case "peft":
            return peft_folder(folder), [], None
        case "kept":
            return run_of(folder, peft_folder), [], None
        case "python":
            return own_python(folder), ["--set", "policy.trust_remote_code=true"], None
        case "run-python":
            return run_of(folder, own_python, policy=trust), [], None
        case "template":
            return without_template(folder), ["--set", f"policy.chat_template={template}"], None
        case "run-template":
            return run_of(folder, without_template, policy={"chat_template": str(template)}), [], None
        case "merge":
            return without_system(folder), ["--set", "prompts.system=merge"], "Be brief."
    return run_of(folder, without_system, prompts={"system": "merge"}), [], "Be brief."


def sppo(*arguments, **more):
    result = CliRunner().invoke(app, [*map(str, arguments)], **more)
    assert result.exit_code == 0, result.output
    return result.output


def test_head_to_head(kind, tmp_path):
    folder, options, system = kind
    outputs = tmp_path / "other.json"
    outputs.write_text(json.dumps([{"instruction": "Describe a fox.", "output": "A fox."}]))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Describe a fox."}))
    more = ["--system", system] if system else []
    sppo(
        "evaluate", "head-to-head", f"mine={folder}", outputs, "--oracle", "panel", "--prompts", prompts,
        "--sampling", "{max_new_tokens: 8}", "-o", tmp_path / "out", *options, *more,
    )  # fmt: skip
    content = json.loads((tmp_path / "out" / "head-to-head.json").read_text())
    assert [policy["name"] for policy in content["policies"]] == ["mine", "other"]


def test_a_judged_benchmark(kind, tmp_path):
    folder, options, system = kind
    (tmp_path / "question.jsonl").write_text(
        json.dumps({"question_id": 1, "category": "stem", "turns": ["Describe a fox.", "Again."]})
    )
    more = ["--system", system] if system else []
    with serve(lambda path, body: said("[[5]]")) as server:
        judge = json.dumps({"url": server.url, "model": "judge"})
        shown = sppo(
            "evaluate", "mt-bench", f"mine={folder}", "--data", tmp_path, "--judge", judge,
            "--sampling", "{max_new_tokens: 8}", "-o", tmp_path / "out", *options, *more,
        )  # fmt: skip
    assert "5.00" in shown


@pytest.mark.parametrize(
    "benchmark",
    [
        pytest.param("ifeval", marks=pytest.mark.slow),
        pytest.param("arena-hard", marks=pytest.mark.long),
        pytest.param("alpaca-eval", marks=pytest.mark.long),
    ],
)
def test_the_other_benchmarks(kind, benchmark, tmp_path):
    folder, options, system = kind
    files = {
        "ifeval.jsonl": [
            {
                "key": 1,
                "prompt": "Describe a fox.",
                "instruction_id_list": ["punctuation:no_comma"],
                "kwargs": [{}],
            }
        ],
        "question.jsonl": [{"question_id": "a", "turns": [{"content": "Describe a fox."}]}],
        "model_answer/gpt-4-0314.jsonl": [
            {"question_id": "a", "choices": [{"turns": [{"content": "A fox."}]}]}
        ],
        "baseline.json": [{"instruction": "Describe a fox.", "output": "A fox.", "generator": "base"}],
    }
    (tmp_path / "model_answer").mkdir()
    for name, rows in files.items():
        lines = (
            json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
        )
        (tmp_path / name).write_text(lines)
    with serve(lambda path, body: said("[[A>B]]")) as server:
        more = {
            "ifeval": ["--data", tmp_path / "ifeval.jsonl"],
            "arena-hard": ["--data", tmp_path, "--judge", json.dumps({"url": server.url, "model": "judge"})],
            "alpaca-eval": [
                "--baseline",
                tmp_path / "baseline.json",
                "--no-length-control",
                "--oracle",
                "panel",
            ],
        }[benchmark]
        sppo(
            "evaluate", benchmark, f"mine={folder}", *more, "--sampling", "{max_new_tokens: 8}", "-o", tmp_path / "out",
            *options, *(["--system", system] if system else []),
        )  # fmt: skip
    (result,) = json.loads((tmp_path / "out" / f"{benchmark}.json").read_text())["results"]
    assert result["name"] == "mine"


def test_chat(kind):
    folder, options, system = kind
    more = ["--system", system] if system else []
    shown = sppo("chat", folder, "--max-new-tokens", 8, *options, *more, input="Describe a fox.\n")
    assert "does not render" not in shown


def test_export(kind, tmp_path):
    folder, options, _ = kind
    sppo("export", folder, tmp_path / "out", *options)
    trust = ["--set", "policy.trust_remote_code=true"] if (tmp_path / "out" / "own.py").exists() else []
    merge = [option for option in options if "merge" in option]
    again = open_policy(tmp_path / "out", {"policy.trust_remote_code": bool(trust)})
    assert again.chat.tokenizer.chat_template is not None
    shown = sppo(
        "chat",
        tmp_path / "out",
        *trust,
        *(["--set", *merge] if merge else []),
        input="Describe a fox.\n",
    )
    assert "fox" in shown.lower()


@pytest.mark.slow
def test_open_llm(kind, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder, options, _ = kind
    rows = [
        {"sentence": f"The fox fed the owl {n} times because _ was hungry.", "option1": "the fox",
         "option2": "the owl", "answer": str(1 + n % 2)}
        for n in range(7)
    ]  # fmt: skip
    home = tmp_path / "data" / "winogrande"
    home.mkdir(parents=True)
    for split in ("train", "validation"):
        (home / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = sppo(
        "evaluate", "open-llm", f"mine={folder}", "--data", tmp_path / "data", "--task", "winogrande", "--limit", 2,
        "-o", tmp_path / "out", "--chat-template", *options,
    )  # fmt: skip
    assert "mine" in shown


LENGTHS = """
import numpy as np

def prefer(prompts, responses):
    lengths = np.array([[float(len(text)) for text in of_prompt] for of_prompt in responses])
    return 1 / (1 + np.exp(lengths[:, None, :] - lengths[:, :, None]))
"""


@pytest.mark.parametrize(
    "base_kind",
    [
        pytest.param("peft", marks=pytest.mark.slow),
        pytest.param("merge", marks=pytest.mark.slow),
        pytest.param("python", marks=pytest.mark.long),
        pytest.param("template", marks=pytest.mark.long),
        pytest.param("thought", marks=pytest.mark.long),
    ],
)
def test_every_command_on_a_run(base_kind, tmp_path, monkeypatch):
    """A run on each kind of base; its finished folder is all that the other commands are told."""
    monkeypatch.chdir(tmp_path)
    template = tmp_path / "template.jinja"
    template.write_text((POLICY / "chat_template.jinja").read_text())
    make, policy, prompts = {
        "peft": (peft_folder, {}, {}),
        "python": (own_python, {"trust_remote_code": True}, {}),
        "template": (without_template, {"chat_template": str(template)}, {}),
        "merge": (without_system, {}, {"system": "merge"}),
        "thought": (base, {"thought": ["Hello", "!"]}, {}),
    }[base_kind]
    system = [{"role": "system", "content": "Be brief."}] if base_kind == "merge" else []
    rows = [
        {"messages": [*system, {"role": "user", "content": f"Describe a {thing}."}]}
        for thing in ("fox", "drum", "hat", "tram")
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # the oracle reads prompts as the template writes them, so that checking it needs the run's chat format
    (tmp_path / "lengths.py").write_text(LENGTHS)
    lora = {"type": "lora", "r": 4, "lora_alpha": 8, "merge": False}
    adapter = {"adapter": lora} if base_kind == "peft" else {}
    recipe = {
        "iterations": 1,
        "policy": {"model": str(make(tmp_path / "base")), **policy},
        "prompts": {"train": "prompts.jsonl", "held_out": 2, **prompts},
        "sampling": {"k": 2, "max_new_tokens": 8},
        "oracle": {"type": "function", "function": "lengths:prefer", "text": "chat"},
        "training": {"truncated_responses": "train", **adapter},
        "evaluation": {"responses": 1, "resamples": 100},
        "guard": {"on_failure": "keep"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    sppo("run", "--dry-run", "recipe.yaml")
    sppo("run", "recipe.yaml")
    run = "runs/recipe"
    sppo("oracle", "check", run)
    sppo("game", "policies", run)
    sppo("sample", run, "--best-of", 2)
    sppo("chat", run, "--max-new-tokens", 8, input="Describe a fox.\n")
    sppo("export", run, "exported")


def test_an_adapter_and_its_export_respond_alike(tmp_path):
    """lm-eval measures the policy that is sampled from: the merged folder has the adapter's logits."""
    opened = open_policy(peft_folder(tmp_path / "adapter"))
    ids = torch.arange(20, 40)[None]
    with torch.no_grad(), opened.ordinary_folder("float32") as folder:
        merged = policies.load(folder, dtype="float32", device="cpu")(input_ids=ids).logits
        own = policies.load(opened.folder, dtype="float32", device="cpu")(input_ids=ids).logits
        plain = policies.load(POLICY, dtype="float32", device="cpu")(input_ids=ids).logits
    torch.testing.assert_close(merged, own, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(own, plain, atol=1e-2)
    assert not folder.exists()


def test_the_base_of_a_run_is_opened_by_the_runs_recipe(tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("MARK" + (POLICY / "chat_template.jinja").read_text())
    run = run_of(tmp_path / "run", base, policy={"chat_template": str(template)})
    of_base = open_policy(POLICY, run=run)
    assert of_base.chat.text([{"role": "user", "content": "a"}]).startswith("MARK")
    assert of_base.digest != open_policy(POLICY).digest
    (of_folder,) = [open_policy(run / "iter-1" / "policy")]
    assert of_folder.settings == of_base.settings


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "head-to-head", "{policy}", "b={policy}", "--oracle", "panel", "--prompts", "{prompts}"],
        ["chat", "{policy}"],
        ["export", "{policy}", "{out}"],
        ["evaluate", "open-llm", "{policy}", "--task", "arc", "--data", "{data}"],
    ],
)
def test_python_of_the_models_own_is_refused_with_the_way_out(tmp_path, command):
    values = {"policy": own_python(tmp_path / "own"), "prompts": tmp_path / "p.jsonl"}
    values |= {"out": tmp_path / "out", "data": tmp_path / "data"}
    values["prompts"].write_text('{"prompt": "Describe a fox."}')
    if "open-llm" in command:
        pytest.importorskip("lm_eval")
    for split in ("train", "test"):
        path = tmp_path / "data" / "arc_challenge" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    more = ["-o", str(tmp_path / "results")] if "evaluate" in command else []
    result = CliRunner().invoke(app, [argument.format(**values) for argument in command] + more)
    assert result.exit_code == 1
    assert "--set policy.trust_remote_code=" in result.output.replace("\n", " ")


def test_a_key_that_does_not_say_how_a_policy_is_opened_is_refused():
    with pytest.raises(RunError, match=r"--set seed: .* policy\.trust_remote_code, policy\.chat_template"):
        open_policy(POLICY, {"seed": 1})


def test_an_iteration_that_a_run_does_not_have_is_not_taken_for_a_model_on_the_hub(tmp_path):
    run = write_run(tmp_path / "run", iterations=1)
    with pytest.raises(RunError, match="iteration 3 has no policy; there are base"):
        open_policy(run / "iter-3")
