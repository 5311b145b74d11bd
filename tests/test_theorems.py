"""Every theorem that the package claims is proved, and a wrong version of each of its equations is not."""

import jax
import pytest

import ffn_jax as fj
from ffn_jax import _rule
from ffn_jax.verify import Certificate, prove_vjp
from ffn_jax.verify._theorems import ELEMENTWISE, GATED, theorems

THEOREMS = {theorem.name: theorem for theorem in theorems()}


@pytest.mark.parametrize("name", THEOREMS)
def test_theorem_is_proved(name):
    theorem = THEOREMS[name]
    verdict = prove_vjp(theorem.fun, theorem.reference, *theorem.specs)
    assert isinstance(verdict, Certificate), verdict


def test_every_shipped_activation_has_its_theorem():
    shipped = {a for a in vars(fj).values() if isinstance(a, fj.Activation)}
    assert shipped == {*ELEMENTWISE, *GATED}


@pytest.mark.parametrize(
    "change",
    [
        lambda xbar, bars, seeds: (xbar - seeds.output, bars),
        lambda xbar, bars, seeds: (xbar, bars._replace(b1=2 * bars.b1)),
        lambda xbar, bars, seeds: (xbar, bars._replace(A2=jax.tree.map(lambda W: -W, bars.A2))),
    ],
    ids=["no residual term", "b1 twice", "A2 negated"],
)
@pytest.mark.parametrize("name", ["ffn_residual, silu", "ffn_residual, chunks of 3 tokens"])
def test_a_wrong_equation_is_not_proved(name, change, monkeypatch):
    original = _rule.pull_back

    def mutant(config, x, z, h, params, seeds):
        return change(*original(config, x, z, h, params, seeds), seeds)

    monkeypatch.setattr(_rule, "pull_back", mutant)
    theorem = THEOREMS[name]
    verdict = prove_vjp(theorem.fun, theorem.reference, *theorem.specs)
    assert verdict.verdict == "REFUTED", verdict
