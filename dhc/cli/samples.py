"""Random inputs: the same for the same seed, of every element type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc_runtime.errors import ResourceError, UsageError

from dhc.cli.engine import InputSpec
from dhc.cli.shapes import ShapeSpec, fixed_shape

_LIMIT = 1 << 33


def bind_sizes(specs: Sequence[InputSpec], shapes: dict[str, ShapeSpec]) -> dict[str, int]:
    """Sizes of symbols as the given shapes say.

    Raises:
        UsageError: a shape has another rank than its input, or contradicts it.
    """
    bound: dict[str, int] = {}
    for spec in specs:
        dims = shapes.get(spec.name)
        if dims is None:
            continue
        if len(dims) != len(spec.shape):
            raise UsageError(f"input {spec.name!r} has {len(spec.shape)} axes and the shape given for it {len(dims)}")
        for have, give in zip(spec.shape, dims):
            if isinstance(have, int) and isinstance(give, int) and have != give:
                raise UsageError(f"input {spec.name!r} has the shape {list(spec.shape)}, not {list(dims)}")
            if isinstance(have, str) and have.isidentifier() and isinstance(give, int):
                bound[have] = give
    return bound


def random_input(spec: InputSpec, sizes: dict[str, int], seed: int) -> Any:
    """An array for an input: normal numbers, small integers (0 or 1 where they may be indices), or truth values.

    Raises:
        ResourceError: the array would take more than 8 GiB.
    """
    from dhc.ir.dtypes import dtype

    shape = fixed_shape(spec.name, spec.shape, sizes)
    element = dtype(spec.dtype)
    total = element.itemsize
    for size in shape:
        total *= size
    if total > _LIMIT:
        raise ResourceError(
            f"input {spec.name!r} would take {total} bytes", _LIMIT, hint="give smaller sizes by --shape"
        )
    # The name is part of the seed, so that a further input does not change the values of the others.
    generator = np.random.default_rng([seed, *spec.name.encode()])
    if element.kind == "f":
        return generator.standard_normal(shape, dtype=np.float32).astype(element.numpy)
    if element.kind == "c":
        return (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)).astype(element.numpy)
    if element.kind == "b":
        return generator.integers(0, 2, shape).astype(bool)
    high = int(element.max) + 1 if element.bits <= 8 else 2
    return generator.integers(0, high, shape).astype(element.numpy)


def random_inputs(specs: Sequence[InputSpec], shapes: dict[str, ShapeSpec], seed: int) -> dict[str, Any]:
    """An array for every input."""
    sizes = bind_sizes(specs, shapes)
    return {spec.name: random_input(spec, sizes, seed) for spec in specs}


def assumed_sizes(specs: Sequence[InputSpec], shapes: dict[str, ShapeSpec]) -> list[str]:
    """Names of sizes that nothing fixes, which are taken as 1; sorted."""
    from dhc.ir.symbols import free_symbols, parse_dim

    names = {s for spec in specs for d in spec.shape if isinstance(d, str) for s in free_symbols(parse_dim(d))}
    return sorted(names - set(bind_sizes(specs, shapes)))
