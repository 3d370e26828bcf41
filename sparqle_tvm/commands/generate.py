"""``sparqle generate``: text from a model, and how fast the accelerator would be at it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from sparqle_tvm.commands import _shared as shared
from sparqle_tvm.escaping import visible


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    generate = shared.add_command(
        commands,
        "generate",
        _generate,
        epilog=shared.examples(
            'generate --prompt "A dog is" --tokens 16',
            "generate --batch prompts.txt --engine analytical",
        ),
        help="generate text, and count tokens per second and joules per token",
        description="Generate text with a language model (GGUF) in split precision. Tokens are "
        "printed as they come; then tokens per second and joules per token of the accelerator, "
        "split and dense, and MSB sparsity.",
    )
    shared.add_model_argument(generate)
    generate.add_argument(
        "--prompt", metavar="TEXT", action="append", default=[], help="what to go on from"
    )
    generate.add_argument(
        "--batch", metavar="FILE", help="UTF-8 text file with a prompt on each line"
    )
    generate.add_argument(
        "--tokens", type=int, default=32, help="how many to generate for each prompt, at most"
    )
    generate.add_argument(
        "--temperature", type=float, default=0.0, help="of the draw; 0 takes the likeliest token"
    )
    generate.add_argument(
        "--top-k", type=int, default=0, help="draw from so many of the likeliest; 0: from all"
    )
    generate.add_argument("--seed", type=int, default=0, help="of the draws")
    shared.add_target_argument(generate, "accelerator to count for")
    shared.add_table_arguments(generate)
    shared.add_engine_argument(
        generate, "run dense layers as simulated programs, or count them by formula (faster)"
    )
    shared.add_attention_argument(generate, "how attention is computed", default="int8")
    shared.add_kv_argument(generate)
    generate.add_argument(
        "--calibration",
        metavar="FILE",
        help="what sparqle calibrate wrote: chooses windows, and keys and values within a budget",
    )
    shared.add_cache_argument(generate)
    return generate


def _generate(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.report.generation import generation_document
    from sparqle_tvm.studies.generate import generate
    from sparqle_tvm.target.accelerator import Accelerator

    prompts = [*arguments.prompt, *_lines(arguments.batch)]
    quiet = arguments.json == shared.STANDARD_OUTPUT
    found = generate(
        prompts,
        arguments.tokens,
        arguments.model,
        arguments.target,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
        engine=arguments.engine,
        attention=arguments.attention,
        kv=arguments.kv,
        calibration=arguments.calibration,
        table=shared.energy_table_of(arguments, Accelerator.from_target(arguments.target)),
        told=(lambda _, __: None) if quiet else _teller(len(prompts)),
        progress=True,
        cache=shared.cache_of(arguments),
    )
    if not quiet:
        print("\n" if len(prompts) == 1 else "")
        for number, each in enumerate(found.texts, start=1):
            if len(prompts) > 1:
                shared.print_text(f"[{number}] {visible(each.prompt)}{visible(each.text)}")
    shared.show(arguments.json, lambda: generation_document(found), found.to_json)


def _lines(path: str | None) -> list[str]:
    """Prompts of a file: its lines that are not empty."""
    if path is None:
        return []
    from sparqle_tvm.errors import TextError
    from sparqle_tvm.frontend.text import read_text

    prompts = [line for line in read_text(path).splitlines() if line.strip()]
    if not prompts:
        raise TextError(f"{path} has no prompt")
    return prompts


def _teller(count: int) -> Callable[[int, str], None]:
    """Print text as it comes; of several sequences a line for each token."""

    def tell(number: int, text: str) -> None:
        lines = "\n".join(map(visible, text.split("\n")))
        if count == 1:
            sys.stdout.write(lines)
        elif text:
            sys.stdout.write(f"[{number + 1}] {visible(text)}\n")
        sys.stdout.flush()

    return tell
