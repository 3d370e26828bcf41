"""The tutorials run from top to bottom, answers included, and are stored without outputs."""

import ast
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

TUTORIALS = sorted((Path(__file__).parent.parent / "tutorials").glob("*.ipynb"))
CELL_TIMEOUT_SECONDS = 900
# The code of an answer to an exercise.
FOLDED = r"<details>.*?```python\n(.*?)```.*?</details>"


def test_there_are_tutorials():
    assert [path.name for path in TUTORIALS] == [
        "01_split_precision.ipynb",
        "02_passes_and_target.ipynb",
        "03_cost.ipynb",
        "04_sparsity.ipynb",
        "05_tuning.ipynb",
        "06_attention.ipynb",
        "07_your_model.ipynb",
        "08_your_accelerator.ipynb",
    ]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert any("assert " in cell.source for cell in cells)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_imports_what_the_documentation_names(path):
    names = (Path(__file__).parent.parent / "docs" / "api.md").read_text().split()
    notebook = nbformat.read(path, as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    lines = [line for line in "\n".join(code).splitlines() if not line.startswith("%")]
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "sparqle_tvm":
            for name in node.names:
                found = f"{node.module}.{name.name}"
                # A module is documented whole; what it exports is documented with it.
                assert {found, node.module} & {*names, "sparqle_tvm.passes", "sparqle_tvm"}, found


@pytest.mark.slow
# Jupyter's kernel channel warns of missing encryption and of its own event loop; not our code.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    answers = [re.findall(FOLDED, cell.source, re.S) for cell in notebook.cells]
    notebook.cells += [nbformat.v4.new_code_cell(code) for found in answers for code in found]
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        notebook, timeout=CELL_TIMEOUT_SECONDS, kernel_name="python3", resources=resources
    ).execute()
