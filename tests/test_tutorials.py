"""The tutorials run from top to bottom, answers included, and are stored without outputs."""

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
