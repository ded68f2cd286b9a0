"""The core ops, one file a family. Importing this package registers them all."""

from __future__ import annotations

from dhc.ir.ops import (  # noqa: F401
    activation,
    arithmetic,
    cast,
    compare,
    complex,
    conv,
    conv_transpose,
    cumulative,
    logic,
    math,
    matmul,
    pool,
    quantize,
    random,
    reduce,
    structural,
    view,
)
