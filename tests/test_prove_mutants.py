"""No mutant of a rule is proved while the prime field, which shares no code with it, says different."""

import pytest
from sublayer_for_proofs import ACTIVATIONS, chunked, specs
from symbolic_mutants import mutant, mutations

import ffn_jax as fj
from ffn_jax.verify._theorems import theorems
from ffn_jax.verify.symbolic._normalise import Oracle
from ffn_jax.verify.symbolic._prove import PRIMES
from ffn_jax.verify.symbolic._refute import in_balls, in_field
from ffn_jax.verify.symbolic._specs import Problem
from ffn_jax.verify.symbolic._workspace import Unsupported, fresh_workspace

# Every shipped rule but three kinds: opaque maps have no values to compare, and a chunked program and a mean have other
# equations at symbolic sizes than at concrete ones; for these stand some whose equations are the same. Of many
# mutants, evenly chosen.
RULES = {
    t.name: (t.fun, t.specs) for t in theorems() if not any(kind in t.name for kind in ("opaque", "chunks", "norm"))
}
RULES["layer_norm, 4 features"] = (fj.layer_norm, ("f64[n,4]", "f64[4]", "f64[4]"))
RULES["rms_norm, 4 features"] = (fj.rms_norm, ("f64[n,4]", "f64[4]"))
RULES["chunked"] = (chunked(ACTIVATIONS["silu"], 2), specs("k*2,"))
MOST = 30


def chosen(closed):
    found = mutations(closed)
    return found[:: max(1, len(found) // MOST)]


SECONDS = 1.0


@pytest.mark.parametrize("name", RULES)
def test_no_wrong_mutant_is_proved(name):
    fun, arg_specs = RULES[name]
    problem = Problem(fun, fun, arg_specs)
    general = problem.traced({})
    sizes = {n: PRIMES[k] for k, n in enumerate(problem.sizes)}
    concrete = problem.traced(sizes)
    assert mutations(general.rule) == mutations(concrete.rule)
    found = chosen(general.rule)
    noticed = 0
    with fresh_workspace():
        oracle = Oracle(general, problem.labels, True, 30.0)
        assert not oracle.compare(general.rule, general.call, 30.0).differences
        for mutation in found:
            try:
                proved = oracle.equal(mutant(general.rule, mutation), SECONDS)
            except Unsupported:
                proved = False
            if proved:
                rule = mutant(concrete.rule, mutation)
                said = [in_field(concrete, problem.labels, mode, rule=rule) for mode in ("oracle", "group")]
                assert "equal" in said, f"{mutation} is proved, but the field says {said}"
                assert in_balls(concrete, problem.labels, sizes, rule=rule)[0] is None, mutation
            else:
                noticed += 1
    assert noticed >= 0.6 * len(found)  # the others change code whose result is not used


def test_there_are_500_mutants():
    total = 0
    for fun, arg_specs in RULES.values():
        total += len(chosen(Problem(fun, fun, arg_specs).traced({}).rule))
    assert total >= 500


@pytest.mark.parametrize("name", ["ffn_residual, gelu", "ffn_residual, gelu_exact"])
def test_mutants_are_refuted_by_balls(name):
    """Nearly every mutant that is not equal has a rigorous counterexample at the smallest sizes."""
    fun, arg_specs = RULES[name]
    problem = Problem(fun, fun, arg_specs)
    sizes = dict.fromkeys(problem.sizes, 1)
    traced = problem.traced(sizes)
    refuted = equal = 0
    found = mutations(traced.rule)[::4]
    for mutation in found:
        rule = mutant(traced.rule, mutation)
        counterexample, _ = in_balls(traced, problem.labels, sizes, tries=2, rule=rule)
        if counterexample is not None:
            refuted += 1
        elif in_field(traced, problem.labels, "group", rule=rule) == "equal":
            equal += 1
    assert refuted + equal >= 0.95 * len(found)
    assert refuted >= 0.7 * len(found)
