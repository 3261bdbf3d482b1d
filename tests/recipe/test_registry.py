import pytest
from plugins import install

from sppo.recipe import registry


def test_a_name_stands_for_a_class_of_this_package():
    assert registry.load("executors", "local").__name__ == "Local"


def test_every_built_in_name_can_be_loaded():
    for kind, entries in registry.BUILT_IN.items():
        assert registry.names(kind)[: len(entries)] == list(entries)
        for name in entries:
            assert callable(registry.load(kind, name))


def test_an_unknown_name_is_answered_with_the_nearest_and_all_known_ones():
    with pytest.raises(
        registry.UnknownName, match=r"'locla' is unknown; did you mean 'local'. Known: local, ray"
    ):
        registry.load("executors", "locla")


def test_an_installed_package_adds_names(tmp_path, monkeypatch):
    install(
        monkeypatch,
        tmp_path,
        {"toy_names.py": "class Mine: pass\n"},
        {"sppo.executors": {"mine": "toy_names:Mine"}},
    )
    assert registry.names("executors") == ["local", "ray", "mine"]
    assert registry.load("executors", "mine").__name__ == "Mine"


def test_a_built_in_name_cannot_be_replaced_by_a_package(tmp_path, monkeypatch):
    install(
        monkeypatch,
        tmp_path,
        {"toy_local.py": "class Mine: pass\n"},
        {"sppo.executors": {"local": "toy_local:Mine"}},
    )
    assert registry.names("executors") == ["local", "ray"]
    assert registry.load("executors", "local").__name__ == "Local"


def test_a_name_that_two_packages_claim_is_refused(tmp_path, monkeypatch):
    for number in ("one", "two"):
        (tmp_path / number).mkdir()
        install(
            monkeypatch,
            tmp_path / number,
            {f"toy_{number}.py": "class Mine: pass\n"},
            {"sppo.oracles": {"mine": f"toy_{number}:Mine"}},
            name=f"package_{number}",
        )
    with pytest.raises(
        registry.BrokenPlugin, match=r"claimed by the package package_.* and the package package_"
    ):
        registry.load("oracles", "mine")


def test_a_package_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    install(
        monkeypatch,
        tmp_path,
        {"toy_broken.py": "import no_such_module\n"},
        {"sppo.oracles": {"broken": "toy_broken:Mine"}},
    )
    with pytest.raises(
        registry.BrokenPlugin,
        match=r"'broken', from the package toy_package .* No module named 'no_such_module'",
    ):
        registry.load("oracles", "broken")
