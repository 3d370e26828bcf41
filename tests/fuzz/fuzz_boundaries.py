"""What is fuzzed: each boundary makes whole files once, and damages them case by case.

A case returns if its result is right, raises `Wrong` if it is not, and a typed error of
`sparqle_tvm.errors` is as good as a right result; everything else is a fault. A new boundary is one
class in `BOUNDARIES`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import re
import resource
import shutil
import sqlite3
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from fuzz_damage import (
    STRANGE_TEXTS,
    Wrong,
    damaged_bytes,
    damaged_value,
    strange,
    to_json,
    to_toml,
)


class Boundary:
    """A place where something from outside comes in.

    Attributes
    ----------
    name : str
        As ``--boundary`` takes it.
    share : int
        How many of 100 cases or so it gets; cases that compile get fewer.
    """

    name: ClassVar[str]
    share: ClassVar[int]

    def prepare(self, folder: Path) -> None:
        """Write whole files into a folder; runs once."""

    def open(self, folder: Path) -> Any:
        """Read what every case needs; runs once in each child."""
        return folder

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        """Run a case in an empty folder of its own."""
        raise NotImplementedError


class Values(Boundary):
    """Random integer matmuls, compiled for the host and the simulator, beside NumPy in 64 bits."""

    name, share = "values", 1

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from tvm import relax, tirx

        import sparqle_tvm

        numbers = np.random.default_rng(rng.randrange(2**32))
        n, k = rng.choice((1, 7, 16, 33, 96)), rng.choice((8, 24, 64, 104, 256))
        rows, bits = rng.choice((1, 3, 17, 40)), rng.choice((4, 8))
        w = numbers.integers(-(1 << (bits - 1)), 1 << (bits - 1), (n, k)).astype(np.int8)
        spread = rng.choice((2, 8, 40, 400))
        q = np.clip(np.rint(numbers.laplace(0, spread, (rows, k))), -128, 127).astype(np.int8)
        builder = relax.BlockBuilder()
        count = tirx.Var("m", "int64") if rng.random() < 0.5 else rows
        x = relax.Var("x", relax.TensorType((count, k), "int8"))
        with builder.function("main", [x]):
            with builder.dataflow():
                weights = builder.emit(relax.op.permute_dims(relax.const(w)))
                y = builder.emit_output(relax.op.matmul(x, weights, out_dtype="int32"))
            builder.emit_func_output(y)
        engine = rng.choice(("host", "simulator"))
        compiled = sparqle_tvm.compile(
            builder.finalize(), "sparqle/edge", engine=engine, balance=rng.choice(("array", "none"))
        )
        expected = q.astype(np.int64) @ w.astype(np.int64).T
        if not np.array_equal(compiled["main"](q).numpy(), expected):
            raise Wrong(f"{engine}: {rows} x {n} x {k}, weights of {bits} bits, spread {spread}")


class ProgramValues(Boundary):
    """Programs of random ops on the simulator, beside NumPy (tests/target/dense_cases.py)."""

    name, share = "program-values", 3

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from dataclasses import replace

        from dense_cases import SPECS, accelerator_for, expected, random_operands, simulated

        from sparqle_tvm.target.compile.codegen import generate
        from sparqle_tvm.target.compile.schedule import default_schedule

        spec = SPECS[rng.choice(list(SPECS))]
        unit = max(spec.group_size, 8)
        spec = replace(spec, m=rng.randint(1, 20), n=rng.randint(1, 20), k=unit * rng.randint(1, 4))
        machine = accelerator_for(spec)
        program = generate(default_schedule(spec, machine), spec, machine)
        operands = random_operands(spec, rng.randrange(2**31))
        rows = rng.randint(1, spec.m)
        found = simulated(program, operands, rows)
        if np.asarray(found).tobytes() != expected(spec, operands)[:rows].tobytes():
            raise Wrong(f"{spec} with {rows} rows")


class AttentionValues(Boundary):
    """Attention on the simulator, beside its definition (tests/target/attention_cases.py).

    Odd head widths, one row, groups of 1 to 8, an empty past; caches in planes and plain.
    """

    name, share = "attention-values", 3

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from attention_cases import Case, Operands

        from sparqle_tvm.target.compile.attention import attention_program
        from sparqle_tvm.target.simulator.attention import simulate_attention

        draw = np.random.default_rng(rng.randrange(2**31))
        case = Case.random(draw)
        operands = Operands.random(case.op, case.rows, case.past, draw)
        program = attention_program(case.op, case.accelerator, case.plan)
        found = simulate_attention(program, operands.tensors(program.header), case.rows).output
        if found.tobytes() != operands.expected(case.op).tobytes():
            raise Wrong(str(case))


def _peak_bytes() -> int:
    """Most memory that this process had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _check_memory(path: Path, before: int) -> None:
    """Raise if reading a file took more than twice its size and 1 GiB."""
    if _peak_bytes() - before > 2 * path.stat().st_size + 2**30:
        raise Wrong(f"{_peak_bytes() - before} bytes of memory")


class Gguf(Boundary):
    """Model files: damaged bytes, and metadata that no model has."""

    name, share = "gguf", 12

    def prepare(self, folder: Path) -> None:
        from gguf import GGMLQuantizationType as Kind
        from tiny_files import sentencepiece_tokenizer, write_tiny_model
        from tiny_llama import I2_S, TinyLlama

        write_tiny_model(folder)
        kinds = [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_XS]
        kinds.append(I2_S)
        names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        wide = TinyLlama(
            *(1, 256, 256),
            vocab=260,
            kinds={f"blk.0.{name}.weight": kind for name, kind in zip(names, kinds, strict=True)},
            arch="qwen2",
            tokenizer=sentencepiece_tokenizer(),
        )
        wide.write(folder / "wide.gguf")

    def open(self, folder: Path) -> Any:
        files = [(folder / name).read_bytes() for name in ("tiny.gguf", "wide.gguf")]
        return [(data, data.index(b"token_embd.weight") + 2000) for data in files]

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from tiny_files import byte_tokenizer, write_tiny_model

        from sparqle_tvm.frontend import from_gguf

        data, header = rng.choice(state)
        path, before = folder / "tiny.gguf", _peak_bytes()
        if rng.random() < 0.75:
            path.write_bytes(damaged_bytes(rng, data, rng.choice((header, header, None))))
        else:
            values = byte_tokenizer()
            key = rng.choice(list(values))
            new = rng.choice((strange(rng), -1, 257, 2**31 - 1, [1], ["a b", "t"], None))
            # What the writer of the library cannot write is no case.
            with contextlib.suppress(Exception):
                write_tiny_model(folder, overrides={key: new})
            if not path.exists():
                return
            if rng.random() < 0.2:
                path.write_bytes(self._nested(path.read_bytes(), rng.choice((2, 50_000))))
        try:
            imported = from_gguf(path, activations=rng.choice(("int8", "float32")), progress=False)
            ids = imported.tokenizer.encode("the quick fox")
            if not all(0 <= i < imported.tokenizer.vocab for i in ids):
                raise Wrong(f"token ids {ids}")
            imported.tokenizer.decode(ids)
        finally:
            _check_memory(path, before)

    @staticmethod
    def _nested(data: bytes, depth: int) -> bytes:
        """A file with one more entry: an array in an array, and so on."""
        count = int.from_bytes(data[16:24], "little") + 1
        one = (9).to_bytes(4, "little") + (1).to_bytes(8, "little")
        entry = (4).to_bytes(8, "little") + b"deep" + (9).to_bytes(4, "little") + one * depth
        end = (4).to_bytes(4, "little") + (0).to_bytes(8, "little")
        return data[:16] + count.to_bytes(8, "little") + entry + end + data[24:]


class Onnx(Boundary):
    """ONNX models: damaged bytes, and parts of the graph that are others."""

    name, share = "onnx", 6
    CALLED = 0.3
    """Of files that are imported; compiling takes seconds."""

    def prepare(self, folder: Path) -> None:
        import onnx
        from onnx_models import dynamic, mlp

        onnx.save(mlp(), folder / "mlp.onnx")
        dynamic(mlp(gemms=0), folder)

    def open(self, folder: Path) -> Any:
        return [path.read_bytes() for path in sorted(folder.rglob("*.onnx"))]

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        import onnx

        from sparqle_tvm.frontend import from_onnx

        path, whole = folder / "model.onnx", rng.choice(state)
        if rng.random() < 0.6:
            path.write_bytes(damaged_bytes(rng, whole))
        else:
            model = onnx.load_model_from_string(whole)
            node = rng.choice(model.graph.node)
            kind = rng.randrange(5)
            if kind == 0:
                node.op_type = rng.choice(("MatMul", "Cast", "Loop", "", "[red]"))
            elif kind == 1:
                node.input[rng.randrange(len(node.input))] = rng.choice(("", "x", "nothing"))
            elif kind == 2:
                node.name = rng.choice(STRANGE_TEXTS[:-4])
            elif kind == 3:
                model.opset_import[0].version = rng.choice((-1, 0, 12, 22, 2**40))
            else:
                tensor = rng.choice(model.graph.initializer)
                tensor.dims[:] = rng.choice(([], [0], [-1], [2**40, 2**40], [3, 5, 7]))
            path.write_bytes(model.SerializeToString())
        before = _peak_bytes()
        try:
            imported = from_onnx(path)
        finally:
            _check_memory(path, before)
        if rng.random() < self.CALLED:
            self._compare(path, imported)

    @staticmethod
    def _compare(path: Path, imported: Any) -> None:
        """What a damaged model computes is what onnxruntime computes, if that takes it at all."""
        import onnxruntime
        from onnx_models import rows

        import sparqle_tvm

        onnxruntime.set_default_logger_severity(4)
        given = [rows(3, 5)]
        try:
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            names = [each.name for each in session.get_inputs()]
            expected = session.run(None, dict(zip(names, given, strict=True)))[0]
        except Exception:
            return
        found = sparqle_tvm.compile(imported.mod)["main"](*given).numpy()
        if not np.isfinite(expected).all():
            return
        off = np.abs(found - expected).max()
        if found.shape != expected.shape or not off <= 1e-5 * np.abs(expected).max():
            raise Wrong(f"off by {off} of {np.abs(expected).max()}")


class Pt2(Boundary):
    """What ``torch.export.save`` writes: the archive damaged, or a file in it, or another in it."""

    name, share = "pt2", 2

    def prepare(self, folder: Path) -> None:
        import torch
        from torch.ao.quantization.fx import _decomposed  # noqa: F401, declares the ops

        ops = torch.ops.quantized_decomposed

        class Layer(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("w", torch.arange(-60, 60, dtype=torch.int8).reshape(5, 24))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                q = ops.quantize_per_tensor(x, 0.05, 3, -128, 127, torch.int8)
                x = ops.dequantize_per_tensor(q, 0.05, 3, -128, 127, torch.int8)
                w = ops.dequantize_per_tensor(self.w, 0.01, 0, -127, 127, torch.int8)
                return torch.nn.functional.linear(x, w)

        torch.export.save(torch.export.export(Layer(), (torch.ones(3, 24),)), folder / "whole.pt2")

    def open(self, folder: Path) -> Any:
        return (folder / "whole.pt2").read_bytes()

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from sparqle_tvm.studies.inputs import load_module

        path = folder / "model.pt2"
        if rng.random() < 0.4:
            path.write_bytes(damaged_bytes(rng, state))
        else:
            with zipfile.ZipFile(io.BytesIO(state)) as whole:
                members = {name: whole.read(name) for name in whole.namelist()}
            name = rng.choice([each for each, data in members.items() if data])
            if name.endswith(".json") and rng.random() < 0.7:
                value = damaged_value(rng, json.loads(members[name]))
                members[name] = to_json(value).encode()
            else:
                members[name] = rng.choice((damaged_bytes(rng, members[name]), b"", state))
            with zipfile.ZipFile(path, "w") as damaged:
                for each, data in members.items():
                    damaged.writestr(each, data)
        load_module(path)


class Programs(Boundary):
    """Programs in binary form, damaged, also where the checksum is made to fit."""

    name, share = "programs", 14
    count = 1

    def prepare(self, folder: Path) -> None:
        from dense_cases import SPECS, accelerator_for

        from sparqle_tvm.target.compile.codegen import generate
        from sparqle_tvm.target.compile.schedule import default_schedule

        for number, spec in enumerate(SPECS.values()):
            machine = accelerator_for(spec)
            program = generate(default_schedule(spec, machine), spec, machine)
            (folder / f"{number:02}.bin").write_bytes(program.to_bytes())

    def open(self, folder: Path) -> Any:
        return [path.read_bytes() for path in sorted(folder.iterdir())]

    def damaged(self, rng: random.Random, whole: bytes) -> bytes:
        if rng.random() < 0.2:
            return damaged_bytes(rng, whole)
        body = damaged_bytes(rng, whole[14:-32])
        data = whole[:6] + len(body).to_bytes(8, "little") + body
        return data + hashlib.sha256(data).digest()

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from sparqle_tvm.target.program import Program
        from sparqle_tvm.target.simulator import simulate_timing
        from sparqle_tvm.target.verify import verify

        program = Program.from_bytes(self.damaged(rng, rng.choice(state)))
        program.disassemble()
        rows = min(program.header.op.m, 40)
        verify(program, rows)
        simulate_timing(program, rows, None)


class Bundles(Programs):
    """Bundles of programs."""

    name, share = "bundles", 6

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from sparqle_tvm.target.program.bundle import select, unpack_bundle

        bundle = b"".join(
            rng.choice((rng.choice(state), self.damaged(rng, rng.choice(state))))
            for _ in range(rng.randint(0, 3))
        )
        if rng.random() < 0.5:
            bundle = damaged_bytes(rng, bundle)
        select(unpack_bundle(bundle), rng.choice((1, 5, 10**9)))


class Exported(Boundary):
    """Exported modules: damaged ones are refused before the system loads them."""

    name, share = "exported", 6

    def prepare(self, folder: Path) -> None:
        from tvm import relax

        import sparqle_tvm

        builder = relax.BlockBuilder()
        x = relax.Var("x", relax.TensorType((3, 64), "int8"))
        weights = np.arange(-128, 128, dtype=np.int8).repeat(8).reshape(32, 64)
        with builder.function("main", [x]):
            with builder.dataflow():
                w = builder.emit(relax.op.permute_dims(relax.const(weights)))
                y = builder.emit_output(relax.op.matmul(x, w, out_dtype="int32"))
            builder.emit_func_output(y)
        sparqle_tvm.compile(builder.finalize(), engine="simulator").export(folder / "model.so")

    def open(self, folder: Path) -> Any:
        return (folder / "model.so").read_bytes()

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        import sparqle_tvm

        path = folder / "model.so"
        in_manifest = rng.random() < 0.5
        path.write_bytes(
            self._with_manifest(rng, state) if in_manifest else damaged_bytes(rng, state)
        )
        loaded = sparqle_tvm.load(path)
        if not in_manifest and path.read_bytes() != state:
            raise Wrong("a damaged module was loaded")
        if loaded["main"](np.ones((3, 64), np.int8)).numpy().shape != (3, 32):
            raise Wrong("another shape")

    @staticmethod
    def _with_manifest(rng: random.Random, whole: bytes) -> bytes:
        """Another manifest, with its checksum."""
        length = int.from_bytes(whole[-48:-40], "little")
        manifest = json.loads(whole[-48 - length : -48])
        key = rng.choice(("version", "apache_tvm", "system", "machine", "cpu", "", "sparqle_tvm"))
        manifest[key] = strange(rng)
        text = to_json(manifest).encode(errors="replace")
        body = whole[: -48 - length] + text + len(text).to_bytes(8, "little")
        return body + hashlib.sha256(body).digest() + whole[-8:]


class CalibrationFile(Boundary):
    """Calibrations: damaged archives, arrays of other sizes, other facts."""

    name, share = "calibration", 10

    def prepare(self, folder: Path) -> None:
        from tiny_calibration import calibrate_tiny

        calibrate_tiny(folder).calibration.save(folder / "calib.npz")

    def open(self, folder: Path) -> Any:
        path = folder / "calib.npz"
        with np.load(path) as file:
            return path.read_bytes(), dict(file)

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from sparqle_tvm.calibration import Calibration
        from sparqle_tvm.calibration.apply import select
        from sparqle_tvm.calibration.budget import Budget
        from sparqle_tvm.results.calibration import CalibrationSummary

        whole, arrays = state
        path = folder / "calib.npz"
        if rng.random() < 0.4:
            path.write_bytes(damaged_bytes(rng, whole))
        else:
            self._write(rng, path, dict(arrays))
        known = Calibration.load(path)
        CalibrationSummary.of(known)
        known.row_nnz(known.encodings[0].label, 5)
        select(known, Budget("sparsity", 0.8))

    def _write(self, rng: random.Random, path: Path, arrays: dict[str, Any]) -> None:
        name = rng.choice(list(arrays))
        if name == "header" or rng.random() < 0.5:
            header = damaged_value(rng, json.loads(arrays["header"].tobytes()))
            text = to_json(header).encode(errors="replace")
            arrays["header"] = np.frombuffer(text, np.uint8)
        else:
            kind = rng.randrange(6)
            array = arrays[name]
            if kind == 0:
                del arrays[name]
            elif kind == 1:
                arrays[name] = array.astype(rng.choice(("f4", "f8", "i8", "u1", "c8", "U3", "O")))
            elif kind == 2:
                arrays[name] = array[..., : rng.randrange(array.shape[-1] + 1)]
            elif kind == 3 and array.dtype.kind == "f" and array.size:
                changed = array.copy().reshape(-1)
                changed[rng.randrange(changed.size)] = rng.choice((np.nan, np.inf, -1, 1e30))
                arrays[name] = changed.reshape(array.shape)
            elif kind == 4:
                arrays["another"] = array
            else:
                return self._announce(rng, path, arrays, name)
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @staticmethod
    def _announce(rng: random.Random, path: Path, arrays: dict[str, Any], name: str) -> None:
        """Write an archive in which an array announces more than there is."""
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        data = members[f"{name}.npy"]
        shape = re.search(rb"'shape': (\([^)]*\))", data[:200])
        assert shape is not None
        big = rng.choice((b"(9999999999,)", b"(1,)", b"(-1, 3)", b"(30000, 30000, 9)", b"3" * 60))
        members[f"{name}.npy"] = data.replace(shape[1], big, 1)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)


class Database(Boundary):
    """Tuning databases."""

    name, share = "database", 10

    def prepare(self, folder: Path) -> None:
        from tuning_cases import STARVED, small_space, spec_of, task_of_spec

        from sparqle_tvm.tuning.measure import ActivationData, Meter
        from sparqle_tvm.tuning.tuner import Tuner

        task = task_of_spec(spec_of())
        meter = Meter(STARVED, ActivationData(0.3))
        space = {task: small_space(task)}
        Tuner(meter, "latency", folder, spaces=space).run([task], 12)

    def open(self, folder: Path) -> Any:
        from sparqle_tvm.tuning import database

        return folder, database.TuningDatabase(folder).settings

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from tuning_cases import spec_of

        from sparqle_tvm.tuning import database

        source, settings = state
        folder = folder / "database"
        shutil.copytree(source, folder)
        names = (database.WORKLOADS, database.RECORDS, database.RECORDS, database.SETTINGS)
        path = folder / rng.choice(names)
        if path.name == database.SETTINGS and rng.random() < 0.7:
            path.write_text(to_json(damaged_value(rng, json.loads(path.read_text()))))
        elif path.name == database.RECORDS and rng.random() < 0.7:
            lines = path.read_text().splitlines()
            at = rng.randrange(len(lines))
            lines[at] = to_json(damaged_value(rng, json.loads(lines[at])))
            path.write_text("\n".join(lines) + "\n")
        else:
            path.write_bytes(damaged_bytes(rng, path.read_bytes()))
        opened = database.open_for_tuning(folder, settings)
        opened.schedules([spec_of()])
        if rng.random() < 0.3:
            from tvm.s_tir import meta_schedule as ms

            # What was accepted, TVM reads too.
            ms.database.JSONDatabase(str(folder / names[0]), str(folder / names[1]))


class Journal(Boundary):
    """What an unfinished sweep left."""

    name, share = "journal", 8
    text = '[fixed]\nmodel = "smollm2-135m"\nphase = "decode"\n[grid]\nseq = [16, 32]\n'

    def prepare(self, folder: Path) -> None:
        from sparqle_tvm.studies.sweep import evaluate_point, read_sweep
        from sparqle_tvm.studies.sweep.checkpoint import Checkpoint

        (folder / "sweep.toml").write_text(self.text)
        sweep = read_sweep(folder / "sweep.toml")
        kept = Checkpoint(folder / "out.csv.progress", sweep.digest)
        kept.add({i: evaluate_point(point) for i, point in enumerate(sweep.points)})
        kept.close()

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from sparqle_tvm.report.sweep import sweep_document
        from sparqle_tvm.report.writers import to_markdown
        from sparqle_tvm.studies.sweep import read_sweep, run_sweep

        path = folder / "out.csv.progress"
        shutil.copy(state / path.name, path)
        if rng.random() < 0.5:
            path.write_bytes(damaged_bytes(rng, path.read_bytes()))
        else:
            database = sqlite3.connect(path)
            (row,) = database.execute("SELECT row FROM done WHERE number = 1").fetchone()
            new: Any = to_json(damaged_value(rng, json.loads(row)))
            new = rng.choice((new, new, new, b"\xff\xfe", 3, None))
            with contextlib.suppress(UnicodeEncodeError):
                database.execute("UPDATE done SET row = ? WHERE number = 1", (new,))
            if rng.random() < 0.1:
                database.execute("UPDATE done SET number = 77 WHERE number = 1")
            if rng.random() < 0.1:
                database.execute("CREATE VIEW other AS SELECT * FROM done")
            database.commit()
            database.close()
        sweep = read_sweep(state / "sweep.toml")
        result = run_sweep(sweep, folder / "out.csv", workers=1, progress=False)
        to_markdown(sweep_document(result, "out.csv"))


class SweepToml(Boundary):
    """Points of a sweep, as TOML and as words of the command line."""

    name, share = "sweep-toml", 10
    whole: ClassVar[dict[str, Any]] = {
        "fixed": {"model": "smollm2-135m", "phase": "decode", "target": "sparqle/edge"},
        "grid": {
            "seq": [16, 64],
            "msb_sparsity": [0.5, "measured"],
            "rows": [16],
            "memory": ["hbm2"],
        },
    }

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from sparqle_tvm.studies.sweep import Sweep, evaluate_point, parse_axis, read_sweep

        if rng.random() < 0.3:
            numbers = [str(x) for x in (*range(-1, 4), 1e308, 999999999999, "nan", "inf", "a", "")]
            values = rng.choice((":", ",")).join(rng.choice(numbers) for _ in range(3))
            sweep = Sweep.grid(dict([parse_axis(f"{rng.choice(('seq', 'lanes', ''))}={values}")]))
        else:
            path = folder / "sweep.toml"
            if rng.random() < 0.3:
                path.write_bytes(damaged_bytes(rng, to_toml(self.whole).encode()))
            else:
                text = to_toml(damaged_value(rng, self.whole))
                path.write_text(text, encoding="utf-8", errors="replace")
            sweep = read_sweep(path)
        for point in sweep.points[:2]:
            evaluate_point(point)


class AcceleratorToml(Boundary):
    """Accelerator files."""

    name, share = "accelerator-toml", 10

    def open(self, folder: Path) -> Any:
        from dataclasses import asdict

        from sparqle_tvm.target.accelerator import PRESETS

        return asdict(PRESETS["sparqle/edge"])

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from sparqle_tvm.studies.estimate import estimate
        from sparqle_tvm.target.accelerator import Accelerator

        path = folder / "mine.toml"
        if rng.random() < 0.2:
            path.write_bytes(damaged_bytes(rng, to_toml(state).encode()))
        else:
            path.write_text(to_toml(damaged_value(rng, state)), encoding="utf-8", errors="replace")
        machine = Accelerator.from_toml(path)
        json.dumps(
            estimate("smollm2-135m", "decode", seq=64, target=machine).to_json(), allow_nan=False
        )


class RunFile(Boundary):
    """The JSON of a run, which `sparqle report` shows in every form."""

    name, share = "run-json", 12

    def prepare(self, folder: Path) -> None:
        from report_helper import small_run

        (folder / "run.json").write_text(json.dumps(small_run().to_json()))

    def open(self, folder: Path) -> Any:
        return json.loads((folder / "run.json").read_text())

    def damaged(self, rng: random.Random, whole: Any) -> str:
        if rng.random() < 0.15:
            text = damaged_bytes(rng, json.dumps(whole).encode())
            return text.decode(errors="surrogateescape")
        return to_json(damaged_value(rng, whole))

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from sparqle_tvm.report.build import build_report
        from sparqle_tvm.results.run import RunResult

        path = folder / "run.json"
        path.write_text(self.damaged(rng, state), encoding="utf-8", errors="surrogateescape")
        self.show(rng, build_report(RunResult.load(path)), folder)

    def show(self, rng: random.Random, document: Any, folder: Path) -> None:
        """Write a report in every form."""
        from sparqle_tvm.report.html import to_html
        from sparqle_tvm.report.writers import print_document, to_markdown, write_csv

        print_document(document)
        to_markdown(document)
        json.dumps(document.to_json(), allow_nan=False)
        write_csv(document, folder / "csv")
        if rng.random() < 0.1:
            to_html(document)


class ResultFiles(RunFile):
    """The JSON of an estimate, a check, a sweep and crossings, alone or together with another."""

    name, share = "results-json", 8
    commands: ClassVar[dict[str, list[str]]] = {
        "estimate": ["estimate", "--seq", "64"],
        "check": ["target", "check", "sparqle/edge", "--seq", "64"],
        "sweep": ["sweep", "--axis", "seq=8,16", "--workers", "1"],
        "find": ["sweep", "--seq", "16", "--find", "time_saved=0", "--over", "batch=1,2"],
    }

    def prepare(self, folder: Path) -> None:
        from sparqle_tvm.cli import main

        for name, words in self.commands.items():
            out = ["--out", str(folder / "s.csv")] if name == "sweep" else []
            whole = [*words, *out, "--model", "smollm2-135m"]
            with contextlib.redirect_stdout(io.StringIO()):
                if main([*whole, "--json", str(folder / f"{name}.json")]) != 0:
                    raise Wrong(f"{name} cannot be prepared")

    def open(self, folder: Path) -> Any:
        return [json.loads((folder / f"{name}.json").read_text()) for name in self.commands]

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from sparqle_tvm.report.load import load_document
        from sparqle_tvm.report.several import together

        path, other = folder / "found.json", folder / "other.json"
        path.write_text(
            self.damaged(rng, rng.choice(state)), encoding="utf-8", errors="surrogateescape"
        )
        other.write_text(json.dumps(rng.choice(state)))
        documents = [load_document(each)[1] for each in (path, other)]
        self.show(rng, together(documents[: rng.randint(1, 2)]), folder)


class Names(RunFile):
    """Names that would be markup, in a run: they come out as text."""

    name, share = "names", 6

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from sparqle_tvm.escaping import for_csv, for_markdown, visible
        from sparqle_tvm.report.build import build_report
        from sparqle_tvm.report.html import to_html
        from sparqle_tvm.report.writers import print_document, to_markdown, write_csv
        from sparqle_tvm.results.run import RunResult

        name = rng.choice(STRANGE_TEXTS[1:-3]) + rng.choice(("", "x", "\n# y"))
        data = json.loads(json.dumps(state))
        data["model"]["name"] = data["text"]["name"] = data["accelerator"]["name"] = name
        document = build_report(RunResult.from_json(data))
        if name[:1] in "=+-@" and for_csv(name) == name:
            raise Wrong(f"{name!r} would be a formula")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            print_document(document)
        if any(ord(c) < 32 and c != "\n" for c in printed.getvalue()):
            raise Wrong(f"{name!r} steers the terminal")
        words = visible(name).split()
        if len(name) < 60 and words and words[0] not in printed.getvalue():
            raise Wrong(f"{words[0]!r} is not printed")
        if len(name) < 60 and for_markdown(name).strip() not in to_markdown(document):
            raise Wrong(f"{name!r} is not in the Markdown")
        write_csv(document, folder / "csv")
        if rng.random() < 0.15:
            page = _Page()
            page.feed(to_html(document))
            if page.scripts or (words and words[0] not in page.text):
                raise Wrong(f"{name!r} is no text in the page")


class _Page(HTMLParser):
    """The text of a page, and how many scripts it has."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts, self.text = 0, ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.scripts += tag == "script"

    def handle_data(self, data: str) -> None:
        self.text += data


class SparsityJson(RunFile):
    """MSB sparsities by layer type, and a run in their place."""

    name, share = "sparsity-json", 10
    by_type: ClassVar[dict[str, Any]] = {
        **{"qkv": 0.9, "o": [[0.1, 0.2, 0.4]], "gate_up": 0.5, "down": 0.7, "output": 0.5},
        "digit_bits": 4,
    }

    def prepare(self, folder: Path) -> None:
        from dataclasses import replace

        from report_helper import small_run

        run = small_run()
        layers = tuple(
            replace(layer, row_density=layer.row_density or (0.1, 0.2, 0.9))
            for layer in run.msb_sparsity.layers
        )
        run = replace(run, msb_sparsity=replace(run.msb_sparsity, layers=layers))
        (folder / "run.json").write_text(json.dumps(run.to_json()))

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from sparqle_tvm.studies.estimate import estimate

        path = folder / "sparsity.json"
        whole = state if rng.random() < 0.4 else self.by_type
        path.write_text(self.damaged(rng, whole), encoding="utf-8", errors="surrogateescape")
        estimate("smollm2-135m", "decode", seq=64, msb_sparsity=path)


class Arrays(Boundary):
    """Inputs of a model as .npz files: damaged bytes, and headers that promise too much."""

    name, share = "arrays", 6

    def prepare(self, folder: Path) -> None:
        numbers = np.random.default_rng(0)
        np.savez(folder / "plain.npz", x=numbers.normal(size=(5, 7)), ids=np.arange(9))
        np.savez_compressed(folder / "packed.npz", x=numbers.normal(size=(50, 7)))

    def open(self, folder: Path) -> Any:
        return [path.read_bytes() for path in sorted(folder.glob("*.npz"))]

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from sparqle_tvm.studies.call_inputs import parse_shapes, read_arrays

        path, whole = folder / "in.npz", rng.choice(state)
        if rng.random() < 0.2:
            parse_shapes([rng.choice(STRANGE_TEXTS), f"x={rng.choice(STRANGE_TEXTS)}"])
            return
        if rng.random() < 0.6:
            path.write_bytes(damaged_bytes(rng, whole))
        else:
            shape = rng.choice(("(-1,)", "(2**63,)", "(10**12, 10**12)", "(3.5,)", "()", "[[]]"))
            kind = rng.choice(("<f4", "|O", "<U99999999", "nothing", "<i8"))
            text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
            text = text.ljust(rng.choice((118, 120)), b" ")
            header = b"\x93NUMPY" + bytes((rng.choice((0, 1, 2, 3, 9)), 0))
            with zipfile.ZipFile(path, "w") as archive:
                data = header + len(text).to_bytes(rng.choice((2, 4)), "little") + text
                archive.writestr(rng.choice(("x.npy", "x", "..")), data + bytes(64))
        for array in read_arrays(path).values():
            if array.dtype.hasobject or array.nbytes > 1 << 20:
                raise Wrong(f"an array of {array.nbytes} bytes, {array.dtype}")


class TextFile(Boundary):
    """Texts to run."""

    name, share = "text", 5

    def prepare(self, folder: Path) -> None:
        from tiny_files import write_tiny_model

        write_tiny_model(folder)

    def open(self, folder: Path) -> Any:
        from sparqle_tvm.frontend import from_gguf

        return from_gguf(folder / "tiny.gguf", progress=False).tokenizer

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        from sparqle_tvm.frontend.text import load_tokens, read_text

        text = "".join(rng.choice(STRANGE_TEXTS) for _ in range(rng.randrange(5))) + "the fox " * 4
        (folder / "text").write_bytes(
            damaged_bytes(rng, text.encode(errors="surrogatepass"))
            if rng.random() < 0.5
            else text.encode(errors="replace")
        )
        load_tokens(state, read_text(folder / "text"), rng.choice((-1, 0, 1, 8, 10**12)))


class CommandLine(Boundary):
    """Options of the commands: a result, or one line of error and exit code 2."""

    name, share = "command-line", 12
    values = (
        *("-1", "0", "1", "3", "64", "16", "2", "0.5", "5%", "1e-320", "1e400", "nan"),
        *("99999999999999999999", "x", "", "-", "/", "a:b", "latency", "sparqle/edge"),
        *("/dev/full", "/dev/null", "no/such/file", "[red]", "\x1b[2J"),
    )
    options: ClassVar[dict[str, dict[str, str]]] = {
        "estimate": {
            **{"--model": "smollm2-135m", "--phase": "decode", "--seq": "64", "--batch": "2"},
            **{"--msb-sparsity": "0.5", "--target": "sparqle/edge", "--node": "7nm"},
            **{"--kv-bits": "8", "--balance": "time", "--static-watts": "1", "--memory": "hbm2"},
            **{"--json": "out.json", "--csv": "csv", "--markdown": "out.md"},
        },
        "disasm": {
            **{"--rows": "8", "--n": "16", "--k": "64", "--weight-bits": "4"},
            **{"--group-size": "32", "--window": "signed", "--scheme": "sparqle"},
            **{"--target": "sparqle/edge", "--json": "o.json"},
        },
        "report": {"--json": "o.json", "--markdown": "o.md", "--csv": "csv", "--": "{run}"},
        "sweep": {"--axis": "seq=8", "--fix": "phase=decode", "--out": "o.csv", "--workers": "1"},
        # These end before a model is read, for want of one.
        "run": {
            **{"--model": "none.gguf", "--text": "{text}", "--tokens": "8"},
            **{"--target": "sparqle/edge", "--engine": "simulator", "--balance": "time"},
            **{"--max-perplexity-increase": "1%", "--loss-tokens": "5", "--calibration": "c.npz"},
            **{"--json": "o.json", "--dump": "dump"},
        },
        "tune": {
            **{"--model": "none.gguf", "--trials": "3", "--objective": "edp", "--tokens": "8"},
            **{"--seed": "1", "--density": "0.3", "--draws": "1", "--percentile": "50"},
            **{"--database": "base", "--json": "o.json", "--memory": "hbm2"},
        },
        "calibrate": {"--model": "none.gguf", "--text": "{text}", "--out": "c.npz"},
        "pareto": {
            **{"--model": "none.gguf", "--calibration": "c.npz", "--text": "{text}"},
            **{"--tokens": "8", "--picture": "p.png", "--max-perplexity-increase": "1%"},
        },
    }  # fmt: skip

    def prepare(self, folder: Path) -> None:
        from report_helper import small_run
        from tiny_files import write_prose

        write_prose(folder)
        (folder / "run.json").write_text(json.dumps(small_run().to_json()))

    def case(self, rng: random.Random, state: Any, folder: Path) -> None:
        import os

        from sparqle_tvm.cli import main

        command = rng.choice(list(self.options))
        chosen = dict(self.options[command])
        for name in list(chosen):
            if rng.random() < 0.15:
                chosen[name] = rng.choice(self.values)
            elif rng.random() < 0.3 and name not in ("--model", "--", "--out", "--seq"):
                del chosen[name]
        places = {"{run}": state / "run.json", "{text}": state / "prose.txt"}
        words = [str(places.get(w, w)) for pair in chosen.items() for w in pair]
        out, err, before = io.StringIO(), io.StringIO(), os.getcwd()
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    code = main([command, *words])
                except SystemExit as stop:
                    code = stop.code if isinstance(stop.code, int) else 1
        finally:
            os.chdir(before)
        said = [line for line in err.getvalue().split("\n") if "error: " in line]
        if code not in (0, 2) or len(said) != (code == 2) or "Traceback" in err.getvalue():
            raise Wrong(f"{command} {words}: exit code {code}: {err.getvalue()[-500:]}")
        if any(ord(c) < 32 and c not in "\n\r\t" for c in err.getvalue()):
            raise Wrong(f"{command} {words}: an error steers the terminal")
        if code == 2:
            allowed = {"base", "dump", "csv", "o.csv.progress"}
            left = {path.name for path in folder.iterdir()} - allowed
            if left:
                raise Wrong(f"{command} {words}: {sorted(left)} are left after an error")


BOUNDARIES: dict[str, Boundary] = {
    kind.name: kind()
    for kind in (
        Values,
        ProgramValues,
        AttentionValues,
        Gguf,
        Onnx,
        Pt2,
        Programs,
        Bundles,
        Exported,
        CalibrationFile,
        Database,
        Journal,
        SweepToml,
        AcceleratorToml,
        RunFile,
        ResultFiles,
        Names,
        SparsityJson,
        Arrays,
        TextFile,
        CommandLine,
    )
}
