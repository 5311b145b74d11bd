"""Activations as pairs: the value σ(z), and the value with its derivative from one evaluation.

For an elementwise σ the pair gives (h, D) = (σ(z), σ'(z)) and the pullback is z̄ = D ⊙ h̄. A gated unit takes a
hidden of shape (..., 2, d_ff), gate first, to h = σ(z₀) ⊙ z₁ of shape (..., d_ff); then D has the hidden's shape,

    D₀ = σ'(z₀) ⊙ z₁        D₁ = σ(z₀)        z̄ = D ⊙ h̄[..., None, :]

and nothing else changes. tanh, erfc or the logistic function is evaluated once for both. Half-precision inputs
are evaluated in float32 and rounded once.

Sources: GELU, Hendrycks and Gimpel 2016 (arXiv:1606.08415), eq. 2 (tanh form) and section 2 (exact form);
SiLU, Elfwing et al. 2017 (arXiv:1702.03118); squared ReLU, So et al. 2021 (arXiv:2109.08668);
SwiGLU and GEGLU, Shazeer 2020 (arXiv:2002.05202), eq. 6.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from ffn_jax._checks import check_floating, shown, wide
from ffn_jax._fast import kept

if TYPE_CHECKING:
    from jax import Array

Value = Callable[["Array"], "Array"]
ValueAndDerivative = Callable[["Array"], "tuple[Array, Array]"]

_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
_SQRT_HALF = math.sqrt(0.5)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation: callable, hashable, and a pair of functions; a pytree without leaves.

    Attributes:
      name: what it prints as.
      value: z -> σ(z).
      value_and_derivative: z -> (σ(z), D), as the module's equations say.
      base: of a gated unit made by `gated` the activation of its gate; of all others None.
    """

    name: str
    value: Value
    value_and_derivative: ValueAndDerivative
    base: "Activation | None" = None

    def __call__(self, z: "Array") -> "Array":
        """σ(z), in z's dtype; half types are evaluated in float32."""
        check_floating(z, self.name, "z")
        return self.value(z.astype(wide(z.dtype))).astype(z.dtype)

    def with_derivative(self, z: "Array") -> "tuple[Array, Array]":
        """(σ(z) in z's dtype, D in float32 or wider)."""
        h, derivative = self.value_and_derivative(z.astype(wide(z.dtype)))
        return h.astype(z.dtype), derivative

    def __repr__(self) -> str:
        return self.name


def activation(value: Value, value_and_derivative: ValueAndDerivative, name: str | None = None) -> Activation:
    """An activation of your own with its derivative by hand.

    A plain function needs no wrapping: `ffn_residual(..., activation=jnp.tanh)` takes its derivative by `jax.vjp`.

    Args:
      value: z -> h, of one token's hidden features; h has z's shape, or z's less a gate axis of 2 before the last.
      value_and_derivative: z -> (h, D) with D of z's shape: D[i] = dh[i]/dz[i], and for gated units
        D[k, i] = dh[i]/dz[k, i]. Check it with `ffn_jax.verify.check_vjp`.
      name: what it prints as; by default the function's name.

    Raises:
      TypeError: an argument is not callable.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> cube = fj.activation(lambda z: z**3, lambda z: (z**3, 3 * z**2), name="cube")
    >>> cube(jnp.array([2.0])).tolist()
    [8.0]
    """
    for argument, f in (("value", value), ("value_and_derivative", value_and_derivative)):
        if not callable(f):
            raise TypeError(f"activation: expected {argument} to be callable, got {shown(f)}")
    return Activation(name or str(getattr(value, "__name__", "activation")), value, value_and_derivative)


def gated(base: Activation, name: str | None = None) -> Activation:
    """The gated unit h = σ(z₀) ⊙ z₁ on a hidden of shape (..., 2, d_ff); `gated(relu)` is ReGLU.

    Raises:
      TypeError: base is not an `Activation`.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> fj.gated(fj.relu)(jnp.array([[-1.0, 2.0], [3.0, 4.0]])).tolist()
    [0.0, 8.0]
    """
    if not isinstance(base, Activation):
        raise TypeError(f"gated: expected an Activation, got {shown(base)}")
    return _gated(base, name)


@cache
def _gated(base: Activation, name: str | None) -> Activation:
    def value(z: "Array") -> "Array":
        return gate_value(base, _gate(z, 0), _gate(z, 1))

    def value_and_derivative(z: "Array") -> "tuple[Array, Array]":
        h, derivatives = gate_pair(base, _gate(z, 0), _gate(z, 1))
        return h, jnp.stack(derivatives, axis=-2)

    return Activation(name or f"gated({base.name})", value, value_and_derivative, base)


def gate_value(base: Activation, gate: "Array", up: "Array") -> "Array":
    """σ(z₀) ⊙ z₁, the gates apart."""
    return base.value(gate) * up


def gate_pair(base: Activation, gate: "Array", up: "Array") -> "tuple[Array, tuple[Array, Array]]":
    """(σ(z₀) ⊙ z₁, (D₀, D₁)), the gates apart."""
    g, dg = base.value_and_derivative(gate)
    return g * up, (dg * up, g)


def _gate(z: "Array", k: int) -> "Array":
    if z.ndim < 2 or z.shape[-2] != 2:
        raise ValueError(f"gated activation: expected z of shape (..., 2, d_ff), got {tuple(z.shape)}")
    return lax.index_in_dim(z, k, axis=-2, keepdims=False)


# ------------------------------------------------------------------------------------- the shipped ones


def _gelu(z: "Array") -> "Array":
    # XLA on GPUs recognises this expression after a product and a bias, and makes one call of the three.
    return z * (0.5 * (1.0 + jnp.tanh(_SQRT_2_OVER_PI * (z + 0.044715 * (z * (z * z))))))


def _gelu_pair(z: "Array") -> "tuple[Array, Array]":
    zz = z * z
    t = jnp.tanh(_SQRT_2_OVER_PI * (z + 0.044715 * (z * zz)))
    phi = 0.5 * (1.0 + t)
    slope = (0.5 * _SQRT_2_OVER_PI) * (1.0 + 0.134145 * zz)
    return z * phi, phi + z * ((1.0 - t * t) * slope)


def _gelu_exact(z: "Array") -> "Array":
    return z * (0.5 * lax.erfc(-_SQRT_HALF * z))


def _gelu_exact_pair(z: "Array") -> "tuple[Array, Array]":
    phi = kept(0.5 * lax.erfc(-_SQRT_HALF * z))
    density = (0.5 * _SQRT_2_OVER_PI) * jnp.exp(-0.5 * (z * z))
    return z * phi, phi + z * density


def _silu(z: "Array") -> "Array":
    return z * lax.logistic(z)


def _silu_pair(z: "Array") -> "tuple[Array, Array]":
    s = lax.logistic(z)
    h = z * s
    return h, s + h * (1.0 - s)


def _quick_gelu(z: "Array") -> "Array":
    return z * lax.logistic(1.702 * z)


def _quick_gelu_pair(z: "Array") -> "tuple[Array, Array]":
    s = lax.logistic(1.702 * z)
    h = z * s
    return h, s + (1.702 * h) * (1.0 - s)


def _relu(z: "Array") -> "Array":
    return jnp.where(z <= 0, 0.0, z)  # a NaN goes through


def _relu_pair(z: "Array") -> "tuple[Array, Array]":
    return _relu(z), jnp.where(z <= 0, 0.0, jnp.ones_like(z))


def _relu_squared(z: "Array") -> "Array":
    r = _relu(z)
    return r * r


def _relu_squared_pair(z: "Array") -> "tuple[Array, Array]":
    r = _relu(z)
    return r * r, 2.0 * r


gelu = Activation("gelu", _gelu, _gelu_pair)
"""GELU in its tanh form, z/2 (1 + tanh(√(2/π) (z + 0.044715 z³))): the default, as in GPT-2 and flax."""

gelu_exact = Activation("gelu_exact", _gelu_exact, _gelu_exact_pair)
"""GELU in its exact form, z Φ(z) with the normal distribution function Φ, as in BERT and PyTorch's default.

Φ is evaluated by erfc, which is accurate in the negative tail; erf is cheaper but loses all digits there
(`benchmarks/results/exact_gelu.json`).
"""

silu = Activation("silu", _silu, _silu_pair)
"""SiLU (swish), z / (1 + e⁻ᶻ)."""

quick_gelu = Activation("quick_gelu", _quick_gelu, _quick_gelu_pair)
"""The sigmoid approximation of GELU, z / (1 + e^(-1.702 z)), as in CLIP."""

relu = Activation("relu", _relu, _relu_pair)
"""max(z, 0), with derivative 0 at the kink z = 0."""

relu_squared = Activation("relu_squared", _relu_squared, _relu_squared_pair)
"""max(z, 0)²."""

swiglu = gated(silu, "swiglu")
"""silu(z₀) ⊙ z₁ on a hidden of shape (..., 2, d_ff), as in Llama: z₀ the gate, z₁ the up projection."""

geglu = gated(gelu, "geglu")
"""gelu(z₀) ⊙ z₁ on a hidden of shape (..., 2, d_ff), with the tanh form; `gated(gelu_exact)` has the exact one."""
