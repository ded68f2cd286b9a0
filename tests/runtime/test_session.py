"""Sessions: what goes in and out, what is refused and how, and what a run costs in memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dhc_runtime
from dhc_runtime.cpu_features import host_arch
from dhc_runtime.errors import (
    ArtifactError,
    DeviceError,
    DhcError,
    ModelError,
    ResourceError,
    ShapeError,
    TypeMismatchError,
    UsageError,
)
from dhc_runtime.thread_pool import default_threads

from tests.runtime.artifacts import Plan, chain, compile_llvm, make_artifact


@pytest.fixture(scope="module")
def artifact() -> bytes:
    return chain(5).artifact()


def array(rows: int) -> np.ndarray:
    return np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_one_artifact_runs_with_any_size_and_any_threads(artifact: bytes, threads: int) -> None:
    with dhc_runtime.load(artifact, threads=threads) as session:
        for rows in (3, 1, 0, 5000, 3, 20000):
            result = session.run({"x": array(rows)})
            assert list(result) == ["y", "s"]
            assert result["y"].dtype == np.float32
            assert np.array_equal(result["y"], array(rows) * 32)
            assert np.array_equal(result["s"], np.full(4, 2, np.float32))


def test_more_sizes_than_plans_are_kept(artifact: bytes) -> None:
    with dhc_runtime.load(artifact, threads=2) as session:
        for rows in [*range(40), *range(40)]:
            assert np.array_equal(session(array(rows))[0], array(rows) * 32)


def test_signature_and_repr(artifact: bytes) -> None:
    session = dhc_runtime.load(artifact, threads=1)
    assert session.inputs == (("x", "f32", ("N", 4)),)
    assert session.outputs[0] == dhc_runtime.TensorInfo("y", "f32", ("N", 4))
    assert session.name == "test"
    assert session.device == "cpu"
    assert "x: f32[N, 4] -> y: f32[N, 4]" in repr(session)


def test_path_and_file_object(artifact: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.dhc"
    path.write_bytes(artifact)
    with path.open("rb") as stream:
        sessions = [dhc_runtime.load(source, threads=1) for source in (path, str(path), stream, io.BytesIO(artifact))]
    path.unlink()
    for session in sessions:
        assert np.array_equal(session.run(array(2))["y"], array(2) * 32)


def test_a_value_that_is_no_array_is_refused(artifact: bytes) -> None:
    session = dhc_runtime.load(artifact, threads=1)
    with pytest.raises(UsageError, match="input 'x' is no array"):
        session.run([[1.0, 2.0], [3.0]])


def test_inputs_by_position_and_other_forms(artifact: bytes) -> None:
    session = dhc_runtime.load(artifact, threads=1)
    x = array(6)
    raw = np.zeros(6 * 4 * 4 + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(6, 4)
    unaligned[...] = x
    assert not unaligned.flags.aligned
    read_only = x.copy()
    read_only.flags.writeable = False
    for form in (x, np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], x[::-1][::-1], unaligned, read_only):
        assert np.array_equal(session.run(form)["y"], x * 32)
    assert np.array_equal(session.run({"x": np.broadcast_to(np.float32(2), (3, 4))})["y"], np.full((3, 4), 64))


@pytest.mark.parametrize(
    ("feed", "error", "words"),
    [
        ({}, UsageError, ["input 'a' is missing", "input 'b' is missing"]),
        ({"a": 0, "c": 0}, UsageError, ["input 'b' is missing", "input 'c' is unknown"]),
        ({"a": np.zeros(2), "b": np.zeros(2, "i4")}, TypeMismatchError, ["'a': expected dtype float32, g", "'b'"]),
        ({"a": np.zeros(2, ">f4"), "b": np.zeros(2, "f4")}, TypeMismatchError, ["byte order of this machine"]),
        ({"a": np.zeros(2, "f4"), "b": np.zeros(3, "f4")}, ShapeError, ["'b'", "N = 2 from 'a' axis 0", "is 3"]),
        ({"a": np.zeros((2, 1), "f4"), "b": np.zeros(3)}, TypeMismatchError, ["'a': expected 1 d", "'b': expected dt"]),
    ],
)  # fmt: skip
def test_all_wrong_inputs_are_listed(feed: Any, error: type[DhcError], words: list[str]) -> None:
    plan = Plan("N")
    a, b = plan.input("a", "f32", ["N"]), plan.input("b", "f32", ["N"])
    plan.kernel("k_add", [a, b, plan.output("y", "f32", ["N"])], ["N"])
    session = dhc_runtime.load(plan.artifact(), threads=1)
    feed = {name: value if isinstance(value, np.ndarray) else np.zeros(2, np.float32) for name, value in feed.items()}
    with pytest.raises(error) as caught:
        session.run(feed)
    for word in words:
        assert word in str(caught.value)
    ones = np.ones(2, np.float32)
    assert np.array_equal(session.run(ones, ones)["y"], [2, 2])
    with pytest.raises(UsageError, match="1 arrays were given and the model has 2 inputs: a, b"):
        session.run(ones)


def test_a_misspelt_name_is_recognised() -> None:
    plan = Plan()
    x = plan.input("image_data", "f32", [1])
    plan.kernel("k_double", [x, plan.output("y", "f32", [1])], [1])
    with pytest.raises(UsageError, match=r"'image-data' is unknown \(did you mean 'image_data'\?\)"):
        dhc_runtime.load(plan.artifact(), threads=1).run({"image-data": np.zeros(1, np.float32)})


def test_constraints_are_checked_for_each_size() -> None:
    plan = Plan("N", "M")
    a, b = plan.input("a", "f32", ["N"]), plan.input("b", "f32", ["M"])
    plan.constraints.append(["N", "M", "both operands of add at node sum"])
    plan.kernel("k_add", [a, b, plan.output("y", "f32", ["N"])], ["N"])
    session = dhc_runtime.load(plan.artifact(), threads=1)
    for _ in range(2):
        with pytest.raises(ShapeError, match="both operands of add at node sum: 2 and 3 must be equal"):
            session.run(np.zeros(2, np.float32), np.zeros(3, np.float32))
        session.run(np.zeros(3, np.float32), np.zeros(3, np.float32))


def test_outputs_of_the_caller_are_written_in_place(artifact: bytes) -> None:
    session = dhc_runtime.load(artifact, threads=2)
    x = array(1000)
    given = np.zeros((1000, 4), np.float32)
    result = session.run({"x": x}, outputs={"y": given})
    assert result["y"] is given
    assert np.array_equal(given, x * 32)
    strided = np.zeros((1000, 8), np.float32)
    session.run({"x": x}, outputs={"y": strided[:, ::2]})
    assert np.array_equal(strided[:, ::2], x * 32)
    assert not strided[:, 1::2].any()
    # The output shares memory with the input: the input must stay whole until it has been read.
    both = x.copy()
    session.run({"x": both}, outputs={"y": both})
    assert np.array_equal(both, x * 32)


@pytest.mark.parametrize(
    ("name", "given", "error", "words"),
    [
        ("z", np.zeros((2, 4), np.float32), UsageError, "output 'z' is unknown"),
        ("y", np.zeros((2, 4), np.float64), TypeMismatchError, "has dtype float32 and the array given for it float64"),
        ("y", np.zeros((2, 5), np.float32), ShapeError, r"has the shape \[2, 4\] and the array given for it \[2, 5\]"),
        ("y", np.zeros((1, 4), np.float32), ShapeError, "output 'y' takes 32 bytes and there is room for 16"),
        ("y", [1.0], UsageError, "not a NumPy array"),
        ("y", np.broadcast_to(np.float32(0), (2, 4)), UsageError, "read-only"),
    ],
)
def test_unusable_outputs(artifact: bytes, name: str, given: Any, error: type[DhcError], words: str) -> None:
    session = dhc_runtime.load(artifact, threads=1)
    with pytest.raises(error, match=words):
        session.run(array(2), outputs={name: given})
    assert np.array_equal(session.run(array(2))["y"], array(2) * 32)


def test_aligned_arrays_are_not_copied() -> None:
    """A kernel that returns the addresses of its buffers."""
    source = (
        "define i32 @k_where(ptr %b, ptr %p, i64 %t, i64 %n) {\n"
        " %v = load i64, ptr %b\n %w = getelementptr i64, ptr %b, i64 1\n %x = load i64, ptr %w\n"
        " %o = inttoptr i64 %x to ptr\n store i64 %v, ptr %o\n"
        " %q = getelementptr i64, ptr %o, i64 1\n store i64 %x, ptr %q\n ret i32 0\n}"
    )
    plan = Plan()
    plan.kernel("k_where", [plan.input("x", "f32", [3]), plan.output("y", "i64", [2])], [])
    code = compile_llvm(source, with_executor=True)
    session = dhc_runtime.load(make_artifact({"format": 1, "program": plan.program()}, {}, code), threads=1)
    x, y = np.zeros(3, np.float32), np.zeros(2, np.int64)
    session.run(x, outputs={"y": y})
    assert y.tolist() == [x.ctypes.data, y.ctypes.data]
    result = session.run(x)["y"]
    assert result.tolist() == [x.ctypes.data, result.ctypes.data]
    assert result.ctypes.data % 64 == 0


def test_results_stay_valid_after_the_session(artifact: bytes) -> None:
    session = dhc_runtime.load(artifact, threads=2)
    first, second = session.run(array(10))["y"], session.run(array(11))["y"]
    session.close()
    session.close()
    assert np.array_equal(first, array(10) * 32)
    assert np.array_equal(second, array(11) * 32)
    with pytest.raises(UsageError, match="closed"):
        session.run(array(1))


def test_no_dims_and_no_elements() -> None:
    plan = Plan("N")
    x, e = plan.input("x", "f32", []), plan.input("e", "f32", [0, "N"])
    plan.kernel("k_double", [x, plan.output("y", "f32", [])], [1])
    plan.kernel("k_double", [e, plan.output("f", "f32", ["N", 0, 3])], [0])
    result = dhc_runtime.load(plan.artifact(), threads=2).run(np.float32(4), np.zeros((0, 5), np.float32))
    assert result["y"].shape == ()
    assert result["y"] == 8
    assert result["f"].shape == (5, 0, 3)
    with pytest.raises(TypeMismatchError):
        dhc_runtime.load(plan.artifact(), threads=1).run(4.0, np.zeros((0, 5), np.float32))


def test_no_inputs_and_output_that_is_a_constant() -> None:
    plan = Plan()
    w = plan.const("w", "f32", np.arange(5, dtype=np.float32))
    plan.item("copy", **{"from": w, "to": plan.output("y", "f32", [5])})
    plan.item("copy", **{"from": w, "to": plan.output("z", "f32", [5])})
    session = dhc_runtime.load(plan.artifact(), threads=1)
    first = session.run()
    first["y"][:] = 9
    assert session.run({})["z"].tolist() == [0, 1, 2, 3, 4]


def test_alias_buffers_and_concatenation_in_place() -> None:
    plan = Plan("N")
    x = plan.input("x", "f32", ["N", 4])
    y = plan.output("y", "f32", ["N", 12])
    for part in range(3):
        inside = plan.alias(
            "f32",
            ["N", 4],
            plan.alias("f32", ["N", 8], y, ["*", "N", 16 * min(part, 1)]),
            ["*", "N", 16 * max(part - 1, 0)],
        )
        plan.kernel("k_double", [x, inside], [["*", "N", 4]])
    result = dhc_runtime.load(plan.artifact(), threads=2).run(array(3))["y"]
    assert np.array_equal(result.reshape(3, 12), np.concatenate([(array(3) * 2).ravel()] * 3).reshape(3, 12))
    plan.alias("f32", ["N", 4], y, ["*", "N", 33])
    plan.kernel("k_double", [x, len(plan.buffers) - 1], [1])
    with pytest.raises(ArtifactError, match="lies outside of buffer"):
        dhc_runtime.load(plan.artifact(), threads=1).run(array(3))


def test_bf16_is_ml_dtypes_or_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan()
    x = plan.input("x", "bf16", [3])
    plan.kernel("k_neg_u16", [x, plan.output("y", "bf16", [3])], [3])
    data = plan.artifact()
    bits = np.array([0x3F80, 0x4000, 0x0000], np.uint16)
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    session = dhc_runtime.load(data, threads=1)
    for given in (bits, bits.view(ml_dtypes.bfloat16)):
        result = session.run(given)["y"]
        assert result.dtype == ml_dtypes.bfloat16
        assert result.astype(np.float32).tolist() == [-1, -2, 0]
    out = np.zeros(3, np.uint16)
    assert session.run(bits, outputs={"y": out})["y"].tolist() == [0xBF80, 0xC000, 0x8000]
    from dhc_runtime import dtypes

    monkeypatch.setattr(dtypes, "_extended_cache", {"bf16": None})
    assert dhc_runtime.load(data, threads=1).run(bits)["y"].dtype == np.uint16


def test_four_bit_values_must_be_in_range() -> None:
    plan = Plan()
    x = plan.input("x", "i4", [2])
    plan.item("copy", **{"from": x, "to": plan.output("y", "i4", [2])})
    session = dhc_runtime.load(plan.artifact(), threads=1)
    assert session.run(np.array([-8, 7], np.int8))["y"].tolist() == [-8, 7]
    with pytest.raises(TypeMismatchError, match="from -8 to 7"):
        session.run(np.array([-9, 7], np.int8))


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_of_a_kernel_names_the_node(threads: int) -> None:
    plan = Plan("N")
    i, x = plan.input("i", "i64", [1]), plan.input("x", "f32", ["N"])
    middle = plan.arena("f32", ["N"])
    plan.kernel("k_double", [x, middle], ["N"], node="before", op="mul")
    plan.kernel("k_check", [i], [10], node="gather at layer 3", op="gather")
    plan.kernel("k_double", [middle, plan.output("y", "f32", ["N"])], ["N"], node="after", op="mul")
    session = dhc_runtime.load(plan.artifact(), threads=threads)
    for rows in (5, 50_000):
        x_value = np.ones(rows, np.float32)
        for profile in (False, True):
            with pytest.raises(ModelError, match=r"An index is out of bounds in gather \(at gather at layer 3\)"):
                session.run(np.array([10]), x_value, profile=profile)
            assert np.array_equal(session.run(np.array([9]), x_value)["y"], x_value * 4)


@pytest.mark.parametrize(("status", "words"), [(2, "divided by zero"), (3, "outside of the range"), (77, "status 77")])
def test_status_of_kernels(status: int, words: str) -> None:
    plan = Plan()
    plan.kernel("k_fail", [], [status], node="n", op="op")
    with pytest.raises(DeviceError if status == 77 else ModelError, match=words):
        dhc_runtime.load(plan.artifact(), threads=1).run()


def test_memory_is_refused_before_it_is_taken(artifact: bytes) -> None:
    session = dhc_runtime.load(artifact, threads=1, max_memory=1 << 20)
    session.run(array(1000))
    held = session.memory
    assert 0 < held <= 1 << 20
    huge = np.broadcast_to(np.float32(1), (1 << 34, 4))
    with pytest.raises(ResourceError, match=r"the limit is 1\.0 MiB") as caught:
        session._executor.execute(session._given, [dhc_memory(huge.shape)], [None, None])
    assert caught.value.budget == 1 << 20
    assert session.memory == held
    assert np.array_equal(session.run(array(1000))["y"], array(1000) * 32)
    session.release_memory()
    assert session.memory == 0
    assert np.array_equal(session.run(array(1000))["y"], array(1000) * 32)
    # Outputs count too.
    with pytest.raises(ResourceError):
        dhc_runtime.load(artifact, threads=1, max_memory=40_000).run(array(1000))
    default = dhc_runtime.load(artifact, threads=1)
    with pytest.raises(ResourceError, match="smaller batch"):
        default._executor.execute(default._given, [dhc_memory(huge.shape)], [None, None])


def dhc_memory(shape: tuple[int, ...]) -> Any:
    from dhc_runtime.executor import Memory

    return Memory(4096, shape)


@pytest.mark.parametrize("bad", [0, -1, True, "4", 1.5])
def test_wrong_options(artifact: bytes, bad: Any) -> None:
    with pytest.raises(UsageError, match="threads must be a number"):
        dhc_runtime.load(artifact, threads=bad)
    with pytest.raises(UsageError, match="max_memory must be"):
        dhc_runtime.load(artifact, max_memory=bad if bad != "4" else "4")


def test_devices(artifact: bytes) -> None:
    with pytest.raises(DeviceError, match="no code for the device 'fpga'; it has: cpu"):
        dhc_runtime.load(artifact, device="fpga")
    other = chain().artifact(devices={"cpu": {"arch": "sparc", "features": [], "object": "cpu/code.o"}})
    with pytest.raises(ArtifactError, match="compiled for sparc"):
        dhc_runtime.load(other)
    with pytest.raises(ArtifactError, match="features that this machine lacks: warp9"):
        dhc_runtime.load(
            chain().artifact(devices={"cpu": {"arch": host_arch(), "features": ["warp9"], "object": "cpu/code.o"}})
        )
    for record in (None, {}, {"arch": 1, "object": "cpu/code.o"}, {"arch": "x", "object": "y", "features": [1]}):
        with pytest.raises(DhcError):
            dhc_runtime.load(chain().artifact(devices={"cpu": record}))


def test_the_number_of_threads_is_a_size() -> None:
    """Scratch memory for each thread: its size is a multiple of the symbol ``threads__``."""
    plan = Plan("N")
    x = plan.input("x", "f32", ["N"])
    scratch = plan.arena("f32", ["threads__", 100])
    plan.kernel("k_double", [scratch, scratch], [["*", "threads__", 100]])
    plan.kernel("k_double", [x, plan.output("y", "f32", ["N"])], ["N"])
    data = plan.artifact(threads=3)
    assert dhc_runtime.load(data).threads == 3
    for threads in (1, 2, 50):
        session = dhc_runtime.load(data, threads=threads)
        assert session.run(np.ones(3, np.float32))["y"].tolist() == [2, 2, 2]
        assert session.memory >= 400 * threads
    for preferred in (0, "4", None, 1 << 40):
        assert dhc_runtime.load(plan.artifact(threads=preferred)).threads == default_threads()


def test_profile_and_trace(artifact: bytes) -> None:
    session = dhc_runtime.load(artifact, threads=2, profile=True)
    session.run(array(100))
    steps = session.profile()
    assert [(step.node, step.op, step.symbol) for step in steps][:2] == [
        ("first", "add", "k_add"),
        ("double0", "mul", "k_double"),
    ]
    assert len(steps) == 7
    assert all(step.microseconds > 0 for step in steps)
    assert [step.start for step in steps] == sorted(step.start for step in steps)
    trace = json.loads(json.dumps(session.trace()))
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [event["args"]["node"] for event in events] == [step.node for step in steps]
    plain = dhc_runtime.load(artifact, threads=2)
    plain.run(array(3))
    assert plain.profile() == []
    plain.run(array(3), profile=True)
    assert len(plain.profile()) == 7


def test_importing_the_package_does_not_import_the_machinery() -> None:
    names = ("numpy", "ctypes", "mmap")
    script = f"import sys, dhc_runtime, dhc_runtime.errors\nprint([m for m in {names} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout.strip() == "[]"


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(Path(dhc_runtime.__file__).resolve().parents[1])}


def test_running_imports_no_compiler(artifact: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.dhc"
    path.write_bytes(artifact)
    script = (
        "import sys, numpy, dhc_runtime\n"
        "dhc_runtime.load(sys.argv[1]).run(numpy.zeros((1, 4), 'float32'))\n"
        "print([m for m in ('dhc', 'numba', 'llvmlite', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
