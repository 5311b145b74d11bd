"""How the sublayer differentiates an activation: `value(θ, z)` and `pullback(θ, z) -> h, (h̄ -> θ̄, z̄)`.

An `Activation` carries its derivative: z̄ = D ⊙ h̄, and has no θ. A plain function is differentiated by `jax.vjp`
as it is, elementwise or not (a softmax over the features, say). It is mapped over A1's batch axes, positions of a
`TimeDistributed` map included, and so acts on each token alone, however the tokens are batched or chunked; after a
map that takes the whole array, as a bare callable does, it is given the whole hidden. Arrays that it closes over
while they are traced are its θ, and get gradients.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ffn_jax._checks import Shape, contains_tracer, is_array, shown, wide
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
            hbar = hbar.astype(wide(z.dtype))
            zbar = derivative.astype(hbar.dtype) * (hbar if h.ndim == z.ndim else jnp.expand_dims(hbar, -2))
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
        _check_pair(activation, z, where)
        return PairRule(activation), ()
    if not callable(activation):
        raise TypeError(f"{where}: expected activation to be an Activation or a callable, got {shown(activation)}")
    closed, out = _trace(activation, z, where)
    if not is_array(out) or out.dtype != dtype:
        got = f"an array of {out.dtype}" if is_array(out) else out
        raise TypeError(f"{where}: expected activation to return one array of dtype {dtype}, got {got}")
    if not contains_tracer(closed.consts):
        return FunctionRule(_Plain(activation), len(token_shape)), ()

    def lifted(theta: Any, z: "Array") -> "Array":
        return evaluate_with_consts(closed, theta, z)[0]

    return FunctionRule(lifted, len(token_shape)), tuple(closed.consts)


def _check_pair(activation: Activation, z: jax.ShapeDtypeStruct, where: str) -> None:
    """Both functions of the pair on one token: they must agree, fit z, and close over nothing that is traced."""
    wide_z = jax.ShapeDtypeStruct(z.shape, wide(z.dtype))
    value, h = _trace(activation.value, wide_z, where)
    pair, h_and_derivative = _trace(activation.value_and_derivative, wide_z, where)
    if contains_tracer((value.consts, pair.consts)):
        raise TypeError(
            f"{where}: expected activation {activation} to close over no traced array, for its derivative by hand "
            "has none for it; give a plain function, or make the array part of A1"
        )
    if not isinstance(h_and_derivative, tuple) or len(h_and_derivative) != 2:
        raise TypeError(
            f"{where}: expected value_and_derivative of activation {activation} to return a pair (h, D), "
            f"got {shown(h_and_derivative)}"
        )
    gate = z.shape[:-2] + z.shape[-1:] if z.shape[-2:-1] == (2,) else None
    derivative = h_and_derivative[1]
    if derivative.shape != z.shape or h.shape not in (z.shape, gate) or h.shape != h_and_derivative[0].shape:
        raise ValueError(
            f"{where}: expected activation {activation} to return h of shape {z.shape} (or without its gate axis) "
            f"twice and D of shape {z.shape}, got {h.shape}, {h_and_derivative[0].shape} and {derivative.shape}"
        )
    for name, out in (("h", h), ("D", derivative)):
        if not jnp.issubdtype(out.dtype, jnp.floating):
            raise TypeError(f"{where}: expected activation {activation} to return {name} floating, got {out.dtype}")


def _trace(f: Any, z: jax.ShapeDtypeStruct, where: str) -> Any:
    try:
        return jax.make_jaxpr(f, return_shape=True)(z)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: activation fails on a hidden of shape {z.shape}: {error}") from error


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
