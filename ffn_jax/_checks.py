"""What every entry point asks of its arguments, and the sentences it says when the answer is no.

A message names the function and the argument, what was expected and what was got.
"""

import math
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]


def trailing(shape: Shape) -> str:
    """The text of a shape with any leading batch axes: `(..., 768)`."""
    return "(" + ", ".join(["...", *map(str, shape)]) + ")"


def is_array(x: Any) -> bool:
    """Whether `x` has the shape and dtype of one array (concrete, traced or abstract)."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def shown(value: Any) -> str:
    """What a message says that it got: arrays by shape, functions by name, anything else as it prints.

    >>> shown(jnp.ones((2, 3))), shown(jnp.tanh), shown("dense"), shown(None)
    ('an array of shape (2, 3)', 'the function tanh', "'dense'", 'None')
    """
    if is_array(value):
        return f"an array of shape {tuple(value.shape)}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__name__}"
    return repr(value)


def check_floating(x: Any, where: str, name: str) -> None:
    """Raises TypeError unless `x` is an array of a real floating dtype."""
    if not is_array(x):
        raise TypeError(f"{where}: expected {name} to be an array, got {type(x).__name__}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{where}: expected {name} of a real floating dtype, got {x.dtype}")


def check_same_dtype(x: Any, dtype: Any, where: str, name: str, whose: str) -> None:
    """Raises TypeError unless `x.dtype` is `dtype`; nothing is promoted silently."""
    if dtype is not None and x.dtype != dtype:
        raise TypeError(f"{where}: expected {name} of dtype {dtype}, as {whose} has, got {x.dtype}")


def check_trailing(x: Any, shape: Shape, where: str, name: str) -> None:
    """Raises ValueError unless the trailing axes of `x` are `shape`."""
    if x.ndim < len(shape) or tuple(x.shape[x.ndim - len(shape) :]) != shape:
        raise ValueError(f"{where}: expected {name} of shape {trailing(shape)}, got {tuple(x.shape)}")


def is_size(n: Any) -> bool:
    """Whether `n` can be an axis' length: an int, or a symbolic dimension of `jax.export`."""
    integer = isinstance(n, (int, np.integer)) and not isinstance(n, bool)
    return integer or bool(jax.export.is_symbolic_dim(n))


def check_shape(value: Any, where: str, name: str) -> Shape:
    """A tuple of lengths >= 0 from `value`, which may also be one length."""
    shape = (value,) if is_size(value) else value
    if not isinstance(shape, (tuple, list)) or not all(is_size(n) and n >= 0 for n in shape):
        raise TypeError(f"{where}: expected {name} to be a tuple of non-negative ints, got {shown(value)}")
    return tuple(int(n) if isinstance(n, np.integer) else n for n in shape)


def size(shape: Shape) -> int:
    """The number of entries of an array of this shape."""
    return math.prod(shape)


def wide(dtype: Any) -> Any:
    """The dtype in which sums over many terms are kept: float32 for half types, else `dtype` itself."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def is_inexact(leaf: Any) -> bool:
    """Whether a pytree leaf is differentiable (floating or complex)."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def contains_tracer(tree: Any) -> bool:
    """Whether any leaf of `tree` is being traced."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
