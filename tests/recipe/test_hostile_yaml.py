"""YAML that is meant to hang or break its reader: each recipe of this kind gets one clear message, quickly."""

import time

import pytest

from sppo.recipe import RecipeError, load, parse, read_overrides, read_value
from sppo.recipe.yaml_values import write_value


def bomb(row):
    """Thirteen lines, each of which stands for nine of the line before."""
    names = "abcdefghijklm"
    lines = [f"{name}: &{name} {row(before)}" for before, name in zip(names, names[1:], strict=False)]
    return "\n".join(["a: &a {k: v}", *lines])


TAGS = "int float bool null str binary timestamp set omap pairs map seq merge value python/name:os.system"
HOSTILE = {
    "bomb of lists": bomb(lambda name: f"[{','.join([f'*{name}'] * 9)}]"),
    "bomb of mappings": bomb(lambda name: f"{{{','.join(f'k{n}: *{name}' for n in range(9))}}}"),
    "bomb of merges": bomb(lambda name: f"{{<<: [{','.join([f'*{name}'] * 9)}]}}"),
    "list in itself": "a: &a [*a]",
    "mapping in itself": "policy: &a {b: *a}",
    "merge of itself": "a: &a\n  <<: *a",
    **{f"tag {tag}": f"seed: !!{tag} x" for tag in TAGS.split()},
    "empty tagged number": "seed: !!int ''",
    "own tag": "seed: !x 1",
    "declared tag": "%TAG ! tag:yaml.org,2002:python/\n---\na: !object/apply:os.system [true]",
    "digits": "seed: " + "9" * 5000,
    "fewer digits": "seed: " + "9" * 4000,
    "hexadecimal": "seed: 0x" + "f" * 5000,
    "base sixty": "seed: 1" + ":59" * 900,
    "fraction in base sixty": "seed: 1" + ":59" * 900 + ".5",
    "just too large": f"seed: {1 << 63}",
    "exponent": "seed: 1e300",
    "deep list": "a: " + "[" * 50_000,
    "deep closed list": "a: " + "[" * 200 + "]" * 200,
    "deep mapping": "{a: " * 20_000,
    "deep block": "\n".join(" " * n + "a:" for n in range(200)),
    "many keys": "\n".join(f"k{n}: {n}" for n in range(11_000)),
    "long text": "a: " + "x" * 5_000_000,
    "no date": "seed: 2024-13-01",
    "no time zone": "seed: 2001-12-14t21:59:43.10-99:30",
    "half a character": 'policy: {model: "\\ud800"}',
    "a null character": 'policy: {model: "a\\0b"}',
    "beyond Unicode": 'a: "\\U00110000"',
    "long key": "x" * 100_000 + ":\n  a: 1",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_recipe_gets_one_clear_message(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    begun = time.process_time()
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load(tmp_path / "r.yaml")
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "text", [HOSTILE["bomb of lists"], "!!python/name:os.system x", "[" * 5000, "9" * 4000]
)
def test_values_on_the_command_line_are_read_by_the_same_rules(text):
    with pytest.raises(RecipeError, match="--set seed="):
        read_overrides([f"seed={text}"])


def test_aliases_and_merges_of_ordinary_size_are_read():
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 2}\nc: [*a, *a]"
    value = read_value(text, name="text")
    assert value == {"a": {"x": 1, "y": [1, 2]}, "b": {"x": 2, "y": [1, 2]}, "c": [{"x": 1, "y": [1, 2]}] * 2}


@pytest.mark.parametrize(
    "value", [0, -1, 2**63 - 1, 1e300, 1.5, float("inf"), "1e3", "!!int 3", "*a", "&a", None]
)
def test_what_is_written_is_read_back(value):
    assert read_value(write_value({"a": value}), name="text") == {"a": value}


def test_a_seed_beyond_64_bits_is_refused_in_python_as_well():
    with pytest.raises(RecipeError, match="seed: must be less than"):
        parse({"seed": 10**400})
