"""Generated kernels out of the cache are those that the generator writes, and none is taken for another."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from dhc.backends.cpu.cache import KernelCache
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.epilogue import Clip, Epilogue, Relu
from dhc.backends.cpu.contract.spec import ConvSpec, MatmulSpec, Spec
from dhc.backends.cpu.contract.stored_code import cached_emit
from dhc.backends.cpu.target import CpuTarget, target
from dhc.ir import Builder, Graph

_AVX2 = target("x86-64-v3")


@pytest.mark.parametrize("spec", [ConvSpec(4, 8, (3, 3)), MatmulSpec(packed_b=True, epilogue=Relu())], ids=str)
def test_a_stored_kernel_is_the_written_one(tmp_path, monkeypatch, spec: Spec):
    written = registry.emit(spec, _AVX2)
    assert cached_emit(spec, _AVX2, KernelCache(tmp_path)) == written

    def fail(*arguments, **options):
        raise AssertionError("the kernel was written again")

    monkeypatch.setattr(registry, "emit", fail)
    assert cached_emit(spec, _AVX2, KernelCache(tmp_path)) == written


def test_other_epilogues_and_targets_are_other_kernels(tmp_path):
    cache = KernelCache(tmp_path)
    spec = ConvSpec(4, 8, (3, 3))
    wider = target("x86-64-v4")
    larger = replace(_AVX2, l2_bytes=2 * _AVX2.l2_bytes)
    cases: list[tuple[Spec, CpuTarget]] = [(spec, _AVX2), (spec, wider), (spec, larger)]
    cases += [(replace(spec, epilogue=e), _AVX2) for e in (Relu(), Clip(0.0, 6.0), Clip(0.0, 1.0))]
    for one, described in cases:
        assert cached_emit(one, described, cache) == registry.emit(one, described)


def test_the_key_of_a_compiled_layer_holds_no_address(tmp_path):
    """An address in the representation of an epilogue would give every process entries of its own."""
    keys: list[str] = []

    class Recording(KernelCache):
        def get_or_make(self, text, target, make):
            keys.append(text)
            return super().get_or_make(text, target, make)

    from dhc.backends.cpu.contraction import plan_contraction
    from dhc.backends.cpu.methods import Methods

    graph = Graph("g")
    b = Builder(graph)
    y = b.conv(graph.input("x", "f32", (1, 4, 8, 8)), b.constant([[[[1.0]]] * 4] * 8, "f32"))
    tail = b.sigmoid(b.mul(y, b.constant(0.5, "f32")))
    graph.output(tail, names=["y"])
    nodes = [n for n in graph.nodes if n.op.name in ("mul", "sigmoid")]
    assert y.producer is not None
    plan_contraction(y.producer, nodes, _AVX2, methods=Methods(Recording(tmp_path)))
    assert len(keys) == 1 and " at 0x" not in keys[0]
    assert all(f.name in keys[0] for f in fields(ConvSpec)) and Epilogue.__name__ in keys[0]
