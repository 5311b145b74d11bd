"""`BlockDiagonal`: blocks side by side on the last axis, A = A_1 ⊕ ... ⊕ A_k.

    (x_1 | ... | x_k) -> (A_1 x_1 | ... | A_k x_k)        Aᵀ = A_1ᵀ ⊕ ... ⊕ A_kᵀ        θ̄_j = pullback_j(x_j, ȳ_j)

Different blocks are applied one by one to slices of the axis. Equal blocks may come stacked: one map whose
arrays carry the blocks on a leading axis; the axis then becomes one more batch axis of a batched product.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ffn_jax._checks import Shape
from ffn_jax._pytree import pytree_dataclass
from ffn_jax.maps._algebra import common_dtype, expect_map
from ffn_jax.maps._base import LinearMap

if TYPE_CHECKING:
    from jax import Array


@pytree_dataclass
class BlockDiagonal(LinearMap):
    """Blocks on the concatenated last axis: `(Σ in,) -> (Σ out,)`.

    Args:
      maps: a sequence of maps `(in_j,) -> (out_j,)`; or one map whose array leaves all carry a leading axis of
        blocks, such as `Dense(weight)` with a weight `(blocks, in, out)`, or `jax.tree.map(jnp.stack, ...)` of
        equal maps: all blocks are then one batched product.

    Raises:
      TypeError: an entry is not a LinearMap, or the dtypes differ.
      ValueError: no blocks, a block whose shapes are not one axis, or leaves without a common leading axis.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> fj.BlockDiagonal([fj.Dense(jnp.ones((2, 3), "float32")), fj.Dense(jnp.ones((1, 1), "float32"))])
    BlockDiagonal((3,) -> (4,), float32, 2 blocks)
    >>> fj.BlockDiagonal(fj.Dense(jnp.ones((8, 2, 3), "float32")))
    BlockDiagonal((16,) -> (24,), float32, 8 stacked blocks)
    """

    maps: Sequence[LinearMap] | LinearMap

    def __post_init__(self) -> None:
        if isinstance(self.maps, LinearMap):
            shapes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(self.maps)}
            if len(shapes) != 1 or shapes == {()}:
                raise ValueError(
                    "BlockDiagonal: expected stacked blocks to have array leaves with one common leading axis, "
                    f"got leaves of shapes {[np.shape(leaf) for leaf in jax.tree.leaves(self.maps)]}"
                )
            blocks: tuple[LinearMap, ...] = (self._block,)
        else:
            if not isinstance(self.maps, Sequence):
                raise TypeError(
                    "BlockDiagonal: expected a sequence of LinearMaps or one stacked LinearMap, "
                    f"got {type(self.maps).__name__}"
                )
            object.__setattr__(self, "maps", tuple(self.maps))
            if not self.maps:
                raise ValueError("BlockDiagonal: expected at least one block, got none")
            for j, A in enumerate(self.maps):
                expect_map(A, "BlockDiagonal", f"block {j}")
            blocks = tuple(self.maps)
            common_dtype(blocks, "BlockDiagonal")
        for j, A in enumerate(blocks):
            if len(A.in_shape) != 1 or len(A.out_shape) != 1:
                raise ValueError(
                    f"BlockDiagonal: expected block {j} to map one axis to one axis, got {A.in_shape} -> {A.out_shape}"
                )

    @property
    def num_blocks(self) -> int:
        """How many blocks."""
        if isinstance(self.maps, LinearMap):
            return np.shape(jax.tree.leaves(self.maps)[0])[0]
        return len(self.maps)

    @property
    def in_shape(self) -> Shape:
        """`(Σ in_j,)`."""
        return (self._total(lambda A: A.in_shape),)

    @property
    def out_shape(self) -> Shape:
        """`(Σ out_j,)`."""
        return (self._total(lambda A: A.out_shape),)

    @property
    def dtype(self) -> Any:
        """The blocks' dtype."""
        maps = (self.maps,) if isinstance(self.maps, LinearMap) else tuple(self.maps)
        return common_dtype(maps, "BlockDiagonal")

    @property
    def has_rule(self) -> bool:
        """Whether a block has one."""
        maps = (self.maps,) if isinstance(self.maps, LinearMap) else self.maps
        return any(A.has_rule for A in maps)

    def apply(self, x: "Array") -> "Array":
        """The blocks on their slices of x."""
        return self._blockwise(lambda A, x_j: A.apply(x_j), lambda A: A.in_shape, x)

    def transpose_apply(self, y: "Array") -> "Array":
        """The blocks' transposes on their slices of y."""
        return self._blockwise(lambda A, y_j: A.transpose_apply(y_j), lambda A: A.out_shape, y)

    def params_vjp(self, x: "Array", ybar: "Array") -> Self:
        """Every block's pullback on its slices of x and ȳ."""
        x_blocks, ybar_blocks = self._split(x, lambda A: A.in_shape), self._split(ybar, lambda A: A.out_shape)
        if isinstance(self.maps, LinearMap):
            over_blocks = jax.vmap(lambda A, x_j, ybar_j: A.params_vjp(x_j, ybar_j), in_axes=(0, -2, -2))
            bars: Any = over_blocks(self.maps, x_blocks, ybar_blocks)
        else:
            bars = [A.params_vjp(*pair) for A, *pair in zip(self.maps, x_blocks, ybar_blocks, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(self), jax.tree.leaves(bars))

    @property
    def T(self) -> "BlockDiagonal":  # noqa: N802
        """The transposes of the blocks."""
        if isinstance(self.maps, LinearMap):
            return BlockDiagonal(jax.vmap(lambda A: A.T)(self.maps))
        return BlockDiagonal([A.T for A in self.maps])

    @property
    def _block(self) -> LinearMap:
        """One block of the stack, abstractly."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[1:], leaf.dtype), self.maps)

    def _total(self, shape: Callable[[LinearMap], Shape]) -> int:
        if isinstance(self.maps, LinearMap):
            return self.num_blocks * shape(self._block)[0]
        return sum(shape(A)[0] for A in self.maps)

    def _split(self, x: "Array", shape: Callable[[LinearMap], Shape]) -> Any:
        """Stacked: `(*batch, blocks, n)`; else a list of `(*batch, n_j)`."""
        if isinstance(self.maps, LinearMap):
            return x.reshape(*x.shape[:-1], self.num_blocks, shape(self._block)[0])
        ends = list(itertools.accumulate(shape(A)[0] for A in self.maps))
        return jnp.split(x, ends[:-1], axis=-1)

    def _blockwise(self, step: Any, shape: Callable[[LinearMap], Shape], x: "Array") -> "Array":
        blocks = self._split(x, shape)
        if isinstance(self.maps, LinearMap):
            y: Array = jax.vmap(step, in_axes=(0, -2), out_axes=-2)(self.maps, blocks)
            return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])
        return jnp.concatenate([step(A, x_j) for A, x_j in zip(self.maps, blocks, strict=True)], axis=-1)

    def _details(self) -> str:
        stacked = "stacked " if isinstance(self.maps, LinearMap) else ""
        return f", {self.dtype}, {self.num_blocks} {stacked}blocks"
