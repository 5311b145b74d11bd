"""`FusedDense`: a `Dense` that offers product, bias and activation in one kernel. Experimental.

    as A1    (x, b)  ->  z = A x + b,  h = σ(z)
    as A2    (y, z)  ->  h = σ(z),     z̄ = σ'(z) ⊙ Aᵀ y

The kernels are in `ffn_jax.maps._fused_kernels`. The sublayer's own backward is differentiated for second derivatives,
which a kernel is not: there the plain formula stands in.
"""

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from ffn_jax._checks import Shape, size, wide
from ffn_jax._pytree import pytree_dataclass, static
from ffn_jax.activations import Activation
from ffn_jax.maps import _fused_kernels
from ffn_jax.maps._dense import Dense, Layout
from ffn_jax.maps._fused_kernels import TILES, Step

if TYPE_CHECKING:
    from jax import Array


@pytree_dataclass
class FusedDense(Dense):
    """`Dense` for one hidden layer, with a Pallas kernel for product + bias + activation. Experimental: opt in by name.

    As a map it is `Dense`: its products, transpose and pullback are the same plain JAX. Only inside `ffn_residual` and
    its siblings it offers one step more: as A1 of product, bias and activation, as A2 of the transposed product times
    σ'(z). Where that step does not apply the rule takes the plain path, with the same result: an activation that is a
    plain function or closes over an array, `gelu_exact` except on a CPU (Pallas has no erfc), a bias that varies over
    the tokens, no tokens at all, symbolic sizes; in the backward pass also dropout on the hidden and a seed on
    hidden_act. An `Activation` must act on each feature alone.

    No GPU or TPU has run or measured it: only that its kernels lower for them is tested. It is meant for one device:
    XLA does not split a kernel over several.

    Args:
      weight: `(d, d_ff)`, or `(d, 2, d_ff)` for gated units; for `layout="out_in"` `(d_ff, d)` or `(2, d_ff, d)`.
      in_ndim: 1.
      layout: "in_out" or "out_in", as `Dense` has it.
      tiles: how many tokens and hidden features make a tile, and the step of its sums: powers of two from 16 on; None:
        the backend's.
      backend: what the kernel is for: "gpu" (Triton, of which JAX 0.12 warns that it is deprecated), "tpu", or "cpu",
        where it is interpreted, slowly, on whatever device, for tests. None: JAX's default backend.

    Raises:
      TypeError: weight is not a floating array, or tiles are no three ints.
      ValueError: weight has other axes, in_ndim is not 1, tiles are no powers of two from 16 on, or backend is unknown.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> A1, A2 = fj.FusedDense(jnp.ones((8, 32))), fj.FusedDense(jnp.ones((32, 8)))
    >>> x = jnp.ones((4, 8))
    >>> "pallas_call" in str(jax.make_jaxpr(lambda x: fj.ffn_residual(x, A1, None, A2, None))(x))
    True
    """

    tiles: tuple[int, int, int] | None = static(default=None)
    backend: Literal["cpu", "gpu", "tpu"] | None = static(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.in_ndim != 1:
            raise ValueError(f"FusedDense: expected in_ndim=1, got {self.in_ndim}; Dense takes several input axes")
        if not (self.weight.ndim == 2 or (self.weight.ndim == 3 and self.out_shape[0] == 2)):
            shapes = "(d, d_ff) or (d, 2, d_ff)" if self.layout == "in_out" else "(d_ff, d) or (2, d_ff, d)"
            raise ValueError(
                f"FusedDense: expected a weight of shape {shapes} for layout {self.layout!r}, got "
                f"{tuple(self.weight.shape)}; Dense takes any"
            )
        if self.backend not in (None, *TILES):
            raise ValueError(f"FusedDense: expected backend to be 'cpu', 'gpu', 'tpu' or None, got {self.backend!r}")
        if self.tiles is None:
            return
        if not isinstance(self.tiles, (tuple, list)) or [type(n) for n in self.tiles] != [int] * 3:
            raise TypeError(f"FusedDense: expected tiles to be three ints or None, got {self.tiles!r}")
        object.__setattr__(self, "tiles", tuple(self.tiles))
        if any(n < 16 or n & (n - 1) for n in self.tiles):
            raise ValueError(f"FusedDense: expected tiles to be powers of two from 16 on, got {self.tiles}")

    @property
    def T(self) -> Dense:  # noqa: N802
        """The transpose, on the same weight; of a map to two gates a `Dense`."""
        layout: Layout = "out_in" if self.layout == "in_out" else "in_out"
        return dataclasses.replace(self, layout=layout) if self.weight.ndim == 2 else super().T

    def activated(
        self, x: "Array", b: "Array | None", activation: Activation, keep_pre: bool
    ) -> "tuple[Array | None, Array] | None":
        """(z, h) in one kernel."""
        batch = self._batch(x, self.in_shape)
        step = self._step(activation, self.out_shape, batch, keep_pre)
        b = jnp.zeros((), x.dtype) if b is None else b
        if step is None or any(n != 1 for n in b.shape[: -len(self.out_shape)]):
            return None
        b = jnp.broadcast_to(b.reshape(b.shape[-len(self.out_shape) :]), self.out_shape)
        z, h = _activated(step, x.reshape(size(batch), -1), self.weight, b)
        return z if z is None else z.reshape(*batch, *self.out_shape), h.reshape(*batch, h.shape[-1])

    def transpose_activated(
        self, y: "Array", z: "Array", activation: Activation, want_act: bool
    ) -> "tuple[Array | None, Array] | None":
        """(h, σ'(z) ⊙ Aᵀ y) in one kernel."""
        batch = self._batch(y, self.out_shape)
        step = self._step(activation, z.shape[len(batch) :], batch, want_act)
        if step is None or self.weight.ndim != 2:
            return None
        flat_y, flat_z = (a.reshape(size(batch), *a.shape[len(batch) :]) for a in (y, z))
        h, zbar = _transpose_activated(step, flat_y, self.weight, flat_z)
        return h if h is None else h.reshape(*batch, h.shape[-1]), zbar.reshape(z.shape)

    def _step(self, activation: Activation, hidden: Shape, batch: Shape, both: bool) -> "Step | None":
        """The static part of a kernel, or None where none fits."""
        sizes = (*batch, *self.weight.shape)
        fits = len(hidden) == 1 if activation.base is None else len(hidden) == 2
        if not fits or not all(isinstance(n, int) and n > 0 for n in sizes):
            return None
        backend = self.backend or jax.default_backend()
        if backend not in TILES or not _has_kernel(activation.base or activation, backend, wide(self.dtype)):
            return None
        return Step(activation, self.layout, backend, self.tiles or TILES[backend], both)


def _has_kernel(activation: Activation, backend: str, dtype: Any) -> bool:
    """Whether a kernel can evaluate the activation: on any tile, so without arrays of its own, and in Pallas."""
    try:
        program = jax.make_jaxpr(activation.value_and_derivative)(jax.ShapeDtypeStruct((16, 16), dtype))
    except (TypeError, ValueError):
        return False
    return not program.consts and (backend == "cpu" or "erfc" not in str(program))


# ------------------------------------------------------------------------------- the two steps, and their derivatives


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _activated(step: Step, x: "Array", weight: "Array", b: "Array") -> "tuple[Array | None, Array]":
    return _fused_kernels.forward(step, x, weight, b)


def _plain_activated(step: Step, x: "Array", weight: "Array", b: "Array") -> "tuple[Array | None, Array]":
    z = Dense(weight, layout=step.layout).apply(x)
    z = z + jnp.broadcast_to(b, z.shape)
    return z if step.both else None, step.activation(z)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _transpose_activated(step: Step, y: "Array", weight: "Array", z: "Array") -> "tuple[Array | None, Array]":
    return _fused_kernels.backward(step, y, weight, z)


def _plain_transpose_activated(step: Step, y: "Array", weight: "Array", z: "Array") -> "tuple[Array | None, Array]":
    hbar = Dense(weight, layout=step.layout).transpose_apply(y).astype(wide(y.dtype))
    h, derivative = step.activation.with_derivative(z)
    zbar = derivative * (hbar if h.ndim == z.ndim else jnp.expand_dims(hbar, -2))
    return h if step.both else None, zbar.astype(z.dtype)


_activated.defjvp(
    lambda step, args, tangents: (
        _activated(step, *args),
        jax.jvp(partial(_plain_activated, step), args, tangents)[1],
    )
)
_transpose_activated.defjvp(
    lambda step, args, tangents: (
        _transpose_activated(step, *args),
        jax.jvp(partial(_plain_transpose_activated, step), args, tangents)[1],
    )
)
