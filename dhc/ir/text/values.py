"""Reads types and attribute values from tokens."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dhc.ir.dtypes import ALL, DType
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.symbols import Dim
from dhc.ir.text import dense
from dhc.ir.text.dims import DimParser
from dhc.ir.text.lexer import Lexer, Token
from dhc.ir.types import ImageType, LooseTensorType, OptionalType, QuantType, SequenceType, TensorType, Type

MAX_DEPTH = 40
"""Sequence and optional types inside each other."""


class ValueParser:
    """Types, numbers, strings, lists and constants.

    Attributes:
        symbols: every symbol that occurred, so that new ones can be chosen apart from them.
    """

    def __init__(self, lexer: Lexer, constants: Mapping[str, np.ndarray]) -> None:
        self._lexer = lexer
        self._constants = constants
        self._dims = DimParser(lexer)
        self.symbols = self._dims.symbols

    # ---- tokens --------------------------------------------------------------------------------------------------

    def token(self, kind: str, what: str | None = None) -> Token:
        """Takes a token of a kind.

        Raises:
            ParseError: the next one is something else.
        """
        token = self._lexer.peek()
        if token.kind != kind:
            found = "the text ends" if token.kind == "end" else f"found {token.text[:40]!r}"
            raise self._lexer.fail(f"expected {what or repr(kind)}, {found}", token)
        return self._lexer.take()

    def word(self, text: str) -> Token:
        """Takes a given word."""
        token = self._lexer.peek()
        if token[:2] != ("name", text):
            found = "the text ends" if token.kind == "end" else f"found {token.text[:40]!r}"
            raise self._lexer.fail(f"expected {text!r}, {found}", token)
        return self._lexer.take()

    # ---- attribute values ----------------------------------------------------------------------------------------

    def scalar(self, kind: str) -> Any:
        """One value of an attribute kind."""
        if kind == "int":
            return self._integer()
        if kind == "float":
            return self._float()
        if kind == "bool":
            return self._bool()
        if kind == "str":
            text = self.token("string", "a string in quotes").text
            self.symbols.add(text)
            return text
        if kind == "symbol":
            token = self._lexer.take()
            if token.kind not in ("name", "string"):
                raise self._lexer.fail("expected a symbol", token)
            self.symbols.add(token.text)
            return token.text
        if kind == "dim":
            return self._dims.parse()
        if kind == "dtype":
            return self._dtype()
        if kind == "type":
            return self.type_()
        assert kind == "tensor", kind
        return self._dense()

    def listed(self, kind: str) -> list[Any]:
        """A list in brackets of values of one kind."""
        values: list[Any] = []
        self.token("[", "a list in brackets")
        while self._lexer.peek().kind != "]":
            values.append(self.scalar(kind))
            if self._lexer.peek().kind != "]":
                self.token(",")
        self._lexer.take()
        return values

    def _sign(self) -> int:
        if self._lexer.peek().kind == "-":
            self._lexer.take()
            return -1
        return 1

    def _integer(self) -> int:
        sign = self._sign()
        token = self.token("int", "an integer")
        return sign * int(token.text)

    def _float(self) -> float:
        sign = self._sign()
        token = self._lexer.take()
        if token.kind in ("int", "float"):
            return sign * float(token.text)
        if token[:2] in (("name", "inf"), ("name", "nan")):
            return sign * float(token.text)
        raise self._lexer.fail("expected a number, inf or nan", token)

    def _bool(self) -> bool:
        token = self._lexer.take()
        if token[:2] not in (("name", "true"), ("name", "false")):
            raise self._lexer.fail("expected true or false", token)
        return token.text == "true"

    def _dtype(self) -> DType:
        token = self.token("name", "an element type such as f32")
        found = ALL.get(token.text)
        if found is None:
            close = difflib.get_close_matches(token.text, ALL, 3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(ALL)}"
            raise self._lexer.fail(f"{token.text!r} is no element type", token, hint=hint)
        return found

    # ---- types ---------------------------------------------------------------------------------------------------

    def type_(self, depth: int = 0) -> Type:
        """A type."""
        lexer = self._lexer
        start = lexer.peek()
        if depth > MAX_DEPTH:
            raise lexer.fail("the type is nested too deeply", start)
        if start[:2] in (("name", "seq"), ("name", "opt")):
            lexer.take()
            self.token("<")
            element = self.type_(depth + 1)
            self.token(">")
            return SequenceType(element) if start.text == "seq" else OptionalType(element)
        dtype = self._dtype()
        loose = self._loose(dtype) if depth else None
        if loose is not None:
            return loose
        shape = tuple(self.listed("dim"))
        quant, image = None, None
        if lexer.peek()[:2] == ("name", "quant"):
            quant = self._quant()
        if lexer.peek()[:2] == ("name", "image"):
            image = self._image()
        try:
            if image is not None:
                return ImageType(dtype, shape, quant=quant, **image)
            return TensorType(dtype, shape, quant=quant)
        except ValueError as error:
            raise lexer.fail(str(error), start) from None

    def _loose(self, dtype: DType) -> LooseTensorType | None:
        """A type of elements with open sizes: ``f32[?, 3]``, ``f32[*]``, ``f32[-]``; None when it is another."""
        lexer = self._lexer
        if lexer.peek().kind != "[":
            return None
        if lexer.peek(1).kind in ("*", "-") and lexer.peek(2).kind == "]":
            lexer.take()
            mark = lexer.take().kind
            lexer.take()
            return LooseTensorType(dtype, nothing=mark == "-")
        distance, open_sizes = 1, False
        while lexer.peek(distance).kind in ("?", "int", ","):
            open_sizes = open_sizes or lexer.peek(distance).kind == "?"
            distance += 1
        if not open_sizes:
            return None
        lexer.take()
        shape: list[int | None] = []
        while lexer.peek().kind != "]":
            token = lexer.peek()
            if token.kind == "?":
                lexer.take()
                shape.append(None)
            else:
                shape.append(int(self.token("int", "a size or ?").text))
            if lexer.peek().kind != "]":
                self.token(",")
        lexer.take()
        return LooseTensorType(dtype, tuple(shape))

    def _fields(self, kinds: Mapping[str, str]) -> dict[str, Any]:
        lexer = self._lexer
        lexer.take()
        self.token("(")
        fields: dict[str, Any] = {}
        while lexer.peek().kind != ")":
            key = self.token("name", f"one of {', '.join(kinds)}")
            if key.text not in kinds or key.text in fields:
                raise lexer.fail(f"unexpected field {key.text!r}", key, hint=f"fields: {', '.join(kinds)}")
            self.token("=")
            kind = kinds[key.text]
            if kind == "word":
                fields[key.text] = self.token("name", "a word").text
            elif kind.endswith("s"):
                fields[key.text] = tuple(self.listed(kind[:-1]))
            else:
                fields[key.text] = self.scalar(kind)
            if lexer.peek().kind != ")":
                self.token(",")
        lexer.take()
        return fields

    def _quant(self) -> QuantType:
        start = self._lexer.peek()
        fields = self._fields({"scale": "floats", "zero_point": "ints", "axis": "int", "bits": "int"})
        if "scale" not in fields or "zero_point" not in fields:
            raise self._lexer.fail("quant needs scale and zero_point", start)
        try:
            return QuantType(**fields)
        except ValueError as error:
            raise self._lexer.fail(str(error), start) from None

    def _image(self) -> dict[str, Any]:
        return self._fields({
            "color": "word", "unit": "word", "layout": "word",
            "spacing": "floats", "origin": "floats", "orientation": "floats",
        })  # fmt: skip

    # ---- constants -----------------------------------------------------------------------------------------------

    def _dense(self) -> np.ndarray:
        lexer = self._lexer
        start = self.word("dense")
        self.token("<")
        dtype = self._dtype()
        shape = self._static_shape(self.listed("dim"), start)
        self.token(":")
        try:
            dense.check_size(dtype, shape)
            token = lexer.peek()
            if token.kind == "sha":
                array = self._from_table(lexer.take(), dtype, shape)
            elif token.kind == "hex" and dtype.kind != "s":
                array = dense.from_hex(lexer.take().text[2:], dtype, shape)
            else:
                elements: list[Any] = []
                self._elements(elements, dtype, shape, 0)
                array = dense.from_elements(elements, dtype, shape)
        except ValueError as error:
            raise lexer.fail(str(error), start) from None
        self.token(">")
        return array

    def _static_shape(self, dims: list[Dim], start: Token) -> tuple[int, ...]:
        shape: list[int] = []
        for dim in dims:
            if not isinstance(dim, int) or dim < 0:
                raise self._lexer.fail("the sizes of a constant are numbers", start)
            shape.append(dim)
        return tuple(shape)

    def _from_table(self, token: Token, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
        array = self._constants.get(token.text.partition(":")[2])
        if array is None:
            raise self._lexer.fail(
                "the elements of this constant are not in the text", token,
                hint='pass them as parse_graph(text, constants=...) or print with constants="full"',
            )  # fmt: skip
        if array.shape != shape or as_dtype(array.dtype) != dtype:
            raise self._lexer.fail(f"the array given for it is {array.dtype}{list(array.shape)}", token)
        return array

    def _elements(self, into: list[Any], dtype: DType, shape: tuple[int, ...], axis: int) -> None:
        if axis == len(shape):
            into.append(self._element(dtype))
            return
        self.token("[", "a list in brackets")
        if 0 not in shape:
            for position in range(shape[axis]):
                if position:
                    self.token(",", f"',' and {shape[axis] - position} more elements")
                self._elements(into, dtype, shape, axis + 1)
        self.token("]", f"']' after {shape[axis]} elements")

    def _element(self, dtype: DType) -> Any:
        if dtype.kind == "b":
            return self._bool()
        if dtype.is_integer:
            return self._integer()
        if dtype.kind == "f":
            return self._float()
        if dtype.kind == "s":
            return self.token("string", "a string in quotes").text
        self.token("(", "a complex number (real, imaginary)")
        real = self._float()
        self.token(",")
        imaginary = self._float()
        self.token(")")
        return complex(real, imaginary)
