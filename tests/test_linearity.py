"""What a jaxpr tells about linearity, through every kind of structure, and what it leaves open."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ffn_jax.maps._linearity import Kind, classify

W, c = jnp.arange(9.0).reshape(3, 3), jnp.ones(3)


def scan_of(step):
    return lambda x: lax.scan(lambda carry, w: (step(carry, x, w), None), jnp.zeros(3), W)[0]


def through_custom_vjp(f):
    g = jax.custom_vjp(f)
    g.defvjp(lambda x: (f(x), x), lambda x, y: (y,))
    return g


LINEAR = {
    "product": lambda x: W @ x,
    "sum of parts": lambda x: x[:1] + 2 * x[1:2] - x[2:] / 3,
    "reshape, transpose, reverse": lambda x: jnp.flip((x[:, None] * c[None]).T).reshape(-1),
    "concatenate with zeros": lambda x: jnp.concatenate([x, jnp.zeros(2)]),
    "padding": lambda x: jnp.pad(x, 1),
    "cumulative sum": jnp.cumsum,
    "gather": lambda x: x[np.array([2, 0])],
    "scatter": lambda x: jnp.zeros(5).at[np.array([0, 2, 2])].add(x),
    "update of zeros": lambda x: lax.dynamic_update_slice(jnp.zeros(5), x, (1,)),
    "where": lambda x: jnp.where(c > 0, x, 0.0),
    "fourier": lambda x: jnp.fft.irfft(jnp.fft.rfft(x), 3),
    "jit": lambda x: jax.jit(lambda x: W @ x)(x),
    "remat": lambda x: jax.checkpoint(lambda x: W @ x)(x),
    "custom_vjp": through_custom_vjp(lambda x: W @ x),
    "scan": scan_of(lambda carry, x, w: carry + w * x),
    "scan from x": lambda x: lax.scan(lambda carry, w: (w * carry, carry), x, W)[1],
    "cond": lambda x: lax.cond(c[0] > 0, lambda x: W @ x, lambda x: x, x),
    "cast": lambda x: x.astype("float32").astype("float64"),
    "times zero": lambda x: (x * x) * 0.0 + x,
    "barrier": lambda x: lax.optimization_barrier(x),
    "added zero": lambda x: x + jnp.zeros(3),
}
AFFINE = {
    "bias": lambda x: W @ x + c,
    "tiny bias": lambda x: W @ x + 1e-30,
    "concatenate with ones": lambda x: jnp.concatenate([x, c]),
    "padding with ones": lambda x: jnp.pad(x, 1, constant_values=1.0),
    "update of ones": lambda x: lax.dynamic_update_slice(jnp.ones(5), x, (1,)),
    "where with a constant": lambda x: jnp.where(c > 0, x, 1.0),
    "jit": lambda x: jax.jit(lambda x: x + c)(x),
    "custom_vjp": through_custom_vjp(lambda x: x + 1.0),
    "scan": scan_of(lambda carry, x, w: carry + w * x + 1.0),
    "scan after a round": lambda x: lax.scan(lambda s, _: ((s[1], s[1] + 1.0), None), (x, x), None, 3)[0][0],
    "cond": lambda x: lax.cond(c[0] > 0, lambda x: x + 1.0, lambda x: x, x),
}
NONLINEAR = {
    "square": lambda x: x * x,
    "tanh": jnp.tanh,
    "bilinear in x": lambda x: x @ jnp.outer(x, c),
    "division by x": lambda x: c / x,
    "maximum": lambda x: jnp.maximum(x, 0.0),
    "where on x": lambda x: jnp.where(x > 0, x, 0.0),
    "rounding": lambda x: x.astype("int32").astype("float64"),
    "scan": scan_of(lambda carry, x, w: jnp.sin(carry) + x),
    "cond on x": lambda x: lax.cond(x[0] > 0, lambda x: x, lambda x: -x, x),
    "gather at x": lambda x: c[x.astype("int32")],
    "power": lambda x: x**3,
}
UNKNOWN = {
    "sort": jnp.sort,
    "callback": lambda x: jax.pure_callback(np.asarray, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
    "while": lambda x: lax.while_loop(lambda s: s[1] < 3, lambda s: (2 * s[0], s[1] + 1), (x, 0))[0],
}


def kind_of(f):
    (kind,) = classify(jax.make_jaxpr(f)(jnp.ones(3)), [Kind.LINEAR])
    return kind


@pytest.mark.parametrize(
    ("expected", "name", "f"),
    [
        pytest.param(kind, name, f, id=f"{kind.value}: {name}")
        for kind, table in (
            (Kind.LINEAR, LINEAR),
            (Kind.AFFINE, AFFINE),
            (Kind.NONLINEAR, NONLINEAR),
            (Kind.UNKNOWN, UNKNOWN),
        )
        for name, f in table.items()
    ],
)
def test_kind(expected, name, f):
    assert kind_of(f) is expected


def test_what_does_not_depend_on_x():
    assert kind_of(lambda x: c) is Kind.CONST
    assert kind_of(lambda x: 0.0 * c + jnp.zeros(3)) in (Kind.CONST, Kind.ZERO)
    assert kind_of(lambda x: x * 0.0) is Kind.ZERO
