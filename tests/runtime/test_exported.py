"""Exported modules, and executables that several threads call."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import relax, tirx

import sparqle_tvm
from sparqle_tvm.errors import CompileError, InvalidArgumentError, TargetError
from sparqle_tvm.runtime.executable import Executable

WEIGHTS = np.random.default_rng(0).integers(-8, 8, (32, 64)).astype(np.int8)
MANIFEST_END = 48  # behind it: length, checksum, magic


def small_model() -> Any:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((tirx.Var("m", "int64"), 64), "int8"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = builder.emit(relax.op.permute_dims(relax.const(WEIGHTS)))
            y = builder.emit_output(relax.op.matmul(x, w, out_dtype="int32"))
        builder.emit_func_output(y)
    return builder.finalize()


@pytest.fixture(scope="module", params=["host", "simulator"])
def compiled(request: pytest.FixtureRequest) -> Executable:
    return sparqle_tvm.compile(small_model(), engine=request.param)


@pytest.fixture
def library(compiled: Executable, tmp_path: Path) -> Path:
    compiled.export(tmp_path / "model.so")
    return tmp_path / "model.so"


def product(rows: int) -> tuple[np.ndarray, np.ndarray]:
    q = np.random.default_rng(rows).integers(-128, 128, (rows, 64)).astype(np.int8)
    return q, q.astype(np.int64) @ WEIGHTS.astype(np.int64).T


def test_what_was_exported_is_loaded(library: Path) -> None:
    q, expected = product(5)
    assert np.array_equal(sparqle_tvm.load(library)["main"](q).numpy(), expected)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.95, -1, -9, -41, -60])
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_library_is_refused_before_it_is_loaded(
    library: Path, place: float, cut: bool
) -> None:
    data = bytearray(library.read_bytes())
    at = int(place * len(data)) if place > 0 else len(data) + int(place)
    if cut:
        del data[at:]
    else:
        data[at] ^= 16
    library.write_bytes(data)
    with pytest.raises(CompileError, match=r"model\.so is .*export it again"):
        sparqle_tvm.load(library)


def with_manifest(library: Path, **changes: Any) -> None:
    """Another manifest, with the checksum that belongs to it."""
    data = library.read_bytes()
    length = int.from_bytes(data[-MANIFEST_END : -MANIFEST_END + 8], "little")
    manifest = json.loads(data[-MANIFEST_END - length : -MANIFEST_END]) | changes
    text = json.dumps(manifest).encode()
    body = data[: -MANIFEST_END - length] + text + len(text).to_bytes(8, "little")
    library.write_bytes(body + hashlib.sha256(body).digest() + data[-8:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 9}, "has version 9, not 3"),
        ({"apache_tvm": "0.1"}, "exported for apache_tvm 0.1"),
        ({"machine": "pdp11"}, "exported for machine pdp11"),
        ({"machine": 3}, r"\$\.machine"),
        ({"more": 3}, "more is unknown"),
    ],
)
def test_a_library_of_another_place_is_refused(
    library: Path, changes: dict[str, Any], message: str
) -> None:
    with_manifest(library, **changes)
    with pytest.raises(CompileError, match=message):
        sparqle_tvm.load(library)


def test_files_that_are_no_exported_modules(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="cannot be read: No such file"):
        sparqle_tvm.load(tmp_path / "none.so")
    (tmp_path / "text.so").write_text("hello" * 100)
    with pytest.raises(CompileError, match="is no exported module"):
        sparqle_tvm.load(tmp_path / "text.so")


def test_threads_share_an_executable(compiled: Executable) -> None:
    wrong: list[Any] = []
    start = threading.Barrier(6)

    def work(thread: int) -> None:
        rows = 1 + 3 * thread
        q, expected = product(rows)
        start.wait()
        for _ in range(30):
            if not np.array_equal(compiled["main"](q).numpy(), expected):
                wrong.append(thread)
            # The profile of a call belongs to its caller.
            if any(record.rows != rows for record in compiled.profile()):
                wrong.append(("profile", thread))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_thread_that_called_nothing_has_an_empty_profile(compiled: Executable) -> None:
    compiled["main"](product(3)[0])
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(len(compiled.profile())))
    thread.start()
    thread.join()
    assert found == [0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"host": "cuda"}, TargetError, "no CPU"),
        ({"host": "c"}, TargetError, "no CPU"),
        ({"host": "nonsense"}, TargetError, "is no target"),
        ({"host": 3}, TargetError, "is no target"),
        ({"target": None}, TargetError, "is no target"),
        ({"stop_after": ["split"]}, InvalidArgumentError, "is no phase"),
        ({"dump": 3}, InvalidArgumentError, "is no path"),
    ],
)
def test_options_of_a_wrong_kind(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        sparqle_tvm.compile(small_model(), **options)
