"""The shape of the package: folders, names, layers, lazy imports, the Makefile's first words."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import re
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
# What a layer may import of ours, lazy imports included.
MAY_IMPORT = {
    "errors": {"errors"},
    "_versions": {"errors", "_versions"},
    "numerics": {"errors", "numerics"},
    "files": {"errors", "files"},
    "script": {"script"},
    "threads": {"errors", "threads"},
    # Verifier and simulator have kernels of their own, written and run like those of the host.
    "target": {"errors", "numerics", "script", "threads", "target"},
    "passes": {"errors", "numerics", "dialect", "host", "target", "passes"},
}


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


def layer_of(name: str) -> str:
    """``sparqle_tvm.passes.fold_scales`` -> ``passes``; the package itself -> ``""``."""
    return name.split(".")[1] if "." in name else ""


def our_layers(names: Iterator[str]) -> set[str]:
    layers = {path.split(".")[1] for path in module_files() if "." in path}
    found = {layer_of(name) for name in names if name.split(".")[0] == "sparqle_tvm"}
    return found & layers


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


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_layers_import_only_what_lies_below(layer):
    for name, file in module_files().items():
        if layer_of(name) != layer:
            continue
        used = our_layers(imported_names(ast.walk(ast.parse(file.read_text()))))
        assert used <= MAY_IMPORT[layer], f"{file} imports {used - MAY_IMPORT[layer]}"


def test_layers_have_no_cycle():
    needs: dict[str, set[str]] = {}
    for name, file in module_files().items():
        layer = layer_of(name)
        used = our_layers(imported_names(iter(ast.parse(file.read_text()).body)))
        needs.setdefault(layer, set()).update(used - {layer})
    # Raises CycleError, which names the layers.
    assert set(graphlib.TopologicalSorter(needs).static_order()) >= set(MAY_IMPORT)


def test_public_names():
    assert set(sparqle_tvm.__all__) <= set(dir(sparqle_tvm))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = sparqle_tvm.quantise
    assert sparqle_tvm.numerics.encode.__module__ == "sparqle_tvm.numerics.slicing"


def test_version_and_pins_agree_with_pyproject():
    assert importlib.metadata.version("sparqle-tvm") == sparqle_tvm.__version__
    pins = {f"{name}=={version}" for name, version in REQUIRED.items()}
    assert pins <= set(PYPROJECT["project"]["dependencies"])


def test_readme_python_runs_in_order(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert blocks
    # A file, because TVMScript reads the source of what it decorates.
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_make_says_which_python_it_needs(tmp_path):
    done = subprocess.run(
        ["make", "test", f"VENV={tmp_path}/venv", "PYTHON=no-such-python"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode != 0
    assert "Python 3.11 is needed" in done.stderr
    assert not (tmp_path / "venv").exists()
