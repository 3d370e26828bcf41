"""Token ids and positions that a compiled model cannot take are refused, after loading too."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tiny_llama import TinyLlama

import sparqle_tvm
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.models.token_limits import TokenLimits
from sparqle_tvm.runtime.executable import Executable

LIMITS = TokenLimits(vocab=80, context=128)


@pytest.fixture(scope="module")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Executable:
    """A model of one block, exported and loaded again."""
    folder = tmp_path_factory.mktemp("limits")
    path = TinyLlama(layers=1).write(folder / "tiny.gguf")
    model = sparqle_tvm.frontend.from_gguf(path, activations="float32", progress=False)
    sparqle_tvm.compile(model.mod, split=False).export(folder / "tiny.so")
    return sparqle_tvm.load(folder / "tiny.so")


def ids(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32)[None] % 80


def test_a_model_says_what_it_takes(executable: Executable) -> None:
    assert TokenLimits.of(executable._vm) == LIMITS


@pytest.mark.parametrize("wrong", [-1, 80, 2**31 - 1])
@pytest.mark.parametrize("name", ["prefill", "decode", "hidden"])
def test_ids_out_of_range(executable: Executable, name: str, wrong: int) -> None:
    tokens = np.array([[wrong]], np.int32)
    arguments = [executable["create_cache"]()] if name != "hidden" else []
    for given in (tokens, tvm.runtime.tensor(tokens)):
        with pytest.raises(InvalidArgumentError, match=f"{name}: token id {wrong} is out of range"):
            executable[name](given, *arguments)


def test_no_tokens_behind_the_context(executable: Executable) -> None:
    cache = executable["create_cache"]()
    _, cache = executable["prefill"](ids(100), cache)
    with pytest.raises(InvalidArgumentError, match=r"29 tokens after 100 exceed .* of 128"):
        executable["prefill"](ids(29), cache)
    # What was refused left nothing behind.
    logits, cache = executable["prefill"](ids(28), cache)
    assert np.isfinite(logits.numpy()).all()
    with pytest.raises(InvalidArgumentError, match="decode: 1 tokens after 128 exceed"):
        executable["decode"](ids(1), cache)
    executable["decode"](ids(1), executable["create_cache"]())
    with pytest.raises(InvalidArgumentError, match="hidden: 129 tokens after 0 exceed"):
        executable["hidden"](ids(129))
