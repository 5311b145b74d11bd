"""Wrong rules that the equality tests must catch: each breaks one thing in the library while it runs."""

import jax
import jax.numpy as jnp
import pytest
from sublayer_cases import Sublayer
from test_ffn import check_rule

import ffn_jax as fj
from ffn_jax import _chunks, _rule


def after_pull_back(change):
    """A mutant of the reverse equations: `change(xbar, params_bar, seeds, params)` replaces their result."""
    original = _rule.pull_back

    def mutant(config, x, z, h, params, seeds):
        xbar, bars = original(config, x, z, h, params, seeds)
        return change(xbar, bars, seeds, params)

    return "ffn_jax._rule.pull_back", mutant


def with_activation(pair):
    return "ffn_jax.activations.Activation.with_derivative", pair


def gelu_with(a, b):
    """tanh GELU whose derivative has the constants a for √(2/π)/2 and b for 3 · 0.044715."""

    def pair(self, z):
        t = jnp.tanh(0.7978845608028654 * (z + 0.044715 * z**3))
        return 0.5 * z * (1 + t), 0.5 * (1 + t) + z * (1 - t * t) * a * (1 + b * z * z)

    return with_activation(pair)


def first_row(zbar, b):
    return None if b is None else jnp.broadcast_to(zbar[(0,) * (zbar.ndim - b.ndim)], b.shape)


def last_chunk_only(tokens, total, bars, ids):
    return jax.tree.map(lambda t, c: c.astype(t.dtype).reshape(t.shape), total, bars)


def shifted_rows(original):
    return lambda tokens, b, ids: original(tokens, b, ids + 1)


MUTANTS = {
    "residual term dropped": after_pull_back(lambda xbar, bars, seeds, params: (xbar - seeds.output, bars)),
    "residual term twice": after_pull_back(lambda xbar, bars, seeds, params: (xbar + seeds.output, bars)),
    "only the residual term": after_pull_back(lambda xbar, bars, seeds, params: (seeds.output, bars)),
    "sign of x̄": after_pull_back(lambda xbar, bars, seeds, params: (-xbar, bars)),
    "b1 gets b2's scale": after_pull_back(lambda xbar, bars, s, p: (xbar, bars._replace(b1=2 * bars.b1))),
    "b2 cotangent zero": after_pull_back(lambda xbar, bars, s, p: (xbar, bars._replace(b2=0 * bars.b2))),
    "A1 cotangent negated": after_pull_back(
        lambda xbar, bars, s, p: (xbar, bars._replace(A1=jax.tree.map(jnp.negative, bars.A1)))
    ),
    "A2 cotangent transposed": after_pull_back(
        lambda xbar, bars, s, p: (xbar, bars._replace(A2=jax.tree.map(lambda W: W.T.reshape(W.shape), bars.A2)))
    ),
    "derivative constant 0.1341": gelu_with(0.3989422804014327, 0.1341),
    "derivative constant off by 1e-9": gelu_with(0.3989422804014327, 0.1341450001),
    "derivative constant 0.39894": gelu_with(0.39894, 0.134145),
    "derivative of another activation": with_activation(lambda self, z: (self(z), jax.nn.sigmoid(1.702 * z))),
    "derivative is one": with_activation(lambda self, z: (self(z), jnp.ones_like(z))),
    "bias sum missing": ("ffn_jax._rule.sum_to", first_row),
    "transpose swapped": (
        "ffn_jax.maps._base.LinearMap.transpose_call",
        lambda A, y: jnp.flip(A.transpose_apply(y), -1),
    ),
    "transpose is zero": ("ffn_jax.maps._base.LinearMap.transpose_call", lambda A, y: 0 * A.transpose_apply(y)),
    "cotangent in float32": (
        "ffn_jax._rule.cast_like",
        lambda params, bars: jax.tree.map(lambda c: c.astype("float32"), bars),
    ),
    "chunks not accumulated": ("ffn_jax._chunks._accumulate", last_chunk_only),
    "biases of the wrong tokens": ("ffn_jax._chunks._row_ids", shifted_rows(_chunks._row_ids)),
}


def check_whole_and_in_chunks(case):
    check_rule(case)
    check_rule(case, chunk_size=4, save=())


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_caught(mutant, monkeypatch):
    case = Sublayer("dense", "gelu", (2, 3), "position")
    check_whole_and_in_chunks(case)
    monkeypatch.setattr(*MUTANTS[mutant])
    with pytest.raises((AssertionError, TypeError, ValueError)):
        check_whole_and_in_chunks(case)


def test_reference_is_not_touched_by_the_mutants(monkeypatch):
    """Were the reference decorated, it would follow the mutant and the comparison would prove nothing."""
    case = Sublayer("dense", "gelu", (2, 3))
    before = jax.vjp(fj.ffn_residual_reference, *case.args)[1](case.ybar)
    for target, mutant in MUTANTS.values():
        monkeypatch.setattr(target, mutant)
    after = jax.vjp(fj.ffn_residual_reference, *case.args)[1](case.ybar)
    assert all(bool(jnp.all(a == b)) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
