"""The graph-level IR: types, graph, op registry, text form, verifier, reference interpreter."""

from __future__ import annotations

from dhc.ir.builder import Builder, builder_of
from dhc.ir.dtypes import DType, dtype
from dhc.ir.graph import Graph, Node, Use, Value
from dhc.ir.location import Location
from dhc.ir.op import Attr, Call, Cost, Limitation, NotDifferentiable, OpDef, Operand
from dhc.ir.registry import all_ops, get, has, register
from dhc.ir.symbols import Dim, SymExpr, sym
from dhc.ir.types import ImageType, LooseTensorType, OptionalType, QuantType, SequenceType, TensorType

__all__ = [
    "Attr", "Builder", "Call", "Cost", "DType", "Dim", "Graph", "ImageType", "Limitation", "Location",
    "LooseTensorType", "Node", "NotDifferentiable", "OpDef", "Operand", "OptionalType", "QuantType", "SequenceType",
    "SymExpr", "TensorType", "Use", "Value", "all_ops", "builder_of", "dtype", "get", "has", "register", "sym",
]  # fmt: skip
