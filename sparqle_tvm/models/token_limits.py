"""What a compiled decoder can take: token ids of its vocabulary, positions of its context.

The compiled functions clip ids and go on at any position, with logits that mean nothing. So a
module says in a function of its own what it can take, which the export to a library keeps, and
calls from Python are checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import get_global_func, relax

from sparqle_tvm.errors import InvalidArgumentError

LIMITS_FUNCTION = "token_limits"
"""Returns int32 (2,): the size of the vocabulary, and the tokens of the context."""

CHECKED_FUNCTIONS = ("prefill", "decode", "hidden")
"""Functions whose first argument are token ids; a second one is a cache."""


@dataclass(frozen=True)
class TokenLimits:
    """Limits of a decoder.

    Attributes
    ----------
    vocab : int
        Token ids are below.
    context : int
        Tokens of a sequence at most, those in the cache included.
    """

    vocab: int
    context: int

    @classmethod
    def of(cls, functions: Any) -> TokenLimits | None:
        """Those of a virtual machine's module, None if it does not say any."""
        try:
            function = functions[LIMITS_FUNCTION]
        except (AttributeError, ValueError, RuntimeError):
            return None
        vocab, context = function().numpy().tolist()
        return cls(vocab, context)

    def check(self, name: str, arguments: Sequence[Any]) -> None:
        """Refuse a call of the function `name`.

        Parameters
        ----------
        name : str
            One of `CHECKED_FUNCTIONS`.
        arguments : sequence
            Token ids (1, T), as an array or a tensor, and perhaps a cache.

        Raises
        ------
        InvalidArgumentError
            If an id is out of range, or the context is too short for the tokens.
        """
        if not arguments:
            return
        given = arguments[0]
        ids = given if isinstance(given, np.ndarray) else given.numpy()
        outside = ids[(ids < 0) | (ids >= self.vocab)]
        if outside.size:
            raise InvalidArgumentError(
                f"{name}: token id {outside.flat[0]} is out of range: the model has "
                f"{self.vocab} tokens"
            )
        past = _cached_tokens(arguments[1]) if len(arguments) > 1 else 0
        if past + ids.size > self.context:
            raise InvalidArgumentError(
                f"{name}: {ids.size} tokens after {past} exceed the model's context of "
                f"{self.context}; begin with a new cache"
            )

    def function(self) -> relax.Function:
        """The function that says so."""
        builder = relax.BlockBuilder()
        with builder.function(LIMITS_FUNCTION, []):
            builder.emit_func_output(relax.const(np.array([self.vocab, self.context], np.int32)))
        return builder.finalize()[LIMITS_FUNCTION]


def _cached_tokens(cache: Any) -> int:
    """Tokens in a cache, from the shape of its first part (T, heads, channels)."""
    view = get_global_func("vm.builtin.attention_kv_cache_view")
    return int(view(cache[0]).shape[0])
