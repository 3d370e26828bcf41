"""``sparqle estimate``: what split precision gives for a published model."""

from __future__ import annotations

import argparse
from typing import Any

from sparqle_tvm.commands import _shared as shared

MODEL_NAMES = "smollm2-135m, bitnet-3b, llama2-7b, llama2-13b, llama2-70b, llama3-8b"


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    estimate = shared.add_command(
        commands,
        "estimate",
        _estimate,
        help="estimate seconds and joules of a published model, and what limits it",
        description="Count a pass of a published model by formula: split precision beside two "
        "dense passes (dense), wider multipliers on the same area (native) and activations of one "
        "digit (a4 if it has 4 bits, not exact). Prints time, DRAM traffic, energy with its band, "
        "and what limits them.",
    )
    estimate.add_argument("--model", default="llama2-7b", help=f"one of {MODEL_NAMES}")
    estimate.add_argument("--phase", default="prefill", help="prefill or decode")
    estimate.add_argument(
        "--seq", type=int, default=2048, help="tokens of the pass, or in the cache before it"
    )
    estimate.add_argument("--batch", type=int, default=1, help="sequences")
    estimate.add_argument(
        "--msb-sparsity",
        default="measured",
        metavar="measured|S|FILE",
        help="measured on SmolLM2-135M, with digits as wide as the target's; a share of zero MSB "
        "digits, 0 to 1; or a JSON file: such a share by layer type (qkv, o, gate_up, down, "
        "output; digit_bits, 4 if not said), or what sparqle run --json wrote",
    )
    estimate.add_argument(
        "--target", default="sparqle/edge", metavar="NAME|FILE.toml", help="accelerator"
    )
    shared.add_table_arguments(estimate)
    estimate.add_argument(
        "--kv-bits", type=int, default=8, help="bits of a cached key or value: 4, 8 or 16"
    )
    estimate.add_argument(
        "--balance",
        default="array",
        help="what rows are sorted for under split precision: cycles of the array, time, or none",
    )
    estimate.add_argument(
        "--static-watts",
        type=float,
        help="leakage and idle power; if not given, a share of the array's power (with its band)",
    )
    return estimate


def _estimate(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.report.estimate import estimate_document
    from sparqle_tvm.studies.estimate import estimate
    from sparqle_tvm.target.accelerator import Accelerator

    accelerator = Accelerator.from_target(arguments.target)
    result = estimate(
        arguments.model,
        arguments.phase,
        seq=arguments.seq,
        batch=arguments.batch,
        msb_sparsity=arguments.msb_sparsity,
        target=accelerator,
        table=shared.energy_table_of(arguments, accelerator),
        kv_bits=arguments.kv_bits,
        balance=arguments.balance,
        static_watts=arguments.static_watts,
    )
    shared.show(arguments.json, lambda: estimate_document(result), result.to_json)
