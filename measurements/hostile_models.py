"""Hostile folders of models."""

import json
import math
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attack
import hostile_inputs as inputs
import yaml
from hostile_case import Case, Materials
from hostile_recipes import RECIPE


def model_folders(folder: Path, draw: random.Random, materials: Materials) -> Case:
    """The folder of a policy with one file that is not what it should be, opened by `sppo chat`."""
    model = folder / "model"
    shutil.copytree(materials.model, model)
    way = draw.random()
    if way < 0.55:
        path = draw.choice(sorted(path for path in model.iterdir() if path.is_file()))
        what = f"{path.name}: {inputs.changed_file(path, draw)}"
    else:
        what, change = draw.choice(list(_MODELS.items()))
        change(model, draw)
    (folder / "said.txt").write_text("Hello?\n\n", encoding="utf-8")

    def chat() -> None:
        sys.stdin = open("said.txt", encoding="utf-8")  # noqa: SIM115
        attack.command("chat", "model", "--max-new-tokens", "3", "--temperature", "0")()

    if draw.random() < 0.15:
        return Case(f"{what}, export", attack.command("export", "model", "out"))
    if draw.random() < 0.15:
        recipe = RECIPE | {"policy": {"model": str(model)}, "training": {}, "oracle": {"type": "panel"}}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return Case(f"{what}, dry run", attack.command("run", "recipe.yaml", "--dry-run"))
    return Case(what, chat)


def _edit(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path, random.Random], None]:
    def edit(model: Path, draw: random.Random) -> None:
        content = json.loads((model / name).read_text(encoding="utf-8"))
        change(content)
        (model / name).write_text(json.dumps(content), encoding="utf-8")

    return edit


def _code(model: Path, draw: random.Random) -> None:
    name = draw.choice(
        ["configuration_evil", "modeling_evil", "tokenization_evil", "__init__", "torch", "sitecustomize"]
    )
    (model / f"{name}.py").write_text(
        f"import os\nos.system('touch {inputs.CANARY}')\nclass Evil: pass\n", encoding="utf-8"
    )
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = dict.fromkeys(
        ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), f"{name}.Evil"
    )
    if draw.random() < 0.5:
        config["model_type"] = "evil"
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if draw.random() < 0.5:
        path = model / "tokenizer_config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content |= {"auto_map": {"AutoTokenizer": [f"{name}.Evil", None]}, "tokenizer_class": "Evil"}
        path.write_text(json.dumps(content), encoding="utf-8")


def _index(target: Callable[[Path], str]) -> Callable[[Path, random.Random], None]:
    def write(model: Path, draw: random.Random) -> None:
        (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
        (model / "evil.bin").write_bytes(inputs.PICKLE)
        name = target(model)
        weights = {"model.embed_tokens.weight": name, "lm_head.weight": name}
        content = {"metadata": {"total_size": 2**62}, "weight_map": weights}
        (model / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")

    return write


def _pickled(name: str) -> Callable[[Path, random.Random], None]:
    def write(model: Path, draw: random.Random) -> None:
        (model / "model.safetensors").unlink()
        (model / name).write_bytes(inputs.PICKLE)

    return write


def _numbers(value: float, share: float = 1.0) -> Callable[[Path, random.Random], None]:
    def write(model: Path, draw: random.Random) -> None:
        from safetensors.numpy import load_file, save_file

        weights = load_file(model / "model.safetensors")
        name = draw.choice(sorted(weights))
        flat = weights[name].reshape(-1).copy()
        flat[: max(1, int(share * flat.size))] = value
        weights[name] = flat.reshape(weights[name].shape)
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    return write


def _template(text: str) -> Callable[[Path, random.Random], None]:
    def write(model: Path, draw: random.Random) -> None:
        (model / "chat_template.jinja").write_text(text, encoding="utf-8")

    return write


_MODELS: dict[str, Callable[[Path, random.Random], None]] = {
    "code beside the model": _code,
    "an index that names a pickle": _index(lambda model: "evil.bin"),
    "an index that leaves the folder": _index(lambda model: "../../../../../../etc/passwd"),
    "an index of an absolute path": _index(lambda model: "/etc/passwd"),
    "an index of nothing": _index(lambda model: "nothing.safetensors"),
    "an index of a number": _index(lambda model: 7),
    "an index that lacks weights": _index(lambda model: "model-00001-of-00001.safetensors"),
    "a pickle as pytorch_model.bin": _pickled("pytorch_model.bin"),
    "a pickle as model.safetensors": _pickled("model.safetensors"),
    "a pickle as adapter_model.bin": _pickled("adapter_model.bin"),
    "NaN in the weights": _numbers(math.nan, 0.01),
    "infinity in the weights": _numbers(math.inf, 0.01),
    "huge weights": _numbers(3e38),
    "a kernel from the hub": _edit("config.json", lambda c: c.update(_attn_implementation="evil/kernel")),
    "an attention of the hub": _edit(
        "config.json", lambda c: c.update(attn_implementation="evil/kernel@main")
    ),
    "a huge vocabulary": _edit("config.json", lambda c: c.update(vocab_size=2**40)),
    "a negative size": _edit("config.json", lambda c: c.update(hidden_size=-64)),
    "no heads": _edit("config.json", lambda c: c.update(num_attention_heads=0)),
    "a million layers": _edit("config.json", lambda c: c.update(num_hidden_layers=10**6)),
    "another kind of model": _edit("config.json", lambda c: c.update(model_type="clip")),
    "a config of nothing": lambda model, draw: (model / "config.json").write_text("{}") and None,
    "a config of null": lambda model, draw: (model / "config.json").write_text("null") and None,
    "quantised by nobody": _edit(
        "config.json", lambda c: c.update(quantization_config={"quant_method": "evil"})
    ),
    "a template that loops": _template("{% for x in range(10**9) %}{{ x }}{% endfor %}"),
    "a template of loops in loops": _template(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
    ),
    "a template that doubles": _template(
        "{% set ns = namespace(s='x') %}{% for x in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
    ),
    "a template that escapes": _template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template that runs": _template(
        f"{{{{ cycler.__init__.__globals__.os.system('touch {inputs.CANARY}') }}}}"
    ),
    "a template that reads": _template("{% include '/etc/passwd' %}"),
    "a template that does not parse": _template("{% for %}"),
    "a template that says nothing": _template(""),
    "a template that calls itself": _template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    "a template without the message": _template("{% for m in messages %}{{ m['role'] }}{% endfor %}"),
    "an adapter of nothing": lambda model, draw: (
        (model / "adapter_config.json").write_text(
            json.dumps(
                {
                    "peft_type": "LORA",
                    "base_model_name_or_path": "/etc",
                    "auto_mapping": {"parent_library": "os"},
                }
            )
        )
        and None
    ),
}
