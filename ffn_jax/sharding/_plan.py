"""What a step costs each device, on paper: FLOPs, bytes held and bytes sent, for a mesh that need not exist.

The layout is that of `partition_specs`. Of L sublayers on tokens cut over the data axes D and, by hidden features, over
the model axes M, forward and backward with every parameter's cotangent,

    sent    all-reduce of y and of x̄ over M; sequence parallel: all-gather of x and of ȳ, reduce-scatter of u and of x̄
            all-reduce of each parameter's cotangent over the axes of D and M that do not cut it
            fully sharded: all-gather of A's arrays, twice, and reduce-scatter of their cotangents in float32 or wider
    held    parameters, as many bytes of cotangents, and for each sublayer x and what `save` names

This is the least there is for each layout (the sources below), and what `jax.shard_map` with check_vma=True compiles
to: `communication` reads the same bytes off the HLO. Outside of a loop over layers XLA may merge the two all-gathers.

Sources: Megatron-LM, arXiv:1909.08053, section 3; sequence parallelism, arXiv:2205.05198, section 4.2; ZeRO,
arXiv:1910.02054, section 7; ring collectives as in `communication`.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from ffn_jax._checks import wide
from ffn_jax._mesh import Axes, axes_of
from ffn_jax.activations import gelu
from ffn_jax.sharding._communication import Collective, Communication, as_table
from ffn_jax.sharding._fully_sharded import is_fully_sharded
from ffn_jax.sharding._parallel import cross_alike
from ffn_jax.sharding._specs import Specs, partition_specs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jax import Array

    from ffn_jax.activations import Activation
    from ffn_jax.maps import LinearMap


@dataclasses.dataclass(frozen=True)
class Plan:
    """The costs of one step on one device; prints as a table.

    Attributes:
      mesh: the mesh's axes and their sizes.
      layers: how many sublayers.
      flops_forward: floating-point operations of the forward pass.
      flops_backward: of the backward pass, recomputation included.
      bytes_parameters: what the device keeps of all maps and biases.
      bytes_cotangents: of their cotangents.
      bytes_saved: of what the backward pass needs of all sublayers.
      bytes_gathered: of one fully sharded sublayer's whole maps, while it works.
      communication: all collectives of the step.
    """

    mesh: dict[str, int]
    layers: int
    flops_forward: int
    flops_backward: int
    bytes_parameters: int
    bytes_cotangents: int
    bytes_saved: int
    bytes_gathered: int
    communication: Communication

    @property
    def devices(self) -> int:
        """How many devices the mesh has."""
        return math.prod(self.mesh.values())

    @property
    def bytes_held(self) -> int:
        """Parameters, cotangents, saved tensors and one sublayer's gathered maps."""
        return self.bytes_parameters + self.bytes_cotangents + self.bytes_saved + self.bytes_gathered

    @property
    def bytes_sent(self) -> int:
        """By all collectives of the step."""
        return self.communication.bytes_sent()

    @property
    def flops_per_byte_sent(self) -> float:
        """FLOPs of the step for each byte sent, infinite where nothing is. FLOP/s over this is the network's load."""
        return (self.flops_forward + self.flops_backward) / self.bytes_sent if self.bytes_sent else math.inf

    def __str__(self) -> str:
        mesh = ", ".join(f"{axis} {n}" for axis, n in self.mesh.items())
        rows = [
            ("FLOPs", "forward", f"{self.flops_forward:.3g}"),
            ("", "backward", f"{self.flops_backward:.3g}"),
            ("bytes held", "parameters", _bytes(self.bytes_parameters)),
            ("", "cotangents", _bytes(self.bytes_cotangents)),
            ("", "saved", _bytes(self.bytes_saved)),
            ("", "gathered", _bytes(self.bytes_gathered)),
            ("", "in all", _bytes(self.bytes_held)),
            *(
                ("bytes sent" if not k else "", kind, _bytes(self.communication.bytes_sent(kind)))
                for k, kind in enumerate(("all-reduce", "all-gather", "reduce-scatter"))
            ),
            ("", "in all", _bytes(self.bytes_sent)),
        ]
        return f"{self.layers} sublayers on {self.devices} devices, {mesh}; per device:\n{as_table(rows)}"


def plan(
    mesh: Mesh | AbstractMesh,
    x: Any,
    A1: "LinearMap",
    b1: Any,
    A2: "LinearMap",
    b2: Any,
    *,
    data: str | Axes | None = None,
    layers: int = 1,
    activation: "Activation | Callable[[Array], Array]" = gelu,
    save: "Sequence[str]" = ("hidden_pre",),
) -> Plan:
    """FLOPs, bytes held and bytes sent per device of one forward and backward pass of `layers` equal sublayers.

    Nothing is computed, and no device is needed: the mesh may be an `AbstractMesh`, and arrays may be
    `jax.ShapeDtypeStruct`s, in maps too: `jax.eval_shape(lambda: fj.Dense(jnp.zeros((d, f))))`.

    Args:
      mesh: the mesh.
      x: the whole input, all devices' tokens.
      A1: its first map, whole, sharded as it will be.
      b1: its bias or None.
      A2: its second map.
      b2: its bias or None.
      data: the mesh axes that x's leading axis is cut over, as in `partition_specs`.
      layers: how many sublayers of this kind.
      activation: as in `ffn_residual`.
      save: likewise.

    Raises:
      TypeError, ValueError: as `partition_specs` and `ffn_residual`; or layers is no positive int.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> maps = lambda: (fj.Dense(jnp.zeros((1024, 4096), "bfloat16")), fj.Dense(jnp.zeros((4096, 1024), "bfloat16")))
    >>> A1, A2 = jax.eval_shape(maps)
    >>> A1, A2 = fj.sharding.column_parallel(A1, "model"), fj.sharding.row_parallel(A2, "model")
    >>> mesh = jax.sharding.AbstractMesh((64, 4), ("data", "model"))
    >>> x = jax.ShapeDtypeStruct((512, 2048, 1024), "bfloat16")
    >>> print(fj.sharding.plan(mesh, x, A1, None, A2, None, data="data", layers=24))
    24 sublayers on 256 devices, data 64, model 4; per device:
    FLOPs       forward         1.65e+12
                backward        3.31e+12
    bytes held  parameters        96 MiB
                cotangents        96 MiB
                saved            1.5 GiB
                gathered             0 B
                in all          1.69 GiB
    bytes sent  all-reduce      2.43 GiB
                all-gather           0 B
                reduce-scatter       0 B
                in all          2.43 GiB
    """
    where = "plan"
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
        raise ValueError(f"{where}: expected layers to be a positive int, got {layers!r}")
    specs = partition_specs(mesh, x, A1, b1, A2, b2, data=data)
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    cut, sequence = cross_alike(A1, A2, where)
    layout = _Layout(sizes, specs, cut, sequence, (x, A1, b1, A2, b2))
    forward, both = _flops(x, A1, b1, A2, b2, activation, tuple(save))
    workers = layout.devices(layout.inner | set(cut))
    parameters = layout.bytes_of((A1, b1, A2, b2), (specs.A1, specs.b1, specs.A2, specs.b2))
    return Plan(
        mesh=sizes,
        layers=layers,
        flops_forward=layers * forward // workers,
        flops_backward=layers * (both - forward) // workers,
        bytes_parameters=layers * parameters,
        bytes_cotangents=layers * parameters,
        bytes_saved=layers * layout.saved(tuple(save), activation),
        bytes_gathered=sum(layout.gathered(A, of) for A, of in ((A1, specs.A1), (A2, specs.A2))),
        communication=Communication(tuple(dataclasses.replace(c, times=layers) for c in layout.collectives())),
    )


def _flops(x: Any, A1: Any, b1: Any, A2: Any, b2: Any, activation: Any, save: tuple[str, ...]) -> tuple[int, int]:
    """Of the forward pass, and of both, by XLA's own count of the unsharded program before it is compiled."""
    from ffn_jax.ffn import ffn_residual

    def forward(x: Any, A1: Any, b1: Any, A2: Any, b2: Any) -> Any:
        return ffn_residual(x, A1, b1, A2, b2, activation=activation, save=save, chunk_size="none")

    def both(args: Any, ybar: Any) -> Any:
        y, pullback = jax.vjp(forward, *args)
        return y, pullback(ybar)

    args = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (x, A1, b1, A2, b2))
    ybar = jax.eval_shape(forward, *args)
    lowered = jax.jit(forward).lower(*args), jax.jit(both).lower(args, ybar)
    costs: list[Any] = [program.cost_analysis() for program in lowered]
    return int(costs[0]["flops"]), int(costs[1]["flops"])


class _Layout:
    """What is cut how, in bytes."""

    def __init__(self, sizes: dict[str, int], specs: Specs, cut: Axes, sequence: bool, args: tuple[Any, ...]):
        self.sizes, self.specs, self.cut, self.sequence, self.args = sizes, specs, cut, sequence, args
        # The axes that cut the tokens inside the sublayer: those of x, but for sequence parallelism's.
        self.outer = {axis for entry in specs.x for axis in axes_of(entry)}
        self.inner = self.outer - set(cut) if sequence else self.outer

    def devices(self, axes: Any) -> int:
        """How many devices lie along the axes."""
        return math.prod(self.sizes[axis] for axis in axes)

    def bytes(self, leaf: Any, spec: PartitionSpec, dtype: Any = None) -> int:
        """Of one device's part."""
        parts = self.devices(axis for entry in spec for axis in axes_of(entry))
        size: int = math.prod(leaf.shape) * jax.numpy.dtype(dtype or leaf.dtype).itemsize // parts
        return size

    def bytes_of(self, tree: Any, specs: Any) -> int:
        """Of one device's parts of all arrays."""
        return sum(map(self.bytes, jax.tree.leaves(tree), jax.tree.leaves(specs)))

    def tokens(self, leaf: Any) -> int:
        """Bytes of an array of x's batch shape on one device, inside the sublayer."""
        size: int = math.prod(leaf.shape) * leaf.dtype.itemsize // self.devices(self.inner)
        return size

    def saved(self, save: tuple[str, ...], activation: Any) -> int:
        """Bytes that one sublayer keeps."""
        x, A1, _, A2, _ = self.args
        batch = x.shape[: x.ndim - len(A1.in_shape)]
        kept = {"hidden_pre": A1.out_shape, "hidden_act": A2.in_shape}
        hidden = [jax.ShapeDtypeStruct((*batch, *kept[name]), x.dtype) for name in save]
        return self.tokens(x) + sum(self.tokens(leaf) for leaf in hidden) // self.devices(self.cut)

    def gathered(self, A: Any, specs: Any) -> int:
        """Bytes of the whole of what is fully sharded in A."""
        return sum(self.bytes(leaf, spec) * n for leaf, spec, n in self._fully_sharded(A, specs))

    def _fully_sharded(self, A: Any, specs: Any) -> list[tuple[Any, PartitionSpec, int]]:
        nodes = [n for n in jax.tree.leaves(A, is_leaf=is_fully_sharded) if is_fully_sharded(n)]
        layouts = [n for n in jax.tree.leaves(specs, is_leaf=is_fully_sharded) if is_fully_sharded(n)]
        return [
            (leaf, spec, self.devices(node.axes))
            for node, layout in zip(nodes, layouts, strict=True)
            for leaf, spec in zip(jax.tree.leaves(node), jax.tree.leaves(layout), strict=True)
            if leaf.ndim
        ]

    def collectives(self) -> list[Collective]:
        """Of one sublayer, forward and backward."""
        x, A1, b1, A2, b2 = self.args
        specs = self.specs
        found: list[Collective] = []

        def add(kind: str, dtype: Any, size: int, axes: Any) -> None:
            n = self.devices(axes)
            if n > 1 and size:
                found.append(Collective(kind, str(jax.numpy.dtype(dtype)), size, n))

        y = jax.ShapeDtypeStruct((*x.shape[: x.ndim - len(A1.in_shape)], *A2.out_shape), x.dtype)
        for tensor in (x, y) if self.sequence else ():
            add("all-gather", x.dtype, self.tokens(tensor), self.cut)
            add("reduce-scatter", x.dtype, self.tokens(tensor), self.cut)
        for tensor in () if self.sequence else (x, y):
            add("all-reduce", x.dtype, self.tokens(tensor), self.cut)

        for A, layout in ((A1, specs.A1), (A2, specs.A2)):
            for leaf, spec, n in self._fully_sharded(A, layout):
                for kind, dtype in (("all-gather", leaf.dtype),) * 2 + (("reduce-scatter", wide(leaf.dtype)),):
                    if n > 1:
                        found.append(Collective(kind, str(dtype), self.bytes(leaf, spec, dtype) * n, n))

        everywhere = self.inner | set(self.cut)
        of = ((A1, specs.A1, everywhere), (b1, specs.b1, everywhere), (A2, specs.A2, everywhere))
        for tree, layout, varies in (*of, (b2, specs.b2, self.outer)):
            for leaf, spec in zip(jax.tree.leaves(tree), jax.tree.leaves(layout), strict=True):
                own = {axis for entry in spec for axis in axes_of(entry)}
                add("all-reduce", leaf.dtype, self.bytes(leaf, spec), varies - own)
        return found


def _bytes(n: float) -> str:
    k = min(4, int(math.log2(n) // 10)) if n else 0
    return f"{n / 1024**k:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[k]}"
