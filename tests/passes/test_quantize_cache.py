"""QuantizeCache: caches of the llama hold integers, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from pass_helpers import apply, assert_unchanged
from tiny_files import write_tiny_model
from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.compiler import lowering_passes
from sparqle_tvm.frontend import from_gguf
from sparqle_tvm.numerics.attention import quantize_heads
from sparqle_tvm.numerics.kv_cache import HeadStorage, KvStorage
from sparqle_tvm.passes import FLOAT_ATTENTION, PassReport, QuantizeAttention, QuantizeCache

STORAGE = KvStorage(HeadStorage(63, "p-"), HeadStorage(31, "-"))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """A tiny llama with attention in integers, and caches in float32."""
    path = write_tiny_model(tmp_path_factory.mktemp("cache"))
    imported = from_gguf(path, activations="float32", progress=False)
    functions = {name: imported.mod[name] for name in ("create_cache", "prefill", "decode")}
    return QuantizeAttention(default=STORAGE)(tvm.IRModule(functions))


def built(mod):
    steps = tvm.transform.Sequential(lowering_passes())
    return relax.VirtualMachine(relax.build(mod, "llvm", relax_pipeline=steps), tvm.cpu())


def run(machine):
    """Logits of a prefill and some decoded tokens, and the caches after them."""
    cache = machine["create_cache"]()
    ids = np.arange(1, 31, dtype=np.int32)[None]
    logits, cache = machine["prefill"](tvm.runtime.tensor(ids[:, :24]), cache)
    found = [logits.numpy()]
    for i in range(24, 30):
        logits, cache = machine["decode"](tvm.runtime.tensor(ids[:, i : i + 1]), cache)
        found.append(logits.numpy())
    view = tvm.get_global_func("vm.builtin.attention_kv_cache_view")
    return np.concatenate(found, 1), [view(part).numpy() for part in cache]


def test_quantized_when_written_is_quantized_when_read(quantized):
    after, report = apply(QuantizeCache, quantized)
    assert not report.skipped
    logits, floats = run(built(quantized))
    same, stored = run(built(after))
    assert np.array_equal(logits, same)
    for i, (x, found) in enumerate(zip(floats, stored, strict=True)):
        wanted = quantize_heads(x, levels=31 if i % 2 else 63)
        assert found.dtype == np.int8 and found.shape == (30, *x.shape[1:2], x.shape[2] + 4)
        assert np.array_equal(found[..., :-4], wanted.values)
        scale = np.ascontiguousarray(found[..., -4:]).view("<f4")[..., 0]
        assert np.array_equal(scale, wanted.scale)


def test_says_how_the_memory_holds_them(quantized):
    after, _ = apply(QuantizeCache, quantized)
    found = []
    relax.analysis.post_order_visit(
        after["decode"], lambda e: found.append(dialect.QuantizeHeads.of(e))
    )
    stores = [(op.levels, op.planes) for op in found if op is not None]
    assert stores == [(63, "p-"), (31, "-")] * (len(stores) // 2)


def test_caches_that_others_create_stay(quantized):
    alone = tvm.IRModule({name: quantized[name] for name in ("prefill", "decode")})
    assert assert_unchanged(QuantizeCache, alone) == [
        "no function of the module creates the caches"
    ]


def test_a_module_without_caches(quantized):
    assert assert_unchanged(QuantizeCache, tvm.IRModule({})) == []


def test_float_attention_reads_floats(tmp_path):
    path = write_tiny_model(tmp_path)
    imported = from_gguf(path, activations="float32", progress=False).mod
    functions = {name: imported[name] for name in ("create_cache", "prefill", "decode")}
    functions["decode"] = functions["decode"].with_attr(FLOAT_ATTENTION, True)
    mod = QuantizeAttention(report=PassReport())(tvm.IRModule(functions))
    (reason,) = assert_unchanged(QuantizeCache, mod)
    assert "other ops than attention in integers" in reason
