"""What `check_linear_map` can look at: a `LinearMap`, a bare callable with a shape, a lineax operator.

All are known by what they offer, not by their class: `LinearMap`s by `in_shape` and `T`, lineax operators by
`mv`, `in_structure` and `transpose`. What an object does not offer is not checked, and the report says so.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ffn_jax._checks import shown
from ffn_jax.verify._draws import shape_dtype


@dataclasses.dataclass(frozen=True)
class LinearLike:
    """A linear map through the few operations that are checked; each takes the map itself first."""

    subject: Any
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    apply: Callable[[Any, Any], Any]
    plain: Callable[[Any, Any], Any]
    transpose: Callable[[Any], Any] | None = None
    params_vjp: Callable[[Any, Any, Any], Any] | None = None
    as_matrix: Callable[[Any], Any] | None = None
    batched: bool = False

    @property
    def skipped(self) -> list[str]:
        """The properties that the object does not offer."""
        offered = {
            "a transpose": self.transpose is not None,
            "a parameter pullback": self.params_vjp is not None,
            "batch axes": self.batched,
        }
        return [name for name, present in offered.items() if not present]


def linear_like(A: Any, in_shape: Sequence[int] | None, dtype: Any) -> LinearLike:
    """Look at an object as a linear map.

    Raises:
        TypeError: neither a map, nor an operator, nor a callable.
        ValueError: a bare callable without `in_shape`.
    """
    if all(hasattr(A, name) for name in ("mv", "in_structure", "out_structure")):
        return _operator(A)
    if not callable(A):
        raise TypeError(f"check_linear_map: expected a LinearMap, a callable or an operator, got {shown(A)}")
    if hasattr(A, "in_shape") and hasattr(A, "T"):
        plain = (lambda A, x: A.apply(x)) if hasattr(A, "apply") else (lambda A, x: A(x))
        return LinearLike(
            A,
            tuple(A.in_shape),
            tuple(A.out_shape),
            lambda A, x: A(x),
            plain,
            lambda A: A.T,
            (lambda A, x, ybar: A.params_vjp(x, ybar)) if hasattr(A, "params_vjp") else None,
            (lambda A: A.as_matrix()) if hasattr(A, "as_matrix") else None,
            batched=True,
        )
    if in_shape is None:
        raise ValueError(
            "check_linear_map: expected in_shape=, the shape of its argument, with a bare callable, got None"
        )
    out = jax.eval_shape(A, shape_dtype(in_shape, dtype))
    if not hasattr(out, "shape"):
        raise TypeError(f"check_linear_map: expected the callable to return one array, got a {type(out).__name__}")
    call = lambda A, x: A(x)  # noqa: E731
    return LinearLike(A, tuple(in_shape), tuple(out.shape), call, call)


def _operator(A: Any) -> LinearLike:
    structures = (A.in_structure(), A.out_structure())
    for structure in structures:
        if not hasattr(structure, "shape"):
            raise TypeError(f"check_linear_map: expected the operator's structure to be one array, got {structure}")
    call = lambda A, x: A.mv(x)  # noqa: E731
    transpose = (lambda A: A.transpose()) if hasattr(A, "transpose") else None
    matrix = (lambda A: A.as_matrix()) if hasattr(A, "as_matrix") else None
    return LinearLike(A, structures[0].shape, structures[1].shape, call, call, transpose, None, matrix)


def with_dtype(subject: Any, dtype: Any) -> Any:
    """The same map with its float leaves cast; a bare function is left alone."""

    def cast(leaf: Any) -> Any:
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.asarray(leaf, dtype)

    return jax.tree.map(cast, subject)


def float_dtypes(subject: Any) -> list[str]:
    """The float dtypes among the leaves of a map."""
    leaves = [leaf for leaf in jax.tree.leaves(subject) if hasattr(leaf, "dtype")]
    return sorted({str(leaf.dtype) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)})
