"""``--shape x=1x3x224x224``: shapes of inputs as people type them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dhc_runtime.errors import UsageError

_HINT = "write --shape x=1x3x224x224, or --shape x=Nx3x224x224 to keep a size open"
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_MAX_SIZE = 2**40

ShapeSpec = tuple[int | str, ...]


def parse_dims(text: str) -> ShapeSpec:
    """``1x3xHxW`` (or ``1,3,H,W``) as a tuple; an empty text is the shape of a scalar.

    Raises:
        UsageError: a dim is neither a size nor a name.
    """
    if not text:
        return ()
    dims: list[int | str] = []
    for part in text.split("," if "," in text else "x"):
        word = part.strip()
        if word.isascii() and word.isdigit():
            if int(word) > _MAX_SIZE:
                raise UsageError(f"the size {word} in the shape {text!r} is too large", hint=_HINT)
            dims.append(int(word))
        elif _SYMBOL.match(word):
            dims.append(word)
        else:
            raise UsageError(f"{word!r} in the shape {text!r} is neither a size nor a name", hint=_HINT)
    return tuple(dims)


def parse_shapes(texts: Sequence[str], names: Sequence[str]) -> dict[str, ShapeSpec]:
    """The shapes of a command line by input name.

    Args:
        texts: the values of ``--shape``.
        names: the inputs that exist.

    Raises:
        UsageError: no such input, a shape given twice, a name missing, or a text that is no shape.
    """
    shapes: dict[str, ShapeSpec] = {}
    for text in texts:
        name, equals, dims = text.rpartition("=")
        if not equals:
            if len(names) != 1:
                raise UsageError(
                    f"--shape {text} does not say which input it is for; the inputs are {', '.join(names)}",
                    hint=f"write --shape {names[0] if names else 'x'}={text}",
                )
            name = names[0]
        require_input(name, names)
        if name in shapes:
            raise UsageError(f"the shape of input {name!r} is given twice")
        shapes[name] = parse_dims(dims)
    return shapes


def require_input(name: str, names: Sequence[str]) -> None:
    """Refuses a name that is no input.

    Raises:
        UsageError: with close names.
    """
    if name in names:
        return
    import difflib

    close = difflib.get_close_matches(name, names, 1)
    raise UsageError(
        f"there is no input {name!r}; the inputs are {', '.join(names) or 'none'}",
        hint=f"did you mean {close[0]!r}?" if close else None,
    )


def fixed_shape(name: str, dims: Sequence[int | str], bindings: Mapping[str, int]) -> tuple[int, ...]:
    """A shape with all sizes known; sizes that nothing binds are 1.

    Args:
        name: the input, for messages.
        dims: sizes, names of sizes, or expressions of them such as ``2*N``.
        bindings: sizes by name.
    """
    from dhc.ir.symbols import evaluate, free_symbols, parse_dim

    sizes = []
    for dim in dims:
        expression = parse_dim(dim) if isinstance(dim, str) else dim
        known = {symbol: bindings.get(symbol, 1) for symbol in free_symbols(expression)}
        size = evaluate(expression, known)
        if size < 0:
            raise UsageError(f"the size {dim} of input {name!r} would be {size}", hint="give its shape with --shape")
        sizes.append(size)
    return tuple(sizes)
