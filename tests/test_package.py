"""The package as a whole: lazy names, layers that import downwards only, nothing that executes what it reads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import entreg
from entreg import control

SRC = Path(entreg.__file__).parent
FILES = sorted(SRC.rglob("*.py"))
LEVELS = {
    0: {"reference"},
    1: {"functional", "kernels", "stacked", "distributions", "planning", "calibration", "statistics"}
    | {"schedules", "control", "targets", "record", "disk", "finding"},
    2: {"regularizer", "bridge", "spelling", "run", "checkpoint", "state", "finite", "folder", "sinks", "progress", "diagnosis", "linting", "guard", "collapse"}
    | {"several", "rates", "loop", "points", "rl", "vision", "lm", "integrations"},
    3: {"recipes", "sweep", "report", "policy"},
    4: {"cli", "flags", "__main__"},
}
LEVEL = {name: level for level, names in LEVELS.items() for name in names}
BESIDE = {("functional", "kernels"), ("planning", "functional"), ("distributions", "functional")}  # within a level, towards another folder
BESIDE |= {("lm", "rl")}  # for rl.ranks, which is not about reinforcement learning


def names_of(path):
    """`entreg/rl/networks.py` -> ("rl", "networks")."""
    return path.relative_to(SRC).with_suffix("").parts


def imports_of(path):
    """The modules of ours that a file imports, as ("rl", "networks"); imports under TYPE_CHECKING count too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ("entreg", *names_of(path))[: -node.level]
            found = [".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names]
        else:
            continue
        yield from (tuple(name.split(".")[1:]) for name in found if name.split(".")[0] == "entreg" and "." in name)


def allowed(importer, imported):
    here, there = importer[0], imported[0]
    if here == there == "recipes":
        return False
    if LEVEL[there] != LEVEL[here]:
        return LEVEL[there] < LEVEL[here]
    folders = {name for name in LEVEL if (SRC / name).is_dir()}
    same_folder = here == there or (here not in folders and there not in folders)
    return same_folder or (here, there) in BESIDE or (LEVEL[here] == 2 and here in folders and there not in folders)


@pytest.mark.parametrize("path", [path for path in FILES if path != SRC / "__init__.py"], ids=lambda path: "/".join(names_of(path)))
def test_imports_point_down_and_recipes_never_import_each_other(path):
    importer = names_of(path)
    assert importer[0] in LEVEL, f"{importer[0]} has no level: give it one in LEVELS"
    for imported in imports_of(path):
        if imported[0] not in LEVEL and imported[0] in entreg.__all__:
            pytest.fail(f"{'.'.join(importer)} imports the lazy name entreg.{imported[0]}; import it from its own module")
        assert imported[0] in LEVEL, f"{imported[0]} has no level: give it one in LEVELS"
        assert allowed(importer, imported), f"{'.'.join(importer)} (level {LEVEL[importer[0]]}) imports {'.'.join(imported)} (level {LEVEL[imported[0]]})"


def test_the_layer_law_can_fail():
    assert not allowed(("control",), ("regularizer",))
    assert not allowed(("rl", "networks"), ("recipes", "ppo"))
    assert not allowed(("recipes", "ppo"), ("recipes", "a2c"))
    assert not allowed(("run",), ("rl", "networks"))
    assert not allowed(("functional", "losses"), ("control",))
    assert allowed(("rl", "networks"), ("run",))
    assert allowed(("distributions",), ("functional", "families"))


EXECUTES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__"}


def dangers(tree):
    """What can execute data: pickle and its kin, eval, exec, torch.load, numpy with allow_pickle, yaml.load."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name for name in modules if name.split(".")[0] in EXECUTES)
            if isinstance(node, ast.ImportFrom) and node.module in ("torch", "builtins"):
                yield from (alias.name for alias in node.names if alias.name in ("load", *CALLS))
        elif isinstance(node, ast.Name) and node.id in CALLS and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in {("torch", "load"), ("yaml", "load")}:
            yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not (isinstance(node.value, ast.Constant) and node.value.value is False):
            yield "allow_pickle"


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(names_of(path)))
def test_nothing_executes_what_it_reads(path):
    assert list(dangers(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "x = exec",
        "torch.load(f)",
        "from torch import load",
        "np.load(f, allow_pickle=True)",
        "__import__('os')",
    ],
)
def test_the_danger_law_can_fail(code):
    assert list(dangers(ast.parse(code)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(names_of(path)))
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


def python(code):
    return subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SRC.parent)}, capture_output=True, text=True, check=False)


def test_importing_entreg_loads_no_torch():
    code = "import sys, entreg; entreg.linear(0.1, 0); entreg.targets.action_dim(); entreg.Bridge; entreg.Recorder; dir(entreg); print('torch' in sys.modules)"
    result = python(code)
    assert (result.stdout.strip(), result.stderr) == ("False", "")


@pytest.mark.parametrize("name", sorted(entreg.__all__))
def test_every_public_name_loads(name):
    assert getattr(entreg, name) is not None
    assert name in dir(entreg)


def test_all_controllers_are_public_names():
    assert set(control.__all__) <= set(entreg.__all__)
    for name in control.__all__:
        assert getattr(entreg, name) is getattr(control, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'entreg' has no attribute 'lineer'"):
        getattr(entreg, "lineer")  # noqa: B009


def test_the_version_is_that_of_the_project():
    project = (SRC.parent.parent / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1] == entreg.__version__
