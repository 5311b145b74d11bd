"""`attention` against numpy in float64, written as loops over batch, heads and tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ffn_jax as fj

BATCH, SEQ, D, HEADS, DIM = 2, 5, 6, 4, 3
RTOL = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 4e-2, "float16": 5e-3}


def parameters(dtype="float64", key_heads=HEADS, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(D, HEADS, DIM), (D, key_heads, DIM), (D, key_heads, DIM), (HEADS, DIM, D)]
    maps = [
        fj.Dense(jnp.asarray(rng.normal(size=shape) / 2, dtype), in_ndim=in_ndim)
        for shape, in_ndim in zip(shapes, (1, 1, 1, 2), strict=True)
    ]
    biases = [jnp.asarray(rng.normal(size=A.out_shape), dtype) for A in maps]
    return fj.Attention(*(part for pair in zip(maps, biases, strict=True) for part in pair))


def tokens(dtype="float64", shape=(BATCH, SEQ, D)):
    return jnp.asarray(np.random.default_rng(7).normal(size=shape), dtype)


def by_loops(x, params, allowed):
    """float64 numpy, one head and one token at a time; `allowed[b, h, t, s]`."""
    Wq, bq, Wk, bk, Wv, bv, Wo, bo = (np.asarray(leaf, "float64") for leaf in jax.tree.leaves(params))
    x, group = np.asarray(x, "float64"), HEADS // Wk.shape[1]
    y = np.zeros_like(x)
    for b, sequence in enumerate(x):
        for t, query in enumerate(sequence):
            for h in range(HEADS):
                q = query @ Wq[:, h] + bq[h]
                keys = [s for s in range(len(sequence)) if allowed[b, h, t, s]] or range(len(sequence))
                k = np.array([sequence[s] @ Wk[:, h // group] + bk[h // group] for s in keys])
                v = np.array([sequence[s] @ Wv[:, h // group] + bv[h // group] for s in keys])
                p = np.exp(k @ q / np.sqrt(DIM)) if any(allowed[b, h, t]) else np.ones(len(k))
                y[b, t] += (p / p.sum()) @ v @ Wo[h]
            y[b, t] += bo
    return y


PADDING = np.arange(SEQ) < np.array([[5], [3]])
FULL = np.random.default_rng(3).random((BATCH, HEADS, SEQ, SEQ)) < 0.6
MASKS = {
    "none": (None, False, np.ones((1, 1, 1, SEQ), bool)),
    "padding": (PADDING, False, PADDING[:, None, None]),
    "padding alike": (PADDING[1:], False, PADDING[1:, None, None]),
    "causal": (None, True, np.tri(SEQ, dtype=bool)[None, None]),
    "padding causal": (PADDING, True, PADDING[:, None, None] & np.tri(SEQ, dtype=bool)),
    "full": (FULL, False, FULL),
    "full, one for all heads": (FULL[:, :1], True, FULL[:, :1] & np.tri(SEQ, dtype=bool)),
    "nothing to attend to": (np.zeros((BATCH, SEQ), bool), False, np.zeros((1, 1, 1, SEQ), bool)),
}


# Every mask, with two queries' heads to a key's; one mask with other heads, and in half types, which pass by float32.
FORMULA = [(case, dtype, 2) for dtype in ("float64", "float32") for case in MASKS] + [
    ("padding causal", "float64", 1),
    ("padding causal", "float32", HEADS),
    ("padding causal", "bfloat16", HEADS),
    ("padding causal", "float16", 2),
]


@pytest.mark.parametrize(("case", "dtype", "key_heads"), FORMULA)
def test_is_the_formula(case, dtype, key_heads):
    mask, is_causal, allowed = MASKS[case]
    x, params = tokens(dtype), parameters(dtype, key_heads)
    y = fj.attention(x, *params, mask=mask, is_causal=is_causal)
    assert y.dtype == dtype
    expected = by_loops(x, params, np.broadcast_to(allowed, (BATCH, HEADS, SEQ, SEQ)))
    np.testing.assert_allclose(np.asarray(y, "float64"), expected, rtol=0, atol=RTOL[dtype] * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradients_have_their_primals_dtypes_and_are_those_of_float64(dtype):
    def loss(x, params):
        return jnp.sum(jnp.sin(fj.attention(x, *params, mask=PADDING).astype("float64")))

    x, params = tokens(dtype), parameters(dtype)
    got = jax.jit(jax.grad(loss, (0, 1)))(x, params)
    exact = jax.grad(loss, (0, 1))(*jax.tree.map(lambda leaf: leaf.astype("float64"), (x, params)))
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
        assert g.dtype == dtype
        largest = max(float(jnp.abs(e).max()), 0.1)  # the gradient in bk is 0: softmax does not see a common shift
        np.testing.assert_allclose(g.astype("float64"), e, rtol=0, atol=8 * RTOL[dtype] * largest)


@pytest.mark.parametrize("is_causal", [False, True])
def test_derivative_is_checked_at_the_tolerance_of_float64(is_causal):
    def fun(x, params):
        return fj.attention(x, *params, mask=PADDING, is_causal=is_causal)

    def plain(x, params):
        Q, bq, K, bk, V, bv, O, bo = params
        q, k, v = (A(x) + jnp.broadcast_to(b, (BATCH, SEQ, HEADS, DIM)) for A, b in ((Q, bq), (K, bk), (V, bv)))
        allowed = (PADDING[:, None, None] & np.tri(SEQ, k=0 if is_causal else SEQ, dtype=bool)).repeat(HEADS, 1)
        e = jnp.where(allowed, jnp.exp(jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(DIM)), 0.0)
        y = O(jnp.einsum("bnts,bsnh->btnh", e / jnp.sum(e, -1, keepdims=True), v))
        return y + jnp.broadcast_to(bo, y.shape)

    x, params = tokens(), parameters()
    got, pull = jax.vjp(fun, x, params)
    expected, pull_plain = jax.vjp(plain, x, params)
    ybar = jnp.sin(jnp.arange(got.size, dtype="float64")).reshape(got.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    for g, e in zip(jax.tree.leaves(pull(ybar)), jax.tree.leaves(pull_plain(ybar)), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-11, atol=1e-13)


def test_padded_keys_do_not_matter():
    x, params = tokens(), parameters()
    elsewhere = jnp.where(PADDING[..., None], x, 100.0)
    y, z = (fj.attention(t, *params, mask=PADDING) for t in (x, elsewhere))
    assert np.array_equal(y[PADDING], z[PADDING])
    alone = fj.attention(x[1, :3], *params)
    np.testing.assert_allclose(y[1, :3], alone, rtol=1e-12)
    assert not np.allclose(fj.attention(x, *params)[1, :3], alone)  # without the mask they do


def test_any_batch_and_any_map():
    x, params = tokens(), parameters()
    Q, bq, K, bk, V, bv, O, bo = params
    expected = fj.attention(x, *params, mask=PADDING)
    close = lambda y: np.testing.assert_allclose(y, expected, rtol=0, atol=20 * RTOL["float64"])

    close(fj.attention(x[:, None], *params, mask=PADDING[:, None])[:, 0])
    close(jax.vmap(lambda x, mask: fj.attention(x, *params, mask=mask))(x, jnp.asarray(PADDING)))
    close(jnp.stack([fj.attention(x[k], *params, mask=PADDING[k]) for k in range(BATCH)]))
    stored = fj.Dense(jnp.moveaxis(Q.weight, 0, -1), layout="out_in")
    close(fj.attention(x, stored, bq, K, bk, V, bv, O, bo, mask=PADDING))
    lora = K + fj.Dense(K.weight, 1) - 1.0 * fj.Dense(K.weight, 1)
    shared = fj.TimeDistributed(V, SEQ)
    close(fj.attention(x, lambda x: Q(x), bq, lora, bk, shared, bv, O, bo, mask=PADDING))
    by_hand = fj.linear_map(
        lambda W, x: jnp.tensordot(x, W, 1), (D,), params=Q.weight, transpose=lambda W, y: jnp.tensordot(W, y, 2)
    )
    close(fj.attention(x, by_hand, bq, K, bk, V, bv, O, bo, mask=PADDING))


# ------------------------------------------------------------------------------- bad input


x, params = tokens(), parameters()


def dense(*shape, in_ndim=1, dtype="float64"):
    return fj.Dense(jnp.ones(shape, dtype), in_ndim=in_ndim)


def call(x=x, mask=None, is_causal=False, **parts):
    return fj.attention(x, *params._replace(**parts), mask=mask, is_causal=is_causal)


BAD = {
    "x a vector": (lambda: call(jnp.ones(D)), ValueError, ["x", "(..., seq, d_model)", "(6,)"]),
    "no tokens": (lambda: call(jnp.ones((2, 0, D))), ValueError, ["seq >= 1", "(2, 0, 6)"]),
    "x of integers": (lambda: call(jnp.ones((SEQ, D), int)), TypeError, ["x", "floating", "int64"]),
    "x too narrow": (lambda: call(jnp.ones((SEQ, 4))), ValueError, ["(5, 4)", "Q.in_shape (6,)"]),
    "x in another dtype": (lambda: call(x.astype("float32")), TypeError, ["x of dtype float64", "Q", "float32"]),
    "Q without heads": (lambda: call(Q=dense(D, 12), bq=None), ValueError, ["Q", "(2, 5, heads, head_dim)", "12)"]),
    "Q no map": (lambda: call(Q=3.0), TypeError, ["Q", "LinearMap", "got 3.0"]),
    "Q affine": (lambda: call(Q=lambda x: jnp.ones((2, 5, 4, 3))), ValueError, ["Q", "linear"]),
    "V unlike K": (lambda: call(V=dense(D, 2, DIM), bv=None), ValueError, ["V", "(4, 3)", "(2, 3)"]),
    "head_dims differ": (
        lambda: call(K=dense(D, 4, 2), bk=None, V=dense(D, 4, 2), bv=None),
        ValueError,
        ["K's head_dim", "3", "got 2"],
    ),
    "heads that do not divide": (
        lambda: call(K=dense(D, 3, DIM), bk=None, V=dense(D, 3, DIM), bv=None),
        ValueError,
        ["divide", "4 heads", "got 3"],
    ),
    "O for other heads": (lambda: call(O=dense(2, 6, D, in_ndim=2)), ValueError, ["heads", "(2, 6)", "O.in_shape"]),
    "O keeps the heads": (lambda: call(O=dense(DIM, 6), bo=None), ValueError, ["O", "(2, 5, d_model)", "(2, 5, 4, 6)"]),
    "O in another dtype": (lambda: call(O=dense(4, 3, D, in_ndim=2, dtype="float32")), TypeError, ["O", "float32"]),
    "bk too long": (lambda: call(bk=jnp.ones(4)), ValueError, ["bk", "K's output", "(2, 5, 4, 3)", "(4,)"]),
    "bo in another dtype": (lambda: call(bo=jnp.ones(D, "float32")), TypeError, ["bo", "float64", "float32"]),
    "mask of integers": (lambda: call(mask=jnp.ones((2, 5), int)), TypeError, ["mask", "boolean", "int64"]),
    "mask of floats": (lambda: call(mask=jnp.zeros((2, 1, 5, 5))), TypeError, ["mask", "boolean", "float64"]),
    "mask a list": (lambda: call(mask=[[True] * 5] * 2), TypeError, ["mask", "boolean array", "list"]),
    "mask too long": (lambda: call(mask=jnp.ones((2, 6), bool)), ValueError, ["mask", "(2, 5)", "got (2, 6)"]),
    "mask for one sequence": (lambda: call(mask=jnp.ones(5, bool)), ValueError, ["mask", "(2, 5)", "got (5,)"]),
    "mask without heads": (lambda: call(mask=jnp.ones((2, 5, 5), bool)), ValueError, ["(2, 4, 5, 5)", "(2, 5, 5)"]),
    "mask for other heads": (lambda: call(mask=jnp.ones((2, 3, 5, 5), bool)), ValueError, ["(2, 4, 5, 5)", "(2, 3,"]),
    "is_causal an array": (lambda: call(is_causal=jnp.array(True)), TypeError, ["is_causal", "bool"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    f, error, said = BAD[case]
    with pytest.raises(error) as caught:
        f()
    message = str(caught.value)
    assert message.startswith("attention")
    assert "expected" in message
    assert all(text in message for text in said), message
