"""How kernels of convolutions finish and store results: bias of the output channel, then the epilogue."""

from __future__ import annotations

from collections.abc import Sequence

from dhc.backends.cpu.contract.spec import ConvSpec, ConvTransposeSpec
from dhc.backends.cpu.contract.tile import ResultWriter, emit_store
from dhc.backends.cpu.llvm.builder import Function, Module, Value, Variable


def emit_conv_store(
    module: Module, name: str, spec: ConvSpec | ConvTransposeSpec, lanes: int, pitch: int, out_at: int, *,
    column_stride: int = 1, interleave: int = 1, plane: int = 0,
) -> Function:  # fmt: skip
    """A :func:`~.tile.emit_store` for a kernel with the buffers of a convolution, ``out`` at ``out_at``."""
    return emit_store(
        module, name, spec.dtype, lanes, pitch, spec.epilogue,
        bias="row" if spec.bias else "none", bias_buffer=2,
        first_operand=out_at - len(spec.epilogue.operands()), out_buffer=out_at,
        column_stride=column_stride, interleave=interleave, plane=plane,
    )  # fmt: skip


def conv_writer(f: Function, spec: ConvSpec, lanes: int, out_at: int) -> ResultWriter:
    """A writer of single vectors for a function with the buffers of a convolution, ``out`` at ``out_at``."""
    return ResultWriter(
        f, spec.dtype, lanes, spec.epilogue,
        bias="row" if spec.bias else "none", bias_buffer=2,
        first_operand=out_at - len(spec.epilogue.operands()), out_buffer=out_at,
    )  # fmt: skip


def write_rows(
    f: Function, writer: ResultWriter, sums: Sequence[Sequence[Variable]], place: Value, out_w: Value, count: Value,
    lanes: int,
) -> None:  # fmt: skip
    """Writes rows of vectors of one channel, ``count`` elements of each row, to rows of ``out_w`` from ``place`` on."""
    vectors = len(sums[0])

    def write(partial: bool) -> None:
        for r, row in enumerate(sums):
            for v, total in enumerate(row):
                at = place + out_w * r + v * lanes
                left = f.value(f.maximum(0, f.minimum(lanes, count - v * lanes))) if partial else None
                writer.write(total.get(), at, f.const(0), left)

    f.if_else(count >= vectors * lanes, lambda: write(False), lambda: write(True))
