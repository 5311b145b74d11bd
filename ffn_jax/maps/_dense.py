"""`Dense`: a matrix, or a tensor contracted over several axes, in the layout it is stored in.

With a weight W of shape `(*in_shape, *out_shape)` ("in_out", as Flax keeps it)

    A x = Σ_i x[..., i] W[i, o]      Aᵀ y = Σ_o W[i, o] y[..., o]      W̄[i, o] = Σ_batch x[b, i] ȳ[b, o]

and with `(*out_shape, *in_shape)` ("out_in", as PyTorch and Equinox keep it) the same sums over swapped axes.
Each is one `dot_general` whose dimension numbers say which axes meet: no weight is ever transposed, and the
cotangent comes out in the weight's own layout. Half-precision products accumulate in float32.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, Self

import jax.numpy as jnp
import numpy as np
from jax import lax

from ffn_jax._checks import Shape, check_floating, size, wide
from ffn_jax._fast import outer
from ffn_jax._mesh import explicit_sharding
from ffn_jax._pytree import pytree_dataclass, static
from ffn_jax.maps._base import LinearMap
from ffn_jax.maps._explicit import product_sharding

if TYPE_CHECKING:
    from jax import Array

Layout = Literal["in_out", "out_in"]


@pytree_dataclass
class Dense(LinearMap):
    """A dense linear map over the trailing axes of its input.

    Args:
      weight: `(*in_shape, *out_shape)`, or `(*out_shape, *in_shape)` for `layout="out_in"`; floating.
      in_ndim: how many axes of the weight are input axes.
      layout: "in_out" (x @ W) or "out_in" (PyTorch, Equinox: W @ x).

    Raises:
      TypeError: weight is not a floating array, or in_ndim not an int.
      ValueError: the weight has no room for in_ndim input axes, or the layout is unknown.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> A = fj.Dense(jnp.ones((3, 2, 4)))                  # 3 features to 2 gates of 4
    >>> A(jnp.ones((5, 3))).shape, A.T(jnp.ones((5, 2, 4))).shape
    ((5, 2, 4), (5, 3))
    """

    weight: "Array"
    in_ndim: int = static(default=1)
    layout: Layout = static(default="in_out")

    def __post_init__(self) -> None:
        check_floating(self.weight, "Dense", "weight")
        if isinstance(self.weight, (np.ndarray, np.generic)):
            object.__setattr__(self, "weight", jnp.asarray(self.weight))
        if not isinstance(self.in_ndim, int) or isinstance(self.in_ndim, bool):
            raise TypeError(f"Dense: expected in_ndim to be an int, got {self.in_ndim!r}")
        if self.layout not in ("in_out", "out_in"):
            raise ValueError(f"Dense: expected layout to be 'in_out' or 'out_in', got {self.layout!r}")
        if not 0 <= self.in_ndim <= self.weight.ndim:
            raise ValueError(
                f"Dense: expected 0 <= in_ndim <= weight.ndim, got in_ndim={self.in_ndim} "
                f"and a weight of shape {tuple(self.weight.shape)}"
            )

    @property
    def in_shape(self) -> Shape:
        """Shape of one input, without batch axes."""
        return tuple(self.weight.shape[axis] for axis in self._in_axes)

    @property
    def out_shape(self) -> Shape:
        """Shape of one output, without batch axes."""
        return tuple(self.weight.shape[axis] for axis in self._out_axes)

    @property
    def dtype(self) -> np.dtype:
        """The weight's dtype, which inputs must have too."""
        return self.weight.dtype

    @property
    def has_rule(self) -> bool:
        """No: apply is one product, and its derivatives by JAX are as good."""
        return False

    @property
    def _in_axes(self) -> tuple[int, ...]:
        start = 0 if self.layout == "in_out" else self.weight.ndim - self.in_ndim
        return tuple(range(start, start + self.in_ndim))

    @property
    def _out_axes(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(self.weight.ndim) if axis not in self._in_axes)

    def apply(self, x: "Array") -> "Array":
        """A x; see the module's equations."""
        return _contract(x, self.weight, self._in_axes)

    def transpose_apply(self, y: "Array") -> "Array":
        """Aᵀ y, over the weight's output axes."""
        return _contract(y, self.weight, self._out_axes)

    def params_vjp(self, x: "Array", ybar: "Array") -> Self:
        """W̄ in the weight's layout, in float32 for half types."""
        if (sharding := explicit_sharding(self.weight)) is not None:
            return dataclasses.replace(self, weight=self._sharded_weight_vjp(x, ybar, sharding))
        # As a product of matrices: XLA's CPU backend has no half-precision product with more output axes.
        x = x.reshape(*self._batch(x, self.in_shape), size(self.in_shape))
        ybar = ybar.reshape(*self._batch(ybar, self.out_shape), size(self.out_shape))
        product = outer(x, ybar) if self.layout == "in_out" else outer(ybar, x)
        weight_bar = product.reshape(self.weight.shape)
        return dataclasses.replace(self, weight=weight_bar)

    def _sharded_weight_vjp(self, x: "Array", ybar: "Array", sharding: Any) -> "Array":
        """W̄ laid out as the weight is. No axes are merged, which a sharded axis may not survive."""
        first, second = (x, ybar) if self.layout == "in_out" else (ybar, x)
        batch = tuple(range(len(self._batch(x, self.in_shape))))
        dtype = wide(x.dtype)  # the CPU backend lacks half-precision products with several output axes
        numbers = ((batch, batch), ((), ()))
        return lax.dot_general(first.astype(dtype), second.astype(dtype), numbers, out_sharding=sharding)

    @property
    def T(self) -> "Dense":  # noqa: N802
        """The transpose: the same weight, read in the other layout."""
        return Dense(self.weight, len(self._out_axes), "out_in" if self.layout == "in_out" else "in_out")

    def as_matrix(self, dtype: Any = None) -> "Array":
        """The matrix `(prod(out_shape), prod(in_shape))`; of an "out_in" weight a plain reshape."""
        m, n = size(self.out_shape), size(self.in_shape)
        matrix = self.weight.reshape(m, n) if self.layout == "out_in" else self.weight.reshape(n, m).T
        return matrix.astype(dtype or self.dtype)

    def _details(self) -> str:
        return f", {self.dtype}, {self.layout}" if hasattr(self.weight, "dtype") else ""


def _contract(x: "Array", weight: "Array", axes: tuple[int, ...]) -> "Array":
    """Sums the trailing axes of x against `axes` of the weight; the weight's other axes come last."""
    x_axes = tuple(range(x.ndim - len(axes), x.ndim))
    product = lax.dot_general(
        x,
        weight,
        ((x_axes, axes), ((), ())),
        preferred_element_type=wide(x.dtype),
        out_sharding=product_sharding(x, weight, axes),
    )
    return product.astype(x.dtype)
