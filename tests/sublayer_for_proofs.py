"""A small sublayer with a hand-written rule, for the prover to prove and for mutants to break.

y = x + A2 sigma(A1 x + b1) + b2 over dense weights (d, f) and (f, d), or (d, 2, f) for gated units.  An
activation is a pair: its value, and its pullback (z, hbar) -> (h, zbar).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = Any
ROOT_2_PI, CUBIC = 0.7978845608028654, 0.044715


class Activation(NamedTuple):
    """sigma, and (z, hbar) -> (sigma(z), zbar)."""

    value: Callable[[Array], Array]
    pullback: Callable[[Array, Array], tuple[Array, Array]]
    gated: bool = False


def _elementwise(value: Any, value_and_slope: Any) -> Activation:
    def pullback(z: Array, hbar: Array) -> tuple[Array, Array]:
        h, slope = value_and_slope(z)
        return h, slope * hbar

    return Activation(value, pullback)


def _tanh_gelu(z: Array) -> tuple[Array, Array]:
    t = jnp.tanh(ROOT_2_PI * (z + CUBIC * (z * z * z)))
    half = 0.5 * (1.0 + t)
    return z * half, half + 0.5 * z * (1.0 - t * t) * (ROOT_2_PI * (1.0 + (3 * CUBIC) * (z * z)))


def _erf_gelu(z: Array) -> tuple[Array, Array]:
    half = 0.5 * lax.erfc(-0.7071067811865476 * z)
    return z * half, half + z * (0.3989422804014327 * jnp.exp(-0.5 * z * z))


def _logistic_unit(k: float) -> Any:
    def value_and_slope(z: Array) -> tuple[Array, Array]:
        s = lax.logistic(k * z)
        return z * s, s * (1.0 + k * z * (1.0 - s))

    return value_and_slope


def _row(z: Array, k: int) -> Array:
    return lax.index_in_dim(z, k, axis=-2, keepdims=False)


def _gated(unit: Any) -> Activation:
    def value(z: Array) -> Array:
        return unit(_row(z, 0))[0] * _row(z, 1)

    def pullback(z: Array, hbar: Array) -> tuple[Array, Array]:
        gate, up = _row(z, 0), _row(z, 1)
        h, slope = unit(gate)
        return h * up, jnp.stack([hbar * up * slope, hbar * h], axis=-2)

    return Activation(value, pullback, gated=True)


ACTIVATIONS = {
    "gelu": _elementwise(lambda z: _tanh_gelu(z)[0], _tanh_gelu),
    "gelu_exact": _elementwise(lambda z: _erf_gelu(z)[0], _erf_gelu),
    "silu": _elementwise(lambda z: z * lax.logistic(z), _logistic_unit(1.0)),
    "quick_gelu": _elementwise(lambda z: z * lax.logistic(1.702 * z), _logistic_unit(1.702)),
    "relu": _elementwise(
        lambda z: jnp.where(z <= 0, 0.0, z),
        lambda z: (jnp.where(z <= 0, 0.0, z), jnp.where(z <= 0, 0.0, 1.0)),
    ),
    "relu_squared": _elementwise(
        lambda z: jnp.square(jnp.where(z <= 0, 0.0, z)),
        lambda z: (jnp.square(jnp.maximum(z, 0.0)), 2.0 * jnp.maximum(z, 0.0)),
    ),
    "swiglu": _gated(_logistic_unit(1.0)),
    "geglu": _gated(_tanh_gelu),
}


def apply(W: Array, x: Array) -> Array:
    """x W over the last axis of x and the first of W."""
    return lax.dot_general(x, W, (((x.ndim - 1,), (0,)), ((), ())))


def transpose(W: Array, y: Array) -> Array:
    """y W^T over all axes of W but the first."""
    k = W.ndim - 1
    return lax.dot_general(y, W, ((tuple(range(y.ndim - k, y.ndim)), tuple(range(1, W.ndim))), ((), ())))


def weight_bar(x: Array, ybar: Array) -> Array:
    """The cotangent of W in x W."""
    tokens = tuple(range(x.ndim - 1))
    return lax.dot_general(x, ybar, ((tokens, tokens), ((), ())))


def plus(y: Array, b: Array) -> Array:
    """y + b, b broadcast over leading axes."""
    return y + jnp.broadcast_to(b, y.shape)


def unbroadcast(ybar: Array, b: Array) -> Array:
    """The cotangent of b in y + b."""
    return jnp.sum(ybar, axis=tuple(range(ybar.ndim - b.ndim)))


def sublayer(activation: Activation, save: tuple[str, ...] = ("z",)) -> Callable[..., Array]:
    """The sublayer, keeping x and the tensors named in `save` (of z, h) for the backward pass."""

    @jax.custom_vjp
    def ffn(x: Array, W1: Array, b1: Array, W2: Array, b2: Array) -> Array:
        return x + plus(apply(W2, activation.value(plus(apply(W1, x), b1))), b2)

    def forward(x: Array, W1: Array, b1: Array, W2: Array, b2: Array) -> Any:
        z = plus(apply(W1, x), b1)
        h = activation.value(z)
        kept = (z if "z" in save else None, h if "h" in save else None)
        return x + plus(apply(W2, h), b2), (x, W1, b1, W2, b2, kept)

    def backward(saved: Any, ybar: Array) -> Any:
        x, W1, b1, W2, b2, (z, h) = saved
        z = plus(apply(W1, x), b1) if z is None else z
        again, zbar = activation.pullback(z, transpose(W2, ybar))
        h = again if h is None else h
        xbar = ybar + transpose(W1, zbar)
        return xbar, weight_bar(x, zbar), unbroadcast(zbar, b1), weight_bar(h, ybar), unbroadcast(ybar, b2)

    ffn.defvjp(forward, backward)
    return ffn


def chunked(activation: Activation, chunk: Any) -> Callable[..., Array]:
    """The sublayer on (tokens, d), `chunk` tokens at a time, keeping x alone."""
    one = sublayer(activation, save=())

    def split(x: Array) -> Array:
        return x.reshape(x.shape[0] // chunk, chunk, x.shape[1])

    @jax.custom_vjp
    def ffn(x: Array, W1: Array, b1: Array, W2: Array, b2: Array) -> Array:
        _, y = lax.scan(lambda c, x: (c, one(x, W1, b1, W2, b2)), None, split(x))
        return y.reshape(x.shape)

    def backward(saved: Any, ybar: Array) -> Any:
        x, *weights = saved

        def step(sums: Any, chunks: Any) -> Any:
            x, ybar = chunks
            _, pullback = jax.vjp(one, x, *weights)
            xbar, *bars = pullback(ybar)
            return jax.tree.map(jnp.add, sums, bars), xbar

        sums, xbar = lax.scan(step, jax.tree.map(jnp.zeros_like, weights), (split(x), split(ybar)))
        return xbar.reshape(x.shape), *sums

    ffn.defvjp(lambda *args: (ffn(*args), args), backward)
    return ffn


class Tape(NamedTuple):
    """Everything the sublayer computes."""

    hidden_pre: Array
    hidden_act: Array
    projected: Array
    output: Array


def tape(activation: Activation) -> Callable[..., tuple[Array, Tape]]:
    """x -> (x, tape), with seeds on all five."""

    @jax.custom_vjp
    def run(x: Array, W1: Array, b1: Array, W2: Array, b2: Array) -> tuple[Array, Tape]:
        z = plus(apply(W1, x), b1)
        h = activation.value(z)
        p = plus(apply(W2, h), b2)
        return x, Tape(z, h, p, x + p)

    def backward(saved: Any, bars: Any) -> Any:
        x, W1, b1, W2, b2, z = saved
        x_seed, (z_seed, h_seed, p_seed, y_seed) = bars
        pbar = p_seed + y_seed
        h, _ = activation.pullback(z, h_seed)
        _, zbar = activation.pullback(z, h_seed + transpose(W2, pbar))
        zbar = zbar + z_seed
        xbar = x_seed + y_seed + transpose(W1, zbar)
        return xbar, weight_bar(x, zbar), unbroadcast(zbar, b1), weight_bar(h, pbar), unbroadcast(pbar, b2)

    def forward(x: Array, W1: Array, b1: Array, W2: Array, b2: Array) -> Any:
        out = run(x, W1, b1, W2, b2)
        return out, (x, W1, b1, W2, b2, out[1].hidden_pre)

    run.defvjp(forward, backward)
    return run


def specs(tokens: str, gated: bool = False) -> tuple[str, ...]:
    """The arguments' specifications; `tokens` is "" or "n," or "b,n,"."""
    f = "2,f" if gated else "f"
    return f"f64[{tokens}d]", f"f64[d,{f}]", f"f64[{f}]", "f64[f,d]", "f64[d]"
