"""The reverse rule of the feed-forward sublayer, once, for every map, activation and seed.

Forward, with z = hidden_pre, h = hidden_act, u = projected, y = output:

    z = A1 x + b1        h = σ(z)        u = A2 h + b2        y = x + u

Reverse, with seeds z̃, h̃, ũ, ȳ on the four saved tensors (the sublayer alone seeds only ȳ):

    ū = ũ + ȳ            h̄ = h̃ + A2ᵀ ū       z̄ = z̃ + σ'(z) ⊙ h̄      x̄ = ȳ + A1ᵀ z̄
    b̄2 = Σ ū             Ā2 = pullback of A2 at (h, ū)
    b̄1 = Σ z̄             Ā1 = pullback of A1 at (x, z̄)

This is the adjoint of the Fréchet derivative of x -> (z, h, u, y): TorchLean,
`seqFfnResidual_backpropVec_eq_adjoint_fderiv`. What the backward keeps is x and any of z and h; what is not
kept is computed again. Parameter cotangents stay in float32 for half types until the last cast.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from ffn_jax import _chunks
from ffn_jax._activation_rule import ActivationRule
from ffn_jax._checks import wide
from ffn_jax._mesh import like_sharding
from ffn_jax.maps._base import LinearMap, cast_like
from ffn_jax.sharding._fully_sharded import gathered, gathered_again, scattered

if TYPE_CHECKING:
    from jax import Array


class FFNTape(NamedTuple):
    """All that the sublayer computes, in order; the saved tensors of the reverse pass.

    Attributes:
      hidden_pre: z = A1 x + b1, `(*batch, *A1.out_shape)`.
      hidden_act: h = σ(z), `(*batch, *A2.in_shape)`.
      projected: u = A2 h + b2, x's shape.
      output: y = x + u, x's shape.
    """

    hidden_pre: "Array"
    hidden_act: "Array"
    projected: "Array"
    output: "Array"


class Params(NamedTuple):
    """Everything differentiable but x: the maps, the biases, and arrays that a plain activation closes over."""

    A1: LinearMap
    b1: "Array | None"
    A2: LinearMap
    b2: "Array | None"
    theta: Any = ()


class Config(NamedTuple):
    """The static choices."""

    activation: ActivationRule
    residual: bool = True
    save: tuple[str, ...] = ("hidden_pre",)
    tokens: _chunks.Tokens | None = None


# --------------------------------------------------------------------------------------- the equations


def evaluate(config: Config, x: "Array", params: Params, undecorated: bool = False) -> FFNTape:
    """The four forward equations; `undecorated` in plain JAX throughout, as a reference has to be."""
    A1, b1, A2, b2, theta = params
    z = add_bias(A1.apply(x) if undecorated else A1.call(x), b1)
    h = config.activation.value(theta, z)
    u = add_bias(A2.apply(h) if undecorated else A2.call(h), b2)
    return FFNTape(z, h, u, x + u if config.residual else u)


class Seeds(NamedTuple):
    """Cotangents of the tape; None where there is no seed."""

    hidden_pre: "Array | None"
    hidden_act: "Array | None"
    projected: "Array | None"
    output: "Array"


def pull_back(
    config: Config, x: "Array", z: "Array | None", h: "Array | None", params: Params, seeds: Seeds
) -> "tuple[Array, Params]":
    """The reverse equations: x̄, and the cotangents of the parameters before their last cast."""
    A1, b1, A2, b2, theta = params
    if z is None:
        z = add_bias(A1.call(x), b1)
    h_again, activation_pullback = config.activation.pullback(theta, z)
    h = h_again if h is None else h

    ubar = add(seeds.output, seeds.projected)
    hbar = add(A2.transpose_call(ubar), seeds.hidden_act)
    theta_bar, zbar = activation_pullback(hbar)
    zbar = add(zbar, seeds.hidden_pre)
    xbar = A1.transpose_call(zbar)
    if config.residual:
        xbar = seeds.output + xbar

    A2_bar, b2_bar = A2.params_vjp(h, ubar), sum_to(ubar, b2)
    A1_bar, b1_bar = A1.params_vjp(x, zbar), sum_to(zbar, b1)
    return xbar, Params(A1_bar, b1_bar, A2_bar, b2_bar, theta_bar)


def add(a: "Array", b: "Array | None") -> "Array":
    """a + b, where b may be absent."""
    return a if b is None else a + b


def add_bias(z: "Array", b: "Array | None") -> "Array":
    """z + b for a bias of any shape that broadcasts to z's."""
    return z if b is None else z + jnp.broadcast_to(b, z.shape)


def sum_to(zbar: "Array", b: Any) -> "Array | None":
    """The transpose of broadcasting b: z̄ summed over the axes along which b was repeated."""
    if b is None:
        return None
    shape = (1,) * (zbar.ndim - len(b.shape)) + tuple(b.shape)
    axes = tuple(k for k in range(zbar.ndim) if shape[k] == 1 and (zbar.shape[k] != 1 or k < zbar.ndim - len(b.shape)))
    return jnp.sum(zbar, axes, dtype=wide(zbar.dtype)).reshape(b.shape)


# --------------------------------------------------------------------------------------- the sublayer


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def sublayer(config: Config, x: "Array", params: Params) -> "Array":
    """y, keeping for the backward pass what `config.save` says."""
    return _forward(config._replace(save=()), x, params)[0]


def _forward(config: Config, x: "Array", params: Params) -> "tuple[Array, _Saved]":
    def step(x: "Array", params: Params) -> "tuple[Array, _Saved]":
        tape = evaluate(config, x, params)
        return tape.output, _Saved(**{name: getattr(tape, name) for name in config.save})

    params = gathered(params)
    if config.tokens is None:
        return step(x, params)
    return _chunks.forward(config.tokens, step, x, params)


def _backward(config: Config, residuals: "tuple[Array, _Saved, Params]", ybar: "Array") -> "tuple[Array, Params]":
    def step(x: "Array", saved: _Saved, params: Params, ybar: "Array") -> "tuple[Array, Params]":
        return pull_back(config, x, *saved, params, Seeds(None, None, None, ybar))

    x, saved, params = residuals
    whole = gathered_again(params, ybar)
    if config.tokens is None:
        xbar, bars = step(x, saved, whole, ybar)
    else:
        xbar, bars = _chunks.backward(config.tokens, step, x, saved, whole, ybar)
    return like_sharding(x, xbar), cast_like(params, scattered(params, bars))


class _Saved(NamedTuple):
    """What the backward keeps of the tape; None where it computes again."""

    hidden_pre: "Array | None" = None
    hidden_act: "Array | None" = None


def _sublayer_fwd(config: Config, x: "Array", params: Params) -> Any:
    y, saved = _forward(config, x, params)
    return y, (x, saved, params)


sublayer.defvjp(_sublayer_fwd, _backward)


# ------------------------------------------------------------------- what follows a sum over devices


def finish_undecorated(x: "Array | None", u: "Array", b2: "Array | None") -> "Array":
    """x + (u + b2), each of x and b2 perhaps absent."""
    return add(add_bias(u, b2), x)


@jax.custom_vjp
def finish(x: "Array | None", u: "Array", b2: "Array | None") -> "Array":
    """The same, with b̄2 summed as in the rule above."""
    return finish_undecorated(x, u, b2)


finish.defvjp(
    lambda x, u, b2: (finish(x, u, b2), (None if x is None else (), b2)),
    lambda kept, ybar: (None if kept[0] is None else ybar, ybar, cast_like(kept[1], sum_to(ybar, kept[1]))),
)


# --------------------------------------------------------------------------------------- the tape


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def sublayer_tape(config: Config, x: "Array", params: Params) -> FFNTape:
    """The whole tape; its VJP takes a seed on every entry."""
    return evaluate(config, x, gathered(params))


def _tape_fwd(config: Config, x: "Array", params: Params) -> Any:
    tape = evaluate(config, x, gathered(params))
    return tape, (x, tape.hidden_pre, tape.hidden_act, params)


def _tape_bwd(config: Config, residuals: Any, seeds: FFNTape) -> "tuple[Array, Params]":
    x, z, h, params = residuals
    xbar, bars = pull_back(config, x, z, h, gathered_again(params, seeds), Seeds(*seeds))
    return like_sharding(x, xbar), cast_like(params, scattered(params, bars))


sublayer_tape.defvjp(_tape_fwd, _tape_bwd)
