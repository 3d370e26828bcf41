"""Groups of tuple items alone are no kernels; TVM's FuseTIR would fail on them."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from sparqle_tvm.passes import UnfuseTuples


@I.ir_module
class Nested:
    @R.function(private=True)
    def pair(x: R.Tensor((4,), "float32")):
        with R.dataflow():
            y = R.add(x, x)
            z = R.multiply(x, x)
            out = ((y, z), x)
            R.output(out)
        return out

    @R.function
    def main(x: R.Tensor((4,), "float32")):
        cls = Nested
        with R.dataflow():
            results = cls.pair(x)
            inner = results[0]
            z = inner[1]
            R.output(z)
        return z


def fused(mod):
    steps = (
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
    )
    return tvm.transform.Sequential(steps)(mod)


def test_a_group_of_tuple_items_becomes_a_function():
    mod = fused(Nested)
    with pytest.raises(Exception, match="fused"):
        relax.transform.FuseTIR()(mod)
    before = mod.clone()
    changed = UnfuseTuples()(mod)
    tvm.ir.assert_structural_equal(mod, before)
    assert "Primitive" in mod.script() and changed.script().count("Primitive") == 0
    tvm.ir.assert_structural_equal(UnfuseTuples()(changed), changed)
    vm = relax.VirtualMachine(tvm.compile(relax.transform.FuseTIR()(changed), "llvm"), tvm.cpu())
    x = np.arange(4, dtype=np.float32)
    assert np.array_equal(vm["main"](tvm.runtime.tensor(x)).numpy(), x * x)


def test_kernels_stay_groups():
    @I.ir_module
    class Two:
        @R.function
        def main(x: R.Tensor((4,), "float32")):
            with R.dataflow():
                y = R.exp(R.add(x, x))
                R.output(y)
            return y

    mod = fused(Two)
    tvm.ir.assert_structural_equal(UnfuseTuples()(mod), mod)
