"""Sizes of axes: integers, or the symbolic dimensions of `jax.export.symbolic_shape`.

A symbolic dimension stands for any integer >= 1.  JAX prints one as an arithmetic expression (`2*n*d + 1`,
`floordiv(n, 2)`); reading that text back is the one public way to evaluate it, and is all that this module
does.
"""

import ast
import contextlib
import contextvars
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.errors
from jax import core

from ffn_jax.verify.symbolic._workspace import Unsupported

Size = Any  # int or a symbolic dimension; JAX exports no public name for the latter

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "max": core.max_dim,
    "min": core.min_dim,
}


def read_expression(text: str, values: Mapping[str, Any]) -> Any:
    """The value of a dimension expression, with numbers, dimensions or polynomials for its variables."""

    def walk(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and node.id in values:
            return values[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -walk(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            return _FUNCTIONS[node.func.id](*map(walk, node.args))
        raise Unsupported(f"the dimension expression {text!r}")

    return walk(ast.parse(text.replace("^", "**"), mode="eval").body)


def names_of(size: Size) -> frozenset[str]:
    """The variables of a size."""
    if isinstance(size, int):
        return frozenset()
    tree = ast.parse(str(size).replace("^", "**"), mode="eval")
    called = {n.func for n in ast.walk(tree) if isinstance(n, ast.Call)}
    return frozenset(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n not in called)


def substitute(size: Size, values: Mapping[str, Size]) -> Size:
    """`size` with `values` for its variables; variables without a value must not occur."""
    return size if isinstance(size, int) else read_expression(str(size), values)


def is_one(size: Size) -> bool:
    """Whether the axis has the single position 0 whatever the variables are."""
    return isinstance(size, int) and size == 1


def exact_quotient(a: Size, b: Size) -> Size | None:
    """`a / b` where b divides a for all values of the variables; else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    try:
        quotient, rest = divmod(a, b)
        return quotient if rest == 0 and quotient * b == a else None
    except Exception:  # JAX raises several private classes here; all mean "not provable"
        return None


def no_greater(a: Size, b: Size) -> bool:
    """True only if a <= b for all values of the variables (False: not known)."""
    if isinstance(a, int) and isinstance(b, int):
        return a <= b
    try:
        return bool(a <= b)
    except jax.errors.InconclusiveDimensionOperation:
        return False


_CURRENT: contextvars.ContextVar[Mapping[str, Size] | None] = contextvars.ContextVar("sizes", default=None)


@contextlib.contextmanager
def sizes_set_to(values: Mapping[str, Size]) -> Iterator[None]:
    """Let `current` read symbolic sizes that a function has closed over as `values`."""
    token = _CURRENT.set(values)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current(size: Size) -> Size:
    """A closed-over size in the instance that is being traced."""
    values = _CURRENT.get()
    if values is None or isinstance(size, int) or not names_of(size) <= set(values):
        return size
    return substitute(size, values)
