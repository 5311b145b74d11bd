"""What the rule has to know of meshes: which axes are manual, what varies over them, how an array is laid out.

Inside `jax.shard_map` every value has a type: it *varies* over some manual axes and is the same along the others. The
cotangent of a `custom_vjp` argument must vary as the argument does. So the sublayer marks all that it is given as
varying over whatever any of it varies over, before the rule is called: JAX then sums the cotangents of what was the
same on every device, and the rule needs no sum over devices of its own. With `check_vma=False` nothing has such a
type and marking does nothing; there `shard_map` itself sums, at its boundary.

On a mesh with explicit axes an array's type carries its `PartitionSpec`, and a cotangent's must be its primal's.
"""

from typing import TYPE_CHECKING, Any

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

if TYPE_CHECKING:
    from jax import Array

Axes = tuple[str, ...]


def axes_of(entry: Any) -> Axes:
    """The mesh axes in one entry of a PartitionSpec: None, a name or a tuple of names."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def entry_of(axes: Axes) -> Any:
    """The inverse of `axes_of`."""
    return None if not axes else axes[0] if len(axes) == 1 else axes


def is_local(axes: Axes, where: str) -> bool:
    """Whether arrays are one device's part along `axes`: inside a `shard_map` over them.

    Raises:
      ValueError: a mesh is in scope and lacks one of the axes, or only some of them are manual.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return False
    for axis in axes:
        if axis not in mesh.axis_names:
            raise ValueError(f"{where}: expected an axis of the mesh {tuple(mesh.axis_names)}, got {axis!r}")
    manual = [axis in mesh.manual_axes for axis in axes]
    if any(manual) and not all(manual):
        raise ValueError(f"{where}: expected shard_map over all of {axes} or none, got {tuple(mesh.manual_axes)}")
    return all(manual)


def varying(x: Any) -> frozenset[str]:
    """The manual mesh axes over which x varies; none outside of shard_map and with check_vma=False."""
    return frozenset(jax.typeof(x).manual_axis_type.varying)


def checks_vma(axis: str) -> bool:
    """Whether the `shard_map` in scope is one with check_vma=True."""
    return axis in varying(lax.axis_index(axis))


def vary_together(*trees: Any) -> Any:
    """`trees` with every leaf varying over all axes that any leaf varies over.

    The transpose of the mark is a sum over those axes: this is Megatron's f (arXiv:1909.08053, section 3) for x
    and the sum of data parallelism for parameters.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return trees
    union = frozenset().union(*(varying(leaf) for leaf in jax.tree.leaves(trees)))

    def vary(leaf: Any) -> Any:
        missing = tuple(sorted(union - varying(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, trees)


def explicit_sharding(x: Any) -> NamedSharding | None:
    """x's sharding where its mesh has explicit axes, else None."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    if sharding is None or sharding.mesh.empty or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return sharding


def like_sharding(primal: Any, cotangent: "Array") -> "Array":
    """`cotangent` laid out as its primal is; only explicit axes make a difference."""
    sharding = explicit_sharding(primal)
    if sharding is None or jax.typeof(cotangent).sharding == sharding:
        return cotangent
    return jax.sharding.reshard(cotangent, sharding)


def struct_like(y: "Array", batch: tuple[int, ...], shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """An input `(*batch, *shape)` that meets y: of y's dtype, and in its batch axes where y is."""
    kind, sharding = jax.typeof(y).manual_axis_type, explicit_sharding(y)
    if sharding is not None:
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[: len(batch)]))
    return jax.ShapeDtypeStruct((*batch, *shape), y.dtype, sharding=sharding, manual_axis_type=kind)


def check_unsharded_tokens(x: Any, where: str, chunk_size: int) -> None:
    """Chunks cut the token axes, which an explicit mesh axis may cut already: raises ValueError."""
    sharding = explicit_sharding(x)
    if sharding is not None and any(axes_of(entry) for entry in sharding.spec[:-1]):
        raise ValueError(
            f"{where}: expected x with tokens on one device for chunk_size={chunk_size}, got them cut over an explicit "
            f"mesh as {sharding.spec}; take chunks inside jax.shard_map, of each device's own tokens"
        )


def check_devices(args: Any, where: str) -> None:
    """Raises ValueError where arrays at hand were put on different sets of devices."""
    first: Any = None
    for path, leaf in jax.tree_util.tree_leaves_with_path(args):
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer) or not leaf.committed:
            continue
        name = ("x", "A1", "b1", "A2", "b2")[path[0].idx]
        first = first or (name, leaf)
        if leaf.sharding.device_set != first[1].sharding.device_set:
            raise ValueError(
                f"{where}: expected all arguments on the same devices, got {first[0]} on {_devices(first[1])} and "
                f"{name} on {_devices(leaf)}; see jax.device_put and ffn_jax.sharding.partition_specs"
            )


def _devices(x: "Array") -> str:
    devices: set[Any] = x.sharding.device_set
    return ", ".join(map(str, sorted(devices, key=lambda device: device.id)))
