"""Loading files never executes code from them: checked in our source, and at run time by Python's audit hooks."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest

import dit_jax
from dit_jax.jobs.train import train
from tests import tiny

SOURCES = sorted([*Path("dit_jax").rglob("*.py"), Path("main.py")])
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "torch"}


def calls(tree):
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_source_loads_what_could_be_code(path):
    tree = ast.parse(path.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in imported} & FORBIDDEN
    for name, call in calls(tree):
        assert name not in ("eval", "exec", "__import__", "importlib.import_module")
        assert not name.endswith((".extractall", ".unpack_archive")), "archives are read member by member"
        assert not name.endswith(".exec_module") or path == Path("dit_jax/settings/configs.py"), (
            "a config file is code by design"
        )
        if name in ("np.load", "numpy.load"):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("allow_pickle") == "False", f"{path}:{call.lineno}"


class Auditor:
    """Records the names that Python unpickles; an audit hook cannot be removed, so this one is switched off."""

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.on and event == "pickle.find_class":
            self.seen.append(arguments)


@pytest.fixture(scope="module")
def auditor():
    return Auditor()


def test_the_auditor_sees_a_pickle(auditor, tmp_path):
    np.save(tmp_path / "x.npy", np.array([ValueError()], dtype=object))
    auditor.on = True
    np.load(tmp_path / "x.npy", allow_pickle=True)
    auditor.on = False
    assert auditor.seen
    auditor.seen.clear()


@pytest.mark.long
def test_training_resuming_and_loading_unpickle_nothing(auditor, tmp_path, monkeypatch):
    tiny.install(monkeypatch)
    auditor.on = True
    train(tiny.config(train__steps=2), tmp_path, None)
    train(tiny.config(train__steps=4), tmp_path, None)
    assert dit_jax.load(tmp_path).step == 4
    auditor.on = False
    assert not auditor.seen
