"""The report of a small run, and the browser that looks at it."""

import functools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from run_result_helper import run_result

from sparqle_tvm.report.build import build_report
from sparqle_tvm.report.document import Document
from sparqle_tvm.results.run import RunResult

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@functools.cache
def small_run() -> RunResult:
    return RunResult.from_json(json.loads(json.dumps(run_result().to_json())))


@functools.cache
def small_report() -> Document:
    return build_report(small_run())


_READERS = {
    "blk_0_attn_q": 0.1,
    "blk_0_attn_output": 0.5,
    "blk_0_ffn_up": 0.4,
    "blk_0_ffn_down": 0.2,
    "output": 0.3,
}


@functools.cache
def full_run() -> RunResult:
    """The small run with rows of digits for every type of layer, so that it can be estimated."""
    data = json.loads(json.dumps(run_result().to_json()))
    some = data["msb_sparsity"]["layers"][0]
    data["msb_sparsity"]["layers"] = [
        {**some, "consumers": [label], "row_density": [share / 2, share, 1.5 * share]}
        for label, share in _READERS.items()
    ]
    return RunResult.from_json(data)


@functools.cache
def full_report() -> Document:
    return build_report(full_run())


def browse(page: Path, width: int, height: int, *arguments: str) -> str:
    """Open a page in a headless browser of that size; return what it prints."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser on the path: {', '.join(_BROWSERS)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        size = f"--window-size={width},{height}"
        call = [browser, *_QUIET, f"--user-data-dir={profile}", size, *arguments, page.as_uri()]
        done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout
