"""`TimeDistributed`: one shared map at every position, I_length ⊗ A.

    (x_1, ..., x_L) -> (A x_1, ..., A x_L)        matrix kron(I_L, M)        θ̄ = Σ_l pullback(x_l, ȳ_l)

The position axis is one more batch axis of A, so A's own products serve all positions at once.
"""

from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

from ffn_jax._checks import Shape, is_size
from ffn_jax._pytree import pytree_dataclass, static
from ffn_jax.maps._algebra import Composed, Scaled, Sum, expect_map
from ffn_jax.maps._base import LinearMap

if TYPE_CHECKING:
    from jax import Array


@pytree_dataclass
class TimeDistributed(LinearMap):
    """The map A applied at each of `length` positions: `(length, *A.in_shape) -> (length, *A.out_shape)`.

    Args:
      map: the map A that all positions share.
      length: the number of positions.

    Raises:
      TypeError: `map` is not a LinearMap or `length` not an int.
      ValueError: length < 1.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> A = fj.TimeDistributed(fj.Dense(jnp.ones((2, 3))), length=4)
    >>> A.in_shape, A.out_shape, A.as_matrix().shape
    ((4, 2), (4, 3), (12, 8))
    """

    map: LinearMap
    length: int = static()

    def __post_init__(self) -> None:
        expect_map(self.map, "TimeDistributed", "map")
        if isinstance(self.length, np.integer):
            object.__setattr__(self, "length", int(self.length))
        if not is_size(self.length):
            raise TypeError(f"TimeDistributed: expected length to be an int, got {self.length!r}")
        if self.length < 1:
            raise ValueError(f"TimeDistributed: expected length >= 1, got {self.length}")

    @property
    def in_shape(self) -> Shape:
        """`(length, *A.in_shape)`."""
        return (self.length, *self.map.in_shape)

    @property
    def out_shape(self) -> Shape:
        """`(length, *A.out_shape)`."""
        return (self.length, *self.map.out_shape)

    @property
    def dtype(self) -> Any:
        """A's dtype."""
        return self.map.dtype

    @property
    def has_rule(self) -> bool:
        """Whether A has one."""
        return self.map.has_rule

    def apply(self, x: "Array") -> "Array":
        """A at every position."""
        return self.map.apply(x)

    def transpose_apply(self, y: "Array") -> "Array":
        """Aᵀ at every position."""
        return self.map.transpose_apply(y)

    def params_vjp(self, x: "Array", ybar: "Array") -> Self:
        """A's pullback, summed over positions as over any batch."""
        return jax.tree.unflatten(jax.tree.structure(self), jax.tree.leaves(self.map.params_vjp(x, ybar)))

    @property
    def T(self) -> "TimeDistributed":  # noqa: N802
        """I ⊗ Aᵀ."""
        return TimeDistributed(self.map.T, self.length)


def per_token(A: LinearMap) -> LinearMap:
    """The map of one position, where A is shared by positions: its position axes become batch axes.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> per_token(2.0 * fj.TimeDistributed(fj.Dense(jnp.ones((2, 3), "float32")), 4)).in_shape
    (2,)
    """
    if isinstance(A, TimeDistributed):
        return per_token(A.map)
    if isinstance(A, Scaled):
        return Scaled(per_token(A.map), A.factor, A.constant)
    parts = A.maps if isinstance(A, Sum) else (A.outer, A.inner) if isinstance(A, Composed) else ()
    alone = [per_token(part) for part in parts]
    positions = {len(part.in_shape) - len(one.in_shape) for part, one in zip(parts, alone, strict=True)}
    if len(positions) != 1:
        return A
    return Sum(tuple(alone)) if isinstance(A, Sum) else Composed(*alone)
