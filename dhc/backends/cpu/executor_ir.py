"""The native executor: ``dhc_run``, the loop every worker thread enters once per inference.

A compiled segment is a list of :c:struct:`Step`; all threads run the same list and meet at barriers. The executor is
generated code like the kernels themselves, so that an artifact needs no compiled helper at run time.

Layout (64-bit little-endian, see also ``dhc_runtime``)::

    struct Step { void *fn; uint8_t **buffers; const int64_t *params; int64_t flags; };  // flags bit 0: barrier
    struct Sync {                      // 256 bytes, 64-byte aligned
        int64_t count;                 //   0  threads that reached the current barrier
        int64_t stop;                  //   8  the error word as it was when the last thread reached the barrier
        int64_t error;                 //  16  0, or (step index + 1) << 8 | status of the first failing kernel
        int64_t spin;                  //  24  set by the caller: polls before the thread yields its core
        int64_t pad[4];                //  32
        int64_t sense;                 //  64  barrier generation, alone in its cache line: waiting threads poll it
    };

The caller zeroes ``error`` before every inference. ``count`` and ``sense`` may be left as the last run left them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llvmlite import ir

    from dhc.backends.cpu.target import CpuTarget

SYMBOL = "dhc_run"
STEP_BYTES = 32
SYNC_BYTES = 256
SYNC_COUNT, SYNC_STOP, SYNC_ERROR, SYNC_SPIN, SYNC_SENSE = 0, 8, 16, 24, 64
FLAG_BARRIER = 1


def build_executor(module: ir.Module | None = None, target: CpuTarget | None = None) -> ir.Module:
    """Adds ``int32_t dhc_run(const Step*, int64_t nsteps, int64_t tid, int64_t nthreads, Sync*)`` to a module.

    Every thread runs all steps. A nonzero status is stored (first one wins) in ``sync->error`` as
    ``(step index + 1) << 8 | status``; after each barrier all threads return when it is set. With one thread there is
    no waiting. The result is the error word, 0 when all went well.

    Args:
        module: llvmlite module to add the function to; a new one when ``None``.
        target: decides the CPU's pause instruction; without one the host's architecture is assumed.

    Returns:
        The module.
    """
    from llvmlite import ir

    from dhc.backends.cpu.target import host_target

    target = target or host_target()
    i32, i64, ptr = ir.IntType(32), ir.IntType(64), ir.PointerType()
    if module is None:
        module = ir.Module(name=SYMBOL)
        module.triple = target.triple
    kernel_type = ir.FunctionType(i32, [ptr, ptr, i64, i64])
    function = ir.Function(module, ir.FunctionType(i32, [ptr, i64, i64, i64, ptr]), SYMBOL)
    function.attributes.add("nounwind")
    steps, nsteps, tid, nthreads, sync = function.args
    for argument, name in zip(function.args, ("steps", "nsteps", "tid", "nthreads", "sync")):
        argument.name = name
    # Intrinsics, not inline assembly: LLVM's assembly parsers are not set up for other targets than the host.
    if target.arch == "x86_64":
        pause = ir.Function(module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause")
        pause_arguments = []
    else:
        pause = ir.Function(module, ir.FunctionType(ir.VoidType(), [i32]), "llvm.aarch64.hint")
        pause_arguments = [ir.Constant(i32, 1)]  # 1 = yield
    sched_yield = ir.Function(module, ir.FunctionType(i32, []), "sched_yield")

    blocks = {
        name: function.append_basic_block(name)
        for name in (
            "entry",
            "loop",
            "step",
            "failed",
            "after",
            "barrier",
            "wait",
            "last",
            "poll",
            "still_waiting",
            "spin",
            "yield",
            "check",
            "next",
            "done",
        )
    }
    builder = ir.IRBuilder(blocks["entry"])

    def const(value: int) -> ir.Constant:
        return ir.Constant(i64, value)

    def at(base: ir.Value, offset: int | ir.Value) -> ir.Value:
        index = const(offset) if isinstance(offset, int) else offset
        return builder.gep(base, [index], source_etype=ir.IntType(8))

    count, stop = at(sync, SYNC_COUNT), at(sync, SYNC_STOP)
    error, sense = at(sync, SYNC_ERROR), at(sync, SYNC_SENSE)
    spin = builder.load(at(sync, SYNC_SPIN), typ=i64, name="spin")
    alone = builder.icmp_signed("<=", nthreads, const(1))
    # The generation cannot change before this thread arrives at its first barrier, so a plain first read is safe.
    first_generation = builder.load_atomic(sense, "acquire", 8, typ=i64)
    builder.branch(blocks["loop"])

    builder.position_at_end(blocks["loop"])
    index = builder.phi(i64, "index")
    generation = builder.phi(i64, "generation")
    builder.cbranch(builder.icmp_signed("<", index, nsteps), blocks["step"], blocks["done"])

    builder.position_at_end(blocks["step"])
    step = at(steps, builder.mul(index, const(STEP_BYTES)))
    kernel = builder.load(step, typ=kernel_type.as_pointer())
    buffers = builder.load(at(step, 8), typ=ptr)
    params = builder.load(at(step, 16), typ=ptr)
    flags = builder.load(at(step, 24), typ=i64)
    status = builder.call(kernel, [buffers, params, tid, nthreads])
    builder.cbranch(builder.icmp_signed("==", status, ir.Constant(i32, 0)), blocks["after"], blocks["failed"])

    builder.position_at_end(blocks["failed"])
    word = builder.or_(builder.shl(builder.add(index, const(1)), const(8)), builder.zext(status, i64))
    builder.cmpxchg(error, const(0), word, "acq_rel", "acquire")
    builder.branch(blocks["after"])

    builder.position_at_end(blocks["after"])
    flagged = builder.icmp_signed("!=", builder.and_(flags, const(FLAG_BARRIER)), const(0))
    builder.cbranch(flagged, blocks["barrier"], blocks["next"])

    builder.position_at_end(blocks["barrier"])
    builder.cbranch(alone, blocks["check"], blocks["wait"])

    builder.position_at_end(blocks["wait"])
    arrived = builder.add(builder.atomic_rmw("add", count, const(1), "acq_rel"), const(1))
    builder.cbranch(builder.icmp_signed("==", arrived, nthreads), blocks["last"], blocks["poll"])

    builder.position_at_end(blocks["last"])
    # All threads must agree on whether to go on. A fast thread may leave this barrier and fail in the next step while
    # a slow one still wakes up here: reading `error` itself, the slow one would return and the fast one wait for ever.
    builder.atomic_rmw("xchg", stop, builder.load_atomic(error, "acquire", 8, typ=i64), "monotonic")
    # The count is reset before the generation is released: nobody can arrive at the next barrier in between.
    builder.atomic_rmw("xchg", count, const(0), "monotonic")
    builder.atomic_rmw("xchg", sense, builder.add(generation, const(1)), "release")
    builder.branch(blocks["check"])

    builder.position_at_end(blocks["poll"])
    polls = builder.phi(i64, "polls")
    current = builder.load_atomic(sense, "acquire", 8, typ=i64)
    waiting = builder.icmp_signed("==", current, generation)
    builder.cbranch(waiting, blocks["still_waiting"], blocks["check"])

    builder.position_at_end(blocks["still_waiting"])
    builder.cbranch(builder.icmp_signed("<", polls, spin), blocks["spin"], blocks["yield"])

    builder.position_at_end(blocks["spin"])
    builder.call(pause, pause_arguments)
    spun = builder.add(polls, const(1))
    builder.branch(blocks["poll"])
    builder.position_at_end(blocks["yield"])
    builder.call(sched_yield, [])
    builder.branch(blocks["poll"])
    polls.add_incoming(const(0), blocks["wait"])
    polls.add_incoming(spun, blocks["spin"])
    polls.add_incoming(polls, blocks["yield"])

    builder.position_at_end(blocks["check"])
    deciding = builder.select(alone, error, stop)
    after_barrier = builder.load_atomic(deciding, "acquire", 8, typ=i64)
    next_generation = builder.select(alone, generation, builder.add(generation, const(1)))
    builder.cbranch(builder.icmp_signed("==", after_barrier, const(0)), blocks["next"], blocks["done"])

    builder.position_at_end(blocks["next"])
    carried = builder.phi(i64, "carried")
    carried.add_incoming(generation, blocks["after"])
    carried.add_incoming(next_generation, blocks["check"])
    following = builder.add(index, const(1))
    builder.branch(blocks["loop"])
    index.add_incoming(const(0), blocks["entry"])
    index.add_incoming(following, blocks["next"])
    generation.add_incoming(first_generation, blocks["entry"])
    generation.add_incoming(carried, blocks["next"])

    builder.position_at_end(blocks["done"])
    builder.ret(builder.trunc(builder.load_atomic(error, "acquire", 8, typ=i64), i32))
    return module


def executor_ir(target: CpuTarget) -> str:
    """The executor as the LLVM IR text of its own module, ready for :func:`dhc.backends.cpu.target.compile_ir`."""
    return str(build_executor(None, target))
