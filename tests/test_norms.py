"""LayerNorm and RMSNorm: the rule equals linear_transpose of jvp, keeps what it says, and its mutants are caught."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from map_cases import UNIT, to64
from sublayer_cases import adjoint

import ffn_jax as fj
from ffn_jax import norms
from ffn_jax.verify import VerificationError, check_vjp, prove_vjp
from ffn_jax.verify._theorems import theorems

D = 6


def plain_layer_norm(x, scale=None, bias=None, eps=1e-5):
    """From the definition, one row at a time, in numpy's order of operations."""
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + eps)
    y = y if scale is None else y * jnp.broadcast_to(scale, x.shape)
    return y if bias is None else y + jnp.broadcast_to(bias, x.shape)


def plain_rms_norm(x, scale=None, eps=1e-6):
    y = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return y if scale is None else y * jnp.broadcast_to(scale, x.shape)


def arrays(lead=(5,), count=3, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(*lead, D), (D,), (D,)][:count]
    return tuple(jnp.asarray(1.5 * rng.standard_normal(s) + 0.5).astype(dtype) for s in shapes)


# name: (rule, reference of the library, reference from scratch, number of arguments)
NORMS = {
    "layer_norm": (fj.layer_norm, fj.layer_norm_reference, plain_layer_norm, 3),
    "layer_norm, scale alone": (fj.layer_norm, fj.layer_norm_reference, plain_layer_norm, 2),
    "layer_norm, x alone": (fj.layer_norm, fj.layer_norm_reference, plain_layer_norm, 1),
    "rms_norm": (fj.rms_norm, fj.rms_norm_reference, plain_rms_norm, 2),
    "rms_norm, x alone": (fj.rms_norm, fj.rms_norm_reference, plain_rms_norm, 1),
}
each = pytest.mark.parametrize("name", NORMS)


def check_rule(name, lead=(5,), eps=1e-5):
    rule, reference, plain, count = NORMS[name]
    args = arrays(lead, count)
    y, pullback = jax.vjp(lambda *args: rule(*args, eps=eps), *args)
    ybar = jnp.cos(7.0 * y)
    np.testing.assert_allclose(y, plain(*args, eps=eps), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(reference(*args, eps=eps), y)
    for f in (reference, plain):
        expected = adjoint(lambda *args: f(*args, eps=eps), *args)(ybar)  # noqa: B023
        chex.assert_trees_all_close(pullback(ybar), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)], ids=["token", "sequence", "batch"])
@each
def test_rule_is_the_adjoint_of_the_derivative(name, lead):
    check_rule(name, lead, eps=1e-3)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_check_vjp_with_derived_tolerances(name):
    rule, reference, _, count = NORMS[name]
    report = check_vjp(rule, reference, *arrays((3,), count, "float32"), draws=("given", "normal"))
    assert {row.gate for row in report.rows} == {"float64 deterministic", "float32 six-sigma"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@each
def test_low_precision_is_as_near_as_rounding_allows(name, dtype):
    rule, reference, _, count = NORMS[name]
    args = arrays((2, 3), count, dtype)
    y, pullback = jax.vjp(rule, *args)
    ybar = jnp.sin(5.0 * y)
    bars = pullback(ybar)
    chex.assert_trees_all_equal_shapes_and_dtypes(bars, args)
    expected = adjoint(reference, *to64(args))(to64(ybar))
    for got, want in zip((y, *bars), (reference(*to64(args)), *expected), strict=True):
        assert np.max(np.abs(to64(got) - want)) <= 20 * UNIT[dtype] * (1 + np.max(np.abs(want)))


def test_half_types_may_have_parameters_in_float32():
    (x,), (_, scale, bias) = arrays(count=1, dtype="bfloat16"), arrays(dtype="float32")
    y, pullback = jax.vjp(fj.layer_norm, x, scale, bias)
    assert y.dtype == x.dtype
    assert [bar.dtype.name for bar in pullback(y)] == ["bfloat16", "float32", "float32"]


def test_parameter_cotangents_of_half_types_are_summed_in_float32():
    """4,099 ones sum to 256 in bfloat16, one after the other; 4,099 rounds to 4,096."""
    x, b = jnp.zeros((4099, 2), "bfloat16"), jnp.zeros(2, "bfloat16")
    bar = jax.grad(lambda b: jnp.sum(fj.layer_norm(x, None, b), dtype="float32"))(b)
    assert bar.astype("float32").tolist() == [4096.0, 4096.0]


def test_a_row_far_from_zero_keeps_its_digits():
    """Centred before it is squared: the mean square less the squared mean would lose every digit here."""
    x = jnp.asarray([[1e4, 1e4 + 1, 1e4 + 2]], "float32")
    np.testing.assert_allclose(fj.layer_norm(x), [[-1.224736, 0.0, 1.224736]], rtol=1e-4)


def test_equal_features_give_the_bias():
    x, scale, bias = jnp.full((2, D), 3.0), *arrays()[1:]
    np.testing.assert_array_equal(fj.layer_norm(x, scale, bias), jnp.stack([bias, bias]))


@each
def test_under_jit_vmap_scan_and_grad_of_grad(name):
    rule, _, plain, count = NORMS[name]
    xs, *params = arrays((3, 4), count)

    def outcomes(norm):
        loss = lambda x, *params: jnp.sum(jnp.sin(norm(x, *params, eps=1e-2)))
        gradient = jax.grad(loss, argnums=tuple(range(count)))
        step = lambda total, x: (total + loss(x, *params), None)
        return (
            jax.jit(jax.vmap(gradient, (0, *[None] * (count - 1))))(xs, *params),
            jax.jit(jax.grad(lambda xs: jax.lax.scan(step, 0.0, xs)[0]))(xs),
            jax.grad(lambda x: jnp.sum(jax.grad(loss)(x, *params) ** 2))(xs[0]),
        )

    chex.assert_trees_all_close(outcomes(rule), outcomes(plain), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "numbers"), [("layer_norm", 2), ("rms_norm", 1)])
def test_backward_keeps_x_and_the_statistics_of_the_rows(name, numbers):
    rule, _, _, count = NORMS[name]
    args = arrays((50,), count, "bfloat16")
    kept = jax.tree.leaves(jax.eval_shape(lambda *args: jax.vjp(rule, *args)[1], *args))
    sizes = sorted(((leaf.shape, leaf.dtype.name) for leaf in kept if leaf.shape != (D,)), key=str)
    assert sizes == [*[((50, 1), "float32")] * numbers, ((50, D), "bfloat16")]


def test_forward_mode_is_that_of_the_reference():
    for rule, reference, plain, count in NORMS.values():
        args = arrays((2,), count)
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(rule, args, args)
        eps = 1e-5 if rule is fj.layer_norm else 1e-6
        expected = jax.jvp(lambda *args: plain(*args, eps=eps), args, args)[1]  # noqa: B023
        np.testing.assert_allclose(jax.jvp(reference, args, args)[1], expected, rtol=1e-11, atol=1e-11)


class TestDataclasses:
    def test_are_the_functions_with_their_parameters(self):
        x, scale, bias = arrays()
        np.testing.assert_array_equal(fj.LayerNorm(scale, bias, eps=1e-3)(x), fj.layer_norm(x, scale, bias, eps=1e-3))
        np.testing.assert_array_equal(fj.RMSNorm(scale, eps=1e-3)(x), fj.rms_norm(x, scale, eps=1e-3))
        np.testing.assert_array_equal(fj.LayerNorm()(x), fj.layer_norm(x))

    def test_parameters_are_leaves_and_eps_is_static(self):
        x, scale, bias = arrays()
        norm = fj.LayerNorm(np.asarray(scale), bias)
        assert len(jax.tree.leaves(norm)) == 2
        traces = []
        f = jax.jit(lambda norm, x: traces.append(norm) or jnp.sum(norm(x) ** 2))
        bar = jax.grad(f)(norm, x)
        f(jax.tree.map(lambda s: s + 1, norm), x)
        assert len(traces) <= 2  # with and without differentiation
        assert isinstance(bar, fj.LayerNorm)
        assert bar.eps == norm.eps
        expected = jax.grad(lambda s: jnp.sum(plain_layer_norm(x, s, bias) ** 2))(scale)
        np.testing.assert_allclose(bar.scale, expected, rtol=1e-11)


# ------------------------------------------------------------------------------------------ wrong rules


def bars(change):
    """`change(x̄, affine cotangents, g = s ⊙ ȳ, x̂, rows)` in place of the rule's result."""
    original = norms.pull_back

    def mutant(x, affine, rows, ybar):
        xbar, affine_bar = original(x, affine, rows, ybar)
        g = ybar if affine.scale is None else ybar * jnp.broadcast_to(affine.scale, ybar.shape)
        return change(xbar, affine_bar, g, norms._normalised(x, rows), rows)

    return "pull_back", mutant


mean = lambda v: jnp.mean(v, -1, keepdims=True)
MUTANTS = {
    "term through the variance dropped": bars(lambda x, a, g, h, r: (x + r.rsqrt * h * mean(g * h), a)),
    "term through the mean dropped": bars(lambda x, a, g, h, r: (x + (0 if r.mean is None else r.rsqrt * mean(g)), a)),
    "one over the root forgotten": bars(lambda x, a, g, h, r: (x / r.rsqrt, a)),
    "scale forgotten": bars(lambda x, a, g, h, r: (r.rsqrt * g, a)),
    "x̄ negated": bars(lambda x, a, g, h, r: (-x, a)),
    "s̄ with a root too many": bars(
        lambda x, a, g, h, r: (x, a._replace(scale=a.scale * jnp.broadcast_to(r.rsqrt[0], a.scale.shape)))
    ),
    "s̄ doubled": bars(lambda x, a, g, h, r: (x, a._replace(scale=2 * a.scale))),
    "b̄ of one row": bars(lambda x, a, g, h, r: (x, a._replace(bias=None if a.bias is None else g[0] * 1.0))),
}
ONLY_LAYER_NORM = ("term through the mean dropped", "b̄ of one row")
HARMFUL = [
    (name, mutant)
    for name in ("layer_norm", "rms_norm")
    for mutant in MUTANTS
    if name == "layer_norm" or mutant not in ONLY_LAYER_NORM
]


@pytest.mark.parametrize(("name", "mutant"), HARMFUL)
def test_mutant_is_caught(name, mutant, monkeypatch):
    check_rule(name)
    attribute, wrong = MUTANTS[mutant]
    monkeypatch.setattr(norms, attribute, wrong)
    with pytest.raises(AssertionError):
        check_rule(name)
    theorem = {t.name: t for t in theorems()}[name]
    verdict = prove_vjp(theorem.fun, theorem.reference, *theorem.specs)
    assert verdict.verdict == "REFUTED", verdict


def test_mutant_is_caught_by_check_vjp(monkeypatch):
    monkeypatch.setattr(norms, *MUTANTS["term through the mean dropped"])
    with pytest.raises(VerificationError, match="x"):
        check_vjp(fj.layer_norm, fj.layer_norm_reference, *arrays((2,)), draws=("given",))


def test_certificate_names_the_domain():
    """Variance + eps > 0, times 1/eps; what is a sum of squares needs no condition."""
    theorem = {t.name: t for t in theorems()}["layer_norm"]
    verdict = prove_vjp(theorem.fun, theorem.reference, *theorem.specs)
    conditions = str(verdict).split("Side conditions:")[1]
    assert "1 - 100000 d^(-2) (sum_d x[n,d])^2 + 100000 d^(-1) (sum_d x[n,d]^2) > 0" in conditions


# -------------------------------------------------------------------------------------------- bad input

x, s, b = arrays()
BAD = {
    "eps zero": (lambda: fj.layer_norm(x, s, b, eps=0.0), ValueError, ["layer_norm", "eps", "> 0", "0.0"]),
    "eps negative": (lambda: fj.rms_norm(x, s, eps=-1e-6), ValueError, ["rms_norm", "eps", "-1e-06"]),
    "eps not finite": (lambda: fj.rms_norm(x, s, eps=float("nan")), ValueError, ["rms_norm", "finite", "nan"]),
    "eps an int": (lambda: fj.LayerNorm(s, b, eps=1), TypeError, ["LayerNorm", "eps", "Python float", "got 1"]),
    "eps an array": (lambda: fj.RMSNorm(s, eps=jnp.ones(())), TypeError, ["RMSNorm", "eps", "float"]),
    "x too narrow": (lambda: fj.layer_norm(x[:, :4], s, b), ValueError, ["layer_norm", "(..., 6)", "(5, 4)", "scale"]),
    "x a scalar": (lambda: fj.rms_norm(jnp.ones(())), ValueError, ["rms_norm", "(..., d)", "()"]),
    "x without features": (lambda: fj.rms_norm(jnp.ones((3, 0))), ValueError, ["rms_norm", "d >= 1", "(3, 0)"]),
    "x of integers": (lambda: fj.layer_norm(jnp.arange(6)), TypeError, ["layer_norm", "x", "floating", "int64"]),
    "x a list": (lambda: fj.layer_norm([1.0, 2.0]), TypeError, ["layer_norm", "x", "array", "list"]),
    "scale of two axes": (lambda: fj.layer_norm(x, x, b), ValueError, ["layer_norm", "scale", "(d,)", "(5, 6)"]),
    "scale a number": (lambda: fj.rms_norm(x, 2.0), TypeError, ["rms_norm", "scale", "array", "float"]),
    "scale of integers": (lambda: fj.RMSNorm(jnp.arange(6)), TypeError, ["RMSNorm", "scale", "floating", "int64"]),
    "scale narrower than x": (
        lambda: fj.rms_norm(x, s.astype("float32")),
        TypeError,
        ["rms_norm", "scale", "float64", "float32"],
    ),
    "scale wider than x": (
        lambda: fj.rms_norm(x.astype("bfloat16"), s),
        TypeError,
        ["rms_norm", "scale", "bfloat16 or float32", "float64"],
    ),
    "bias of another size": (lambda: fj.layer_norm(x, s, b[:2]), ValueError, ["layer_norm", "bias", "(..., 2)"]),
    "bias not scale's shape": (lambda: fj.LayerNorm(s, b[:2]), ValueError, ["LayerNorm", "bias", "(6,)", "(2,)"]),
    "the dataclass names itself": (lambda: fj.LayerNorm(s, b)(x[:, 1:]), ValueError, ["LayerNorm", "(5, 5)"]),
    "the reference names itself": (
        lambda: fj.rms_norm_reference(x[:, 1:], s),
        ValueError,
        ["rms_norm_reference", "(5, 5)"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, texts = BAD[name]
    with pytest.raises(error) as caught:
        call()
    missing = [text for text in texts if text not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"
