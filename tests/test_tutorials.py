"""The tutorials run from top to bottom, answers included, and are stored without outputs."""

import ast
import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from jupyter_client.manager import KernelManager

TUTORIALS = sorted((Path(__file__).parent.parent / "tutorials").glob("*.ipynb"))
CELL_TIMEOUT_SECONDS = 900
# The code of an answer to an exercise, and what it prints.
ANSWER = r"<details>.*?```python\n(.*?)```\s+```text\n(.*?)```\s+</details>"


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


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all, so that each library is imported once; every tutorial clears it."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
# Jupyter's kernel channel warns of missing encryption and of its own event loop; not our code.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, kernel):
    notebook = nbformat.read(path, as_version=4)
    ((code, shown),) = re.findall(ANSWER, notebook.cells[-1].source, re.S)
    first = nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {tmp_path}")
    notebook.cells = [first, *notebook.cells, nbformat.v4.new_code_cell(code)]
    client = nbclient.NotebookClient(notebook, timeout=CELL_TIMEOUT_SECONDS, km=kernel)
    client.execute()
    client.kc.stop_channels()
    outputs = [(cell, out) for cell in notebook.cells for out in cell.get("outputs", ())]
    streams = [out for cell, out in outputs if cell.source == code and out.get("name") == "stdout"]
    printed = "".join(out.text for out in streams)
    assert printed.rstrip() == shown.rstrip()
    for cell, out in outputs:
        if "image/png" in out.get("data", ()):
            # What those are told who do not see the picture.
            assert cell.metadata.mystnb.image.alt
