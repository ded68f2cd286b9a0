"""Generated kernels kept as text in the cache: reading one takes a tenth of the time of writing it anew."""

from __future__ import annotations

import json
import zlib

from dhc.backends.cpu.cache import KernelCache
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.spec import KernelCode, Spec
from dhc.backends.cpu.target import CpuTarget


def cached_emit(spec: Spec, target: CpuTarget, cache: KernelCache | None) -> KernelCode:
    """The kernel that the generator of a (normalised) spec writes, out of the cache where that holds it."""
    if cache is None:
        return registry.emit(spec, target)
    # The representation holds every field of the spec, the canonical text of its epilogue all of the epilogue's.
    key = f"code {registry.select(spec, target).name} {spec!r} {spec.text()}"
    return _restored(cache.get_or_make(key, target.text(), lambda: _stored(registry.emit(spec, target))))


def _stored(code: KernelCode) -> bytes:
    head = [code.name, code.buffers, code.params, code.scratch_per_thread, code.constants]
    return json.dumps(head).encode() + b"\n" + zlib.compress(code.ir.encode(), 1)


def _restored(data: bytes) -> KernelCode:
    head, text = data.split(b"\n", 1)
    name, buffers, params, scratch, constants = json.loads(head)
    return KernelCode(name, zlib.decompress(text).decode(), tuple(buffers), tuple(params), scratch, tuple(constants))
