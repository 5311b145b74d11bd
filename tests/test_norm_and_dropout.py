"""`norm=` and `dropout=` of the sublayer: equal to plain JAX around plain JAX, whatever is saved and chunked."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sublayer_cases import adjoint
from test_norms import plain_layer_norm, plain_rms_norm

import ffn_jax as fj
from ffn_jax import _rule, norms
from ffn_jax import dropout as dropout_module
from ffn_jax.verify import check_vjp, prove_vjp

RNG = np.random.default_rng(0)
N, D, F = 5, 3, 4
x, W1, b1, W2, b2, scale, bias = (
    jnp.asarray(RNG.standard_normal(s)) for s in ((N, D), (D, F), (F,), (F, D), (D,), (D,), (D,))
)
ARGS = (x, W1, b1, W2, b2, scale, bias)
KEY = jax.random.key(7)
OPTIONS = [{}, {"save": ()}, {"save": ("hidden_pre", "hidden_act")}, {"save": (), "chunk_size": 2}]
ids = lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "default"
NORMS = {
    "layer_norm": (lambda s, b: fj.LayerNorm(s, b, eps=1e-3), lambda x, s, b: plain_layer_norm(x, s, b, 1e-3)),
    "rms_norm": (lambda s, b: fj.RMSNorm(s, eps=1e-3), lambda x, s, b: plain_rms_norm(x, s, 1e-3)),
}


def masks(rate, shape_hidden=(N, F), shape_output=(N, D), key=KEY):
    """The factors m / (1 - p) of both sites, read off `drop` itself on ones."""
    rates, seed = dropout_module.prepare(fj.Dropout(rate, key, on="both"), "test")
    one = lambda site, shape: dropout_module.drop(rates, seed, site, jnp.ones(shape), shape[-1:])
    return one("hidden", shape_hidden), one("output", shape_output)


def plain(norm, norm_first, m1=1.0, m2=1.0, residual=True):
    """The sublayer in plain jnp, with the factors of dropout given."""

    def f(x, W1, b1, W2, b2, scale, bias):
        xhat = norm(x, scale, bias) if norm and norm_first else x
        h = jax.nn.silu(xhat @ W1 + b1[None]) * m1
        y = (h @ W2 + b2[None]) * m2 + (x if residual else 0)
        return norm(y, scale, bias) if norm and not norm_first else y

    return f


def sublayer(f=fj.ffn_residual, norm=None, **options):
    def g(x, W1, b1, W2, b2, scale, bias):
        made = norm and norm(scale, bias)
        return f(x, fj.Dense(W1), b1, fj.Dense(W2), b2, activation=fj.silu, norm=made, **options)

    return g


def check(rule, expected, args=ARGS, rtol=1e-11):
    y, pullback = jax.vjp(rule, *args)
    seed = jax.tree.map(lambda v: jnp.cos(3.0 * v), y)
    chex.assert_trees_all_close(y, expected(*args), rtol=rtol, atol=rtol)
    bars = pullback(seed)
    chex.assert_trees_all_equal_shapes_and_dtypes(bars, args)
    chex.assert_trees_all_close(bars, adjoint(expected, *args)(seed), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("options", OPTIONS, ids=ids)
@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("norm", NORMS)
def test_norm(norm, norm_first, options):
    ours, theirs = NORMS[norm]
    check(sublayer(norm=ours, norm_first=norm_first, **options), plain(theirs, norm_first))


@pytest.mark.parametrize("options", OPTIONS, ids=ids)
@pytest.mark.parametrize("on", ["hidden", "output", "both"])
def test_dropout(on, options):
    m1, m2 = masks(0.4)
    assert {0.0} < set(np.unique(m1)) | set(np.unique(m2))  # something is dropped in this draw
    expected = plain(None, True, m1 if on != "output" else 1.0, m2 if on != "hidden" else 1.0)
    check(sublayer(dropout=fj.Dropout(0.4, KEY, on=on), **options), expected)


def everything(f, **options):
    return sublayer(f, NORMS["layer_norm"][0], dropout=fj.Dropout(0.3, KEY, on="both"), **options)


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
def test_everything_at_once_in_every_function(norm_first):
    m, norm = masks(0.3), NORMS["layer_norm"][1]
    options = {"norm_first": norm_first}
    check(everything(fj.ffn_residual, save=(), chunk_size=3, **options), plain(norm, norm_first, *m))
    check(everything(fj.ffn, **options), plain(norm, norm_first, *m, residual=False))
    for rule, reference in ((fj.ffn_residual, fj.ffn_residual_reference), (fj.ffn, fj.ffn_reference)):
        got = jax.jvp(everything(reference, **options), ARGS, ARGS)
        expected = jax.jvp(plain(norm, norm_first, *m, residual=rule is fj.ffn_residual), ARGS, ARGS)
        chex.assert_trees_all_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
def test_tape_with_seeds_on_all(norm_first):
    m1, m2 = masks(0.3)
    norm = NORMS["layer_norm"][1]

    def tape(x, W1, b1, W2, b2, scale, bias):
        z = (norm(x, scale, bias) if norm_first else x) @ W1 + b1[None]
        h = jax.nn.silu(z) * m1
        u = (h @ W2 + b2[None]) * m2
        return fj.FFNTape(z, h, u, x + u if norm_first else norm(x + u, scale, bias))

    check(everything(fj.ffn_residual_tape, norm_first=norm_first), tape)


class TestMask:
    @pytest.mark.parametrize("on", ["hidden", "output"])
    def test_does_not_depend_on_chunks_or_dtype(self, on):
        f = lambda x, **options: sublayer(dropout=fj.Dropout(0.5, KEY, on=on), **options)(x, *ARGS[1:])
        whole = f(x)
        for chunk_size in (1, 2, 3):
            np.testing.assert_allclose(f(x, chunk_size=chunk_size), whole, rtol=1e-13)
        narrow = fj.ffn(*_like(ARGS[:5], "float32"), dropout=fj.Dropout(0.5, KEY))
        wide = fj.ffn(*_like(ARGS[:5], "float64"), dropout=fj.Dropout(0.5, KEY))
        np.testing.assert_array_equal(narrow == 0, wide == 0)

    def test_is_drawn_with_the_rate_and_keeps_the_mean(self):
        m1, m2 = masks(0.25, (400, 50), (400, 50))
        for m in (m1, m2):
            assert set(np.unique(m)) == {0.0, 1 / 0.75}
            assert abs(np.mean(m) - 1) < 5 * np.sqrt(0.25 / 0.75 / m.size)
        assert np.any(m1 != m2)  # the two sites draw from keys of their own
        assert abs(np.corrcoef(m1[0], m1[1])[0, 1]) < 0.6  # and so do two tokens

    def test_other_keys_draw_other_masks_and_old_keys_work(self):
        m = [
            masks(0.5, key=k)[0] for k in (KEY, jax.random.key(8), jax.random.PRNGKey(7), jax.random.key(7, impl="rbg"))
        ]
        assert np.any(m[0] != m[1])
        np.testing.assert_array_equal(m[0], m[2])
        assert set(np.unique(m[3])) == {0.0, 2.0}

    def test_rate_zero_is_the_same_program(self):
        f = lambda dropout: str(jax.make_jaxpr(lambda *a: jax.vjp(sublayer(dropout=dropout), *a)[1](x))(*ARGS))
        assert f(fj.Dropout(0.0, KEY, on="both")) == f(None)

    def test_is_not_kept_and_neither_is_the_normalised_input(self):
        kept = lambda **options: jax.tree.leaves(
            jax.eval_shape(lambda *a: jax.vjp(everything(fj.ffn_residual, **options), *a)[1], *ARGS)
        )
        large = lambda **options: sorted(str(v.dtype) for v in kept(**options) if v.shape in ((N, D), (N, F)))
        assert large(save=()) == ["float64"]  # x
        assert large() == ["float64"] * 2  # x and z
        assert large(norm_first=False) == ["float64"] * 3  # x, z, and the sum that is normalised
        assert not [v for v in kept() if v.dtype == bool]

    def test_key_is_an_argument_of_jit_grad_vmap_and_scan(self):
        dropout = fj.Dropout(0.5, KEY)
        f = lambda dropout, x: jnp.sum(sublayer(dropout=dropout, save=(), chunk_size=2)(x, *ARGS[1:]) ** 2)
        gradient = jax.jit(lambda key, x: jax.grad(f, argnums=1)(fj.Dropout(0.5, key), x))
        np.testing.assert_allclose(gradient(KEY, x), jax.grad(f, argnums=1)(dropout, x), rtol=1e-12)
        keys = jax.random.split(KEY, 3)
        each = jnp.stack([gradient(key, x) for key in keys])
        np.testing.assert_allclose(jax.vmap(gradient, (0, None))(keys, x), each, rtol=1e-12)
        step = lambda total, key: (total + gradient(key, x), None)
        np.testing.assert_allclose(jax.lax.scan(step, 0 * x, keys)[0], each.sum(0), rtol=1e-12)


def _like(args, dtype):
    x, W1, b1, W2, b2 = (a.astype(dtype) for a in args)
    return x, fj.Dense(W1), b1, fj.Dense(W2), b2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_precision_keeps_dtypes_and_nears_float64(dtype):
    args = tuple(a.astype(dtype) for a in ARGS)
    pull = jax.jit(lambda ybar, *args: jax.vjp(everything(fj.ffn_residual, chunk_size=2), *args)[1](ybar))
    bars = pull(args[0], *args)
    chex.assert_trees_all_equal_shapes_and_dtypes(bars, args)
    exact = tuple(a.astype("float64") for a in args)
    unit = float(jnp.finfo(dtype).eps)
    for got, want in zip(bars, pull(exact[0], *exact), strict=True):
        assert np.max(np.abs(got.astype("float64") - want)) <= 40 * unit * (1 + np.max(np.abs(want)))


def test_check_vjp():
    check_vjp(everything(fj.ffn_residual, save=()), everything(fj.ffn_residual_reference), *ARGS, draws=("given",))


# ---------------------------------------------------------------------------------- proof and wrong rules


def prove_for_every_mask(monkeypatch):
    """The prover cannot read random bits; the theorem is about any mask, so two integer arguments take their place."""

    def with_masks(f):
        def fun(x, W1, b1, W2, b2, m1, m2):
            chosen = {"hidden": m1 > 0, "output": m2 > 0}
            monkeypatch.setattr(dropout_module, "keep_mask", lambda rate, seed, site, *_: chosen[site])
            dropout = fj.Dropout(0.25, KEY, on="both")
            return f(x, fj.Dense(W1), b1, fj.Dense(W2), b2, dropout=dropout, activation=fj.silu)

        return fun

    monkeypatch.setattr(jax.random, "bits", lambda *_: jnp.zeros(2, "int32"))
    specs = ("f64[n,d]", "f64[d,f]", "f64[f]", "f64[f,d]", "f64[d]", "i32[n,f]", "i32[n,d]")
    return prove_vjp(with_masks(fj.ffn_residual), with_masks(fj.ffn_residual_reference), *specs)


def without_dropout(config, *args, original=_rule.pull_back):
    return original(config._replace(dropout=None), *args)


def test_dropout_is_proved_for_every_mask(monkeypatch):
    verdict = prove_for_every_mask(monkeypatch)
    assert verdict.proved, verdict


def test_dropout_that_the_backward_forgets_is_refuted(monkeypatch):
    monkeypatch.setattr(_rule, "pull_back", without_dropout)
    verdict = prove_for_every_mask(monkeypatch)
    assert verdict.verdict == "REFUTED", verdict


MUTANTS = {
    "no pullback of the norm": (norms, "pull_back", lambda x, affine, rows, ybar: (ybar, affine)),
    "x for x̂": (norms, "value", lambda x, affine, rows: x),
    "masks of other tokens": (
        dropout_module,
        "keep_mask",
        lambda *args, original=dropout_module.keep_mask: jnp.flip(original(*args), 0),
    ),
    "no dropout in the backward": (_rule, "pull_back", without_dropout),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_caught(mutant, monkeypatch):
    rule = everything(fj.ffn_residual, save=(), chunk_size=2)
    expected = plain(NORMS["layer_norm"][1], True, *masks(0.3))
    monkeypatch.setattr(*MUTANTS[mutant])
    with pytest.raises(AssertionError):
        check(rule, expected)


# -------------------------------------------------------------------------------------------- bad input

call = lambda **options: fj.ffn_residual(x, fj.Dense(W1), b1, fj.Dense(W2), b2, **options)
BAD = {
    "norm a function": (lambda: call(norm=fj.layer_norm), TypeError, ["ffn_residual", "norm", "LayerNorm"]),
    "norm a string": (lambda: call(norm="layer"), TypeError, ["ffn_residual", "norm", "'layer'"]),
    "norm of another size": (
        lambda: call(norm=fj.RMSNorm(jnp.ones(4))),
        ValueError,
        ["ffn_residual: norm", "scale", "(..., 4)", "(5, 3)"],
    ),
    "post-norm of another size": (
        lambda: call(norm=fj.RMSNorm(jnp.ones(4)), norm_first=False),
        ValueError,
        ["ffn_residual: norm", "(..., 4)"],
    ),
    "norm in another dtype": (
        lambda: call(norm=fj.LayerNorm(jnp.ones(3, "float32"))),
        TypeError,
        ["ffn_residual: norm", "scale", "float64", "float32"],
    ),
    "norm_first a number": (lambda: call(norm_first=1), TypeError, ["ffn_residual", "norm_first", "1"]),
    "norm of scalar tokens": (
        lambda: fj.ffn(x, fj.Dense(W2[0], in_ndim=0), None, fj.Dense(jnp.ones(3)), None, norm=fj.RMSNorm()),
        ValueError,
        ["ffn", "norm", "feature axis", "A1.in_shape ()"],
    ),
    "dropout a rate": (lambda: call(dropout=0.1), TypeError, ["ffn_residual", "Dropout", "0.1"]),
    "rate one": (lambda: fj.Dropout(1.0, KEY), ValueError, ["Dropout", "rate < 1", "1.0"]),
    "rate negative": (lambda: fj.Dropout(-0.1, KEY), ValueError, ["Dropout", "0 <= rate", "-0.1"]),
    "rate not a number": (lambda: fj.Dropout("0.1", KEY), TypeError, ["Dropout", "rate", "'0.1'"]),
    "rate NaN": (lambda: fj.Dropout(float("nan"), KEY), ValueError, ["Dropout", "rate", "nan"]),
    "key an int": (lambda: fj.Dropout(0.1, 0), TypeError, ["Dropout", "key", "jax.random.key(0)"]),
    "key of floats": (lambda: fj.Dropout(0.1, jnp.ones(2)), TypeError, ["Dropout", "key", "float64[2]"]),
    "several keys": (lambda: fj.Dropout(0.1, jax.random.split(KEY, 3)), TypeError, ["Dropout", "one key", "[3]"]),
    "site unknown": (lambda: fj.Dropout(0.1, KEY, on="input"), ValueError, ["Dropout", "hidden", "'input'"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, error, texts = BAD[name]
    with pytest.raises(error) as caught:
        make()
    missing = [text for text in texts if text not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"
