"""The reverse rule of the feed-forward sublayer, once, for every map, activation and seed.

Forward, with z = hidden_pre, h = hidden_act, u = projected, y = output:

    z = A1 x + b1        h = σ(z)        u = A2 h + b2        y = x + u

Reverse, with seeds z̃, h̃, ũ, ȳ on the four saved tensors (the sublayer alone seeds only ȳ):

    ū = ũ + ȳ            h̄ = h̃ + A2ᵀ ū       z̄ = z̃ + σ'(z) ⊙ h̄      x̄ = ȳ + A1ᵀ z̄
    b̄2 = Σ ū             Ā2 = pullback of A2 at (h, ū)
    b̄1 = Σ z̄             Ā1 = pullback of A1 at (x, z̄)

With pre-norm the first map reads x̂ = norm(x), which is not kept but computed again:

    z = A1 x̂ + b1        Ā1 = pullback of A1 at (x̂, z̄)        x̄ = ȳ + pullback of norm at x of A1ᵀ z̄

Dropout multiplies h or u by a diagonal map, drawn again from its key and its own transpose (`ffn_jax.dropout`).

This is the adjoint of the Fréchet derivative of x -> (z, h, u, y): TorchLean,
`seqFfnResidual_backpropVec_eq_adjoint_fderiv`. What the backward keeps is x and any of z and h; what is not
kept is computed again. Parameter cotangents stay in float32 for half types until the last cast.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from ffn_jax import _blocks, _chunks, norms
from ffn_jax._activation_rule import ActivationRule
from ffn_jax._checks import wide
from ffn_jax._mesh import like_sharding
from ffn_jax.dropout import Rate, Seed, drop
from ffn_jax.maps._base import LinearMap, cast_like
from ffn_jax.sharding._fully_sharded import gathered, gathered_again, scattered

if TYPE_CHECKING:
    from jax import Array


class FFNTape(NamedTuple):
    """All that the sublayer computes, in order; the saved tensors of the reverse pass.

    Attributes:
      hidden_pre: z = A1 x + b1, `(*batch, *A1.out_shape)`.
      hidden_act: h = σ(z), `(*batch, *A2.in_shape)`, as A2 reads it: after dropout on the hidden.
      projected: u = A2 h + b2, x's shape, as it is added to x: after dropout on the output.
      output: y = x + u, x's shape, after a post-norm.
    """

    hidden_pre: "Array"
    hidden_act: "Array"
    projected: "Array"
    output: "Array"


class Params(NamedTuple):
    """All arrays but x: maps, biases, what a plain activation closes over, the pre-norm's parameters, random bits."""

    A1: LinearMap
    b1: "Array | None"
    A2: LinearMap
    b2: "Array | None"
    theta: Any = ()
    norm: norms.Affine | None = None
    seed: Seed | None = None


class Config(NamedTuple):
    """The static choices."""

    activation: ActivationRule
    residual: bool = True
    save: tuple[str, ...] = ("hidden_pre",)
    tokens: _chunks.Tokens | None = None
    blocks: _blocks.Blocks | None = None
    norm: norms.Form | None = None
    dropout: Rate | None = None


# --------------------------------------------------------------------------------------- the equations


def evaluate(config: Config, x: "Array", params: Params, undecorated: bool = False) -> FFNTape:
    """The four forward equations; `undecorated` in plain JAX throughout, as a reference has to be."""
    A1, b1, A2, b2, theta, affine, seed = params
    xhat = x
    if config.norm is not None and affine is not None:
        normalise = norms.undecorated if undecorated else norms.normalise
        xhat = normalise(config.norm, x, affine)
    z = add_bias(A1.apply(xhat) if undecorated else A1.call(xhat), b1)
    h = drop(config.dropout, seed, "hidden", config.activation.value(theta, z), A2.in_shape)
    u = add_bias(A2.apply(h) if undecorated else A2.call(h), b2)
    u = drop(config.dropout, seed, "output", u, A2.out_shape)
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
    A1, b1, A2, b2, theta, affine, seed = params
    xhat, rows = x, None
    if config.norm is not None and affine is not None:
        rows = norms.statistics(config.norm, x)
        xhat = norms.value(x, affine, rows)
    if z is None:
        z = add_bias(A1.call(xhat), b1)
    h_again, activation_pullback = config.activation.pullback(theta, z)
    h = drop(config.dropout, seed, "hidden", h_again, A2.in_shape) if h is None else h

    ubar = drop(config.dropout, seed, "output", add(seeds.output, seeds.projected), A2.out_shape)
    hbar = add(A2.transpose_call(ubar), seeds.hidden_act)
    theta_bar, zbar = activation_pullback(drop(config.dropout, seed, "hidden", hbar, A2.in_shape))
    zbar = add(zbar, seeds.hidden_pre)
    xbar, affine_bar = A1.transpose_call(zbar), None
    if affine is not None and rows is not None:
        xbar, affine_bar = norms.pull_back(x, affine, rows, xbar)
    if config.residual:
        xbar = seeds.output + xbar

    A2_bar, b2_bar = A2.params_vjp(h, ubar), sum_to(ubar, b2)
    A1_bar, b1_bar = A1.params_vjp(xhat, zbar), sum_to(zbar, b1)
    seed = None if seed is None else seed._replace(tokens=None)  # integers: a placeholder, the chunks' sum has none
    return xbar, Params(A1_bar, b1_bar, A2_bar, b2_bar, theta_bar, affine_bar, seed)


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
    def step(x: "Array", params: Params, config: Config = config) -> "tuple[Array, Any]":
        if config.blocks is not None:
            one_block = partial(step, config=config._replace(residual=False, blocks=None))
            return _blocks.forward(config.blocks, one_block, x, params, _without_hidden(config, x, params))
        tape = evaluate(config, x, params)
        return tape.output, _Saved(**{name: getattr(tape, name) for name in config.save})

    params = gathered(params)
    if config.tokens is None:
        return step(x, params)
    return _chunks.forward(config.tokens, step, x, params)


def _backward(config: Config, residuals: "tuple[Array, _Saved, Params]", ybar: "Array") -> "tuple[Array, Params]":
    def step(x: "Array", saved: Any, params: Params, ybar: "Array", config: Config = config) -> "tuple[Array, Params]":
        if config.blocks is not None:
            one_block = partial(step, ybar=ybar, config=config._replace(residual=False, blocks=None))
            start = ybar if config.residual else jnp.zeros_like(x)
            xbar, bars = _blocks.backward(config.blocks, one_block, x, saved, params, start)
            return xbar, bars._replace(b2=sum_to(ybar, params.b2))
        return pull_back(config, x, saved.hidden_pre, saved.hidden_act, params, Seeds(None, None, None, ybar))

    x, saved, params = residuals
    whole = gathered_again(params, ybar)
    if config.tokens is None:
        xbar, bars = step(x, saved, whole, ybar)
    else:
        xbar, bars = _chunks.backward(config.tokens, step, x, saved, whole, ybar)
    return like_sharding(x, xbar), cast_like(params, scattered(params, bars))


def _without_hidden(config: Config, x: "Array", params: Params) -> "Array":
    """y less the sum over the hidden features: x + b2."""
    batch = x.shape[: x.ndim - len(params.A1.in_shape)]
    u = add_bias(jnp.zeros((*batch, *params.A2.out_shape), x.dtype), params.b2)
    return x + u if config.residual else u


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
