"""The plan of an artifact as typed data: inputs, outputs, buffers and the items to execute, checked while it is read.

A program is a straight list of items; ``if`` and ``loop`` items hold programs of their own. The JSON form is described
in the documentation of the artifact format.
"""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from dhc_runtime.dims import Expr, check_expression
from dhc_runtime.dtypes import is_dtype
from dhc_runtime.errors import ArtifactError

__all__ = [
    "Bind",
    "Buffer",
    "Copy",
    "If",
    "Item",
    "Kernel",
    "Loop",
    "Port",
    "Program",
    "Scan",
    "SymbolBinding",
    "parse_program",
]

_MAX_DEPTH = 24
_MAX_LIST = 1 << 20
_MAX_RANK = 64
_KINDS = frozenset(("input", "output", "const", "arena", "alias", "dynamic"))


class Port(NamedTuple):
    """An input or output: its name, element type, symbolic shape, and the buffer that holds it."""

    name: str
    dtype: str
    shape: Tuple[Expr, ...]
    buffer: int


class Buffer(NamedTuple):
    """A piece of memory.

    Attributes:
        kind: ``input``, ``output``, ``const``, ``arena``, ``alias`` (part of another buffer), or ``dynamic`` (a result
            of control flow, allocated when it has finished).
        dtype: element type.
        shape: symbolic shape.
        size: bytes; None where only the run tells.
        constant: name of the tensor (const).
        of: the buffer in which an alias lies.
        offset: byte offset in it.
        first: first item at which an arena buffer is alive.
        last: last such item.
    """

    kind: str
    dtype: str
    shape: Tuple[Expr, ...]
    size: Optional[Expr]
    constant: str
    of: int
    offset: Expr
    first: int
    last: int


class Kernel(NamedTuple):
    """A call of a compiled function by all threads; ``work``: estimated nanoseconds of one thread, None if unknown."""

    symbol: str
    buffers: Tuple[int, ...]
    params: Tuple[Expr, ...]
    barrier: bool
    node: str
    op: str
    work: Optional[Expr] = None


class Bind(NamedTuple):
    """Reads an element of an i64 buffer as the value of a symbol."""

    symbol: str
    buffer: int
    element: int
    maximum: Optional[Expr]
    node: str


class Copy(NamedTuple):
    """Copies the bytes of a buffer to another."""

    source: int
    target: int
    node: str


class SymbolBinding(NamedTuple):
    """A symbol that takes its value from the shape of a result of an ``if`` or ``loop``."""

    symbol: str
    result: int
    axis: int


class Scan(NamedTuple):
    """A buffer stacked or sliced along an axis, from its end if ``reverse``."""

    buffer: int
    axis: int
    reverse: bool


class If(NamedTuple):
    """Runs one of two programs."""

    cond: int
    then_program: "Program"
    else_program: "Program"
    then_args: Tuple[int, ...]
    else_args: Tuple[int, ...]
    results: Tuple[int, ...]
    bind: Tuple[SymbolBinding, ...]
    node: str


class Loop(NamedTuple):
    """Runs a program repeatedly; ``results`` are the final carried values, then the stacked scans."""

    trip: Optional[int]
    cond: Optional[int]
    carried: Tuple[int, ...]
    captures: Tuple[int, ...]
    body: "Program"
    results: Tuple[int, ...]
    scans: Tuple[Scan, ...]
    scan_inputs: Tuple[Scan, ...]
    bind: Tuple[SymbolBinding, ...]
    node: str


Item = Union[Kernel, Bind, Copy, If, Loop]


class Program(NamedTuple):
    """A program and all that it needs; see the module's text."""

    symbols: Tuple[str, ...]
    constraints: Tuple[Tuple[Expr, Expr, str], ...]
    inputs: Tuple[Port, ...]
    outputs: Tuple[Port, ...]
    buffers: Tuple[Buffer, ...]
    items: Tuple[Item, ...]


class _Fields:
    """Access to the fields of a JSON table, with a check of the type and an error that says where."""

    def __init__(self, table: Any, where: str) -> None:
        if not isinstance(table, dict):
            raise ArtifactError("A table is expected", where)
        self.table: Dict[str, Any] = table
        self.where = where

    def fail(self, message: str) -> ArtifactError:
        return ArtifactError(message, self.where, "Compile the model again")

    def get(self, key: str) -> Any:
        if key not in self.table:
            raise self.fail("The field {!r} is missing".format(key))
        return self.table[key]

    def text(self, key: str, default: Optional[str] = None) -> str:
        value = self.table.get(key, default) if default is not None else self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.fail("The field {!r} is not a text".format(key))
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.table.get(key, default)
        if not isinstance(value, bool):
            raise self.fail("The field {!r} is not true or false".format(key))
        return value

    def integer(self, key: str, low: int, high: int, default: Optional[int] = None) -> int:
        value = self.table.get(key, default) if default is not None else self.get(key)
        if type(value) is not int or not low <= value < high:
            raise self.fail("The field {!r} is not a number from {} to {}".format(key, low, high - 1))
        return value

    def items(self, key: str, default: Optional[Sequence[Any]] = None) -> List[Any]:
        value = self.table.get(key) if default is not None else self.get(key)
        if value is None and default is not None:
            return list(default)
        if not isinstance(value, list) or len(value) > _MAX_LIST:
            raise self.fail("The field {!r} is not a list".format(key))
        return value

    def numbers(self, key: str, count: int, default: Optional[Sequence[int]] = None) -> Tuple[int, ...]:
        values = self.items(key, default)
        if not all(type(value) is int and 0 <= value < count for value in values):
            raise self.fail("The field {!r} names something that does not exist".format(key))
        return tuple(values)

    def expressions(self, key: str, default: Optional[Sequence[Any]] = None) -> Tuple[Expr, ...]:
        return tuple(
            [value if type(value) is int else check_expression(value, self.where) for value in self.items(key, default)]
        )

    def shape(self, key: str) -> Tuple[Expr, ...]:
        dims = self.expressions(key)
        if len(dims) > _MAX_RANK or any(isinstance(dim, int) and dim < 0 for dim in dims):
            raise self.fail("The field {!r} is not a shape".format(key))
        return dims

    def dtype(self) -> str:
        name = self.get("dtype")
        if not is_dtype(name):
            raise ArtifactError(
                "The element type {!r} is unknown".format(name), self.where, "Install a newer dhc-runtime"
            )
        return str(name)


def parse_program(data: Any, where: str, depth: int = 0) -> Program:
    """Reads a program from its JSON form.

    Args:
        data: the parsed JSON.
        where: what to call it in messages.
        depth: how many programs it lies inside of.

    Raises:
        ArtifactError: a field is missing, has a wrong type, or refers to something that does not exist.
    """
    if depth > _MAX_DEPTH:
        raise ArtifactError("Programs are nested more than {} deep".format(_MAX_DEPTH), where)
    fields = _Fields(data, where)
    raw_buffers = fields.items("buffers")
    raw_items = fields.items("items")
    count = len(raw_buffers)
    buffers = tuple([_buffer(raw, i, count, len(raw_items), where) for i, raw in enumerate(raw_buffers)])
    symbols = fields.items("symbols", ())
    if not all(isinstance(symbol, str) and symbol for symbol in symbols) or len(set(symbols)) != len(symbols):
        raise fields.fail("The symbols are not distinct names")
    constraints = []
    for raw in fields.items("constraints", ()):
        if not isinstance(raw, list) or len(raw) != 3 or not isinstance(raw[2], str):
            raise fields.fail("A constraint is not [size, size, message]")
        constraints.append((check_expression(raw[0], where), check_expression(raw[1], where), raw[2]))
    inputs = _ports(fields, "inputs", buffers, depth == 0)
    outputs = _ports(fields, "outputs", buffers, depth == 0)
    items = tuple([_item(raw, "{}, item {}".format(where, i), count, depth) for i, raw in enumerate(raw_items)])
    return Program(tuple(symbols), tuple(constraints), inputs, outputs, buffers, items)


def _ports(fields: _Fields, key: str, buffers: Sequence[Buffer], outermost: bool) -> Tuple[Port, ...]:
    ports = []
    names = set()
    used = set()
    for number, raw in enumerate(fields.items(key)):
        port = _Fields(raw, "{}, {} {}".format(fields.where, key, number))
        name, buffer = port.text("name"), port.integer("buffer", 0, len(buffers))
        # Only the names of the outermost program are ever used.
        if name in names and outermost:
            raise port.fail("The name {!r} is used twice".format(name))
        if buffers[buffer].kind != key[:-1] or buffer in used:
            raise port.fail("The buffer {} of {!r} is not an {} buffer of its own".format(buffer, name, key[:-1]))
        names.add(name)
        used.add(buffer)
        ports.append(Port(name, port.dtype(), port.shape("shape"), buffer))
    if len(used) != sum(buffer.kind == key[:-1] for buffer in buffers):
        raise fields.fail("There are {} buffers that belong to no {}".format(key[:-1], key[:-1]))
    return tuple(ports)


def _buffer(raw: Any, index: int, count: int, items: int, where: str) -> Buffer:
    fields = _Fields(raw, "{}, buffer {}".format(where, index))
    kind = fields.text("kind")
    if kind not in _KINDS:
        raise fields.fail("The kind {!r} is unknown".format(kind))
    size = fields.table.get("bytes")
    if size is not None:
        size = check_expression(size, fields.where)
    elif kind in ("const", "arena") and "bytes" not in fields.table:
        raise fields.fail("The field 'bytes' is missing")
    constant = fields.text("constant") if kind == "const" else ""
    of, offset = -1, 0  # type: Tuple[int, Expr]
    if kind == "alias":
        of = fields.integer("of", 0, count)
        offset = check_expression(fields.table.get("offset", 0), fields.where)
    first, last = 0, max(items - 1, 0)
    if kind == "arena":
        first = fields.integer("first", 0, max(items, 1), 0)
        last = fields.integer("last", first, max(items, 1), last)
    return Buffer(kind, fields.dtype(), fields.shape("shape"), size, constant, of, offset, first, last)


def _bindings(fields: _Fields, results: int) -> Tuple[SymbolBinding, ...]:
    bindings = []
    for raw in fields.items("bind", ()):
        good = (
            isinstance(raw, list)
            and len(raw) == 3
            and isinstance(raw[0], str)
            and type(raw[1]) is int
            and type(raw[2]) is int
        )
        if not good or not 0 <= raw[1] < results or not 0 <= raw[2] < _MAX_RANK:
            raise fields.fail("A binding is not [symbol, result, axis]")
        bindings.append(SymbolBinding(raw[0], raw[1], raw[2]))
    return tuple(bindings)


def _scans(fields: _Fields, key: str, count: int) -> Tuple[Scan, ...]:
    scans = []
    for raw in fields.items(key, ()):
        good = isinstance(raw, list) and len(raw) == 3 and all(type(part) in (int, bool) for part in raw)
        if not good or not 0 <= raw[0] < count or not 0 <= raw[1] < _MAX_RANK:
            raise fields.fail("An entry of {!r} is not [buffer, axis, reverse]".format(key))
        scans.append(Scan(raw[0], raw[1], bool(raw[2])))
    return tuple(scans)


def _item(raw: Any, where: str, count: int, depth: int) -> Item:
    fields = _Fields(raw, where)
    kind = fields.text("do")
    node = fields.text("node", "")
    if kind == "kernel":
        work = fields.table.get("work")
        return Kernel(
            fields.text("symbol"),
            fields.numbers("buffers", count),
            fields.expressions("params", ()),
            fields.flag("barrier", True),
            node,
            fields.text("op", ""),
            None if work is None else check_expression(work, where),
        )
    if kind == "bind":
        maximum = fields.table.get("max")
        return Bind(
            fields.text("symbol"),
            fields.integer("buffer", 0, count),
            fields.integer("index", 0, 1 << 40, 0),
            None if maximum is None else check_expression(maximum, where),
            node,
        )
    if kind == "copy":
        return Copy(fields.integer("from", 0, count), fields.integer("to", 0, count), node)
    if kind == "if":
        results = fields.numbers("results", count)
        then_program = parse_program(fields.get("then"), where + ", then", depth + 1)
        else_program = parse_program(fields.get("else"), where + ", else", depth + 1)
        then_args, else_args = fields.numbers("args_then", count, ()), fields.numbers("args_else", count, ())
        for program, arguments in ((then_program, then_args), (else_program, else_args)):
            if len(program.inputs) != len(arguments) or len(program.outputs) != len(results):
                raise fields.fail("A branch has other inputs or outputs than its 'if'")
        cond = fields.integer("cond", 0, count)
        return If(
            cond, then_program, else_program, then_args, else_args, results, _bindings(fields, len(results)), node
        )
    if kind == "loop":
        return _loop(fields, where, count, depth, node)
    raise fields.fail("The item {!r} is unknown".format(kind))


def _loop(fields: _Fields, where: str, count: int, depth: int, node: str) -> Loop:
    def optional(key: str) -> Optional[int]:
        return None if fields.table.get(key) is None else fields.integer(key, 0, count)

    scans, scan_inputs = _scans(fields, "scans", count), _scans(fields, "scan_inputs", count)
    results = fields.numbers("results", count)
    if len(results) == len(fields.items("carried", ())):
        results += tuple([scan.buffer for scan in scans])  # a plan may name the stacked results in "scans" alone
    body = parse_program(fields.get("body"), where + ", body", depth + 1)
    carried, captures = fields.numbers("carried", count, ()), fields.numbers("captures", count, ())
    loop = Loop(
        optional("trip"),
        optional("cond"),
        carried,
        captures,
        body,
        results,
        scans,
        scan_inputs,
        _bindings(fields, len(results)),
        node,
    )
    if len(body.inputs) != 2 + len(carried) + len(scan_inputs) + len(captures) or len(body.outputs) != 1 + len(results):
        raise fields.fail("The body of a loop has other inputs or outputs than the loop")
    if len(results) != len(carried) + len(scans) or [scan.buffer for scan in scans] != list(results[len(carried) :]):
        raise fields.fail("The results of a loop are not its carried values and its scans")
    if loop.trip is None and loop.cond is None and not scan_inputs:
        raise fields.fail("A loop has neither a count nor a condition: it would never end")
    return loop
