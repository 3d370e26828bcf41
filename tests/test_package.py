"""The shape of the package: folders, names, layers, lazy imports, the Makefile's first words."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparqle_tvm
from sparqle_tvm._versions import REQUIRED

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Folder of the repository -> package it is installed as.
PACKAGE_ROOTS = {"sparqle_tvm": "sparqle_tvm", "passes": "sparqle_tvm.passes"} | {
    "target": "sparqle_tvm.target"
}
# Rooms of the house from the ground up. A module may import what lies in its own room or below it,
# wherever the import stands; rooms of one line do not know each other. "" is the package itself.
LAYERS = (
    ("errors",),
    ("_versions", "escaping", "files", "processes", "progress", "tirscript"),
    ("numerics", "showing", "threads"),
    ("dialect", "target.accelerator", "target.op"),
    ("target.attention_op", "target.joint_op"),
    ("host", "target.isa"),
    ("target.program",),
    ("target.verify",),
    ("target.simulator",),
    ("target.cost", "target.rtl"),
    ("target.compile",),
    ("models", "passes"),
    ("frontend", "runtime"),
    ("compiler",),
    ("calibration",),
    ("tuning",),
    ("api",),
    ("results",),
    ("studies",),
    ("report",),
    ("commands",),
    ("_plugin", "cli", ""),
)
# Empty but for a docstring: they only name the folder.
FOLDERS = {"target"}


def module_files() -> dict[str, Path]:
    """Dotted module name -> file, for everything that is installed."""
    modules = {}
    for folder, package in PACKAGE_ROOTS.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            modules[".".join((package, *(p for p in parts if p != "__init__")))] = file
    return modules


def imported_names(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names of the import statements; ``from a import b`` gives both a and a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str:
    """``sparqle_tvm.target.cost.vector`` -> ``target.cost``; the package itself -> ``""``."""
    parts = name.split(".")[1:]
    return ".".join(parts[:2] if parts[:1] == ["target"] else parts[:1])


def imported_modules(file: Path, modules: set[str]) -> set[str]:
    """Our modules that a file imports, in whatever function or condition the import stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                found.add(module if module in modules else node.module or "")
    return found & modules


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )


def test_every_package_folder_is_listed():
    folders = {
        ".".join((package, *init.parent.relative_to(ROOT / folder).parts))
        for folder, package in PACKAGE_ROOTS.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(folders)
    mapping = PYPROJECT["tool"]["setuptools"]["package-dir"]
    assert mapping == {"sparqle_tvm.passes": "passes", "sparqle_tvm.target": "target"}


def test_editors_find_the_package_as_it_is_installed():
    links = ROOT / "typings" / "sparqle_tvm"
    found = {link.name: link.resolve() for link in links.iterdir()}
    here = {path.name: path for path in (ROOT / "sparqle_tvm").iterdir() if path.name[:3] != "__p"}
    assert found == {**here, "passes": ROOT / "passes", "target": ROOT / "target"}
    assert all(not link.readlink().is_absolute() for link in links.iterdir())
    tools = PYPROJECT["tool"]
    assert tools["pyright"]["stubPath"] == tools["mypy"]["mypy_path"] == "typings"


def test_every_module_lies_in_a_package():
    for file in module_files().values():
        assert (file.parent / "__init__.py").exists(), f"{file.parent} has no __init__.py"


def test_nobody_imports_the_folders_by_their_bare_names():
    folders = [*PACKAGE_ROOTS, "tests", "benchmarks"]
    for file in (f for folder in folders for f in (ROOT / folder).rglob("*.py")):
        for name in imported_names(ast.walk(ast.parse(file.read_text()))):
            assert name.split(".")[0] not in ("passes", "target"), f"{file} imports {name}"


def test_all_modules_load_without_the_bare_names():
    code = f"""
import importlib, sys
import sparqle_tvm
assert "tvm" not in sys.modules, "import sparqle_tvm loads TVM"
assert sparqle_tvm.numerics and sparqle_tvm.target and sparqle_tvm.errors
assert "tvm" not in sys.modules, "numerics or target loads TVM"
for name in sparqle_tvm.__all__:
    getattr(sparqle_tvm, name)
for name in {sorted(module_files())!r}:
    importlib.import_module(name)
assert not {{"passes", "target"}} & set(sys.modules)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(module_files()))
def test_arrows_point_down(name):
    levels = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
    files = module_files()
    room = room_of(name)
    if room in FOLDERS:
        assert len(ast.parse(files[name].read_text()).body) == 1
        return
    assert room in levels, f"{name}: which layer is {room}? Add it to LAYERS"
    for used in imported_modules(files[name], set(files)):
        below = room_of(used)
        allowed = below == room or below in FOLDERS or levels[below] < levels[room]
        assert allowed, f"{name} imports {used}, which does not lie below it"


def test_no_circle_of_modules():
    files = module_files()
    needs = {name: imported_modules(file, set(files)) - {name} for name, file in files.items()}
    # Raises CycleError, which names the modules.
    assert set(graphlib.TopologicalSorter(needs).static_order()) == set(files)


def test_public_names():
    assert set(sparqle_tvm.__all__) <= set(dir(sparqle_tvm))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = sparqle_tvm.quantise
    assert sparqle_tvm.numerics.encode.__module__ == "sparqle_tvm.numerics.slicing"


def test_version_and_pins_agree_with_pyproject():
    assert importlib.metadata.version("sparqle-tvm") == sparqle_tvm.__version__
    pins = {f"{name}=={version}" for name, version in REQUIRED.items()}
    assert pins <= set(PYPROJECT["project"]["dependencies"])


def test_make_says_which_python_it_needs(tmp_path):
    done = subprocess.run(
        ["make", "test", f"VENV={tmp_path}/venv", "PYTHON=no-such-python"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode != 0
    assert "Python 3.11 to 3.13 is needed" in done.stderr
    assert not (tmp_path / "venv").exists()
