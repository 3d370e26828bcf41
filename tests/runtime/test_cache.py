"""Compiled modules that are found again."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tiny_files import write_prose, write_tiny_model
from tvm import relax, tirx

import sparqle_tvm
from sparqle_tvm import compiler
from sparqle_tvm.cli import main
from sparqle_tvm.errors import CompileError, InvalidArgumentError
from sparqle_tvm.files import plain, typed
from sparqle_tvm.models.builtin import CACHE_VARIABLE
from sparqle_tvm.numerics import EncodingChoice
from sparqle_tvm.passes import LiftedEncoding, OffloadDense
from sparqle_tvm.runtime.cache import ExecutableCache, key_of
from sparqle_tvm.runtime.executable import Executable
from sparqle_tvm.runtime.exported import Facts, without_scopes

WEIGHTS = np.random.default_rng(0).integers(-8, 8, (32, 64)).astype(np.int8)


def model(weights: np.ndarray = WEIGHTS, name: str = "y", scale: float = 0.5) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((tirx.Var("m", "int64"), 64), "int8"))
    with builder.function("main", [x]):
        with builder.dataflow():
            w = builder.emit(relax.op.permute_dims(relax.const(weights)))
            y = builder.emit(relax.op.matmul(x, w, out_dtype="int32"), name)
            z = relax.op.multiply(relax.op.astype(y, "float32"), relax.const(scale, "float32"))
            z = builder.emit_output(z)
        builder.emit_func_output(z)
    return builder.finalize()


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each compilation was split."""
    done: list[bool] = []
    original = compiler.compile

    def counted(*arguments: Any, **options: Any) -> Any:
        done.append(options["split"])
        return original(*arguments, **options)

    monkeypatch.setattr(compiler, "compile", counted)
    return done


def test_a_second_compilation_compiles_nothing(tmp_path: Path, compilations: list[bool]) -> None:
    q = np.random.default_rng(1).integers(-128, 128, (5, 64)).astype(np.int8)
    told: dict[str, Any] = {"engine": "simulator", "collect_encodings": True}
    cache = ExecutableCache(tmp_path / "made" / "here")
    first = sparqle_tvm.compile(model(), cache=cache, **told)
    again = sparqle_tvm.compile(model(), cache=ExecutableCache(tmp_path / "made/here"), **told)
    assert compilations == [True]
    expected = (q.astype(np.int64) @ WEIGHTS.T) * np.float32(0.5)
    for each in (first, again):
        assert np.array_equal(each["main"](q).numpy(), expected)
    # All that is known of a module besides its code came along.
    assert str(again.report) == str(first.report)
    assert again.report.to_dict() == first.report.to_dict()
    assert [e.info for e in again.encodings] == [e.info for e in first.encodings]
    assert first.encodings
    assert again.profile().rows() == first.profile().rows()
    assert [p.to_bytes() for p in again.programs] == [p.to_bytes() for p in first.programs]


def test_nothing_is_written_to_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sparqle_tvm.compile(model()).export(tmp_path / "model.so")
    sparqle_tvm.load(tmp_path / "model.so")
    assert capfd.readouterr().err == ""
    with without_scopes():
        os.write(2, b"x\n[1] executable.cc:276: Warning: Scope Saving: \ny\n")
    assert capfd.readouterr().err == "x\ny\n"


def told(**changes: Any) -> dict[str, Any]:
    return {"windows": {}, "engine": "host", "choices": {}, "densities": {"a": 0.1}, **changes}


def choice(factor: float) -> dict[str, EncodingChoice]:
    return {"a": EncodingChoice(factors=np.full(4, factor, np.float32))}


def test_a_key_tells_everything_apart() -> None:
    changed = WEIGHTS.copy()
    changed[31, 63] ^= 1
    keys = [
        key_of(model(), told()),
        key_of(model(changed), told()),
        key_of(model(name="label"), told()),
        # Not to be seen in a text of the module.
        key_of(model(scale=float(np.nextafter(np.float32(0.5), np.float32(1)))), told()),
        key_of(model(), told(engine="simulator")),
        key_of(model(), told(windows={"a": "signed"})),
        key_of(model(), told(choices=choice(1.5))),
        key_of(model(), told(choices=choice(2.5))),
        key_of(model(), told(densities={"a": "0.1"})),
    ]
    with tvm.transform.PassContext(disabled_pass=["FuseOps"]):
        keys.append(key_of(model(), told()))
    assert len(set(keys)) == len(keys)
    assert key_of(model(WEIGHTS.copy()), told()) == keys[0]


def test_a_key_is_the_same_in_another_process() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_key) == _key()


def _key() -> str:
    return key_of(model(), told(choices=choice(1.5)))


def test_forms_have_entries_of_their_own(tmp_path: Path, compilations: list[bool]) -> None:
    cache = ExecutableCache(tmp_path)
    for split in (True, False, True, False):
        sparqle_tvm.compile(model(), split=split, cache=cache)
    assert compilations == [True, False]
    titles = {entry.title for entry in cache.entries()}
    assert titles == {
        "main: split, float attention, host, for sparqle/edge",
        "main: not split, float attention, host, for sparqle/edge",
    }


def test_facts_of_choosable_models_come_back() -> None:
    encoding = LiftedEncoding("a", 3, 64, 4, "signed", 32, 1e3)
    facts = Facts(lifted={"main": [encoding]}, tuned=["a"], rewritten={"SplitPrecision": 2})
    assert typed(plain(facts), Facts, "here", CompileError) == facts
    assert facts.report().tuned == ["a"]


def test_what_cannot_be_compared_is_not_kept(tmp_path: Path, compilations: list[bool]) -> None:
    cache = ExecutableCache(tmp_path / "cache")
    sparqle_tvm.compile(model(), cache=cache, dump=tmp_path / "dump")
    assert list((tmp_path / "dump").iterdir())
    sparqle_tvm.compile(model(), cache=cache, stop_after="split")
    machine = sparqle_tvm.target.accelerator.PRESETS["sparqle/edge"]
    cache.compiled(
        model(), {"offload": OffloadDense(machine)}, lambda: sparqle_tvm.compile(model())
    )
    assert compilations == [True, True, True]
    assert not cache.entries()


def test_a_damaged_entry_is_compiled_again(
    tmp_path: Path, compilations: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    cache = ExecutableCache(tmp_path)
    sparqle_tvm.compile(model(), cache=cache)
    (entry,) = cache.entries()
    data = bytearray(entry.path.read_bytes())
    data[len(data) // 2] ^= 1
    # Another file in its place: that which is loaded must not change.
    (tmp_path / "damaged").write_bytes(data)
    (tmp_path / "damaged").replace(entry.path)
    sparqle_tvm.compile(model(), cache=cache)
    assert len(compilations) == 2
    assert "checksum does not match" in caplog.text
    sparqle_tvm.compile(model(), cache=cache)
    assert len(compilations) == 2


def test_numbers_are_kept_by_what_they_depend_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, made = ExecutableCache(tmp_path / "cache"), []

    def numbers(**told: Any) -> tuple[dict[str, float], bool]:
        if (found := cache.find_numbers(told)) is not None:
            return found, True
        made.append(told)
        cache.keep_numbers(told, {"perplexity": len(made) / 3}, "a title")
        return {"perplexity": len(made) / 3}, False

    assert numbers(model="a", tokens=[1, 2]) == ({"perplexity": 1 / 3}, False)
    assert numbers(tokens=[1, 2], model="a") == ({"perplexity": 1 / 3}, True)
    assert numbers(model="a", tokens=[1, 3]) == ({"perplexity": 2 / 3}, False)
    assert numbers(model="b", tokens=[1, 2]) == ({"perplexity": 1.0}, False)
    with tvm.transform.PassContext(opt_level=1):
        assert not numbers(model="b", tokens=[1, 2])[1]
    assert {entry.title for entry in cache.entries()} == {"a title"}
    for entry in cache.entries():
        entry.path.write_text(entry.path.read_text().replace("perplexity", '"'))
    assert numbers(model="a", tokens=[1, 2]) == ({"perplexity": 5 / 3}, False)
    assert "made again" in caplog.text
    assert numbers(model="a", tokens=[1, 2]) == ({"perplexity": 5 / 3}, True)


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    made = sparqle_tvm.compile(model(), cache=ExecutableCache(tmp_path / "file" / "cache"))
    assert made["main"](np.ones((1, 64), np.int8)).numpy().shape == (1, 32)
    assert "is not kept" in caplog.text


def test_a_cache_is_bounded_and_cleared(tmp_path: Path) -> None:
    cache = ExecutableCache(tmp_path)
    sparqle_tvm.compile(model(), cache=cache)
    (one,) = cache.entries()
    bounded = ExecutableCache(tmp_path, limit_bytes=one.nbytes * 5 // 2)
    for number, scale in enumerate((1.5, 2.5, 0.5, 3.5)):  # 0.5 is found again
        sparqle_tvm.compile(model(scale=scale), cache=bounded)
        newest = bounded.entries()[0]
        os.utime(newest.path, (number, number))
    kept = {entry.key for entry in bounded.entries()}
    assert len(kept) == 2
    assert one.key in kept
    assert {entry.key for entry in cache.clear()} == kept
    assert not cache.entries()
    assert not cache.clear()


def test_the_commands(
    tmp_path: Path,
    compilations: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    files = ["--model", str(write_tiny_model(tmp_path)), "--text", str(write_prose(tmp_path))]
    quick = ["--tokens", "24", "--engine", "analytical", "--attention", "float"]
    runs = []
    for number in range(2):
        out = tmp_path / f"{number}.json"
        assert main(["run", *files, *quick, "--json", str(out)]) == 0
        runs.append(json.loads(out.read_text()))
        assert ("run (float)" in runs[-1].pop("seconds")) == (number == 0)
        assert runs[-1].pop("float_kept") == (number == 1)
    # The forms: split, int8, float.
    assert compilations == [True, False, False]
    assert runs[0] == runs[1]
    capsys.readouterr()
    assert main(["cache", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["tables"]["cache"]
    titles = sorted(row["title"].split(":")[0] for row in rows)
    assert titles[:2] == ["head, hidden"] * 2
    assert "float activations, 24 tokens" in titles[2]
    assert main(["cache"]) == main(["cache", "clear"]) == 0
    assert "3 removed" in capsys.readouterr().out
    assert main(["cache", "list"]) == 0
    assert "Nothing is kept" in capsys.readouterr().out


COMPILE = textwrap.dedent(
    """
    import sys
    sys.path += {paths!r}
    from test_cache import ExecutableCache, model, sparqle_tvm
    import numpy as np
    print("ready", flush=True)
    sys.stdin.readline()
    made = sparqle_tvm.compile(model(), cache=ExecutableCache({folder!r}))
    assert made["main"](np.ones((1, 64), np.int8)).numpy().shape == (1, 32)
    print("done", flush=True)
    """
)


def started(folder: Path) -> subprocess.Popen[str]:
    text = COMPILE.format(paths=sys.path, folder=str(folder))
    command = [sys.executable, "-c", text]
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_two_processes_at_once_and_a_kill_in_the_middle(tmp_path: Path) -> None:
    with started(tmp_path) as killed, started(tmp_path) as other:
        for process in (killed, other):
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "ready\n"
            process.stdin.write("\n")
            process.stdin.flush()
        deadline = time.monotonic() + 60
        # It writes into a folder of its own first.
        while not list(tmp_path.glob(".sparqle-*")) and time.monotonic() < deadline:
            time.sleep(0.002)
        killed.kill()
        assert other.communicate(timeout=120)[0] == "done\n"
        assert other.returncode == 0
    cache = ExecutableCache(tmp_path)
    (entry,) = cache.entries()
    assert Executable.load(entry.path)["main"](np.ones((1, 64), np.int8)).numpy().shape == (1, 32)
    # The next that writes removes what the killed one left.
    sparqle_tvm.compile(model(scale=1.5), cache=cache)
    assert sorted(tmp_path.iterdir()) == sorted(each.path for each in cache.entries())


@pytest.mark.parametrize("command", ["run", "generate"])
def test_no_cache(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def stop(*_: Any, **options: Any) -> Any:
        asked.append(options["cache"])
        raise InvalidArgumentError("enough")

    monkeypatch.setattr("sparqle_tvm.studies.run.run_model", stop)
    monkeypatch.setattr("sparqle_tvm.studies.generate.generate", stop)
    assert main([command]) == main([command, "--no-cache"]) == 2
    assert isinstance(asked[0], ExecutableCache)
    assert asked[1] is None
