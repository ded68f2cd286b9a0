"""The steps of a recurrent layer: hidden product, gates and states in one kernel, from an input that is projected.

The projection of all steps by the input weights is one matrix product before this kernel. Here each item (one direction
of one sequence) runs through its steps on one thread. For a block of as many units as a vector has lanes, the sums of
all gates stay in registers; activations and the update of the states follow right there, so a step reads the weights
once and writes nothing but its states. Up to four sequences of equal length share the reading of the weights.

Weights are ``[direction][block][k][gate][lane]``, the projected input ``[step][batch][direction][block][gate][lane]``;
lanes beyond the hidden size are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dhc_runtime.errors import UsageError

from dhc.backends.cpu.contract.activations import one_plus_exp_of_minus, tanh, tanh_parts
from dhc.backends.cpu.contract.spec import KERNEL, KernelCode, finished
from dhc.backends.cpu.contract.tile import even_share, load_lanes, store_lanes
from dhc.backends.cpu.llvm.builder import Function, Int, Module, Value
from dhc.backends.cpu.target import CpuTarget

if TYPE_CHECKING:
    import numpy as np

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Gates in the order in which they are packed: i, o, f, c; z, r, h; the state itself."""
PARAMS = ("steps", "batch", "hidden", "directions", "reverse")
_ITEM = 4
_AHEAD = 6  # steps of weights that are prefetched: what arrives while a vector of units is finished


@dataclass(frozen=True)
class RecurrentSpec:
    """A recurrent layer in f32 with the usual activations, without clipping and peepholes.

    Attributes:
        cell: ``lstm``, ``gru`` (reset after the product with the weights), ``rnn_tanh`` or ``rnn_relu``.
    """

    cell: str

    def __post_init__(self) -> None:
        if self.cell not in GATES:
            raise UsageError(f"recurrent cells are {', '.join(GATES)}, not {self.cell}")

    @property
    def gates(self) -> int:
        """Number of gates."""
        return GATES[self.cell]

    @property
    def has_cell(self) -> bool:
        """Whether there is a cell state beside the output."""
        return self.cell == "lstm"

    @property
    def has_inner_bias(self) -> bool:
        """Whether a bias belongs to the hidden product alone (inside the reset of a GRU)."""
        return self.cell == "gru"


def pack_gates(target: CpuTarget, gates: int, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Orders ``[directions, gates * hidden, ...]`` as ``[directions, block, gate, lane, ...]``, padded with zeros."""
    import numpy as np

    lanes = target.lanes("f32")
    directions, rows, *rest = values.shape
    hidden = rows // gates
    blocks = -(-hidden // lanes)
    padded = np.zeros((directions, gates, blocks * lanes, *rest), values.dtype)
    padded[:, :, :hidden] = values.reshape(directions, gates, hidden, *rest)
    split = padded.reshape(directions, gates, blocks, lanes, *rest)
    return np.ascontiguousarray(split.swapaxes(1, 2))


def pack_recurrent(target: CpuTarget, gates: int, r: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Lays out hidden weights ``[directions, gates * hidden, hidden]`` as ``[direction, block, k, gate, lane]``."""
    import numpy as np

    return np.ascontiguousarray(np.moveaxis(pack_gates(target, gates, r), -1, 2))


def emit_recurrent(spec: RecurrentSpec, target: CpuTarget) -> KernelCode:
    """Generates the kernel of the steps.

    Buffers: ``projected``, ``weights``, [``inner_bias``], ``h0``, [``c0``], ``lengths`` (i64), ``out``, ``h``, [``c``].
    Parameters: :data:`PARAMS`; with ``reverse`` the first direction runs backward, the second always does. The kernel
    returns 1 when a length is out of range.
    """
    module = Module(target, KERNEL)
    buffers = ["projected", "weights", *["inner_bias"] * spec.has_inner_bias, "h0", *["c0"] * spec.has_cell]
    buffers += ["lengths", "out", "h", *["c"] * spec.has_cell]
    most = 4 if target.vector_registers >= 32 else 2
    sequences = {rows: _emit_sequence(module, spec, rows, buffers) for rows in (most, 1)}

    f = module.kernel(module.name)
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS)}
    steps, batch, directions = names["steps"], names["batch"], names["directions"]
    tid, nthreads = f.argument("tid"), f.argument("nthreads")
    lengths = f.pointer_argument(buffers.index("lengths"))
    wrong = f.variable("i64", 0)
    with f.loop(0, batch) as n:
        length = f.load("i64", f.at(lengths, n * 8), 8)
        with f.if_((length < 0) | (length > steps)):
            wrong.set(1)
    with f.if_(wrong.get().equals(0)):
        # Sequences go in blocks when that leaves work for every thread; each gives the same bits alone.
        quarter = f.ceildiv(batch, most)
        together = f.select(directions * quarter >= nthreads, most, 1)
        blocks = f.value(f.ceildiv(batch, together))
        begin, end = even_share(f, directions * blocks, tid, nthreads)
        with f.loop(begin, end) as unit:
            direction, first = unit // blocks, (unit % blocks) * together
            last = f.value(f.minimum(batch, first + together))
            backward = f.select(names["reverse"] + direction > 0, 1, 0)

            def run(rows: int, n: Value, direction: Value = direction, backward: Value = backward) -> None:
                f.call(sequences[rows], [f.argument("buffers"), f.argument("params"), direction, n, backward])

            equal = f.variable("i64", f.select(last - first >= most, 1, 0))
            with f.loop(first + 1, last) as n:
                own = f.load("i64", f.at(lengths, n * 8), 8)
                with f.if_(own.equals(f.load("i64", f.at(lengths, first * 8), 8)).equals(0)):
                    equal.set(0)

            def one_by_one(first: Value = first, last: Value = last, run: Callable[..., None] = run) -> None:
                with f.loop(first, last) as n:
                    run(1, n)

            f.if_else(equal.get().equals(1), lambda run=run, first=first: run(most, first), one_by_one)  # type: ignore[misc]
    f.ret(f.emit("i32", f"trunc i64 {wrong.get().ref} to i32"))
    return finished(module, target, spec.cell, buffers, PARAMS, 0)


def _copy(f: Function, source: Value, to: Value, count: Int) -> None:
    with f.loop(0, count) as j:
        f.store(f.load("float", f.at(source, j * _ITEM), _ITEM), f.at(to, j * _ITEM), _ITEM)


def _emit_sequence(module: Module, spec: RecurrentSpec, rows: int, buffers: list[str]) -> Function:
    """``void sequence(buffers, params, direction, n, backward)``: all steps of ``rows`` sequences from ``n`` on."""
    lanes = module.target.lanes("f32")
    together = max(1, 8 // spec.gates) if rows == 1 else max(1, 4 // spec.gates)
    widths = (together, 1) if together > 1 else (1,)
    units = {count: _emit_units(module, spec, rows, count) for count in widths}
    f = module.function(
        f"sequence{rows}",
        "void",
        (("ptr", "buffers"), ("ptr", "params"), ("i64", "direction"), ("i64", "n"), ("i64", "backward")),
    )
    pointers = {name: f.pointer_argument(i) for i, name in enumerate(buffers)}
    names = {name: f.parameter(i) for i, name in enumerate(PARAMS)}
    steps, batch, hidden, directions = names["steps"], names["batch"], names["hidden"], names["directions"]
    direction, n = f.argument("direction"), f.argument("n")
    length = f.load("i64", f.at(pointers["lengths"], n * 8), 8)
    blocks = f.value(f.ceildiv(hidden, lanes))
    block = spec.gates * lanes
    state = (direction * batch + n) * hidden * _ITEM
    weights = f.at(pointers["weights"], direction * blocks * hidden * (block * _ITEM))
    inner = f.at(pointers["inner_bias"], direction * blocks * (lanes * _ITEM)) if spec.has_inner_bias else weights
    cell = f.at(pointers["c"], state) if spec.has_cell else weights
    if spec.has_cell:
        _copy(f, f.at(pointers["c0"], state), cell, hidden * rows)

    def output(t: Value) -> Value:
        return f.at(pointers["out"], ((t * directions + direction) * batch + n) * hidden * _ITEM)

    with f.loop(length, steps) as t:
        to = output(t)
        with f.loop(0, hidden * rows) as j:
            f.store(f.constant(0.0, "float"), f.at(to, j * _ITEM), _ITEM)
    before = f.variable("ptr", f.at(pointers["h0"], state))
    with f.loop(0, length) as step:
        t = f.select(f.argument("backward").equals(1), length - 1 - step, step)
        row = directions * blocks * (block * _ITEM)
        projected = f.at(pointers["projected"], (t * batch + n) * row + direction * blocks * (block * _ITEM))
        to = output(t)
        # Every other step goes through the weights backward: what was read last is still in the first-level cache.
        flip = step % 2
        done = f.variable("i64", 0)
        for count in widths:
            with f.while_(lambda count=count: done.get() + count <= blocks):  # type: ignore[misc]
                block = f.select(flip.equals(1), blocks - done.get() - count, done.get())
                f.call(units[count], [projected, row, weights, inner, before.get(), cell, to, hidden, block, flip])
                done.set(done.get() + count)
        before.set(to)
    _copy(f, before.get(), f.at(pointers["h"], state), hidden * rows)
    f.ret()
    return f


def _emit_units(module: Module, spec: RecurrentSpec, rows: int, count: int) -> Function:
    """``void units(projected, row, weights, inner, before, cell, out, hidden, block, flip)``: a step of some blocks."""
    lanes, gates = module.target.lanes("f32"), spec.gates
    vector, size = f"<{lanes} x float>", lanes * _ITEM
    f = module.function(
        f"units{rows}x{count}",
        "void",
        (
            *(("ptr", "projected"), ("i64", "row"), ("ptr", "weights"), ("ptr", "inner"), ("ptr", "before")),
            *(("ptr", "cell"), ("ptr", "out"), ("i64", "hidden"), ("i64", "block"), ("i64", "flip")),
        ),
    )
    hidden, block = f.argument("hidden"), f.argument("block")
    before, stride = f.argument("before"), hidden * _ITEM

    def given(r: int, u: int, gate: int) -> Value:
        """The projected input of a gate."""
        place = f.at(f.argument("projected"), f.argument("row") * r + (block + u) * (gates * size) + gate * size)
        return f.load(vector, place, size)

    def start(r: int, u: int, gate: int) -> Value:
        if spec.has_inner_bias and gate == 2:
            return f.load(vector, f.at(f.argument("inner"), (block + u) * size), size)
        return given(r, u, gate)

    sums = [
        [[f.variable(vector, start(r, u, gate)) for gate in range(gates)] for u in range(count)] for r in range(rows)
    ]
    panel = hidden * (gates * size)
    flipped = f.argument("flip").equals(1)
    first = f.select(flipped, hidden - 1, 0)
    step, state_step = f.select(flipped, -gates * size, gates * size), f.select(flipped, -_ITEM, _ITEM)
    starts = [f.at(f.argument("weights"), panel * (block + u) + first * (gates * size)) for u in range(count)]
    panels = [f.variable("ptr", start) for start in starts]
    states = [f.variable("ptr", f.at(before, stride * r + first * _ITEM)) for r in range(rows)]

    def accumulate() -> None:
        now = [pointer.get() for pointer in panels]
        columns = [[f.load(vector, f.at(now[u], gate * size), size) for gate in range(gates)] for u in range(count)]
        for r in range(rows):
            state = states[r].get()
            scalar = f.splat(f.load("float", state, _ITEM), lanes)
            for u in range(count):
                for gate in range(gates):
                    held = sums[r][u][gate]
                    held.set(f.fma(scalar, columns[u][gate], held.get()))
            states[r].set(f.at(state, state_step))
        for pointer, at in zip(panels, now, strict=True):
            pointer.set(f.at(at, step))

    unrolled = 2
    whole = hidden // unrolled
    with f.loop(0, whole):
        for _ in range(unrolled):
            accumulate()
    with f.loop(whole * unrolled, hidden):
        accumulate()

    # The weights of the next blocks come near while this block's activations are computed.
    ahead = f.select(flipped, panel * -count, panel * count)
    for start in starts:
        following = f.at(start, ahead)
        for k in range(_AHEAD):
            for line in range(0, gates * size, 64):
                f.prefetch(f.at(f.at(following, step * k), line))

    for r in range(rows):
        for u in range(count):
            start_lane = (block + u) * lanes
            left = f.value(f.minimum(lanes, hidden - start_lane))
            at = stride * r + start_lane * _ITEM
            _finish(f, spec, [held.get() for held in sums[r][u]], lambda r=r, u=u: given(r, u, 2), at, left)  # type: ignore[misc]
    f.ret()
    return f


def _finish(
    f: Function, spec: RecurrentSpec, sums: list[Value], third: Callable[[], Value], at: Value, left: Value
) -> None:
    """Activations and new states of one vector of units at byte ``at`` of their row."""
    vector = f"<{f.module.target.lanes('f32')} x float>"

    def old(name: str) -> Value:
        return load_lanes(f, vector, f.at(f.argument(name), at), left, _ITEM)

    def mul(x: Value, y: Value) -> Value:
        return f.binary("fmul", x, y)

    if spec.has_cell:
        # sigmoid(f) c + sigmoid(i) tanh(g) and sigmoid(o) tanh(c), with one division for each product.
        i, o, forget, g = sums
        part, whole = tanh_parts(f, g)
        taken = f.binary("fdiv", part, mul(whole, one_plus_exp_of_minus(f, i)))
        kept = f.binary("fdiv", old("cell"), one_plus_exp_of_minus(f, forget))
        cell = f.binary("fadd", kept, taken)
        store_lanes(f, cell, f.at(f.argument("cell"), at), left, _ITEM)
        part, whole = tanh_parts(f, cell)
        result = f.binary("fdiv", part, mul(whole, one_plus_exp_of_minus(f, o)))
    elif spec.has_inner_bias:
        one = f.constant(1.0, vector)
        z = f.binary("fdiv", one, one_plus_exp_of_minus(f, sums[0]))
        reset = f.binary("fdiv", sums[2], one_plus_exp_of_minus(f, sums[1]))
        candidate = tanh(f, f.binary("fadd", third(), reset))
        result = f.binary("fadd", mul(f.binary("fsub", one, z), candidate), mul(z, old("before")))
    elif spec.cell == "rnn_relu":
        zero = f.constant(0.0, vector)
        result = f.select(f.compare("olt", sums[0], zero), zero, sums[0])
    else:
        result = tanh(f, sums[0])
    store_lanes(f, result, f.at(f.argument("out"), at), left, _ITEM)
