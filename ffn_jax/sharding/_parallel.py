"""Tensor and sequence parallelism as a choice of A1 and A2: the hidden features cut over a mesh axis.

With A1 cut by its outputs and A2 by its inputs, A1 = (A1_1; ...; A1_n) and A2 = (A2_1 | ... | A2_n), device k holds
one part of each, and the sublayer is

    z_k = A1_k f(x) + b1_k        u_k = A2_k σ(z_k)        y = x + g(u_1, ..., u_n) + b2

where f and g are linear and each other's transpose up to the order of devices:

    tensor parallel      f: x, the same on every device          g: all-reduce, Σ_k u_k
    sequence parallel    f: all-gather of the tokens             g: reduce-scatter, Σ_k u_k cut by tokens

Only f and g talk to other devices. They stand outside of the custom rule and JAX transposes them: fᵀ is the backward
pass's all-reduce (reduce-scatter), gᵀ costs nothing (all-gather). A rule with a sum of its own would be right only
with one of `check_vma`'s two conventions for the cotangent of a sum.

Sources: Megatron-LM, Shoeybi et al. 2019 (arXiv:1909.08053), section 3 and figure 3; sequence parallelism, Korthikanti
et al. 2022 (arXiv:2205.05198), section 4.2.2 and figure 5.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax import lax

from ffn_jax._checks import Shape
from ffn_jax._mesh import Axes, checks_vma, entry_of, is_local, vary_together, varying
from ffn_jax._pytree import pytree_dataclass, static
from ffn_jax.maps._algebra import expect_map
from ffn_jax.maps._base import LinearMap
from ffn_jax.sharding._fully_sharded import FullySharded, check_axes

if TYPE_CHECKING:
    from jax import Array


@pytree_dataclass
class _Parallel(LinearMap):
    """What both kinds share: the part of a map that one device holds, and the axes it is cut over."""

    map: LinearMap
    axes: Axes = static()
    sequence_parallel: bool = static(default=False)

    @property
    def in_shape(self) -> Shape:
        """The part's input shape."""
        return self.map.in_shape

    @property
    def out_shape(self) -> Shape:
        """The part's output shape."""
        return self.map.out_shape

    @property
    def dtype(self) -> Any:
        """The map's dtype."""
        return self.map.dtype

    @property
    def has_rule(self) -> bool:
        """No: a sum over devices is JAX's to transpose, around the map's own rule."""
        return False

    @property
    def is_local(self) -> bool:
        """Whether the arrays are this device's part."""
        return is_local(self.axes, self.name)

    @property
    def name(self) -> str:
        """The function that makes it."""
        return "column_parallel" if isinstance(self, ColumnParallel) else "row_parallel"

    def _check_cut(self) -> None:
        """With check_vma=True a whole map in place of a part is seen; with False it is summed n times."""
        if not checks_vma(self.axes[0]):
            return
        for leaf in jax.tree.leaves(self.map):
            if leaf.ndim and set(self.axes) <= varying(leaf):
                return
        raise ValueError(
            f"{self.name}: expected the map's arrays to be cut over {entry_of(self.axes)!r} by shard_map's in_specs "
            f"(see partition_specs), got the same arrays on every device: {self.map!r}"
        )

    def _details(self) -> str:
        return f", {entry_of(self.axes)!r}{', sequence parallel' if self.sequence_parallel else ''}"


@pytree_dataclass
class ColumnParallel(_Parallel):
    """A map cut by its outputs; made by `column_parallel`."""

    def enter(self, x: "Array") -> "Array":
        """f(x): all tokens, on every device of the axis."""
        self._check_cut()
        check = checks_vma(self.axes[0])
        cut = not set(self.axes).isdisjoint(varying(x))
        if not self.sequence_parallel:
            if check and cut:
                raise ValueError(
                    f"column_parallel: expected x to be the same along {entry_of(self.axes)!r}, got {jax.typeof(x)}; "
                    "for tokens cut over this axis give sequence_parallel=True to both maps"
                )
            return x
        if check and not cut:
            raise ValueError(
                f"column_parallel: expected x's tokens to be cut over {entry_of(self.axes)!r} for "
                f"sequence_parallel=True, got {jax.typeof(x)}, the same on every device"
            )
        return lax.all_gather(x, self.axes, axis=token_axis(x, self.in_shape, self.name), tiled=True)

    def apply(self, x: "Array") -> "Array":
        """A_k f(x)."""
        A, x = vary_together(self.map, self.enter(x) if self.is_local else x)
        return A.call(x)


@pytree_dataclass
class RowParallel(_Parallel):
    """A map cut by its inputs; made by `row_parallel`."""

    def leave(self, u: "Array") -> "Array":
        """g(u_1, ..., u_n)."""
        self._check_cut()
        if not self.sequence_parallel:
            total: Array = lax.psum(u, self.axes)
            return total
        axis = token_axis(u, self.out_shape, self.name)
        n = lax.axis_size(self.axes)
        if u.shape[axis] % n:
            raise ValueError(
                f"row_parallel: expected {u.shape[axis]} tokens to divide by {entry_of(self.axes)!r} ({n})"
            )
        return lax.psum_scatter(u, self.axes, scatter_dimension=axis, tiled=True)

    def apply(self, x: "Array") -> "Array":
        """g(A_1 x_1, ..., A_n x_n)."""
        A, x = vary_together(self.map, x)
        u = A.call(x)
        return self.leave(u) if self.is_local else u


def token_axis(x: "Array", shape: Shape, where: str) -> int:
    """The last axis before the features: the one that sequence parallelism cuts."""
    axis = x.ndim - len(shape) - 1
    if axis < 0:
        raise ValueError(f"{where}: expected x with a token axis to cut over devices, got {tuple(x.shape)}")
    return axis


def column_parallel(A: LinearMap, axis: str | Axes, *, sequence_parallel: bool = False) -> ColumnParallel:
    """A1 cut by its outputs, the hidden features, over a mesh axis.

    Inside `jax.shard_map` over that axis A is this device's part. Elsewhere it is the whole map: the same model runs
    on one device, and under `jit` with automatic or explicit sharding, where XLA adds the communication.

    Args:
      A: the map, `(d_model,) -> (d_ff,)`; cut, its out_shape is `(d_ff / n,)`. May be `fully_sharded` over another
        axis.
      axis: the mesh axis, or several.
      sequence_parallel: x and y hold a part of the tokens each, cut along the last token axis.

    Raises:
      TypeError: A is no `LinearMap`, or axis no name.
      ValueError: A is cut already. When called: the mesh lacks the axis; x or A is not laid out as said.

    Source: arXiv:1909.08053, section 3.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> A1 = fj.sharding.column_parallel(fj.Dense(jnp.ones((2, 8))), "model")
    >>> A2 = fj.sharding.row_parallel(fj.Dense(jnp.ones((8, 2))), "model")
    >>> mesh = jax.make_mesh((1,), ("model",))
    >>> args = jnp.ones((4, 2)), A1, None, A2, None
    >>> specs = fj.sharding.partition_specs(mesh, *args)
    >>> args = jax.device_put(args, specs.shardings(mesh))
    >>> jax.shard_map(fj.ffn_residual, mesh=mesh, in_specs=specs.args, out_specs=specs.x)(*args).shape
    (4, 2)
    """
    _check_uncut(A, axis, "column_parallel")
    return ColumnParallel(A, check_axes(axis, "column_parallel"), sequence_parallel)


def row_parallel(A: LinearMap, axis: str | Axes, *, sequence_parallel: bool = False) -> RowParallel:
    """A2 cut by its inputs, the hidden features, over a mesh axis; its outputs are summed over the axis.

    Arguments, errors and source are those of `column_parallel`, with which it goes.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> fj.sharding.row_parallel(fj.Dense(jnp.ones((8, 2), "float32")), "model")
    RowParallel((8,) -> (2,), 'model')
    """
    _check_uncut(A, axis, "row_parallel")
    return RowParallel(A, check_axes(axis, "row_parallel"), sequence_parallel)


def _check_uncut(A: Any, axis: Any, where: str) -> None:
    expect_map(A, where, "A")
    axes = check_axes(axis, where)
    if parts := _nodes(A, _Parallel):
        raise ValueError(f"{where}: expected a map that is not cut yet, got {parts[0]!r}")
    for part in _nodes(A, FullySharded):
        if shared := set(part.axes) & set(axes):
            raise ValueError(f"{where}: expected another axis than the map is fully sharded over, got {shared.pop()!r}")


def _nodes(A: Any, kind: type) -> list[Any]:
    return [n for n in jax.tree.leaves(A, is_leaf=lambda n: isinstance(n, kind)) if isinstance(n, kind)]


# ------------------------------------------------------------------------------------- for the sublayer


class Crossing(NamedTuple):
    """The sublayer of one device: its input f(x), its maps, and the map g to leave by, None where g is nothing."""

    x: Any
    A1: Any
    A2: Any
    out: RowParallel | None


def cross(x: Any, A1: Any, A2: Any, where: str) -> Crossing:
    """Takes f and g out of A1 and A2. Raises ValueError where the two do not go together."""
    axes, _ = cross_alike(A1, A2, where)
    if not axes:
        return Crossing(x, A1, A2, None)
    if not A1.is_local:
        return Crossing(x, A1.map, A2.map, None)
    return Crossing(A1.enter(x), A1.map, A2.map, A2)


def cross_alike(A1: Any, A2: Any, where: str) -> tuple[Axes, bool]:
    """What both maps are cut over, nothing if neither is, and whether they are sequence parallel; or a ValueError."""
    cut1, cut2 = isinstance(A1, _Parallel), isinstance(A2, _Parallel)
    for name, A, inner in (("A1", A1, A1.map if cut1 else A1), ("A2", A2, A2.map if cut2 else A2)):
        if parts := _nodes(inner, _Parallel):
            outermost = f"{parts[0].name}(..., {entry_of(parts[0].axes)!r}) around the whole map"
            raise ValueError(f"{where}: expected {outermost}, got it inside {name}: {A!r}")
    if not cut1 and not cut2:
        return (), False
    if not isinstance(A1, ColumnParallel) or not isinstance(A2, RowParallel):
        raise ValueError(
            f"{where}: expected A1 = column_parallel(...) with A2 = row_parallel(...), got A1 = {A1!r} and A2 = {A2!r}"
        )
    if (A1.axes, A1.sequence_parallel) != (A2.axes, A2.sequence_parallel):
        raise ValueError(f"{where}: expected A1 and A2 to be cut alike, got A1 = {A1!r} and A2 = {A2!r}")
    return A1.axes, A1.sequence_parallel
