"""How the sublayer differentiates an activation: `value(θ, z)` and `pullback(θ, z) -> h, (h̄ -> θ̄, z̄)`.

An `Activation` carries its derivative: z̄ = D ⊙ h̄, and has no θ. A plain function is differentiated by `jax.vjp`
as it is, elementwise or not (a softmax over the features, say), but it acts on each token alone: it is mapped
over the token axes, so that no way of batching or chunking tokens can change its meaning. Arrays that it closes
over while they are traced are its θ, and get gradients.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ffn_jax._checks import Shape, contains_tracer, is_array
from ffn_jax._compat import evaluate_with_consts
from ffn_jax.activations import Activation

if TYPE_CHECKING:
    from jax import Array

    Pullback = Callable[[Array], tuple[Any, Array]]


class ActivationRule(Protocol):
    """What the rule asks of an activation; hashable."""

    def value(self, theta: Any, z: "Array") -> "Array":
        """σ(z)."""

    def pullback(self, theta: Any, z: "Array") -> "tuple[Array, Pullback]":
        """σ(z), and the pullback to (θ, z)."""


class PairRule(NamedTuple):
    """The rule of an `Activation`: one evaluation gives value and derivative."""

    activation: Activation

    def value(self, theta: Any, z: "Array") -> "Array":
        """σ(z)."""
        return self.activation(z)

    def pullback(self, theta: Any, z: "Array") -> "tuple[Array, Pullback]":
        """σ(z), and h̄ -> ((), D ⊙ h̄)."""
        h, derivative = self.activation.with_derivative(z)

        def pull(hbar: "Array") -> "tuple[Any, Array]":
            hbar = hbar.astype(derivative.dtype)
            zbar = derivative * (hbar if h.ndim == z.ndim else jnp.expand_dims(hbar, -2))
            return (), zbar.astype(z.dtype)

        return h, pull


class FunctionRule(NamedTuple):
    """The rule of a plain function (θ, z of one token) -> h of one token."""

    function: Callable[[Any, "Array"], "Array"]
    token_ndim: int

    def value(self, theta: Any, z: "Array") -> "Array":
        """σ(z), token by token."""
        step = self.function
        for _ in range(z.ndim - self.token_ndim):
            step = jax.vmap(step, in_axes=(None, 0))
        return step(theta, z)

    def pullback(self, theta: Any, z: "Array") -> "tuple[Array, Pullback]":
        """σ(z), and its `jax.vjp`."""
        return jax.vjp(self.value, theta, z)


def activation_rule(activation: Any, token_shape: Shape, dtype: Any, where: str) -> tuple[ActivationRule, Any]:
    """The rule of what the user gave, and its θ. Raises TypeError for what is no activation."""
    z = jax.ShapeDtypeStruct(token_shape, dtype)
    if isinstance(activation, Activation):
        closed, out = jax.make_jaxpr(activation.with_derivative, return_shape=True)(z)
        if contains_tracer(closed.consts):
            raise TypeError(
                f"{where}: expected activation {activation} to close over no traced array, for its derivative by "
                "hand has none for it; give a plain function, or make the array part of A1"
            )
        h, derivative = out
        gate = token_shape[:-2] + token_shape[-1:] if token_shape[-2:-1] == (2,) else None
        if derivative.shape != token_shape or h.shape not in (token_shape, gate):
            raise ValueError(
                f"{where}: expected activation {activation} to return h of shape {token_shape} (or without its gate "
                f"axis) and D of shape {token_shape}, got {h.shape} and {derivative.shape}"
            )
        return PairRule(activation), ()
    if not callable(activation):
        raise TypeError(f"{where}: expected activation to be an Activation or a callable, got {activation!r}")
    closed, out = jax.make_jaxpr(activation, return_shape=True)(z)
    if not is_array(out) or out.dtype != dtype:
        got = f"an array of {out.dtype}" if is_array(out) else out
        raise TypeError(f"{where}: expected activation to return one array of dtype {dtype}, got {got}")
    if not contains_tracer(closed.consts):
        return FunctionRule(_Plain(activation), len(token_shape)), ()

    def lifted(theta: Any, z: "Array") -> "Array":
        return evaluate_with_consts(closed, theta, z)[0]

    return FunctionRule(lifted, len(token_shape)), tuple(closed.consts)


class _Plain:
    """`f(z)` as a function of (θ, z) that compares equal for the same f, so that jit does not trace it again."""

    def __init__(self, f: Callable[["Array"], "Array"]):
        self.f = f

    def __call__(self, theta: Any, z: "Array") -> "Array":
        return self.f(z)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Plain) and self.f is other.f

    def __hash__(self) -> int:
        return id(self.f)
