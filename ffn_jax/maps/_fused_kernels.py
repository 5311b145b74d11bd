"""The two Pallas kernels of `FusedDense`.

Over tiles of t tokens and f hidden features,

    forward     z = Σ_k x[t, k] W[k, g, f] + b[g, f]      h = σ(z)            written: h, and z where it is kept
    backward    h̄ = Σ_k y[t, k] W[k, 0, f]                z̄ = σ'(z) ⊙ h̄       written: z̄, and h where it is wanted

so that what the product leaves in registers is not written and read again before the activation. g runs over one gate,
or two of a gated unit; the weight may lie as W[g, f, k] too. One program of the grid makes one tile: it sums over k in
steps, in float32 for half types, rounds z to its dtype (h is σ of the z that is kept) and evaluates σ in float32.
Sizes that the tiles do not divide are padded with zeros, which add nothing to a sum; what lies beyond is cut off.

The kernels keep to what Pallas' backends share. For GPUs they are lowered by way of Triton, which JAX 0.12 deprecates
with a warning, for TPUs of Mosaic; both lowerings are tested. On a CPU they are interpreted, which is for tests. No GPU
or TPU has run them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from ffn_jax._checks import wide
from ffn_jax.activations import Activation, gate_pair, gate_value
from ffn_jax.maps._dense import Layout

if TYPE_CHECKING:
    from jax import Array


TILES = {"cpu": (64, 64, 32), "gpu": (64, 64, 32), "tpu": (128, 128, 128)}
"""The sizes of tiles by backend: small enough for shared memory; on TPUs as large as their registers ask."""


class Step(NamedTuple):
    """What is static in a kernel.

    Attributes:
      activation: σ, of each feature alone.
      layout: the weight's.
      backend: one of `TILES`.
      tiles: the sizes t and f of a tile, and the step of the sum over k.
      both: whether z (forward) or h (backward) is written too.
    """

    activation: Activation
    layout: Layout
    backend: str
    tiles: tuple[int, int, int]
    both: bool


def forward(step: Step, x: "Array", weight: "Array", b: "Array") -> "tuple[Array | None, Array]":
    """(z, h) for `x: (t, k)`, `b: (f,)` or `(2, f)`; z None where `step.both` does not ask for it."""
    axes, gates = ("kgf" if step.layout == "in_out" else "gfk"), b.size // b.shape[-1]

    def kernel(x_ref: Any, w_ref: Any, b_ref: Any, h_ref: Any, z_ref: Any = None) -> None:
        zs = []
        for g in range(gates):
            product = _product(step, x_ref, w_ref, axes, g)
            zs.append((product + b_ref[g, :].astype(product.dtype)[None, :]).astype(x.dtype))
            if z_ref is not None:
                z_ref[:, g, :] = zs[g]
        h_ref[...] = _value(step.activation, zs).astype(x.dtype)

    operands = [(x, "tk"), (_with_gate(weight, axes), axes), (b.reshape(gates, -1), "gf")]
    h, *z = _call(kernel, step, operands, ["tf", "tgf"][: 1 + step.both])
    return (z[0].reshape(x.shape[0], *b.shape) if z else None), h


def backward(step: Step, y: "Array", weight: "Array", z: "Array") -> "tuple[Array | None, Array]":
    """(h, z̄) for `y: (t, k)`, `z: (t, f)` or `(t, 2, f)`; h None where `step.both` does not ask for it."""
    axes, gates = ("gfk" if step.layout == "in_out" else "kgf"), 1 if z.ndim == 2 else 2

    def kernel(y_ref: Any, w_ref: Any, z_ref: Any, zbar_ref: Any, h_ref: Any = None) -> None:
        hbar = _product(step, y_ref, w_ref, axes, 0)
        h, derivatives = _pair(step.activation, [z_ref[:, g, :] for g in range(gates)])
        for g, derivative in enumerate(derivatives):
            zbar_ref[:, g, :] = (derivative * hbar).astype(z.dtype)
        if h_ref is not None:
            h_ref[...] = h.astype(z.dtype)

    operands = [(y, "tk"), (_with_gate(weight, axes), axes), (z.reshape(z.shape[0], gates, -1), "tgf")]
    zbar, *h = _call(kernel, step, operands, ["tgf", "tf"][: 1 + step.both])
    return (h[0] if h else None), zbar.reshape(z.shape)


def _with_gate(weight: "Array", axes: str) -> "Array":
    return weight if weight.ndim == 3 else jnp.expand_dims(weight, axes.index("g"))


# ------------------------------------------------------------------------------- inside a program


def _product(step: Step, x_ref: Any, w_ref: Any, axes: str, g: int) -> "Array":
    """Σ_k x[t, k] W[k, g, f] of one tile, in float32 for half types."""
    by, (t, k) = step.tiles[2], x_ref.shape
    by = _tile(k, by)
    k_first = axes == "kgf"
    f = w_ref.shape[axes.index("f")]

    def add(i: Any, total: "Array") -> "Array":
        at = pl.ds(i * by, by)
        w = w_ref[at, g, :] if k_first else w_ref[g, :, at]
        dimensions = ((1,), (0 if k_first else 1,)), ((), ())
        return total + lax.dot_general(x_ref[:, at], w, dimensions, preferred_element_type=total.dtype)

    return lax.fori_loop(0, k // by, add, jnp.zeros((t, f), wide(x_ref.dtype)))


def _value(activation: Activation, zs: "list[Array]") -> "Array":
    """σ of the gates, apart and in float32 for half types."""
    zs = [z.astype(wide(z.dtype)) for z in zs]
    return activation.value(zs[0]) if activation.base is None else gate_value(activation.base, *zs)


def _pair(activation: Activation, zs: "list[Array]") -> "tuple[Array, tuple[Array, ...]]":
    """σ of the gates and its derivative for each."""
    zs = [z.astype(wide(z.dtype)) for z in zs]
    if activation.base is not None:
        return gate_pair(activation.base, *zs)
    h, derivative = activation.value_and_derivative(zs[0])
    return h, (derivative,)


# ------------------------------------------------------------------------------- around the programs


def _call(
    kernel: Callable[..., None], step: Step, operands: "list[tuple[Array, str]]", results: list[str]
) -> "list[Array]":
    """Runs the kernel on a grid of tiles; every operand and result comes with the letters of its axes."""
    sizes = {letter: n for array, axes in operands for letter, n in zip(axes, array.shape, strict=True)}
    tiles = {letter: _tile(sizes[letter], n) for letter, n in zip("tfk", step.tiles, strict=True)}
    padded = {letter: -(-n // tiles.get(letter, 1)) * tiles.get(letter, 1) for letter, n in sizes.items()}
    block = padded | {"t": tiles["t"], "f": tiles["f"]}

    def spec(axes: str) -> pl.BlockSpec:
        def index(i: Any, j: Any) -> tuple[Any, ...]:
            return tuple({"t": i, "f": j}.get(letter, 0) for letter in axes)

        return pl.BlockSpec(tuple(block[letter] for letter in axes), index)

    dtype = operands[0][0].dtype
    outs = pl.pallas_call(
        kernel,
        grid=(padded["t"] // tiles["t"], padded["f"] // tiles["f"]),
        in_specs=[spec(axes) for _, axes in operands],
        out_specs=[spec(axes) for axes in results],
        out_shape=[jax.ShapeDtypeStruct(tuple(padded[letter] for letter in axes), dtype) for axes in results],
        interpret=step.backend == "cpu",
        compiler_params=_triton() if step.backend == "gpu" else None,
    )(*(_pad(array, [padded[letter] for letter in axes]) for array, axes in operands))
    return [lax.slice(out, [0] * len(axes), [sizes[a] for a in axes]) for out, axes in zip(outs, results, strict=True)]


def _triton() -> Any:
    """What asks for Triton: on GPUs Mosaic has no such product. Imported here as JAX is to drop it."""
    from jax.experimental.pallas import triton

    return triton.CompilerParams()


def _tile(n: int, at_most: int) -> int:
    """A power of two for n things: no more than `at_most`, no larger than needed, and no less than a product takes."""
    return min(at_most, max(16, 1 << (n - 1).bit_length()))


def _pad(array: "Array", shape: list[int]) -> "Array":
    """The array with zeros behind it up to `shape`."""
    return jnp.pad(array, [(0, n - m) for n, m in zip(shape, array.shape, strict=True)])
