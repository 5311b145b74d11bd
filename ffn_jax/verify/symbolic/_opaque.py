"""Arbitrary linear maps: known to be linear, and nothing else.

`opaque_linear_map("A1", (n, d), (n, f))` is a callable that traces to one primitive with a transpose and no
body.  In the normal form it is the contraction with an arbitrary tensor A1[n f, n d]; a theorem about it is
one about every linear map of these shapes.  It cannot be run, only traced.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad

from ffn_jax.verify.symbolic._primitives import RULES
from ffn_jax.verify.symbolic._sizes import Size, current
from ffn_jax.verify.symbolic._tensors import Tensor, contract, variable

_opaque_p: Any = Primitive("opaque_linear")


def _abstract(x: Any, *, name: str, rows: Any, columns: Any, transposed: bool) -> Any:
    return ShapedArray(columns if transposed else rows, x.dtype)


_opaque_p.def_abstract_eval(_abstract)


def _transpose(ct: Any, x: Any, *, transposed: bool, **params: Any) -> list[Any]:
    return [_opaque_p.bind(ct, transposed=not transposed, **params)]


ad.deflinear2(_opaque_p, _transpose)


def _rule(eqn: Any, x: Tensor) -> list[Tensor]:
    p = eqn.params
    rows, columns = len(p["rows"]), len(p["columns"])
    matrix = variable(f"op:{p['name']}", (*p["rows"], *p["columns"]))
    axes = range(rows) if p["transposed"] else range(rows, rows + columns)
    return [contract(matrix, x, list(zip(axes, range(len(x.axes)), strict=True)), [])]


RULES["opaque_linear"] = _rule


@dataclass(frozen=True)
class OpaqueLinearMap:
    """A linear map of which only the shapes are known; see `opaque_linear_map`."""

    name: str
    in_shape: tuple[Size, ...]
    out_shape: tuple[Size, ...]
    transposed: bool = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """The map at x, of shape `in_shape`."""
        expected = tuple(current(s) for s in self.in_shape)
        if tuple(x.shape) != expected:
            raise ValueError(f"opaque map {self.name}: expected input of shape {expected}, got {tuple(x.shape)}")
        out = tuple(current(s) for s in self.out_shape)
        rows, columns = (expected, out) if self.transposed else (out, expected)
        result: jax.Array = _opaque_p.bind(x, name=self.name, rows=rows, columns=columns, transposed=self.transposed)
        return result

    @property
    def transpose(self) -> "OpaqueLinearMap":
        """The adjoint map, out_shape -> in_shape."""
        return replace(self, in_shape=self.out_shape, out_shape=self.in_shape, transposed=not self.transposed)


def opaque_linear_map(name: str, in_shape: tuple[Size, ...], out_shape: tuple[Size, ...]) -> OpaqueLinearMap:
    """An arbitrary linear map, to state theorems about all of them.

    Args:
        name: what the theorem calls it; two maps of one name are the same map.
        in_shape: its input's shape; sizes may be symbolic.
        out_shape: its output's shape.

    Returns:
        A callable with a `.transpose`; `jax.jvp`, `jax.vjp`, `jax.linear_transpose` and `jax.jit` trace
        through it.

    Example:
        >>> import jax
        >>> A = opaque_linear_map("A", (3,), (5,))
        >>> x = jax.ShapeDtypeStruct((3,), "float32")
        >>> jax.eval_shape(lambda x: A.transpose(A(x)), x).shape
        (3,)
    """
    return OpaqueLinearMap(name, tuple(in_shape), tuple(out_shape))
