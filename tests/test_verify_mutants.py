"""Every wrong rule made by rewriting one equation of a right one is caught, or is provably the same rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxpr_mutants import mutants

import ffn_jax as fj
from ffn_jax.verify._bounds import Model, bounds_of
from ffn_jax.verify._compare import compare_entries

RNG = np.random.default_rng(0)
# d_model = d_ff = tokens, so that a dropped transpose still has the right shape
LIKE = [jnp.asarray(RNG.standard_normal(s)) for s in [(3, 3), (3, 3), (3,), (3, 3), (3,), (3, 3)]]


def rms_norm(x, g):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * jnp.broadcast_to(g, x.shape)


def softmax(x):
    e = jnp.exp(x)
    return e / jnp.broadcast_to(jnp.sum(e, axis=-1, keepdims=True), x.shape)


def shipped(activation):
    """The reverse rule of `ffn_residual` itself: (x, W1, b1, W2, b2, ȳ) to the five cotangents."""

    def sublayer(x, W1, b1, W2, b2):
        return fj.ffn_residual(x, fj.Dense(W1), b1, fj.Dense(W2), b2, activation=activation)

    return lambda *a: jax.vjp(sublayer, *a[:-1])[1](a[-1])


RULES = {
    **{activation.name: (shipped(activation), LIKE) for activation in (fj.gelu, fj.gelu_exact, fj.silu)},
    "rms_norm": (lambda x, g, ybar: jax.vjp(rms_norm, x, g)[1](ybar), [LIKE[0], LIKE[2], LIKE[5]]),
    "softmax": (lambda x, ybar: jax.vjp(softmax, x)[1](ybar), [LIKE[0], LIKE[5]]),
}


# -e / sum(-e) is e / sum(e)
EQUAL = {"softmax": {"0:exp:flip the sign"}}


def caught(right, function, args) -> bool:
    """Whether the mutant's results leave the right rule's by more than twice its derived bound.

    A mutant's own bound is close to the rule's; compiling it for each would take most of the time.
    """
    wrong = function(*args)
    return any(
        compare_entries(b, a, 2 * error * (1 + 2.0**-6), 1e-8).ratio > 1
        for (a, error), b in zip(right, wrong, strict=True)
    )


@pytest.mark.parametrize("name", RULES)
def test_every_mutant_is_caught_or_harmless(name):
    rule, args = RULES[name]
    closed = jax.make_jaxpr(rule)(*args)
    everyone = list(mutants(closed))
    right = jax.jit(bounds_of(closed, Model(statistical=False)))(*args)
    verdicts = {m.name: caught(right, m.function, args) for m in everyone}
    assert len(everyone) >= 12
    for m in everyone:
        harmless = m.harmless or m.name in EQUAL.get(name, ())
        assert verdicts[m.name] != harmless, f"{name} {m.name}: caught is {verdicts[m.name]}"


def test_there_are_at_least_sixty_harmful_mutants():
    closed = [jax.make_jaxpr(rule)(*args) for rule, args in RULES.values()]
    assert sum(not m.harmless for each in closed for m in mutants(each)) >= 60
