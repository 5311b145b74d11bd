"""What the library chooses by backend and sizes: the choices change no value, and are made where they are promised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ffn_jax as fj
from ffn_jax import _blocks, _fast, verify

KEYS = jax.random.split(jax.random.key(0), 6)


def normal(key, *shape, dtype="float64"):
    return jax.random.normal(KEYS[key], shape, dtype)


def dense_args(tokens, d=4, f=6, dtype="float64"):
    shapes = (*tokens, d), (d, f), (f,), (f, d), (d,)
    return tuple(normal(k, *shape, dtype=dtype) for k, shape in enumerate(shapes))


def sublayer(x, W1, b1, W2, b2, **options):
    return fj.ffn_residual(x, fj.Dense(W1), b1, fj.Dense(W2), b2, **options)


def chunks(fun, *args):
    """The numbers of steps of the loops in fun's program."""
    return [eqn.params["length"] for eqn in walk(jax.make_jaxpr(fun)(*args).jaxpr) if eqn.primitive.name == "scan"]


def walk(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from walk(inner)


# ------------------------------------------------------------------------------- weight cotangents


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(("lead", "m", "n"), [((7,), 3, 5), ((7,), 5, 3), ((2, 3), 4, 4), ((), 3, 2), ((0,), 3, 2)])
def test_both_products_are_the_sum_of_outer_products(lead, m, n, dtype):
    x, ybar = normal(0, *lead, m, dtype=dtype), normal(1, *lead, n, dtype=dtype)
    rows = np.asarray(x, "float64").reshape(-1, m), np.asarray(ybar, "float64").reshape(-1, n)
    expected = np.einsum("tm,tn->mn", *rows)
    for one_cpu in (False, True):
        with _fast.assume(one_cpu):
            result = _fast.outer(x, ybar)
        assert result.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
        np.testing.assert_allclose(result, expected, rtol=1e-12 if dtype == "float64" else 1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["in_out", "out_in"])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_transposed_products_keep_every_derivative(shape, layout):
    weight, x = normal(0, *shape), normal(1, 4, shape[0] if layout == "in_out" else shape[1])

    def pullback(weight, x):
        A = fj.Dense(weight, layout=layout)
        return A.params_vjp(x, jnp.sin(A.apply(x))).weight

    def twice(weight, x):
        return jax.vmap(jax.grad(lambda weight, x: jnp.sum(jnp.cos(pullback(weight, x))), argnums=(0, 1)), (None, 0))(
            weight, jnp.stack([x, 2 * x])
        )

    with _fast.assume(one_cpu=False):
        expected = twice(weight, x)
    with _fast.assume(one_cpu=True):
        assert "optimization_barrier" in str(jax.make_jaxpr(pullback)(weight, x))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), twice(weight, x), expected)


MUTANTS = {
    "right": lambda x, ybar, outer: outer(x, ybar),
    "one token less": lambda x, ybar, outer: outer(x[1:], ybar[1:]),
    "doubled": lambda x, ybar, outer: 2 * outer(x, ybar),
    "of the swapped factors": lambda x, ybar, outer: outer(ybar, x).reshape(x.shape[1], ybar.shape[1]),
}


@pytest.mark.parametrize(("d", "f"), [(3, 5), (5, 3)])
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_check_sees_a_wrong_weight_cotangent(d, f, mutant, monkeypatch):
    right = _fast.outer
    monkeypatch.setattr("ffn_jax.maps._dense.outer", lambda x, ybar: MUTANTS[mutant](x, ybar, right))
    with _fast.assume(one_cpu=True):
        check = functools.partial(verify.check_vjp, sublayer, None, *dense_args((6,), d, f))
        if mutant == "right":
            check()
        else:
            with pytest.raises(verify.VerificationError, match="W"):
                check()


# ------------------------------------------------------------------------------ blocks of hidden features


def in_blocks_and_whole(args, layout="in_out", **options):
    def results(**more):
        def f(x, W1, b1, W2, b2):
            A1, A2 = fj.Dense(W1), fj.Dense(W2)
            if layout == "out_in":
                A1, A2 = fj.Dense(jnp.moveaxis(W1, 0, -1), layout="out_in"), fj.Dense(W2.T, layout="out_in")
            return fj.ffn_residual(x, A1, b1, A2, b2, **options, **more)

        y, pullback = jax.vjp(f, *args)
        return y, pullback(jnp.cos(args[0]))

    return results(hidden_chunk_size=2), results(chunk_size="none")


def assert_close(a, b, dtype="float64"):
    tolerance = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.1}[dtype]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), a, b)
    assert jax.tree.map(lambda a: (a.dtype, a.shape), a) == jax.tree.map(lambda b: (b.dtype, b.shape), b)


@pytest.mark.parametrize("layout", ["in_out", "out_in"])
@pytest.mark.parametrize("save", [(), ("hidden_pre",), ("hidden_pre", "hidden_act")])
def test_blocks_of_hidden_features_change_no_value(save, layout):
    assert_close(*in_blocks_and_whole(dense_args((5,)), layout, save=save))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_blocks_in_other_dtypes_and_batches(lead, dtype):
    assert_close(*in_blocks_and_whole(dense_args(lead, dtype=dtype)), dtype=dtype)


@pytest.mark.parametrize("layout", ["in_out", "out_in"])
def test_blocks_of_gated_units(layout):
    x, W1, b1, W2, b2 = dense_args((5,))
    args = x, jnp.stack([W1, jnp.cos(W1)], axis=1), jnp.stack([b1, b1]), W2, b2
    assert_close(*in_blocks_and_whole(args, layout, activation=fj.swiglu))


@pytest.mark.parametrize("bias", ["none", "by position", "one number"])
def test_blocks_with_every_bias(bias):
    x, W1, b1, W2, b2 = dense_args((5,))
    biases = {"none": (None, None), "by position": (normal(2, 5, 6), normal(3, 5, 4)), "one number": (b1[:1], b2[0])}
    b1, b2 = biases[bias]
    assert_close(*in_blocks_and_whole((x, W1, b1, W2, b2)))


def test_blocks_within_chunks_and_without_residual():
    x, W1, b1, W2, b2 = dense_args((5,))
    f = lambda **options: fj.ffn(x, fj.Dense(W1), b1, fj.Dense(W2), b2, **options)
    assert_close(f(hidden_chunk_size=3, chunk_size=2), f())
    g = lambda **options: jax.grad(lambda W1: jnp.sum(sublayer(x, W1, b1, W2, b2, **options) ** 2))(W1)
    assert_close(g(hidden_chunk_size=3, chunk_size=2), g())
    assert_close(jax.vmap(lambda x: f(hidden_chunk_size=3))(jnp.zeros(2))[1], f())


def test_a_block_lost_is_seen(monkeypatch):
    right = _blocks.Blocks.join
    monkeypatch.setattr(
        _blocks.Blocks,
        "join",
        lambda self, params, bars: right(self, params, jax.tree.map(lambda a: a.at[0].set(0.0), bars)),
    )
    with pytest.raises(verify.VerificationError, match="W1"):
        verify.check_vjp(functools.partial(sublayer, hidden_chunk_size=2), sublayer, *dense_args((3,)))


# -------------------------------------------------------------------------------- chunks by default


def test_chunks_are_chosen_from_2048_tokens_on():
    f = functools.partial(sublayer, activation=fj.relu)
    assert chunks(f, *dense_args((2047,))) == []
    assert chunks(f, *dense_args((2048,))) == [4]
    assert chunks(f, *dense_args((2, 1024))) == [4]
    assert chunks(f, *dense_args((3, 1000))) == [6]  # chunks of 500
    assert chunks(f, *dense_args((2053,))) == [4]  # a prime number: 4 of 512 and a rest


def test_one_chooses_otherwise_by_chunk_size():
    args = dense_args((2048,))
    assert chunks(functools.partial(sublayer, chunk_size="none"), *args) == []
    assert chunks(functools.partial(sublayer, chunk_size=1024), *args) == [2]
    assert chunks(functools.partial(sublayer, chunk_size=2048), *args) == []


def test_general_maps_and_biases_by_token_are_not_chunked_unasked():
    x, W1, b1, W2, b2 = dense_args((2048,))
    by_hand = fj.linear_map(lambda W, x: x @ W, 4, params=W1, transpose=lambda W, y: y @ W.T)
    composed = 2.0 * (fj.Dense(W1) @ fj.Dense(jnp.eye(4)))
    for A1, bias, expected in (
        (by_hand, b1, []),
        (by_hand @ fj.Dense(jnp.eye(4)), b1, []),
        (lambda x: x @ W1, b1, []),
        (fj.Dense(W1), jnp.zeros((2048, 6)), []),
        (composed, b1, [4]),
        (fj.TimeDistributed(fj.Dense(W1), 2048), b1, [4]),
        (fj.BlockDiagonal([fj.Dense(W1[:2, :3]), fj.Dense(W1[2:, 3:])]), b1, [4]),
    ):
        assert chunks(lambda x, A1=A1, b=bias: fj.ffn_residual(x, A1, b, fj.Dense(W2), b2), x) == expected, A1


@pytest.mark.parametrize("save", [(), ("hidden_pre",)])
@pytest.mark.parametrize("tokens", [(2048,), (2, 1030)])
def test_chosen_chunks_change_no_value(tokens, save):
    args = dense_args(tokens)

    def results(**options):
        y, pullback = jax.vjp(functools.partial(sublayer, save=save, **options), *args)
        return y, pullback(jnp.cos(y))

    assert chunks(functools.partial(sublayer, save=save), *args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), results(), results(chunk_size="none")
    )


@pytest.mark.parametrize("chunk_size", [None, "none", 2])
def test_equal_shapes_are_traced_once(chunk_size):
    traced = []

    @jax.jit
    def step(x, A1, b1, A2, b2):
        traced.append(x.shape)
        loss = lambda *args: jnp.sum(fj.ffn_residual(*args, chunk_size=chunk_size) ** 2)
        return jax.grad(loss, argnums=(0, 1, 2, 3, 4))(x, A1, b1, A2, b2)

    for scale in (1.0, 2.0, 3.0):
        x, W1, b1, W2, b2 = dense_args((8,))
        step(scale * x, fj.Dense(scale * W1), b1, fj.Dense(W2), scale * b2)
    assert traced == [(8, 4)]
    x, W1, b1, W2, b2 = dense_args((9,))
    step(x, fj.Dense(W1), b1, fj.Dense(W2), b2)
    assert traced == [(8, 4), (9, 4)]
