"""The notebook that tells the whole story runs from first to last cell, and is kept clean."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from jupyter_client.kernelspec import KernelSpecManager  # noqa: E402
from jupyter_client.manager import AsyncKernelManager  # noqa: E402

STORY = Path(__file__).parents[1] / "examples" / "story.ipynb"


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = nbformat.read(STORY, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) <= 12
    assert all(cell.execution_count is None and not cell.outputs for cell in code)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_tells_its_story(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(STORY, as_version=4)
    # No folder of kernels: only this interpreter's own is left, whatever else is installed.
    kernels = KernelSpecManager(kernel_dirs=[])
    client = nbclient.NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels),
        timeout=600,
        resources={"metadata": {"path": str(STORY.parent)}},
    )
    client.execute()
    last = ast.literal_eval(notebook.cells[-1].outputs[-1]["data"]["text/plain"])
    # 6 targets x 2 rates: the twelve baselines, then pairs, in half of the grid's trials at most.
    assert 12 < last["trained"] <= 36
    # Proposals that were eliminated and gave way count as neither.
    assert 0 < last["never started"] <= 72 - last["trained"]
    assert last["share_kept"] > 0
