"""Fully sharded parameters: each device keeps a part, the whole is gathered for one sublayer at a time.

With the parameters θ cut along one axis over n devices that hold different tokens,

    forward     θ = all-gather(θ_k)        y_k = F(θ, x_k)
    backward    θ = all-gather(θ_k)        θ̄_k = reduce-scatter(pullback(x_k, ȳ_k)) = (Σ_j θ̄⁽ʲ⁾)_k

The rule gathers once before its chunks, keeps only the parts for the backward pass and gathers again there. Both
collectives are each other's transpose with check_vma on and off, so the rule may hold them; a sum it may not.
The reduce-scatter runs in float32 or wider, before the cast to the parameter's dtype.

Source: ZeRO stage 3, Rajbhandari et al. 2019 (arXiv:1910.02054), section 5; FSDP, Zhao et al. 2023 (arXiv:2304.11277).
"""

from typing import TYPE_CHECKING, Any, Self

import jax
from jax import lax

from ffn_jax._checks import Shape, is_inexact
from ffn_jax._mesh import Axes, entry_of, is_local
from ffn_jax._pytree import pytree_dataclass, static
from ffn_jax.maps._algebra import expect_map
from ffn_jax.maps._base import LinearMap

if TYPE_CHECKING:
    from jax import Array


@pytree_dataclass
class FullySharded(LinearMap):
    """The map A whose arrays are cut along their first axis over a mesh axis; made by `fully_sharded`."""

    map: LinearMap
    axes: Axes = static()

    @property
    def in_shape(self) -> Shape:
        """The whole map's input shape."""
        return self._whole().in_shape

    @property
    def out_shape(self) -> Shape:
        """The whole map's output shape."""
        return self._whole().out_shape

    @property
    def dtype(self) -> Any:
        """A's dtype."""
        return self.map.dtype

    @property
    def has_rule(self) -> bool:
        """Yes: its pullback scatters what it gathered."""
        return True

    def gathered(self) -> LinearMap:
        """The whole map, on every device."""
        if not self.is_local:
            return self.map
        return jax.tree.map(lambda leaf: _gather(leaf, self.axes) if leaf.ndim else leaf, self.map)

    def scattered(self, bars: Any) -> Self:
        """The parts of the whole map's cotangents, summed over the devices."""
        if self.is_local:
            bars = jax.tree.map(self._scatter, self.map, bars)
        return jax.tree.unflatten(jax.tree.structure(self), jax.tree.leaves(bars))

    def apply(self, x: "Array") -> "Array":
        """A x, gathered for this call."""
        return self.gathered().apply(x)

    def transpose_apply(self, y: "Array") -> "Array":
        """Aᵀ y, gathered for this call."""
        return self.gathered().transpose_call(y)

    def params_vjp(self, x: "Array", ybar: "Array") -> Self:
        """The parts of A's pullback, summed over the devices."""
        return self.scattered(self.gathered().params_vjp(x, ybar))

    @property
    def is_local(self) -> bool:
        """Whether the arrays are this device's parts."""
        return is_local(self.axes, "fully_sharded")

    def _whole(self) -> LinearMap:
        if not self.is_local:
            return self.map
        n = lax.axis_size(self.axes)

        def whole(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((n * leaf.shape[0], *leaf.shape[1:]) if leaf.ndim else (), leaf.dtype)

        return jax.tree.map(whole, self.map)

    def _scatter(self, leaf: Any, bar: Any) -> Any:
        if not is_inexact(leaf) or not leaf.ndim:
            return bar
        return lax.psum_scatter(bar, self.axes, scatter_dimension=0, tiled=True)

    def _details(self) -> str:
        return f", fully sharded over {entry_of(self.axes)!r}"


def fully_sharded(A: LinearMap, axis: str | Axes) -> FullySharded:
    """A with its arrays cut along their first axis over the mesh axis (or axes) that the batch is cut over.

    Inside `jax.shard_map` the arrays are this device's parts: they are gathered when the sublayer needs them, and
    their cotangents reduce-scattered. Elsewhere it is A: `jit` with automatic or explicit sharding gathers by itself.
    `partition_specs` says how to lay the arrays out. Scalars stay whole.

    Args:
      A: a map on the whole, or a sum or product of maps.
      axis: a mesh axis, or several.

    Raises:
      TypeError: A is no `LinearMap`, or axis no name.
      ValueError: A is sharded already.

    Source: ZeRO stage 3, arXiv:1910.02054, section 5.3.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> A = fj.sharding.fully_sharded(fj.Dense(jnp.ones((2, 3))), "data")
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> P = jax.sharding.PartitionSpec
    >>> A, x = jax.device_put((A, jnp.ones((4, 2))), jax.NamedSharding(mesh, P("data", None)))
    >>> jax.shard_map(lambda A, x: A(x), mesh=mesh, out_specs=P("data", None))(A, x).shape
    (4, 3)
    """
    expect_map(A, "fully_sharded", "A")
    axes = check_axes(axis, "fully_sharded")
    if contains_sharded(A):
        raise ValueError(
            f"fully_sharded: expected a map that is not sharded yet, got {A!r}; tensor parallelism goes "
            "outside: column_parallel(fully_sharded(A, 'data'), 'model')"
        )
    return FullySharded(A, axes)


def check_axes(axis: Any, where: str) -> Axes:
    """The axis or axes as a tuple of names, or a TypeError."""
    axes = (axis,) if isinstance(axis, str) else axis
    if not isinstance(axes, tuple) or not axes or not all(isinstance(a, str) for a in axes):
        raise TypeError(f"{where}: expected axis to be the name of a mesh axis or a tuple of names, got {axis!r}")
    if len(set(axes)) != len(axes):
        raise ValueError(f"{where}: expected different mesh axes, got {axes}")
    return axes


def is_fully_sharded(node: Any) -> bool:
    """For `jax.tree.map(..., is_leaf=...)`."""
    return isinstance(node, FullySharded)


def contains_sharded(A: Any) -> bool:
    """Whether A is a sharded map or has one inside."""
    return any(is_fully_sharded(node) for node in jax.tree.leaves(A, is_leaf=is_fully_sharded))


# ------------------------------------------------------------------------------------- for the rule


def gathered(params: Any) -> Any:
    """`params` with every fully sharded map whole."""
    return jax.tree.map(lambda n: n.gathered() if is_fully_sharded(n) else n, params, is_leaf=is_fully_sharded)


def gathered_again(params: Any, after: Any) -> Any:
    """`gathered` for the backward pass, not before the cotangent `after` exists.

    Without the barrier XLA would merge it with the forward pass's, and so keep the whole parameters in between.
    """
    if not contains_sharded(params):
        return params
    return gathered(lax.optimization_barrier((params, after))[0])


def scattered(params: Any, bars: Any) -> Any:
    """The transpose of `gathered`: `bars` of the whole parameters as cotangents of `params`."""
    return jax.tree.map(
        lambda n, bar: n.scattered(bar) if is_fully_sharded(n) else bar, params, bars, is_leaf=is_fully_sharded
    )


def _gather(leaf: "Array", axes: Axes) -> "Array":
    return lax.all_gather(leaf, axes, axis=0, tiled=True)
