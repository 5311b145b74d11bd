"""Where the result of a product lives on a mesh with explicit axes.

JAX infers the sharding of x · W unless the contracted axes are sharded or one mesh axis would appear twice. With x of
spec (data, seq, in) and W of spec (in, out), each entry a set of mesh axes, the result is given the spec

    (data, seq − out, out − data)

An axis of the leading batch axis is data parallelism: weights sharded over it too (FSDP) are gathered. One of a later
token axis is sequence parallelism: where W's outputs use it as well, x is gathered. XLA adds the sums and gathers.
"""

from typing import TYPE_CHECKING

from jax.sharding import NamedSharding, PartitionSpec

from ffn_jax._mesh import axes_of, entry_of, explicit_sharding

if TYPE_CHECKING:
    from jax import Array


def product_sharding(x: "Array", weight: "Array", axes: tuple[int, ...]) -> NamedSharding | None:
    """The sharding of x contracted over its trailing axes with `axes` of the weight; None without explicit axes.

    Raises:
      ValueError: x and the weight are on different meshes.
    """
    of_x, of_weight = explicit_sharding(x), explicit_sharding(weight)
    known = of_x or of_weight
    if known is None:
        return None
    if of_x and of_weight and of_x.mesh != of_weight.mesh:
        raise ValueError(f"expected x and the weight on one mesh, got {of_x.mesh} and {of_weight.mesh}")
    batch = [axes_of(e) for e in of_x.spec[: x.ndim - len(axes)]] if of_x else [()] * (x.ndim - len(axes))
    others = [k for k in range(weight.ndim) if k not in axes]
    out = [axes_of(of_weight.spec[k]) for k in others] if of_weight else [()] * len(others)
    data = batch[0] if batch else ()
    out = [tuple(a for a in entry if a not in data) for entry in out]
    used = {a for entry in out for a in entry}
    batch = [tuple(a for a in entry if a not in used) for entry in batch]
    return NamedSharding(known.mesh, PartitionSpec(*map(entry_of, (*batch, *out))))
