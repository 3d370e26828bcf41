"""The command ``sparqle``. What is heavy is imported after the arguments are read."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sparqle_tvm
from sparqle_tvm.errors import InvalidArgumentError, SparqleError
from sparqle_tvm.files import write_json

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, or 2 after an error of the user."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(name)s: %(message)s",
    )
    try:
        arguments.command(arguments)
    except SparqleError as error:
        if arguments.verbose:
            raise
        print(f"sparqle: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("sparqle: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparqle",
        description="Split precision (sub-precision sparsity) for quantized language models.",
    )
    parser.add_argument("--version", action="version", version=f"sparqle {sparqle_tvm.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_disasm(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="run a model on a text, and count what split precision saves",
        description="Run a language model on a text with float, int8 and split int8 activations. "
        "Prints perplexity, whether the split form is exact, MSB sparsity, cycles and DRAM bytes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    run.add_argument(
        "--model", default="smollm2", help="smollm2 (fetched on first use) or a GGUF file"
    )
    run.add_argument(
        "--text", metavar="FILE", help="UTF-8 text; prose of Python's documentation if not given"
    )
    run.add_argument("--tokens", type=int, default=512, help="how many tokens of the text")
    run.add_argument("--target", default="sparqle/edge", help="accelerator to count for")
    run.add_argument(
        "--engine",
        choices=("simulator", "analytical"),
        default="simulator",
        help="run the dense layers as simulated programs, or count them by formula (faster)",
    )
    run.add_argument(
        "--json",
        metavar="FILE",
        help="write the result as JSON; - writes only it to standard output",
    )
    run.add_argument("--verbose", action="store_true", help="show what passes skip, and tracebacks")
    run.set_defaults(command=_run)


def _add_disasm(commands: Any) -> None:
    disasm = commands.add_parser(
        "disasm",
        help="print the accelerator program of a dense layer",
        description="Schedule a dense layer for an accelerator and print its program: buffers, "
        "loops, loads, multiplies, drains and stores, and the tokens between the engines.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    disasm.add_argument("--rows", type=int, default=512, help="tokens (M), at most")
    disasm.add_argument("--n", type=int, default=1536, help="output features")
    disasm.add_argument("--k", type=int, default=576, help="input features")
    disasm.add_argument("--weight-bits", type=int, default=4, help="bits of a weight: 2, 4 or 8")
    disasm.add_argument(
        "--group-size", type=int, default=32, help="weights along K that share a scale; 0: none"
    )
    disasm.add_argument("--minimum", action="store_true", help="groups have a minimum (Q4_1)")
    disasm.add_argument("--window", choices=("signed", "unsigned"), default="signed", help="window")
    disasm.add_argument(
        "--scheme", choices=("sparqle", "dense"), default="sparqle", help="split form or baseline"
    )
    disasm.add_argument("--target", default="sparqle/edge", help="accelerator")
    disasm.add_argument("--json", metavar="FILE", help="write header and listing as JSON; - prints")
    disasm.add_argument("--verbose", action="store_true", help="show tracebacks")
    disasm.set_defaults(command=_disasm)


def _disasm(arguments: argparse.Namespace) -> None:
    _check_writable(arguments.json)
    from sparqle_tvm.target.accelerator import Accelerator
    from sparqle_tvm.target.codegen import generate
    from sparqle_tvm.target.schedule import default_schedule
    from sparqle_tvm.target.tir import DenseSpec

    accelerator = Accelerator.from_target(arguments.target)
    spec = DenseSpec(
        m=arguments.rows,
        n=arguments.n,
        k=arguments.k,
        digit_bits=accelerator.digit_bits,
        window=arguments.window if arguments.scheme == "sparqle" else "unsigned",
        weight_bits=arguments.weight_bits,
        group_size=arguments.group_size,
        has_min=arguments.minimum,
        scheme=arguments.scheme,
    )
    label = f"dense {spec.m} x {spec.n} x {spec.k}"
    program = generate(default_schedule(spec, accelerator), spec, accelerator, label)
    listing = program.disassemble()
    if arguments.json is None:
        print(listing)
        return
    data = {
        "target": arguments.target,
        "rows": spec.m,
        "n": spec.n,
        "k": spec.k,
        "program_bytes": len(program.to_bytes()),
        "instructions": len(program.instructions),
        "listing": listing.splitlines(),
    }
    if arguments.json == "-":
        print(_dumps(data))
    else:
        write_json(arguments.json, data)


def _run(arguments: argparse.Namespace) -> None:
    _check_writable(arguments.json)
    from sparqle_tvm.report.tables import print_run
    from sparqle_tvm.run import run_model

    result = run_model(
        arguments.model,
        arguments.text,
        arguments.tokens,
        arguments.target,
        engine=arguments.engine,
    )
    if arguments.json == "-":
        print(_dumps(result.to_json()))
        return
    print_run(result)
    if arguments.json:
        write_json(arguments.json, result.to_json())


def _dumps(data: Any) -> str:
    return json.dumps(data, indent=2, allow_nan=False)


def _check_writable(path: str | None) -> None:
    """Refuse a file that cannot be written before minutes are spent on its content."""
    if path is None or path == "-":
        return
    folder = Path(path).absolute().parent
    if not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise InvalidArgumentError(f"{path} cannot be written: no such folder, or no permission")
