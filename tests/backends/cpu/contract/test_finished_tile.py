"""Tiles that finish their own results: the same as the way through a buffer, and light epilogues alone."""

from __future__ import annotations

import numpy as np
import pytest

from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract import epilogue as ep
from dhc.backends.cpu.contract import matmul, registry
from dhc.backends.cpu.contract.finished_tile import is_light
from dhc.backends.cpu.contract.spec import MatmulSpec
from tests.backends.cpu.contract.test_contract import compiled, run
from tests.support.cpu_targets import RUNNABLE

ADDED = ep.Chain((ep.AddOperand("same"), ep.AddOperand("row"), ep.AddOperand("column"), ep.AddOperand("scalar")))


@pytest.mark.parametrize("bias", ["none", "n", "m"])
@pytest.mark.parametrize(("n", "last_rows"), [(48, 0), (64, 5), (83, 5)])
@pytest.mark.parametrize("target_name", ["host", *RUNNABLE])
def test_bits_are_those_of_the_buffered_tile(
    target_name: str, n: int, last_rows: int, bias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m, k, rng = 29, 9, np.random.default_rng(n)
    spec = MatmulSpec(packed_b=True, bias=bias, epilogue=ADDED, last_rows=last_rows)
    shapes = {"a": (m, k), "bias": (n if bias == "n" else m,)}
    shapes |= {f"epilogue{i}": shape for i, shape in enumerate([(m, n), (m,), (n,), (1,)])}
    operands = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    operands["b"] = matmul.pack_b(spec, targets.target(target_name), rng.standard_normal((k, n)).astype(np.float32))
    params = dict.fromkeys(matmul.PARAMS, 0) | {"batch0": 1, "batch1": 1, "batch2": 1, "m": m, "n": n, "k": k}
    operands = {name: operands[name] for name in compiled(spec, target_name)[0].buffers if name in operands}
    found = [run(spec, target_name, operands, params, (m, n), threads).tobytes() for threads in (1, 2, 7)]
    monkeypatch.setattr(matmul, "is_light", lambda *_: False)
    assert registry.emit(spec, targets.target(target_name)).name != compiled(spec, target_name)[0].name
    compiled.cache_clear()
    assert {run(spec, target_name, operands, params, (m, n)).tobytes()} == set(found)
    compiled.cache_clear()


@pytest.mark.parametrize("m", [1, 5, 12, 17, 23, 30])
def test_last_rows_are_a_matter_of_speed(m: int) -> None:
    """A tile for five last rows, and any number of rows: every row is there, with the same bits."""
    rng = np.random.default_rng(m)
    operands = {"a": rng.standard_normal((m, 9)).astype(np.float32), "b": rng.standard_normal((9, 70)).astype("f4")}
    params = dict.fromkeys(matmul.PARAMS, 0) | {"batch0": 1, "batch1": 1, "batch2": 1, "m": m, "n": 70, "k": 9}
    for name in ["host", *RUNNABLE[-2:]]:
        first, second = (
            run(MatmulSpec(last_rows=rows), name, operands, params, (m, 70), threads)
            for rows, threads in ((5, 2), (0, 1))
        )
        assert first.tobytes() == second.tobytes()
        np.testing.assert_allclose(first, operands["a"] @ operands["b"], rtol=1e-4, atol=1e-5)
    target = targets.target("x86-64-v4")
    assert [matmul.rows_beyond_tiles(rows, target, "f32") for rows in (197, 24, "symbol")] == [5, 0, 0]


@pytest.mark.parametrize("m", [12, 29])
def test_rows_that_collide_are_copied(m: int) -> None:
    """Rows of 4096 bytes share their sets of the first-level cache: copies further apart give the same bits."""
    rng, k, n = np.random.default_rng(m), 1024, 150
    a, b = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    target = targets.host_target()
    assert matmul.steps_to_copy((m, n, k), targets.target("x86-64-v4"), "f32") == k
    for sizes in ((m, 128, k), (m, n, k + 8), (11, n, k), ("M", n, k), (m, n, "K"), (m, n, 1 << 20)):
        assert matmul.steps_to_copy(sizes, targets.target("x86-64-v4"), "f32") == 0  # type: ignore[arg-type]
    params = dict.fromkeys(matmul.PARAMS, 0) | {"batch0": 1, "batch1": 1, "batch2": 1, "m": m, "n": n, "k": k}
    found = []
    for steps, threads in ((k, 1), (k, 2), (k, 7), (0, 1)):
        spec = MatmulSpec(packed_b=True, last_rows=m % 12, copied_steps=steps)
        operands = {"a": a, "b": matmul.pack_b(spec, target, b)}
        found.append(run(spec, "host", operands, params, (m, n), threads))
    np.testing.assert_allclose(found[0], a @ b, rtol=1e-4, atol=1e-4)
    assert len({each.tobytes() for each in found}) == 1


def test_long_epilogues_stand_once() -> None:
    class Long(ep.Epilogue):
        def emit(self, context: ep.EpilogueContext, value: object) -> object:
            for _ in range(20):
                value = context.function.binary("fadd", value, value)  # type: ignore[arg-type]
            return value

    target = targets.target("x86-64-v4")
    assert is_light(ADDED, target, "f32")
    assert not is_light(Long(), target, "f32")
