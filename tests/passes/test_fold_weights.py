"""Weights that come as parameters are prepared once, in the order of the layers, and lazily."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from pass_helpers import assert_unchanged
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from sparqle_tvm.dialect.weights import declare_weights, declared_weights
from sparqle_tvm.passes import FoldWeights

ARRAYS = {name: np.arange(12, dtype=np.float32).reshape(3, 4) + i for i, name in enumerate("vw")}


class Source:
    """Notes what is read."""

    content = "two arrays"

    def __init__(self) -> None:
        self.read: list[str] = []

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.append(name)
        return ARRAYS[name]

    def forget(self) -> None:
        self.read.append("-")


@I.ir_module
class Plain:
    @T.prim_func(private=True, s_tir=True)
    def transpose(a: T.Buffer((3, 4), "float32"), b: T.Buffer((4, 3), "float32")):
        for i, j in T.grid(4, 3):
            with T.sblock("b"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = a[vj, vi]

    @T.prim_func(private=True, s_tir=True)
    def double(a: T.Buffer((4, 3), "float32"), b: T.Buffer((4, 3), "float32")):
        for i, j in T.grid(4, 3):
            with T.sblock("b"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = a[vi, vj] * T.float32(2)

    @R.function
    def decode(x: R.Tensor((4, 3), "float32"), v: R.Tensor((3, 4), "float32")):
        cls = Plain
        with R.dataflow():
            a = R.call_tir(cls.transpose, (v,), out_ty=R.Tensor((4, 3), "float32"))
            b = R.call_tir(cls.double, (a,), out_ty=R.Tensor((4, 3), "float32"))
            y = R.add(x, b)
            R.output(y)
        return y

    @R.function
    def prefill(
        x: R.Tensor((4, 3), "float32"),
        v: R.Tensor((3, 4), "float32"),
        w: R.Tensor((3, 4), "float32"),
    ):
        cls = Plain
        with R.dataflow():
            a = R.call_tir(cls.transpose, (v,), out_ty=R.Tensor((4, 3), "float32"))
            b = R.call_tir(cls.double, (a,), out_ty=R.Tensor((4, 3), "float32"))
            c = R.call_tir(cls.double, (x,), out_ty=R.Tensor((4, 3), "float32"))
            y = R.add(R.add(c, b), R.permute_dims(v))
            R.output(y)
        return y


def declared(mod: tvm.IRModule) -> tvm.IRModule:
    """The module, saying of `v` and `w` that they are weights."""
    functions = dict(mod.functions_items())
    for gv, func in functions.items():
        if isinstance(func, relax.Function):
            names = {str(param.name) for param in func.params} & set(ARRAYS)
            functions[gv] = declare_weights(func, dict.fromkeys(names, (0.0, 12.0)))
    return tvm.IRModule(functions)


def test_weights_are_prepared_once_for_all_functions() -> None:
    source = Source()
    fold = FoldWeights(source)
    mod = declared(Plain)
    after = fold(mod)
    relax.analysis.well_formed(after)
    expected = 2 * ARRAYS["v"].T
    # What a function reads as it is comes unprepared; what nothing reads (w) is not read.
    for name, arrays in (("decode", [expected]), ("prefill", [ARRAYS["v"], expected])):
        for found, array in zip(fold.weights[name], arrays, strict=True):
            np.testing.assert_array_equal(found.numpy(), array)
        assert len(after[name].params) == 1 + len(arrays)
        assert not declared_weights(after[name])
    assert fold.weights["decode"][0].same_as(fold.weights["prefill"][1])
    assert source.read == ["v", "v", "-"]
    # The kernel that works on what comes at run time is still called.
    text = after["prefill"].script()
    assert text.count("call_tir") == 1
    assert [str(param.name) for param in mod["prefill"].params] == ["x", "v", "w"]


def test_results_keep_their_bits() -> None:
    fold, x = FoldWeights(Source()), np.full((4, 3), 0.5, np.float32)
    given = [tvm.runtime.tensor(ARRAYS[name]) for name in "vw"]
    results: list[Any] = []
    for mod, weights in ((Plain, given), (fold(declared(Plain)), None)):
        vm = relax.VirtualMachine(relax.build(mod, "llvm"), tvm.cpu())
        weights = fold.weights["prefill"] if weights is None else weights
        results.append(vm["prefill"](tvm.runtime.tensor(x), *weights).numpy())
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("mod", [Plain, declared(Plain)])
def test_nothing_is_done_without_weights_or_a_source(mod: tvm.IRModule) -> None:
    assert not assert_unchanged(FoldWeights, mod)
