"""Makes small artifacts by hand for the tests of the runtime: kernels in LLVM IR, plans as tables.

Kernels follow the ABI of CPU kernels. Their work is split over threads by element, with the same result for any number
of threads.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np

from dhc_runtime import safetensors
from dhc_runtime.container import write_artifact
from dhc_runtime.cpu_features import host_arch

SAFE_NAMES = {"f32": "F32", "f64": "F64", "i64": "I64", "i32": "I32", "bool": "BOOL", "u8": "U8", "bf16": "BF16"}

# Each kernel: element type of the loads and stores, and the body that computes %r from %a (and %b).
BINARY = {
    "k_add": ("float", "%r = fadd float %a, %b"),
    "k_mul": ("float", "%r = fmul float %a, %b"),
    "k_add_i64": ("i64", "%r = add i64 %a, %b"),
}
UNARY = {
    "k_double": ("float", "%r = fadd float %a, %a"),
    "k_copy": ("float", "%r = fadd float %a, 0.0"),
    "k_sin": ("float", "%r = call float @sinf(float %a)"),
    "k_inc_i64": ("i64", "%r = add i64 %a, 1"),
    "k_not": ("i8", "%r = xor i8 %a, 1"),
    "k_neg_u16": ("i16", "%r = xor i16 %a, -32768"),
}


def _loop(name: str, typ: str, operands: int, body: str) -> str:
    """An elementwise kernel: params [n]; thread t handles the elements from n*t/T to n*(t+1)/T."""
    lines = [f"define i32 @{name}(ptr %buffers, ptr %params, i64 %tid, i64 %nthreads) {{", "entry:"]
    for i in range(operands + 1):
        lines.append(f"  %pp{i} = getelementptr ptr, ptr %buffers, i64 {i}")
        lines.append(f"  %p{i} = load ptr, ptr %pp{i}")
    lines += [
        "  %n = load i64, ptr %params",
        "  %m0 = mul i64 %n, %tid",
        "  %start = sdiv i64 %m0, %nthreads",
        "  %m1 = add i64 %m0, %n",
        "  %stop = sdiv i64 %m1, %nthreads",
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [%start, %entry], [%next, %work]",
        "  %more = icmp slt i64 %i, %stop",
        "  br i1 %more, label %work, label %done",
        "work:",
    ]
    for i, value in zip(range(operands), ("%a", "%b")):
        lines.append(f"  %q{i} = getelementptr {typ}, ptr %p{i}, i64 %i")
        lines.append(f"  {value} = load {typ}, ptr %q{i}")
    lines += [
        "  " + body,
        f"  %o = getelementptr {typ}, ptr %p{operands}, i64 %i",
        f"  store {typ} %r, ptr %o",
        "  %next = add i64 %i, 1",
        "  br label %loop",
        "done:",
        "  ret i32 0",
        "}",
    ]
    return "\n".join(lines)


# Kernels on thread 0: a sum, a check of an index, a comparison, the count and places of non-zero values, a fixed
# failure.
SERIAL = """
define i32 @k_sum(ptr %buffers, ptr %params, i64 %tid, i64 %nthreads) {
entry:
  %serial = icmp ne i64 %tid, 0
  br i1 %serial, label %away, label %here
away:
  ret i32 0
here:
  %in = load ptr, ptr %buffers
  %outp = getelementptr ptr, ptr %buffers, i64 1
  %out = load ptr, ptr %outp
  %n = load i64, ptr %params
  br label %loop
loop:
  %i = phi i64 [0, %here], [%next, %work]
  %s = phi float [0.0, %here], [%t, %work]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %work, label %done
work:
  %q = getelementptr float, ptr %in, i64 %i
  %v = load float, ptr %q
  %t = fadd float %s, %v
  %next = add i64 %i, 1
  br label %loop
done:
  store float %s, ptr %out
  ret i32 0
}
define i32 @k_check(ptr %buffers, ptr %params, i64 %tid, i64 %nthreads) {
  %in = load ptr, ptr %buffers
  %limit = load i64, ptr %params
  %v = load i64, ptr %in
  %bad = icmp uge i64 %v, %limit
  %r = zext i1 %bad to i32
  ret i32 %r
}
define i32 @k_fail(ptr %buffers, ptr %params, i64 %tid, i64 %nthreads) {
  %status = load i64, ptr %params
  %r = trunc i64 %status to i32
  ret i32 %r
}
define i32 @k_less(ptr %buffers, ptr %params, i64 %tid, i64 %nthreads) {
  %serial = icmp ne i64 %tid, 0
  br i1 %serial, label %away, label %here
away:
  ret i32 0
here:
  %in = load ptr, ptr %buffers
  %outp = getelementptr ptr, ptr %buffers, i64 1
  %out = load ptr, ptr %outp
  %limit = load i64, ptr %params
  %v = load i64, ptr %in
  %less = icmp slt i64 %v, %limit
  %r = zext i1 %less to i8
  store i8 %r, ptr %out
  ret i32 0
}
define i32 @k_nonzero(ptr %buffers, ptr %params, i64 %tid, i64 %nthreads) {
entry:
  %serial = icmp ne i64 %tid, 0
  br i1 %serial, label %away, label %here
away:
  ret i32 0
here:
  %in = load ptr, ptr %buffers
  %outp = getelementptr ptr, ptr %buffers, i64 1
  %out = load ptr, ptr %outp
  %countp = getelementptr ptr, ptr %buffers, i64 2
  %count = load ptr, ptr %countp
  %n = load i64, ptr %params
  br label %loop
loop:
  %i = phi i64 [0, %here], [%next, %join]
  %c = phi i64 [0, %here], [%d, %join]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %work, label %done
work:
  %q = getelementptr float, ptr %in, i64 %i
  %v = load float, ptr %q
  %zero = fcmp oeq float %v, 0.0
  br i1 %zero, label %join, label %keep
keep:
  %o = getelementptr i64, ptr %out, i64 %c
  store i64 %i, ptr %o
  %c1 = add i64 %c, 1
  br label %join
join:
  %d = phi i64 [%c, %work], [%c1, %keep]
  %next = add i64 %i, 1
  br label %loop
done:
  store i64 %c, ptr %count
  ret i32 0
}
"""


def kernel_source() -> str:
    parts = ["declare float @sinf(float)", SERIAL]
    parts += [_loop(name, typ, 2, body) for name, (typ, body) in BINARY.items()]
    parts += [_loop(name, typ, 1, body) for name, (typ, body) in UNARY.items()]
    return "\n".join(parts)


@functools.cache
def code_object() -> bytes:
    """Object code of all kernels here and of dhc_team."""
    return compile_llvm(kernel_source(), with_executor=True)


def compile_llvm(source: str, with_executor: bool = False, triple: str | None = None, **options: Any) -> bytes:
    """Object code of LLVM IR text."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = triple or f"{host_arch()}-unknown-linux-gnu"
    module = llvm.parse_assembly(source)
    module.triple = triple
    if with_executor:
        from dhc.backends.cpu.target import host_target
        from dhc.backends.cpu.team_ir import team_ir

        module.link_in(llvm.parse_assembly(team_ir(host_target())))
    module.verify()
    options = {"reloc": "pic", "codemodel": "small", "opt": 2, **options}
    machine = llvm.Target.from_triple(triple).create_target_machine(**options)
    return machine.emit_object(module)


class Plan:
    """Collects the buffers and items of a program."""

    def __init__(self, *symbols: str) -> None:
        self.symbols = list(symbols)
        self.buffers: list[dict[str, Any]] = []
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []
        self.items: list[dict[str, Any]] = []
        self.constraints: list[list[Any]] = []
        self.weights: dict[str, np.ndarray] = {}

    @staticmethod
    def size(shape: list[Any], dtype: str) -> Any:
        from dhc_runtime.dtypes import itemsize

        expr: Any = itemsize(dtype)
        for dim in shape:
            expr = expr * dim if isinstance(expr, int) and isinstance(dim, int) else ["*", expr, dim]
        return expr

    def _buffer(self, kind: str, dtype: str, shape: list[Any], **more: Any) -> int:
        record = {"kind": kind, "dtype": dtype, "shape": shape, "bytes": self.size(shape, dtype)}
        self.buffers.append({**record, **more})
        return len(self.buffers) - 1

    def input(self, name: str, dtype: str, shape: list[Any]) -> int:
        buffer = self._buffer("input", dtype, shape)
        self.inputs.append({"name": name, "dtype": dtype, "shape": shape, "buffer": buffer})
        return buffer

    def output(self, name: str, dtype: str, shape: list[Any], **more: Any) -> int:
        buffer = self._buffer("output", dtype, shape, **more)
        self.outputs.append({"name": name, "dtype": dtype, "shape": shape, "buffer": buffer})
        return buffer

    def const(self, name: str, dtype: str, array: np.ndarray) -> int:
        self.weights[name] = array
        return self._buffer("const", dtype, list(array.shape), constant=name)

    def arena(self, dtype: str, shape: list[Any], **more: Any) -> int:
        return self._buffer("arena", dtype, shape, **more)

    def alias(self, dtype: str, shape: list[Any], of: int, offset: Any) -> int:
        return self._buffer("alias", dtype, shape, of=of, offset=offset)

    def kernel(self, symbol: str, buffers: list[int], params: list[Any], node: str = "", op: str = "") -> None:
        self.items.append(
            {
                "do": "kernel",
                "symbol": symbol,
                "buffers": buffers,
                "params": params,
                "barrier": True,
                "node": node,
                "op": op,
            }
        )

    def item(self, do: str, **fields: Any) -> None:
        self.items.append({"do": do, **fields})

    def _root(self, buffer: int) -> int:
        while self.buffers[buffer]["kind"] == "alias":
            buffer = self.buffers[buffer]["of"]
        return buffer

    def program(self) -> dict[str, Any]:
        uses: dict[int, list[int]] = {}
        for index, item in enumerate(self.items):
            named = list(item.get("buffers", [])) + [
                item[k] for k in ("buffer", "from", "to", "cond", "trip") if item.get(k) is not None
            ]
            for key in ("args_then", "args_else", "results", "carried", "captures"):
                named += item.get(key, [])
            named += [scan[0] for scan in item.get("scan_inputs", [])]
            for buffer in named:
                uses.setdefault(self._root(buffer), []).append(index)
        for index, buffer in enumerate(self.buffers):
            if buffer["kind"] == "arena":
                buffer.setdefault("first", min(uses.get(index, [0])))
                buffer.setdefault("last", max(uses.get(index, [0])))
        return {
            "symbols": self.symbols,
            "constraints": self.constraints,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "buffers": self.buffers,
            "items": self.items,
        }

    def artifact(self, **manifest: Any) -> bytes:
        return make_artifact({"format": 1, "program": self.program()}, self.weights, **manifest)


def make_artifact(
    plan: dict[str, Any],
    weights: dict[str, np.ndarray],
    code: bytes | None = None,
    member: str = "cpu/code.o",
    **manifest: Any,
) -> bytes:
    """An artifact with this plan, the kernels of this module, and these weights."""
    tensors = {}
    for name, array in weights.items():
        kind = {"float32": "F32", "int64": "I64", "bool": "BOOL", "float64": "F64", "uint8": "U8"}[array.dtype.name]
        tensors[name] = safetensors.Tensor(kind, array.shape, np.ascontiguousarray(array))
    record = {
        "producer": "test",
        "name": "test",
        "targets": ["cpu"],
        "devices": {"cpu": {"arch": host_arch(), "features": [], "object": "cpu/code.o"}},
    }
    return write_artifact(
        None,
        {**record, **manifest},
        {
            "plan.json": json.dumps(plan).encode(),
            "graph.txt": b"",
            "weights.safetensors": safetensors.serialize(tensors),
            member: code_object() if code is None else code,
        },
    )


def chain(steps: int = 3) -> Plan:
    """y = (x + w) doubled ``steps`` times, x of shape [N, 4]."""
    plan = Plan("N")
    x = plan.input("x", "f32", ["N", 4])
    w = plan.const("w", "f32", np.arange(4, dtype=np.float32))
    one = plan.const("one", "f32", np.ones(4, dtype=np.float32))
    del w
    count = ["*", "N", 4]
    current = plan.arena("f32", ["N", 4])
    plan.kernel("k_add", [x, x, current], [count], node="first", op="add")
    for step in range(steps - 1):
        following = plan.arena("f32", ["N", 4])
        plan.kernel("k_double", [current, following], [count], node=f"double{step}", op="mul")
        current = following
    y = plan.output("y", "f32", ["N", 4])
    plan.kernel("k_copy", [current, y], [count], node="last", op="copy")
    s = plan.output("s", "f32", [4])
    plan.kernel("k_add", [one, one, s], [4], node="side", op="add")
    return plan
