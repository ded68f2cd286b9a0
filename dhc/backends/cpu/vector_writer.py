"""Scalar expressions written as vector IR: the same definitions as in loop kernels, on whole registers."""

from __future__ import annotations

from dhc.backends.cpu.contract import activations
from dhc.backends.cpu.contract.epilogue import EpilogueContext
from dhc.backends.cpu.llvm.builder import Value as IrValue
from dhc.backends.cpu.llvm.builder import suffix
from dhc.backends.loop.elementary import EXPANSIONS
from dhc.ir import scalar as s
from dhc.ir.dtypes import DType, f32

_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_COMPARE = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}
_INTEGER = {"add": "add", "sub": "sub", "and": "and", "or": "or", "shl": "shl", "shr": "ashr"}
_INTRINSICS = {"sqrt": "sqrt", "abs": "fabs", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint"}
_SHORT = {"exp": activations.exp, "tanh": activations.tanh, "erf": activations.erf}


def is_writable(e: s.ScalarExpr, dtype: DType) -> bool:
    """Whether vector IR can be written: arithmetic, comparisons, selections, exp and its relatives."""
    if isinstance(e, s.Const):
        return e.dtype == dtype
    if isinstance(e, (s.Var, s.Load)):
        return e.dtype == dtype
    if isinstance(e, s.Unary):
        known = e.function in _INTRINSICS or e.function == "neg" or (e.function in EXPANSIONS and dtype == f32)
        allowed = known and e.dtype == dtype
    elif isinstance(e, s.Binary):
        if e.function in _COMPARE:
            allowed = e.left.dtype == dtype
        else:
            allowed = (e.function in _BINARY or e.function in ("min", "max")) and e.dtype == dtype
    elif isinstance(e, s.Select):
        allowed = e.dtype == dtype
    else:
        return False
    return allowed and all(is_writable(c, dtype) for c in s.children(e))


class VectorWriter:
    """Writes scalar expressions as vector IR; functions without an instruction expand to polynomials."""

    def __init__(self, context: EpilogueContext, names: dict[str, IrValue]) -> None:
        self._context = context
        self._names = names
        self._written: dict[s.ScalarExpr, IrValue] = {}

    def write(self, e: s.ScalarExpr) -> IrValue:
        """The vector of an expression; equal subexpressions are written once."""
        if isinstance(e, s.Var):
            return self._names[e.name]
        if e not in self._written:
            self._written[e] = self._write(e)
        return self._written[e]

    def _let(self, e: s.ScalarExpr) -> s.ScalarExpr:
        """Writes a value now and gives it a name, so that expansions stay small."""
        value = self.write(e)  # first: it may give names of its own, and no name may mean two values
        name = f"t{len(self._names)}"
        self._names[name] = value
        return s.Var(name, e.dtype)

    def _type(self, dtype: DType) -> str:
        element = {"f32": "float", "f64": "double", "i32": "i32", "bool": "i1"}[dtype.name]
        return f"<{self._context.lanes} x {element}>"

    def _literal(self, e: s.Const) -> IrValue:
        f, kind = self._context.function, self._type(e.dtype)
        if e.dtype.is_float:
            return f.constant(float(e.value), kind)  # type: ignore[arg-type]
        element = kind[1:-1].split(" x ")[1]
        number = int(e.value)  # type: ignore[arg-type]
        return IrValue(f, kind, "<" + ", ".join([f"{element} {number}"] * self._context.lanes) + ">")

    def _write(self, e: s.ScalarExpr) -> IrValue:
        f = self._context.function
        if isinstance(e, s.Const):
            return self._literal(e)
        if isinstance(e, s.Load):
            return self._context.operand(e.operand)
        if isinstance(e, s.Unary):
            return self._unary(e)
        if isinstance(e, s.Binary):
            return self._binary(e)
        if isinstance(e, s.Select):
            return f.select(self.write(e.condition), self.write(e.if_true), self.write(e.if_false))
        (operand,) = (self.write(c) for c in s.children(e))
        verb = "bitcast" if isinstance(e, s.Bitcast) else "sitofp"
        return f.emit(self._type(e.dtype), f"{verb} {operand.type} {operand.ref} to {self._type(e.dtype)}")

    def _unary(self, e: s.Unary) -> IrValue:
        f = self._context.function
        if e.function in _SHORT and e.dtype == f32:
            return _SHORT[e.function](f, self.write(e.operand))
        if e.function in EXPANSIONS:
            return self.write(EXPANSIONS[e.function](self._let(e.operand), self._let))
        operand = self.write(e.operand)
        if e.function == "neg":
            return f.emit(operand.type, f"fneg {operand.type} {operand.ref}")
        return f.intrinsic(f"llvm.{_INTRINSICS[e.function]}.{suffix(operand.type)}", operand.type, [operand])

    def _binary(self, e: s.Binary) -> IrValue:
        f = self._context.function
        factor = _logistic_factor(e)
        if factor is not None:
            return f.binary("fdiv", *(self.write(part) for part in factor))
        inner = _logistic_argument(e)
        if inner is not None:
            return activations.logistic_divisor(f, self.write(inner))
        left, right = self.write(e.left), self.write(e.right)
        if e.function in _COMPARE:
            return f.compare(_COMPARE[e.function], left, right)
        if not e.dtype.is_float:
            return f.binary(_INTEGER[e.function], left, right)
        if e.function in _BINARY:
            return f.binary(_BINARY[e.function], left, right)
        ordered = "olt" if e.function == "min" else "ogt"
        bound = e.right
        if isinstance(bound, s.Const) and bound.value == bound.value and bound.value != 0:
            # Against a number other than 0, whose sign would tell, one instruction keeps NaN as well.
            return f.select(f.compare(ordered, right, left), right, left)
        # NaN when either is NaN: the ordered comparison is false for NaN, and the last select restores it.
        chosen = f.select(f.compare(ordered, left, right), left, right)
        return f.select(f.compare("uno", left, left), left, chosen)


def _logistic_argument(e: s.ScalarExpr) -> s.ScalarExpr | None:
    """The x of ``exp(-x) + 1`` in f32."""
    if not isinstance(e, s.Binary) or e.function != "add" or e.dtype != f32:
        return None
    for power, one in ((e.left, e.right), (e.right, e.left)):
        if isinstance(one, s.Const) and one.value == 1 and isinstance(power, s.Unary) and power.function == "exp":
            minus = power.operand
            if isinstance(minus, s.Unary) and minus.function == "neg":
                return minus.operand
    return None


def _logistic_factor(e: s.Binary) -> tuple[s.ScalarExpr, s.ScalarExpr] | None:
    """Numerator and divisor of ``x * (1 / (exp(-y) + 1))``, which one division computes."""
    if e.function != "mul":
        return None
    for factor, other in ((e.left, e.right), (e.right, e.left)):
        if not isinstance(other, s.Binary) or other.function != "div" or _logistic_argument(other.right) is None:
            continue
        if isinstance(other.left, s.Const) and other.left.value == 1:
            return factor, other.right
    return None
