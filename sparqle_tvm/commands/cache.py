"""``sparqle cache``: compiled modules that are kept on disk."""

from __future__ import annotations

import argparse
from typing import Any

from sparqle_tvm.commands import _shared as shared


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    cache = shared.add_command(
        commands,
        "cache",
        _cache,
        epilog=shared.examples(
            "cache",
            "cache clear",
        ),
        help="list or remove the compiled models that are kept",
        description="What `sparqle run` and `sparqle generate` compile is kept, so that the same "
        "model with the same options is not compiled again. Entries are found by content: of the "
        "model, the options, the processor, and the code of this package. Of float activations "
        "the perplexity of a text is kept, by the same content. Those that were not "
        "used for the longest time go when all take more than the limit.",
    )
    cache.add_argument(
        "action",
        choices=("list", "clear"),
        nargs="?",
        default="list",
        help="show what is kept, or remove it",
    )
    return cache


def _cache(arguments: argparse.Namespace) -> None:
    from sparqle_tvm.report.cache import cache_document, cleared_document
    from sparqle_tvm.runtime.cache import ExecutableCache

    cache = ExecutableCache()
    if arguments.action == "clear":
        document = cleared_document(str(cache.folder), cache.clear())
    else:
        document = cache_document(cache)
    shared.show(arguments.json, lambda: document, document.to_json)
