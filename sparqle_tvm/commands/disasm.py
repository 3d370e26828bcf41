"""``sparqle disasm``: the accelerator program of a dense layer."""

from __future__ import annotations

import argparse
from typing import Any

from sparqle_tvm.commands import _shared as shared
from sparqle_tvm.numerics.window import PLAIN, WINDOWS


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    disasm = shared.add_command(
        commands,
        "disasm",
        _disasm,
        epilog=shared.examples(
            "disasm --rows 64 --n 576 --k 576 --target sparqle/edge",
        ),
        help="print the accelerator program of a dense layer",
        description="Schedule a dense layer for an accelerator and print its program: buffers, "
        "loops, loads, multiplies, drains and stores, and the tokens between the engines.",
    )
    disasm.add_argument("--rows", type=int, default=512, help="tokens (M), at most")
    disasm.add_argument("--n", type=int, default=1536, help="output features")
    disasm.add_argument("--k", type=int, default=576, help="input features")
    disasm.add_argument("--weight-bits", type=int, default=4, help="bits of a weight: 2, 4 or 8")
    disasm.add_argument(
        "--group-size", type=int, default=32, help="weights along K that share a scale; 0: none"
    )
    disasm.add_argument("--minimum", action="store_true", help="groups have a minimum (Q4_1)")
    disasm.add_argument("--window", choices=tuple(WINDOWS), default="signed", help="window")
    disasm.add_argument(
        "--scheme", choices=("sparqle", "dense"), default="sparqle", help="split form or baseline"
    )
    shared.add_target_argument(disasm, "accelerator")
    return disasm


def _disasm(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.target.accelerator import Accelerator
    from sparqle_tvm.target.compile.codegen import generate
    from sparqle_tvm.target.compile.schedule import default_schedule
    from sparqle_tvm.target.op import DenseOp

    accelerator = Accelerator.from_target(arguments.target)
    spec = DenseOp(
        m=arguments.rows,
        n=arguments.n,
        k=arguments.k,
        digit_bits=accelerator.digit_bits,
        window=arguments.window if arguments.scheme == "sparqle" else PLAIN,
        weight_bits=arguments.weight_bits,
        group_size=arguments.group_size,
        has_min=arguments.minimum,
        scheme=arguments.scheme,
    )
    program = generate(default_schedule(spec, accelerator), spec, accelerator)
    listing = program.disassemble()
    if arguments.json is None:
        shared.print_text(listing)
        return
    data = {
        "kind": "program",
        "target": arguments.target,
        "rows": spec.m,
        "n": spec.n,
        "k": spec.k,
        "program_bytes": len(program.to_bytes()),
        "instructions": len(program.instructions),
        "listing": listing.splitlines(),
    }
    shared.emit_json(arguments.json, data)
