"""`LinearMap`: a linear function that knows its shapes, its transpose and the pullback of its parameters.

A map `A` with parameters θ takes `x: (*batch, *in_shape)` to `A x: (*batch, *out_shape)`. A reverse rule
needs three things of it, and all maps derive the last two from the first unless they can do better:

    apply            x        ->  A x
    transpose_apply  y        ->  Aᵀ y           <A x, y> = <x, Aᵀ y>
    params_vjp       (x, ȳ)   ->  θ̄             <d/dθ (A x)[θ̇], ȳ> = <θ̇, θ̄>, summed over the batch

A map is a pytree: it passes through jit, grad, vmap, scan, checkpoints and sharding like any other argument.
`apply` is plain JAX and so has every derivative. A map whose transpose or pullback was written by hand
(`has_rule`) is called through a custom rule built of the three, whose own derivative is the same rule again:
the transpose of A is Aᵀ and that of Aᵀ is A.
"""

from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ffn_jax._checks import (
    Shape,
    check_floating,
    check_same_dtype,
    check_trailing,
    is_array,
    is_inexact,
    size,
)
from ffn_jax._mesh import like_sharding, struct_like

if TYPE_CHECKING:
    from jax import Array
    from jax.typing import ArrayLike


class LinearMap:
    """A linear function `(*batch, *in_shape) -> (*batch, *out_shape)`; a pytree and a callable.

    To add a map of your own, subclass it as a registered pytree and define `in_shape`, `out_shape` and `apply`;
    override `transpose_apply` and `params_vjp` where you can do better than JAX:

    >>> import dataclasses, jax, jax.numpy as jnp, ffn_jax as fj
    >>> @jax.tree_util.register_dataclass
    ... @dataclasses.dataclass(frozen=True)
    ... class Diagonal(fj.LinearMap):
    ...     scale: jax.Array
    ...     in_shape = property(lambda self: self.scale.shape)
    ...     out_shape = in_shape
    ...     def apply(self, x):
    ...         return self.scale * x
    >>> A = Diagonal(jnp.array([1.0, 2.0]))
    >>> (2.0 * A).T(jnp.array([1.0, 1.0])).tolist()
    [2.0, 4.0]

    Source: the interface follows the weighted-adjoint formulation of reverse mode in Elliott, "The Simple
    Essence of Automatic Differentiation" (ICFP 2018), section 12: a linear map is its action and its dual.
    """

    __array_ufunc__ = None  # numpy scalars times a map: let the map answer

    # ------------------------------------------------------------------------------- what a map defines

    @property
    def in_shape(self) -> Shape:
        """Shape of one input, without batch axes."""
        raise TypeError(f"{type(self).__name__} does not define in_shape")

    @property
    def out_shape(self) -> Shape:
        """Shape of one output, without batch axes."""
        raise TypeError(f"{type(self).__name__} does not define out_shape")

    @property
    def dtype(self) -> Any:
        """The dtype that inputs must have, or None where any floating dtype will do."""
        return None

    @property
    def has_rule(self) -> bool:
        """Whether the map, or a part of it, has a hand-written transpose or parameter pullback.

        A subclass that overrides either has; it is then called through them, and JAX never differentiates `apply`.
        """
        cls = type(self)
        by_hand = cls.transpose_apply, cls.params_vjp
        return by_hand != (LinearMap.transpose_apply, LinearMap.params_vjp)

    def apply(self, x: "Array") -> "Array":
        """A x for `x: (*batch, *in_shape)`, in plain JAX and without checks; returns `(*batch, *out_shape)`."""
        raise TypeError(f"{type(self).__name__} does not define apply")

    def transpose_apply(self, y: "Array") -> "Array":
        """Aᵀ y for `y: (*batch, *out_shape)`, without checks; returns `(*batch, *in_shape)`."""
        x = struct_like(y, self._batch(y, self.out_shape), self.in_shape)
        return transpose_of(self.apply, x, type(self).__name__)(y)

    def params_vjp(self, x: "Array", ybar: "Array") -> Self:
        """The cotangent of the parameters, as a map of the same structure.

        Args:
          x: the input, `(*batch, *in_shape)`.
          ybar: the cotangent of the output, `(*batch, *out_shape)`.

        Returns:
          A pytree of this map's structure whose leaves are cotangents, summed over the batch. A leaf may be
          wider than its parameter (float32 sums for half types); integer leaves hold `float0` zeros.
        """
        _, pullback = jax.vjp(lambda A: A.apply(x), self)
        return pullback(ybar)[0]

    # ------------------------------------------------------------------------------- what a user calls

    def __call__(self, x: "ArrayLike") -> "Array":
        """A x. Raises TypeError or ValueError where `x` has another shape or dtype than the map takes."""
        x = self.check_input(x)
        y = self.call(x)
        self.check_output(y, jax.ShapeDtypeStruct(self._batch(x, self.in_shape) + self.out_shape, x.dtype))
        return y

    def check_input(self, x: Any, where: str | None = None, name: str = "x") -> "Array":
        """`x` as an array, or a TypeError or ValueError that says what the map takes."""
        where = where or type(self).__name__
        check_floating(x, where, name)
        x = jnp.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x
        check_same_dtype(x, self.dtype, where, name, "the map")
        check_trailing(x, self.in_shape, where, name)
        return x

    def check_output(self, y: Any, expected: jax.ShapeDtypeStruct, where: str | None = None) -> None:
        """Raises TypeError or ValueError where what `apply` returned is not what the map promises."""
        where = where or type(self).__name__
        if not is_array(y) or y.dtype != expected.dtype:
            got = y.dtype if is_array(y) else type(y).__name__
            raise TypeError(f"{where}: expected the map to keep the dtype {expected.dtype} of its input, got {got}")
        if y.shape != expected.shape:
            raise ValueError(f"{where}: expected the map to return shape {expected.shape}, got {y.shape}")

    def call(self, x: "Array") -> "Array":
        """A x without checks, through the hand-written rule where there is one."""
        return ruled_call(self, x) if self.has_rule else self.apply(x)

    def transpose_call(self, y: "Array") -> "Array":
        """Aᵀ y without checks, through the hand-written rule where there is one."""
        return ruled_transpose(self, y) if self.has_rule else self.transpose_apply(y)

    @property
    def T(self) -> "LinearMap":  # noqa: N802
        """The transpose, a `LinearMap` that shares this map's parameters."""
        from ffn_jax.maps._algebra import Transposed

        return Transposed(self)

    def as_matrix(self, dtype: Any = None) -> "Array":
        """The matrix M of the map, `(prod(out_shape), prod(in_shape))`, with `vec(A x) = M vec(x)`.

        `vec` is row-major flattening. `dtype` is that of the result, by default the map's own, or else
        JAX's default float. Meant for small maps and tests: it applies the map to a whole basis.
        """
        dtype = dtype or self.dtype or jnp.result_type(float)
        n = size(self.in_shape)
        columns = self.apply(jnp.eye(n, dtype=self.dtype or dtype).reshape(n, *self.in_shape))
        return columns.reshape(n, size(self.out_shape)).T.astype(dtype)

    # ------------------------------------------------------------------------------- algebra

    def __matmul__(self, other: "LinearMap") -> "LinearMap":
        from ffn_jax.maps._algebra import Composed

        return Composed(self, other) if isinstance(other, LinearMap) else NotImplemented

    def __add__(self, other: "LinearMap") -> "LinearMap":
        from ffn_jax.maps._algebra import Sum

        return Sum((self, other)) if isinstance(other, LinearMap) else NotImplemented

    def __sub__(self, other: "LinearMap") -> "LinearMap":
        return self + (-other) if isinstance(other, LinearMap) else NotImplemented

    def __neg__(self) -> "LinearMap":
        return -1.0 * self

    def __mul__(self, factor: "ArrayLike") -> "LinearMap":
        from ffn_jax.maps._algebra import scale

        if isinstance(factor, LinearMap):
            raise TypeError("LinearMap * LinearMap: expected a scalar factor; compose maps with A @ B")
        return scale(factor, self)

    __rmul__ = __mul__

    def __truediv__(self, divisor: "ArrayLike") -> "LinearMap":
        return self * (1.0 / divisor)

    # ------------------------------------------------------------------------------- helpers of subclasses

    def _batch(self, value: "Array", shape: Shape) -> Shape:
        return tuple(value.shape[: value.ndim - len(shape)])

    def __repr__(self) -> str:
        try:
            shapes = f"{self.in_shape} -> {self.out_shape}"
        except (TypeError, AttributeError, IndexError):  # leaves replaced by a transformation: None, object()
            shapes = "..."
        return f"{type(self).__name__}({shapes}{self._details()})"

    def _details(self) -> str:
        return "" if self.dtype is None else f", {self.dtype}"


def transpose_of(fun: Any, x: jax.ShapeDtypeStruct, where: str) -> Any:
    """`jax.linear_transpose` of `fun` at `x`, with an error that a user understands."""
    try:
        transpose = jax.linear_transpose(fun, x)
    except (TypeError, NotImplementedError) as error:
        raise TypeError(f"{where}: cannot be transposed: {error}") from error

    def apply_transpose(y: "Array") -> "Array":
        try:
            return transpose(y)[0]
        except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
            failure = error
        try:  # a custom_vjp inside has no transpose, but a rule: the derivative of a linear map is itself
            return jax.vjp(fun, jnp.zeros(x.shape, x.dtype))[1](y)[0]
        except (AssertionError, NotImplementedError, TypeError, ValueError):
            raise ValueError(
                f"{where}: expected a function that is linear in x, got one that jax.linear_transpose "
                f"cannot transpose ({type(failure).__name__}: {failure}); if it is linear, give transpose="
            ) from failure

    return apply_transpose


def cast_like(primal: Any, cotangent: Any) -> Any:
    """`cotangent`, leaf by leaf in its primal's dtype and layout; integer leaves get float0 zeros."""

    def cast(p: Any, c: Any) -> Any:
        if not is_inexact(p):
            return np.zeros(jnp.shape(p), jax.dtypes.float0)
        return like_sharding(p, c.astype(jnp.result_type(p)))

    return jax.tree.map(cast, primal, cotangent)


@jax.custom_vjp
def ruled_call(A: LinearMap, x: "Array") -> "Array":
    """A x, whose reverse rule is A's own transpose and pullback."""
    return A.apply(x)


@jax.custom_vjp
def ruled_transpose(A: LinearMap, y: "Array") -> "Array":
    """Aᵀ y, whose reverse rule is A itself and its pullback with the roles swapped."""
    return A.transpose_apply(y)


ruled_call.defvjp(
    lambda A, x: (ruled_call(A, x), (A, x)),
    lambda res, ybar: (cast_like(res[0], res[0].params_vjp(res[1], ybar)), ruled_transpose(res[0], ybar)),
)
ruled_transpose.defvjp(
    lambda A, y: (ruled_transpose(A, y), (A, y)),
    lambda res, xbar: (cast_like(res[0], res[0].params_vjp(xbar, res[1])), ruled_call(res[0], xbar)),
)
