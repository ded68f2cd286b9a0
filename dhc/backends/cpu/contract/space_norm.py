"""Kernels that normalise groups of channels over space, with what follows them: instance and group normalisation.

A *row* is what is normalised together: the channels of one group of one item, contiguous in memory. Each channel is cut
into pieces that fit the first-level cache; a piece gives its sum and the sum of squared differences from its own mean,
and a row combines those of its pieces in f64, so that a large mean costs no precision. The pieces depend on the sizes
alone: results are the same whatever the threads.

Where there are enough rows, a thread takes whole rows and reads a row for the second time while it is still near. Where
there are few, threads share the pieces instead, in two steps with a barrier between them. The first kernel decides, and
tells the second one in the buffer between them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dhc.backends.cpu.contract.epilogue import Epilogue
from dhc.backends.cpu.contract.spec import KERNEL, KernelCode, finished
from dhc.backends.cpu.contract.tile import ResultWriter, even_share, load_lanes
from dhc.backends.cpu.llvm.builder import Function, Module, Value
from dhc.backends.cpu.target import CpuTarget

PARAMS = ("batch", "channels", "groups", "positions")
PIECE = 4096
"""Elements of a piece: 16 KiB, half of a small first-level cache."""
HEADER = 16
"""Elements in front of the moments; the first is 1 when the first step has filled them, else 0."""
_ITEM = 4
_ENOUGH = 8  # rows for each thread, so that an uneven share does not matter
_CHAINS = 4  # independent sums, so that additions overlap


@dataclass(frozen=True)
class SpaceNormSpec:
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias`` over a group of channels of f32 maps ``[N, C, ...]``.

    Attributes:
        epsilon: added to the variance.
        epilogue: what happens to each result before it is stored.
    """

    epsilon: float
    epilogue: Epilogue = field(default_factory=Epilogue)


def emit_moments(target: CpuTarget) -> KernelCode:
    """The kernel of the first step: sums and squared differences of pieces, where threads share rows.

    Buffers: ``input``, ``moments`` (f32, a header of :data:`HEADER`, then two for each piece of each channel).
    Parameters: :data:`PARAMS`.
    """
    writer = _Writer(Module(target, KERNEL))
    f = writer.f
    tid, nthreads = f.argument("tid"), f.argument("nthreads")
    header = f.pointer_argument(1)
    enough = (writer.rows % nthreads).equals(0) | (writer.rows >= nthreads * _ENOUGH)
    with f.if_(tid.equals(0)):
        filled = f.select(enough, f.constant(0.0, "float"), f.constant(1.0, "float"))
        f.store(filled, header, _ITEM)
    with f.if_(enough.equals(0)):
        begin, end = even_share(f, writer.rows * writer.units, tid, nthreads)
        writer.take_moments(f.pointer_argument(0), f.at(header, HEADER * _ITEM), begin, end)
    f.ret(0)
    return finished(writer.module, target, "moments", ("input", "moments"), PARAMS, 0)


def emit_space_norm(spec: SpaceNormSpec, target: CpuTarget) -> KernelCode:
    """The kernel of the second step: means and variances of rows, then the results.

    Buffers: ``input``, ``scale``, ``bias``, [``epilogue0``...], ``moments``, ``out``; ``out`` may be ``input``.
    Parameters: :data:`PARAMS`.
    """
    added = [f"epilogue{i}" for i in range(len(spec.epilogue.operands()))]
    buffers = ("input", "scale", "bias", *added, "moments", "out")
    writer = _Writer(Module(target, KERNEL))
    writer.normalise(spec, buffers)
    return finished(writer.module, target, "norm", buffers, PARAMS, 0)


class _Writer:
    """Writes either kernel.

    Attributes:
        rows: what is normalised together.
        units: pieces of a row.
    """

    def __init__(self, module: Module) -> None:
        self.module = module
        self.lanes = module.target.lanes("f32")
        self.vector = f"<{self.lanes} x float>"
        self._moments = self._piece_moments()
        f = self.f = module.kernel(module.name)
        batch, self.channels, groups, self.positions = (f.parameter(i) for i in range(4))
        self.rows = f.value(batch * groups)
        self.of_row = f.value(self.channels // f.value(f.maximum(groups, 1)))
        self.pieces = f.value(f.ceildiv(self.positions, PIECE))
        self.units = f.value(self.of_row * self.pieces)

    def _piece(self, unit: Value) -> tuple[Value, Value, Value]:
        """The channel (counted over all items) of a unit, and its piece's first position and length."""
        f = self.f
        first = f.value((unit % self.pieces) * PIECE)
        return unit // self.pieces, first, f.value(f.minimum(PIECE, self.positions - first))

    def take_moments(self, source: Value, moments: Value, begin: Value, end: Value) -> None:
        """Writes the moments of units in ``[begin, end)``."""
        f = self.f
        with f.loop(begin, end) as unit:
            channel, first, count = self._piece(unit)
            place = f.at(source, (channel * self.positions + first) * _ITEM)
            f.call(self._moments, [place, count, f.at(moments, unit * (2 * _ITEM))])

    def _piece_moments(self) -> Function:
        """``void piece(x, count, out)``: the sum, and the sum of squared differences from the mean of these."""
        lanes, vector = self.lanes, self.vector
        f = self.module.function("piece", "void", (("ptr", "x"), ("i64", "count"), ("ptr", "out")))
        x, count, out = f.argument("x"), f.argument("count"), f.argument("out")
        step = lanes * _CHAINS
        blocks, whole = (count // step) * step, (count // lanes) * lanes

        def total(mean: Value | None) -> Value:
            sums = [f.variable(vector, "zeroinitializer") for _ in range(_CHAINS)]

            def add(chain: int, value: Value) -> None:
                if mean is None:
                    sums[chain].set(f.binary("fadd", sums[chain].get(), value))
                    return
                difference = f.binary("fsub", value, mean)
                sums[chain].set(f.fma(difference, difference, sums[chain].get()))

            with f.loop(0, blocks, step) as j:
                for chain in range(_CHAINS):
                    add(chain, f.load(vector, f.at(x, (j + chain * lanes) * _ITEM), _ITEM))
            with f.loop(blocks, whole, lanes) as j:
                add(0, f.load(vector, f.at(x, j * _ITEM), _ITEM))
            with f.if_(whole < count):
                left = count - whole
                value = load_lanes(f, vector, f.at(x, whole * _ITEM), left, _ITEM)
                if mean is not None:  # what is not there counts as the mean
                    value = f.select(f.lanes_below(left, lanes), value, mean)
                add(0, value)
            pairs = [f.binary("fadd", sums[i].get(), sums[i + 1].get()) for i in range(0, _CHAINS, 2)]
            return _across(f, f.binary("fadd", pairs[0], pairs[1]), lanes)

        first = total(None)
        number = f.emit("float", f"sitofp i64 {count.ref} to float")
        second = total(f.splat(f.binary("fdiv", first, number), lanes))
        f.store(first, out, _ITEM)
        f.store(second, f.at(out, _ITEM), _ITEM)
        f.ret()
        return f

    def _combined(self, moments: Value, row: Value) -> tuple[Value, Value]:
        """Mean and variance of a row, in f64."""
        f = self.f
        begin = f.value(row * self.units)
        size = f.value(self.of_row * self.positions)
        number = f.emit("double", f"sitofp i64 {size.ref} to double")
        total = f.variable("double", f.constant(0.0, "double"))
        spread = f.variable("double", f.constant(0.0, "double"))

        def held(unit: Value, which: int) -> Value:
            value = f.load("float", f.at(moments, unit * (2 * _ITEM) + which * _ITEM), _ITEM)
            return f.emit("double", f"fpext float {value.ref} to double")

        with f.loop(begin, begin + self.units) as unit:
            total.set(f.binary("fadd", total.get(), held(unit, 0)))
        mean = f.binary("fdiv", total.get(), number)
        with f.loop(begin, begin + self.units) as unit:
            _, _, count = self._piece(unit)
            many = f.emit("double", f"sitofp i64 {count.ref} to double")
            apart = f.binary("fsub", f.binary("fdiv", held(unit, 0), many), mean)
            between = f.binary("fmul", f.binary("fmul", apart, apart), many)
            spread.set(f.binary("fadd", spread.get(), f.binary("fadd", held(unit, 1), between)))
        return mean, f.binary("fdiv", spread.get(), number)

    def normalise(self, spec: SpaceNormSpec, buffers: tuple[str, ...]) -> None:
        """Writes the body of the second kernel."""
        f, lanes = self.f, self.lanes
        out_at = len(buffers) - 1
        tid, nthreads = f.argument("tid"), f.argument("nthreads")
        source, scales, biases = (f.pointer_argument(i) for i in range(3))
        header = f.pointer_argument(buffers.index("moments"))
        moments = f.at(header, HEADER * _ITEM)
        whole_rows = f.compare("oeq", f.load("float", header, _ITEM), f.constant(0.0, "float"))
        writer = ResultWriter(
            f, "f32", lanes, spec.epilogue, bias="none", bias_buffer=0, first_operand=3, out_buffer=out_at
        )
        row_begin, row_end = even_share(f, self.rows, tid, nthreads)
        begin, end = even_share(f, self.rows * self.units, tid, nthreads)
        begin = f.select(whole_rows, row_begin * self.units, begin)
        end = f.select(whole_rows, row_end * self.units, end)
        last = f.variable("i64", -1)
        mean, factor = f.variable("float", f.constant(0.0, "float")), f.variable("float", f.constant(0.0, "float"))
        with f.loop(begin, end) as unit:
            row = unit // self.units
            with f.if_(last.get().equals(row).equals(0)):
                last.set(row)
                with f.if_(whole_rows):
                    self.take_moments(source, moments, row * self.units, (row + 1) * self.units)
                middle, variance = self._combined(moments, row)
                raised = f.binary("fadd", variance, f.constant(spec.epsilon, "double"))
                root = f.intrinsic("llvm.sqrt.f64", "double", [raised])
                inverse = f.binary("fdiv", f.constant(1.0, "double"), root)
                mean.set(f.emit("float", f"fptrunc double {middle.ref} to float"))
                factor.set(f.emit("float", f"fptrunc double {inverse.ref} to float"))
            channel, first, count = self._piece(unit)
            own = channel % self.channels
            scale = f.load("float", f.at(scales, own * _ITEM), _ITEM)
            slope = f.splat(f.binary("fmul", factor.get(), scale), lanes)
            shift = f.splat(f.load("float", f.at(biases, own * _ITEM), _ITEM), lanes)
            centre = f.splat(mean.get(), lanes)
            start = f.value(channel * self.positions + first)
            writer.begin_row(own)

            def part(j: Value, left: Value | None, start: Value = start, slope: Value = slope, shift: Value = shift,
                     centre: Value = centre) -> None:  # fmt: skip
                place = f.at(source, (start + j) * _ITEM)
                if left is None:
                    value = f.load(self.vector, place, _ITEM)
                else:
                    value = load_lanes(f, self.vector, place, left, _ITEM)
                writer.write(f.fma(f.binary("fsub", value, centre), slope, shift), start + j, j, left)

            whole = (count // lanes) * lanes
            with f.loop(0, whole, lanes) as j:
                part(j, None)
            with f.if_(whole < count):
                part(whole, count - whole)
        f.ret(0)


def _across(f: Function, vector: Value, lanes: int) -> Value:
    """The sum of a vector's lanes, halves first."""
    width = lanes
    while width > 1:
        width //= 2
        high = f.shuffle(vector, vector, range(width, 2 * width))
        vector = f.binary("fadd", f.shuffle(vector, vector, range(width)), high)
    return f.emit("float", f"extractelement {vector.type} {vector.ref}, i64 0")
