"""The algebra of maps: transposes, compositions, sums and multiples are maps again.

    (Aᵀ)ᵀ = A      (A B)ᵀ = Bᵀ Aᵀ      (A + B)ᵀ = Aᵀ + Bᵀ      (c A)ᵀ = c Aᵀ

and the parameters of a part see what the part sees: in A B x the map B has (x, Aᵀȳ) and A has (B x, ȳ).
Each part keeps its own transpose and pullback, so a kernel stays a kernel inside a sum.
"""

from typing import TYPE_CHECKING, Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np

from ffn_jax._checks import Shape, shown, wide
from ffn_jax._pytree import pytree_dataclass, static
from ffn_jax.maps._base import LinearMap

if TYPE_CHECKING:
    from jax import Array
    from jax.typing import ArrayLike


def expect_map(value: Any, where: str, name: str) -> None:
    """Raises TypeError unless `value` is a LinearMap."""
    if not isinstance(value, LinearMap):
        raise TypeError(
            f"{where}: expected {name} to be a LinearMap, got {shown(value)}"
            + ("; give a callable its input shape with linear_map(...)" if callable(value) else "")
        )


def common_dtype(maps: tuple[LinearMap, ...], where: str) -> Any:
    """The one dtype that all `maps` take, or None; raises TypeError where they differ."""
    dtypes = {A.dtype for A in maps if A.dtype is not None}
    if len(dtypes) > 1:
        raise TypeError(f"{where}: expected maps of one dtype, got {sorted(map(str, dtypes))}")
    return dtypes.pop() if dtypes else None


@pytree_dataclass
class Transposed(LinearMap):
    """Aᵀ of a map that has no form of its own for it. Its parameters are A's."""

    map: LinearMap

    @property
    def in_shape(self) -> Shape:
        """A's output shape."""
        return self.map.out_shape

    @property
    def out_shape(self) -> Shape:
        """A's input shape."""
        return self.map.in_shape

    @property
    def dtype(self) -> Any:
        """A's dtype."""
        return self.map.dtype

    @property
    def has_rule(self) -> bool:
        """Whether A has one."""
        return self.map.has_rule

    def apply(self, x: "Array") -> "Array":
        """Aᵀ x."""
        return self.map.transpose_apply(x)

    def transpose_apply(self, y: "Array") -> "Array":
        """A y."""
        return self.map.apply(y)

    def params_vjp(self, x: "Array", ybar: "Array") -> Self:
        """From <ȳ, Aᵀ x> = <A ȳ, x>: A's pullback with the roles of input and cotangent swapped."""
        return type(self)(self.map.params_vjp(ybar, x))

    @property
    def T(self) -> LinearMap:  # noqa: N802
        """A itself."""
        return self.map


@pytree_dataclass
class Composed(LinearMap):
    """A B: first `inner`, then `outer`. Raises ValueError where the shapes do not meet."""

    outer: LinearMap
    inner: LinearMap

    def __post_init__(self) -> None:
        if self.outer.in_shape != self.inner.out_shape:
            raise ValueError(
                f"A @ B: expected B.out_shape to be A.in_shape {self.outer.in_shape}, got {self.inner.out_shape}"
            )
        common_dtype((self.outer, self.inner), "A @ B")

    @property
    def in_shape(self) -> Shape:
        """The inner map's input shape."""
        return self.inner.in_shape

    @property
    def out_shape(self) -> Shape:
        """The outer map's output shape."""
        return self.outer.out_shape

    @property
    def dtype(self) -> Any:
        """The dtype of the parts."""
        return common_dtype((self.outer, self.inner), "A @ B")

    @property
    def has_rule(self) -> bool:
        """Whether a part has one."""
        return self.outer.has_rule or self.inner.has_rule

    def apply(self, x: "Array") -> "Array":
        """A (B x)."""
        return self.outer.apply(self.inner.apply(x))

    def transpose_apply(self, y: "Array") -> "Array":
        """Bᵀ (Aᵀ y)."""
        return self.inner.transpose_apply(self.outer.transpose_apply(y))

    def params_vjp(self, x: "Array", ybar: "Array") -> Self:
        """A's pullback at (B x, ȳ) and B's at (x, Aᵀ ȳ)."""
        outer = self.outer.params_vjp(self.inner.call(x), ybar)
        inner = self.inner.params_vjp(x, self.outer.transpose_call(ybar))
        return _rebuild(self, outer, inner)

    @property
    def T(self) -> "Composed":  # noqa: N802
        """Bᵀ Aᵀ."""
        return Composed(self.inner.T, self.outer.T)


@pytree_dataclass
class Sum(LinearMap):
    """Σ_k A_k. Raises ValueError where the shapes differ."""

    maps: tuple[LinearMap, ...]

    def __post_init__(self) -> None:
        flat: list[LinearMap] = []
        for A in self.maps:
            flat.extend(A.maps if isinstance(A, Sum) else (A,))
        object.__setattr__(self, "maps", tuple(flat))
        first = flat[0]
        for A in flat[1:]:
            if (A.in_shape, A.out_shape) != (first.in_shape, first.out_shape):
                raise ValueError(
                    f"A + B: expected maps of one shape, got {first.in_shape} -> {first.out_shape} "
                    f"and {A.in_shape} -> {A.out_shape}"
                )
        common_dtype(tuple(flat), "A + B")

    @property
    def in_shape(self) -> Shape:
        """The input shape of every term."""
        return self.maps[0].in_shape

    @property
    def out_shape(self) -> Shape:
        """The output shape of every term."""
        return self.maps[0].out_shape

    @property
    def dtype(self) -> Any:
        """The dtype of the terms."""
        return common_dtype(self.maps, "A + B")

    @property
    def has_rule(self) -> bool:
        """Whether a term has one."""
        return any(A.has_rule for A in self.maps)

    def apply(self, x: "Array") -> "Array":
        """Σ A_k x."""
        return _sum([A.apply(x) for A in self.maps])

    def transpose_apply(self, y: "Array") -> "Array":
        """Σ A_kᵀ y."""
        return _sum([A.transpose_apply(y) for A in self.maps])

    def params_vjp(self, x: "Array", ybar: "Array") -> Self:
        """Every term's own pullback at (x, ȳ)."""
        return _rebuild(self, tuple(A.params_vjp(x, ybar) for A in self.maps))

    @property
    def T(self) -> "Sum":  # noqa: N802
        """Σ A_kᵀ."""
        return Sum(tuple(A.T for A in self.maps))


@pytree_dataclass
class Scaled(LinearMap):
    """c f A with a constant c, part of the structure, and an optional differentiable scalar array f.

    A Python number stays out of the leaves, so that scaled maps can be stacked and scanned over layers.
    """

    map: LinearMap
    factor: "Array | None" = None
    constant: float = static(default=1.0)

    @property
    def in_shape(self) -> Shape:
        """A's input shape."""
        return self.map.in_shape

    @property
    def out_shape(self) -> Shape:
        """A's output shape."""
        return self.map.out_shape

    @property
    def dtype(self) -> Any:
        """A's dtype, or the factor's."""
        return self.map.dtype or (None if self.factor is None else self.factor.dtype)

    @property
    def has_rule(self) -> bool:
        """Whether A has one."""
        return self.map.has_rule

    def apply(self, x: "Array") -> "Array":
        """c f (A x)."""
        return self._times(self.map.apply(x))

    def transpose_apply(self, y: "Array") -> "Array":
        """c f (Aᵀ y)."""
        return self._times(self.map.transpose_apply(y))

    def params_vjp(self, x: "Array", ybar: "Array") -> Self:
        """A's pullback at (x, c f ȳ), and f̄ = c <A x, ȳ>."""
        map_bar = self.map.params_vjp(x, self._times(ybar))
        factor_bar = None
        if self.factor is not None:
            y = self.map.call(x)
            factor_bar = self.constant * jnp.sum(y.astype(wide(y.dtype)) * ybar.astype(wide(y.dtype)))
        return _rebuild(self, map_bar, factor_bar)

    @property
    def T(self) -> "Scaled":  # noqa: N802
        """c f Aᵀ."""
        return Scaled(self.map.T, self.factor, self.constant)

    def _times(self, y: "Array") -> "Array":
        if self.factor is not None:
            y = self.factor * y
        return y if self.constant == 1.0 else self.constant * y

    def _details(self) -> str:
        return f", {self.constant:g}" + ("" if self.factor is None else " * array") + f", {self.map!r}"


def scale(factor: "ArrayLike", A: LinearMap) -> Scaled:
    """c A for a real number, or for a scalar array that gradients may reach."""
    factor = factor[()] if isinstance(factor, np.ndarray) and factor.shape == () else factor
    number = isinstance(factor, (int, float, np.integer, np.floating)) and not isinstance(factor, bool)
    if not number and not (isinstance(factor, jax.Array) and factor.shape == ()):
        got = f"an array of shape {np.shape(factor)}" if np.shape(factor) else repr(factor)
        raise TypeError(f"scalar * LinearMap: expected a real number or an array of shape (), got {got}")
    previous = A if isinstance(A, Scaled) else Scaled(A)
    if number:
        constant = float(cast("float", factor))
        return Scaled(previous.map, previous.factor, constant * previous.constant)
    array = jnp.asarray(factor)
    if array.weak_type and A.dtype is not None and jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(A.dtype)  # a Python number on its way through jit
    if not jnp.issubdtype(array.dtype, jnp.floating) or (A.dtype is not None and array.dtype != A.dtype):
        raise TypeError(f"scalar * LinearMap: expected a scalar of dtype {A.dtype or 'float'}, got {array.dtype}")
    return Scaled(A, array) if previous.factor is not None else Scaled(previous.map, array, previous.constant)


def _sum(terms: "list[Array]") -> "Array":
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _rebuild(A: Any, *children: Any) -> Any:
    """A's structure around its children's cotangents (no validation: these are not maps to be used)."""
    return jax.tree.unflatten(jax.tree.structure(A), jax.tree.leaves(children))
