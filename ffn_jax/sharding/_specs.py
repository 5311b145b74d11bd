"""How to lay out a sublayer's arguments on a mesh: a `PartitionSpec` for every array.

    x, y      (data, ..., [model,] -)         tokens over the data axes; over the model axis too if sequence parallel
    A1, b1    outputs over the model axis     A2   inputs over the model axis     b2   whole
    first axis of a fully sharded map's arrays: over its own axes besides

The same specs serve `shard_map` (in_specs) and `jit` with automatic or explicit axes (`NamedSharding`).

Source: the layouts of arXiv:1909.08053, figure 3, arXiv:2205.05198, figure 5, and arXiv:1910.02054, section 5.
"""

from functools import singledispatch
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ffn_jax._mesh import Axes, entry_of
from ffn_jax.maps._algebra import Composed, Scaled, Sum, Transposed
from ffn_jax.maps._base import LinearMap
from ffn_jax.maps._dense import Dense
from ffn_jax.maps._time_distributed import TimeDistributed
from ffn_jax.sharding._fully_sharded import FullySharded, check_axes
from ffn_jax.sharding._parallel import ColumnParallel, RowParallel, cross_alike, token_axis

if TYPE_CHECKING:
    pass

WHERE = "partition_specs"


class Specs(NamedTuple):
    """The PartitionSpecs of `ffn_residual`'s arguments and of its hidden tensors.

    Attributes:
      x: of x and y. A1, b1, A2, b2: trees of specs of the maps' structure, or None where there is no bias.
      hidden_pre: of A1 x + b1. hidden_act: of σ(A1 x + b1).
    """

    x: PartitionSpec
    A1: Any
    b1: Any
    A2: Any
    b2: Any
    hidden_pre: PartitionSpec
    hidden_act: PartitionSpec

    @property
    def args(self) -> tuple[Any, Any, Any, Any, Any]:
        """(x, A1, b1, A2, b2): the in_specs of a `shard_map` of `ffn_residual`."""
        return self[:5]

    @property
    def tape(self) -> Any:
        """The out_specs of a `shard_map` of `ffn_residual_tape`: an `FFNTape` of specs."""
        from ffn_jax._rule import FFNTape

        specs: tuple[Any, ...] = (self.hidden_pre, self.hidden_act, self.x, self.x)
        return FFNTape(*specs)

    def shardings(self, mesh: Mesh) -> tuple[Any, Any, Any, Any, Any]:
        """`args` as NamedShardings, for `jax.device_put((x, A1, b1, A2, b2), ...)` and `jit`."""
        named: tuple[Any, Any, Any, Any, Any] = jax.tree.map(lambda spec: NamedSharding(mesh, spec), self.args)
        return named


def partition_specs(
    mesh: Mesh | AbstractMesh, x: Any, A1: LinearMap, b1: Any, A2: LinearMap, b2: Any, *, data: str | Axes | None = None
) -> Specs:
    """The layout of a sublayer's arguments that its maps and `data` ask for.

    Args:
      mesh: the mesh to lay out on.
      x: the whole input of `ffn_residual`, or a `ShapeDtypeStruct` in its place, as in the others.
      A1: its first map. The model axis is the one that `column_parallel` names; a plain map is whole on every device.
      b1: its bias or None.
      A2: its second map, `row_parallel` over the same axis.
      b2: its bias or None.
      data: the mesh axis or axes that x's leading axis is cut over. Include those of `fully_sharded`.

    Raises:
      TypeError: how to cut a map is not known (any but `Dense` and the algebra of maps): write its specs by hand.
      ValueError: the mesh lacks an axis, an axis is used twice, or a length does not divide by the devices.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> mesh = jax.sharding.AbstractMesh((2, 4), ("data", "model"))
    >>> A1 = fj.sharding.column_parallel(fj.sharding.fully_sharded(fj.Dense(jnp.ones((8, 16))), "data"), "model")
    >>> A2 = fj.sharding.row_parallel(fj.Dense(jnp.ones((16, 8))), "model")
    >>> specs = fj.sharding.partition_specs(mesh, jnp.ones((6, 8)), A1, jnp.ones(16), A2, None, data="data")
    >>> jax.tree.leaves(specs)
    [P('data', None), P('data', 'model'), P('model',), P('model', None), P('data', 'model'), P('data', 'model')]
    """
    data_axes = () if data is None else check_axes(data, WHERE)
    cut, sequence = cross_alike(A1, A2, WHERE)
    batch: list[Axes] = [()] * (x.ndim - len(A1.in_shape))
    if data_axes:
        if not batch:
            raise ValueError(f"{WHERE}: expected x with tokens to cut over {data!r}, got {tuple(x.shape)}")
        batch[0] = data_axes
    inner = list(batch)
    if sequence:
        axis = token_axis(x, A1.in_shape, WHERE)
        batch[axis] = (*batch[axis], *cut)
    layout = _Layout(mesh, dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True)))

    def features(shape: tuple[int, ...], axes: Axes = ()) -> list[Axes]:
        return [()] * (len(shape) - 1) + [axes] if shape else []

    h_shape = A2.in_shape
    hidden_pre = inner + features(A1.out_shape, cut)
    tokens = tuple(x.shape[: len(batch)])
    y = batch + features(A2.out_shape)
    return Specs(
        layout.spec(x.shape, batch + features(A1.in_shape), "x"),
        layout.map(A1, "A1"),
        layout.bias(b1, hidden_pre, "b1"),
        layout.map(A2, "A2"),
        layout.bias(b2, y, "b2"),
        layout.spec((*tokens, *A1.out_shape), hidden_pre, "the hidden"),
        layout.spec((*tokens, *h_shape), inner + features(h_shape, cut), "the hidden"),
    )


class _Layout(NamedTuple):
    """Specs that a mesh can hold."""

    mesh: Mesh | AbstractMesh
    sizes: dict[str, int]

    def spec(self, shape: tuple[int, ...], entries: list[Axes], name: str) -> PartitionSpec:
        """`entries` as a PartitionSpec of an array of this shape, or a ValueError."""
        used = [axis for entry in entries for axis in entry]
        for axis in used:
            if axis not in self.sizes:
                raise ValueError(f"{WHERE}: expected an axis of the mesh {tuple(self.sizes)}, got {axis!r}")
            if used.count(axis) > 1:
                raise ValueError(f"{WHERE}: expected {name} to be cut over {axis!r} once, got {entries}")
        for k, (n, entry) in enumerate(zip(shape, entries, strict=True)):
            devices = int(np.prod([self.sizes[axis] for axis in entry]))
            if n % devices:
                raise ValueError(
                    f"{WHERE}: expected axis {k} of {name} {tuple(shape)} to divide by the {devices} devices of "
                    f"{entry_of(entry)!r}, got {n}"
                )
        return PartitionSpec(*map(entry_of, entries))

    def map(self, A: LinearMap, name: str) -> Any:
        """A's specs, as a tree of A's structure."""
        leaves, treedef = jax.tree.flatten(A)
        entries = _entries(A, None, ())
        specs = [self.spec(leaf.shape, e, f"{name}'s array") for leaf, e in zip(leaves, entries, strict=True)]
        return jax.tree.unflatten(treedef, specs)

    def bias(self, b: Any, target: list[Axes], name: str) -> Any:
        """The spec of an array that broadcasts to one of layout `target`."""
        if b is None:
            return None
        entries = target[len(target) - b.ndim :]
        return self.spec(b.shape, [e if n != 1 else () for n, e in zip(b.shape, entries, strict=True)], name)


# ---------------------------------------------------------------------- for each array, what each axis is cut over


@singledispatch
def _entries(A: Any, side: str | None, axes: Axes) -> list[list[Axes]]:
    """For every array of A, its axes' mesh axes, with A's `side` ("out", "in" or None) cut over `axes`."""
    if side is not None:
        raise TypeError(
            f"{WHERE}: cannot tell how the arrays of {A!r} are cut by its {side}puts; write its specs by hand"
        )
    return [[()] * np.ndim(leaf) for leaf in jax.tree.leaves(A)]


@_entries.register
def _(A: Dense, side: str | None, axes: Axes) -> list[list[Axes]]:
    entries: list[Axes] = [()] * A.weight.ndim
    if side is not None:
        entries[(A._out_axes if side == "out" else A._in_axes)[-1]] = axes
    return [entries]


@_entries.register
def _(A: ColumnParallel, side: str | None, axes: Axes) -> list[list[Axes]]:
    return _entries(A.map, "out", A.axes)


@_entries.register
def _(A: RowParallel, side: str | None, axes: Axes) -> list[list[Axes]]:
    return _entries(A.map, "in", A.axes)


@_entries.register
def _(A: FullySharded, side: str | None, axes: Axes) -> list[list[Axes]]:
    # The model axis first: each of its devices gathers a block of its own.
    return [[(*e[0], *A.axes), *e[1:]] if e else e for e in _entries(A.map, side, axes)]


@_entries.register
def _(A: TimeDistributed, side: str | None, axes: Axes) -> list[list[Axes]]:
    return _entries(A.map, side, axes)


@_entries.register
def _(A: Transposed, side: str | None, axes: Axes) -> list[list[Axes]]:
    return _entries(A.map, {"in": "out", "out": "in"}.get(side or ""), axes)


@_entries.register
def _(A: Scaled, side: str | None, axes: Axes) -> list[list[Axes]]:
    scalars = len(jax.tree.leaves(A)) - len(jax.tree.leaves(A.map))
    return _entries(A.map, side, axes) + [[]] * scalars


@_entries.register
def _(A: Sum, side: str | None, axes: Axes) -> list[list[Axes]]:
    return [entry for part in A.maps for entry in _entries(part, side, axes)]


@_entries.register
def _(A: Composed, side: str | None, axes: Axes) -> list[list[Axes]]:
    outer = _entries(A.outer, side if side == "out" else None, axes)
    return outer + _entries(A.inner, side if side == "in" else None, axes)
