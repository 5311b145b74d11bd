"""Everything traces at symbolic sizes: `jax.export` of a model for any batch, and proofs for all sizes, need it."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

import ffn_jax as fj

b, n, d, m, k, length = export.symbolic_shape("b,n,d,m,k,l", constraints=["k>=2"])


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float64)


def sublayer(**options):
    return lambda x, W1, b1, W2, b2: fj.ffn_residual(x, fj.Dense(W1), b1, fj.Dense(W2), b2, **options)


def tape(x, W1, b1, W2, b2):
    return x, fj.ffn_residual_tape(x, fj.Dense(W1), b1, fj.Dense(W2), b2)


def by_hand(W, x):
    return fj.linear_map(lambda W, x: x @ W, W.shape[0], params=W, transpose=lambda W, y: y @ W.T)(x)


def of(make):
    return lambda *args: make(*args[:-1])(args[-1])


DENSE = (spec(d, m), spec(m), spec(m, d), spec(d))
GATED = (spec(d, 2, m), spec(2, m), spec(m, d), spec(d))

CASES = {
    "token": (sublayer(), spec(d), *DENSE),
    "sequence": (sublayer(), spec(n, d), *DENSE),
    "batch": (sublayer(), spec(b, n, d), *DENSE),
    "biases by position": (sublayer(), spec(b, n, d), spec(d, m), spec(n, m), spec(m, d), spec(n, d)),
    "x alone": (sublayer(save=()), spec(n, d), *DENSE),
    "everything": (sublayer(save=("hidden_pre", "hidden_act")), spec(n, d), *DENSE),
    "exact": (sublayer(activation=fj.gelu_exact), spec(n, d), *DENSE),
    "swiglu": (sublayer(activation=fj.swiglu), spec(n, d), *GATED),
    "own activation": (sublayer(activation=jnp.tanh), spec(n, d), *DENSE),
    "chunks": (sublayer(chunk_size=3), spec(3 * k, d), *DENSE),
    "chunks and a rest": (sublayer(chunk_size=3, save=()), spec(3 * k + 1, d), *DENSE),
    "chunks, biases by position": (sublayer(chunk_size=3), spec(3 * k, d), spec(d, m), spec(3 * k, m), *DENSE[2:]),
    "tape": (tape, spec(n, d), *DENSE),
    "time-distributed": (of(lambda W: fj.TimeDistributed(fj.Dense(W), n)), spec(d, m), spec(b, n, d)),
    "stacked blocks": (of(lambda W: fj.BlockDiagonal(fj.Dense(W))), spec(k, d, m), spec(n, k * d)),
    "blocks": (
        of(lambda U, V: fj.BlockDiagonal([fj.Dense(U), fj.Dense(V)])),
        spec(d, m),
        spec(length, d),
        spec(n, d + length),
    ),
    "by hand": (by_hand, spec(d, m), spec(n, d)),
    "composed": (of(lambda U, V: fj.Dense(U) @ fj.Dense(V)), spec(d, m), spec(length, d), spec(n, length)),
    "sum": (of(lambda U, V: fj.Dense(U) - 2.0 * fj.Dense(V)), spec(d, m), spec(d, m), spec(n, d)),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_trace_at_symbolic_sizes(name):
    f, *args = CASES[name]
    out = jax.eval_shape(f, *args)
    bars = jax.eval_shape(lambda args, seed: jax.vjp(f, *args)[1](seed), tuple(args), out)
    assert [bar.shape for bar in jax.tree.leaves(bars)] == [arg.shape for arg in jax.tree.leaves(args)]
