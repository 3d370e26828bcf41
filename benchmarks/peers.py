"""Runs SCALE-Sim and ZigZag, each with an interpreter of its own, on one GEMM."""

from __future__ import annotations

import csv
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SCALESIM_CONFIG = """
[general]
run_name = gemm
[architecture_presets]
ArrayHeight = {rows}
ArrayWidth = {cols}
IfmapSramSzkB = {activation_kib}
FilterSramSzkB = {weight_kib}
OfmapSramSzkB = {output_kib}
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = os
Bandwidth = {bytes_per_cycle}
ReadRequestBuffer = 512
WriteRequestBuffer = 512
MemoryBanks = 1
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
SparseRep = ellpack_block
OptimizedMapping = false
BlockSize = 4
RandomNumberGeneratorSeed = 40
[run_presets]
InterfaceBandwidth = {interface}
UseRamulatorTrace = False
"""
SCALESIM_TOPOLOGY = "Layer, M, N, K,\ngemm, {m}, {n}, {k},\n"
SCALESIM_LAYOUT = "Layer name," + "factor," * 20 + "\ngemm," + "1," * 20 + "\n"

# Runs in ZigZag's interpreter; reads {hardware, workload, mapping}, prints cycles.
ZIGZAG_SCRIPT = """
import json, logging, sys
logging.disable(logging.CRITICAL)
import yaml
from zigzag.api import get_hardware_performance_zigzag
paths = []
for name, data in json.load(sys.stdin).items():
    paths.append(name + ".yaml")
    with open(paths[-1], "w") as file:
        yaml.safe_dump(data, file, sort_keys=False)
hardware, workload, mapping = paths
_, _, found = get_hardware_performance_zigzag(
    workload, hardware, mapping, opt="latency", dump_folder="out", loma_show_progress_bar=False
)
cost = found[0][0]
print(json.dumps({"total": cost.latency_total2, "array": cost.ideal_temporal_cycle}))
"""


@dataclass(frozen=True)
class Machine:
    """What the tools are told alike: a one-lane int8 array, its buffers and its DRAM."""

    rows: int = 32
    cols: int = 32
    activation_kib: int = 512
    weight_kib: int = 512
    output_kib: int = 1024
    bytes_per_cycle: int = 16


@dataclass(frozen=True)
class PeerCycles:
    """Cycles of a GEMM: in all, and of the array alone (None where the tool does not tell)."""

    total: int
    array: int | None


def run_scalesim(
    python: str, machine: Machine, m: int, n: int, k: int, *, interface: str = "USER"
) -> PeerCycles | str:
    """Run SCALE-Sim; the last line of its output if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = SCALESIM_CONFIG.format(**vars(machine), interface=interface)
        (root / "scale.cfg").write_text(config)
        (root / "gemm.csv").write_text(SCALESIM_TOPOLOGY.format(m=m, n=n, k=k))
        (root / "layout.csv").write_text(SCALESIM_LAYOUT)
        files = ["-c", "scale.cfg", "-t", "gemm.csv", "-l", "layout.csv", "-p", "out"]
        command = [python, "-m", "scalesim.scale", *files, "-i", "gemm", "-s", "N"]
        run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        reports = list(root.glob("out/**/COMPUTE_REPORT.csv"))
        if run.returncode or not reports:
            return _last_line(run) or "it wrote no report"
        with reports[0].open(newline="") as file:
            (row,) = csv.DictReader(file, skipinitialspace=True)
    total = next(int(float(v)) for name, v in row.items() if name and name.startswith("Total Cyc"))
    stalls = next(int(float(v)) for name, v in row.items() if name and name.startswith("Stall"))
    return PeerCycles(total, total - stalls)


def run_zigzag(python: str, machine: Machine, m: int, n: int, k: int) -> PeerCycles | str:
    """Run ZigZag; the last line of its output if it fails."""
    inputs = {
        "hardware": _zigzag_hardware(machine),
        "workload": [_zigzag_workload(m, n, k)],
        "mapping": [
            {
                "name": "default",
                "spatial_mapping": {
                    "D1": [f"M, {min(machine.rows, m)}"],
                    "D2": [f"N, {min(machine.cols, n)}"],
                },
                "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
            }
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [python, "-c", ZIGZAG_SCRIPT],
            cwd=folder,
            input=json.dumps(inputs),
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode:
        return _last_line(run)
    found = json.loads(run.stdout.strip().splitlines()[-1])
    return PeerCycles(int(found["total"]), int(found["array"]))


def _last_line(run: subprocess.CompletedProcess[str]) -> str:
    return " ".join((run.stderr or run.stdout).strip().splitlines()[-1:])


def _zigzag_workload(m: int, n: int, k: int) -> dict[str, object]:
    return {
        "id": 0,
        "name": "gemm",
        "operator_type": "Gemm",
        "equation": "O[m][n]+=I[m][k]*W[k][n]",
        "dimension_relations": [],
        "loop_dims": ["M", "N", "K"],
        "loop_sizes": [m, n, k],
        "operand_precision": {"W": 8, "I": 8, "O": 32, "O_final": 16},
        "operand_source": {"I": 0, "W": 0},
    }


def _zigzag_hardware(machine: Machine) -> dict[str, object]:
    """Accumulators in the PEs, three double-buffered SRAMs, one DRAM port for all."""
    wide, kib_bits = 1 << 20, 8 * 1024
    accumulator_ports = [
        _port("r_port_1", "read", 32, "O, tl"),
        _port("r_port_2", "read", 32, "O, th"),
        _port("w_port_1", "write", 32, "O, fh"),
        _port("w_port_2", "write", 32, "O, fl"),
    ]
    memories = {"pe": _memory(32, ["O"], accumulator_ports, [])}
    sizes = {"I1": machine.activation_kib, "I2": machine.weight_kib}
    lines = {"I1": machine.rows, "I2": machine.cols}
    for operand, kib in sizes.items():
        ports = [
            _port("r_port_1", "read", 8 * lines[operand], f"{operand}, tl"),
            _port("w_port_1", "write", wide, f"{operand}, fh"),
        ]
        memories[operand] = _memory(kib * kib_bits, [operand], ports, ["D1", "D2"], double=True)
    output_ports = [
        _port("rw_port_1", "read_write", wide, "O, tl", "O, fl"),
        _port("rw_port_2", "read_write", wide, "O, fh", "O, th"),
    ]
    size = machine.output_kib * kib_bits
    memories["out"] = _memory(size, ["O"], output_ports, ["D1", "D2"], double=True)
    served = [f"{o}, {way}" for o in ("I1", "I2") for way in ("fh", "tl")]
    served += [f"O, {way}" for way in ("fh", "tl", "fl", "th")]
    dram = _port("rw_port_1", "read_write", 8 * machine.bytes_per_cycle, *served)
    memories["dram"] = _memory(10**11, ["I1", "I2", "O"], [dram], ["D1", "D2"])
    array = {
        "input_precision": [8, 8],
        "unit_energy": 1,
        "unit_area": 1,
        "dimensions": ["D1", "D2"],
        "sizes": [machine.rows, machine.cols],
    }
    return {"name": "array", "memories": memories, "operational_array": array}


def _memory(
    bits: int, operands: list[str], ports: list[object], served: list[str], *, double: bool = False
) -> dict[str, object]:
    return {
        "size": bits,
        "r_cost": 1,
        "w_cost": 1,
        "area": 0,
        "latency": 1,
        "auto_cost_extraction": False,
        "operands": operands,
        "ports": ports,
        "served_dimensions": served,
        **({"force_double_buffering": True} if double else {}),
    }


def _port(name: str, kind: str, bits: int, *allocation: str) -> object:
    return {
        "name": name,
        "type": kind,
        "bandwidth_min": 8,
        "bandwidth_max": bits,
        "allocation": list(allocation),
    }
