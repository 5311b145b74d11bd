"""Rules that the package does not have, written as others might: right ones are proved, wrong ones refuted.

The package's own are proved in `test_theorems`.
"""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from sublayer_for_proofs import (
    ACTIVATIONS,
    Activation,
    apply,
    chunked,
    plus,
    specs,
    sublayer,
    tape,
    transpose,
    unbroadcast,
    weight_bar,
)

from ffn_jax.verify import Certificate, Refutation, prove_vjp


def assert_proved(fun, reference, *arg_specs):
    verdict = prove_vjp(fun, reference, *arg_specs)
    assert isinstance(verdict, Certificate), str(verdict)
    assert verdict.seconds < 20
    return verdict


@pytest.mark.parametrize("name", ["gelu_exact", "relu", "swiglu"])
def test_sublayer_is_proved(name):
    fun = sublayer(ACTIVATIONS[name])
    certificate = assert_proved(fun, fun, *specs("n,", ACTIVATIONS[name].gated))
    kinks = [c for c in certificate.side_conditions if "kink" in c]
    assert bool(kinks) == name.startswith("relu")


def test_chunked_sublayer_is_proved_for_any_number_of_chunks():
    activation = ACTIVATIONS["relu"]
    assert_proved(chunked(activation, 4), sublayer(activation), *specs("k*4,", activation.gated))


def test_chunked_sublayer_is_proved_for_any_size_of_chunks():
    (chunk,) = jax.export.symbolic_shape("c")
    k, d, f = jax.export.symbolic_shape("k, d, f", scope=chunk.scope)
    shapes = [(k * 3, d), (d, f), (f,), (f, d), (d,)]
    fun = chunked(ACTIVATIONS["gelu_exact"], 3)
    assert_proved(fun, sublayer(ACTIVATIONS["gelu_exact"]), *(jax.ShapeDtypeStruct(s, "float64") for s in shapes))


def test_tape_is_proved_with_seeds_on_the_input_and_on_every_saved_tensor():
    fun = tape(ACTIVATIONS["swiglu"])
    certificate = assert_proved(fun, fun, *specs("n,", gated=True))
    assert len(certificate.statement.seeds) == 5


def test_packed_swiglu_is_proved_through_slices_and_concatenations():
    def silu(z):
        return z * lax.logistic(z)

    @jax.custom_vjp
    def packed(x, W):
        gate, up = jnp.split(x @ W, 2, axis=-1)
        return silu(gate) * up

    def backward(saved, ybar):
        x, W = saved
        gate, up = jnp.split(x @ W, 2, axis=-1)
        s = 1.0 / (1.0 + jnp.exp(-gate))
        # sigma' as exp(-a) / (1 + exp(-a))^2: equal only after clearing denominators
        slope = s + gate * (jnp.exp(-gate) / jnp.square(1.0 + jnp.exp(-gate)))
        zbar = jnp.concatenate([ybar * up * slope, ybar * gate * s], axis=-1)
        return zbar @ W.T, x.T @ zbar

    packed.defvjp(lambda x, W: (packed(x, W), (x, W)), backward)
    assert_proved(packed, packed, "f64[n,d]", "f64[d,2*f]")


def test_layer_norm_before_the_sublayer_is_proved():
    inner = sublayer(ACTIVATIONS["gelu_exact"])

    def norm(x, scale):
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return centred * lax.rsqrt(variance + 1e-5) * jnp.broadcast_to(scale, x.shape)

    @jax.custom_vjp
    def pre_norm(x, scale, W1, b1, W2, b2):
        return x + inner(norm(x, scale), W1, b1, W2, b2)

    def backward(saved, ybar):
        x, scale, *rest = saved
        u, back = jax.vjp(norm, x, scale)
        _, pull = jax.vjp(inner, u, *rest)
        ubar, *bars = pull(ybar)
        xbar, scale_bar = back(ubar)
        return (ybar + xbar, scale_bar, *bars)

    pre_norm.defvjp(lambda *args: (pre_norm(*args), args), backward)
    x, *rest = specs("n,")
    certificate = assert_proved(pre_norm, pre_norm, x, "f64[d]", *rest)
    assert any("> 0" in c for c in certificate.side_conditions)


def _broken(what):
    """The tanh sublayer with one thing wrong in its rule."""
    right = ACTIVATIONS["gelu"]
    shift = {"constant": 1e-9}.get(what, 0.0)

    def pullback(z, hbar):
        h, zbar = right.pullback(z, hbar)
        return h, zbar + shift * hbar

    fun = sublayer(Activation(right.value, pullback))

    def backward(saved, ybar):
        x, W1, b1, W2, b2, (z, _) = saved
        h, zbar = pullback(z, transpose(W2, ybar))
        residual = jnp.zeros_like(ybar) if what == "residual dropped" else ybar
        b1_bar = unbroadcast(zbar, b1) * (2.0 if what == "bias doubled" else 1.0)
        h = z if what == "h confused with z" else h
        return (
            residual + transpose(W1, zbar),
            weight_bar(x, zbar),
            b1_bar,
            weight_bar(h, ybar),
            unbroadcast(ybar, b2),
        )

    def forward(x, W1, b1, W2, b2):
        z = plus(apply(W1, x), b1)
        y = x + plus(apply(W2, right.value(z)), b2)
        return (y * 1.5 if what == "value in the forward rule" else y), (x, W1, b1, W2, b2, (z, None))

    fun.defvjp(forward, backward)
    return fun


@pytest.mark.parametrize(
    "what", ["constant", "residual dropped", "bias doubled", "h confused with z", "value in the forward rule"]
)
def test_wrong_rule_is_refuted_at_a_concrete_input(what):
    fun = _broken(what)
    verdict = prove_vjp(fun, fun, *specs("n,"))
    assert isinstance(verdict, Refutation), str(verdict)
    assert set(verdict.counterexample.point) == {"x", "W1", "b1", "W2", "b2", "ybar"}
    assert verdict.residues
    if what == "residual dropped":
        assert "x: rule - linear_transpose(jvp) = -ȳ[n,d]" in str(verdict)


def test_rule_of_one_activation_on_another_is_refuted():
    fun = sublayer(ACTIVATIONS["gelu"])
    verdict = prove_vjp(fun, sublayer(ACTIVATIONS["gelu_exact"]), *specs("n,"))
    assert isinstance(verdict, Refutation), str(verdict)


def test_almost_the_right_constant_is_refuted():
    """0.1341450001 for 0.134145, which no finite difference sees."""

    def unit(z):
        t = jnp.tanh(0.7978845608028654 * (z + 0.044715 * (z * z * z)))
        slope = 0.7978845608028654 * (1.0 + 0.1341450001 * (z * z))
        return 0.5 * z * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * slope

    fun = sublayer(Activation(ACTIVATIONS["gelu"].value, lambda z, hbar: (unit(z)[0], unit(z)[1] * hbar)))
    assert isinstance(prove_vjp(fun, fun, *specs("")), Refutation)
