"""The reverse rule equals linear_transpose of jvp of the undecorated reference: every map, activation and choice."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from map_cases import BY_NAME, UNIT, to64
from sublayer_cases import ACTIVATIONS, Sublayer, adjoint

import ffn_jax as fj

SAVES = [(), ("hidden_pre",), ("hidden_pre", "hidden_act"), ("hidden_act",)]
LEADS = [(), (5,), (2, 3)]


def rotated(names, others, each):
    """Every name with `each` of the others in turn, so that every one of those comes up too: (k, name, other)."""
    others = list(others)
    pairs = [(name, others[(each * k + j) % len(others)]) for k, name in enumerate(names) for j in range(each)]
    return [(k, *pair) for k, pair in enumerate(pairs)]


def saved(save):
    return "+".join(("x", *save))


def check_rule(case: Sublayer, rtol=1e-11, **kwargs):
    """Values and all cotangents of `ffn_residual` against both references; x and biases against the scratch one."""
    act = case.activation
    y, pullback = jax.vjp(lambda *args: fj.ffn_residual(*args, activation=act, **kwargs), *case.args)
    bars = pullback(case.ybar)
    chex.assert_trees_all_equal_shapes_and_dtypes(bars, case.args)

    np.testing.assert_allclose(y, case.reference(case.x, case.b1, case.b2), rtol=rtol, atol=rtol)
    public = lambda *args: fj.ffn_residual_reference(*args, activation=act)
    chex.assert_trees_all_close(bars, adjoint(public, *case.args)(case.ybar), rtol=rtol, atol=rtol)
    x_bar, b1_bar, b2_bar = adjoint(case.reference, case.x, case.b1, case.b2)(case.ybar)
    chex.assert_trees_all_close((bars[0], bars[2], bars[4]), (x_bar, b1_bar, b2_bar), rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("k", "name", "activation"), rotated(BY_NAME, ACTIVATIONS, 3))
def test_every_map_and_every_activation(k: int, name: str, activation: str):
    check_rule(Sublayer(name, activation, (5,)), save=SAVES[k % 4])


@pytest.mark.parametrize(("k", "name", "save"), rotated(BY_NAME, SAVES[:2], 1))
def test_every_map_in_chunks(k, name, save):
    check_rule(Sublayer(name, "gelu", (5,)), save=save, chunk_size=2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_in_chunks(activation):
    check_rule(Sublayer("dense", activation, (5,)), save=(), chunk_size=2)


@pytest.mark.parametrize("lead", LEADS, ids=["token", "sequence", "batch"])
@pytest.mark.parametrize("chunk", [None, 1, 2, 3])
@pytest.mark.parametrize("save", SAVES, ids=saved)
def test_every_choice_of_save_chunk_and_rank(save, chunk, lead):
    check_rule(Sublayer("dense", "gelu", lead, "full"), save=save, chunk_size=chunk)


@pytest.mark.parametrize("bias", ["feature", "position", "full", "column", "none"])
@pytest.mark.parametrize(("name", "chunk"), [("dense", None), ("dense", 4), ("dense", 5), ("dense_axes", 5)])
def test_every_shape_of_bias(name, chunk, bias):
    check_rule(Sublayer(name, "gelu_exact", (2, 3, 2), bias), save=(), chunk_size=chunk)


def test_chunks_of_shared_maps_run_over_their_positions():
    case = Sublayer("time_distributed", "gelu", (3,), "full")
    check_rule(case, chunk_size=5)
    jaxpr = str(jax.make_jaxpr(lambda x: fj.ffn_residual(x, *case.args[1:], chunk_size=5))(case.x))
    assert "scan" in jaxpr
    assert "f64[5,5]" in jaxpr  # a chunk's hidden


@pytest.mark.parametrize(("k", "activation", "dtype"), rotated(ACTIVATIONS, ["float32", "bfloat16", "float16"], 1))
def test_low_precision_is_as_near_as_rounding_allows(k, activation, dtype):
    """In the dtype itself against float64 on the same (rounded) numbers, normwise."""
    case = Sublayer("dense", activation, (2, 3), "feature", dtype)
    wide = Sublayer("dense", activation, (2, 3), "feature", dtype)
    wide.args = to64(wide.args)
    reference = lambda *args: fj.ffn_residual_reference(*args, activation=case.activation)
    expected = adjoint(reference, *wide.args)(to64(case.ybar))
    options = {"save": (), "chunk_size": 4} if k % 2 else {}
    y, pullback = jax.vjp(lambda *args: fj.ffn_residual(*args, activation=case.activation, **options), *case.args)
    bars = pullback(case.ybar)
    assert y.dtype == jnp.dtype(dtype)
    chex.assert_trees_all_equal_shapes_and_dtypes(bars, case.args)
    for got, want in zip(jax.tree.leaves(to64(bars)), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(got - want)) <= 40 * UNIT[dtype] * (1 + np.max(np.abs(want)))


@pytest.mark.parametrize(("k", "activation", "name"), rotated(ACTIVATIONS, ["dense", "time_distributed", "lora"], 1))
def test_whole_jacobian_one_basis_seed_at_a_time(k, activation, name):
    case = Sublayer(name, activation, (2,), "feature")
    basis = jnp.eye(case.x.size).reshape(-1, *case.x.shape)
    _, pullback = jax.vjp(lambda *args: fj.ffn_residual(*args, activation=case.activation), *case.args)
    reference = adjoint(lambda *args: fj.ffn_residual_reference(*args, activation=case.activation), *case.args)
    rows = jax.vmap(reference)(basis)
    chex.assert_trees_all_close(jax.vmap(pullback)(basis), rows, rtol=1e-12, atol=1e-12)
    jacobian = jax.jacfwd(case.reference)(case.x, case.b1, case.b2)
    chex.assert_trees_all_close(rows[0], jacobian.reshape(rows[0].shape), rtol=1e-11, atol=1e-11)


class TestTape:
    @pytest.mark.parametrize(("k", "name", "activation"), rotated(BY_NAME, ACTIVATIONS, 2))
    def test_seeds_on_the_input_and_on_every_saved_tensor(self, k, name, activation):
        case = Sublayer(name, activation, (3,), "feature")

        def rule(x, b1, b2):
            return x, fj.ffn_residual_tape(x, case.A1, b1, case.A2, b2, activation=case.activation)

        def reference(x, b1, b2):
            return x, case.tape(x, b1, b2)

        args = (case.x, case.b1, case.b2)
        values, pullback = jax.vjp(rule, *args)
        chex.assert_trees_all_close(values, reference(*args), rtol=1e-12, atol=1e-12)
        rng = np.random.default_rng(7)
        seeds = jax.tree.map(lambda v: jnp.asarray(rng.standard_normal(v.shape)), values)
        chex.assert_trees_all_close(pullback(seeds), adjoint(reference, *args)(seeds), rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("field", fj.FFNTape._fields)
    def test_one_seed_reaches_the_maps(self, field):
        case = Sublayer("dense", "gelu", (3,), "feature")
        M1, M2 = case.M1, case.M2
        loss = lambda A1, A2: jnp.sum(jnp.sin(getattr(fj.ffn_residual_tape(case.x, A1, case.b1, A2, case.b2), field)))
        plain = lambda M1, M2: jnp.sum(jnp.sin(getattr(case.tape(case.x, case.b1, case.b2, M1, M2), field)))
        A1_bar, A2_bar = jax.grad(loss, (0, 1))(case.A1, case.A2)
        M1_bar, M2_bar = jax.grad(plain, (0, 1))(M1, M2)
        np.testing.assert_allclose(A1_bar.weight, M1_bar.T, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(A2_bar.as_matrix(), M2_bar, rtol=1e-12, atol=1e-12)

    def test_output_is_the_sublayer(self):
        case = Sublayer("dense", "silu", (3,))
        tape = fj.ffn_residual_tape(*case.args, activation=fj.silu)
        np.testing.assert_array_equal(tape.output, fj.ffn_residual(*case.args, activation=fj.silu))


class TestWithoutResidual:
    @pytest.mark.parametrize("chunk", [None, 2])
    def test_ffn_is_ffn_residual_minus_x(self, chunk):
        case = Sublayer("dense", "gelu", (5,))
        y, pullback = jax.vjp(lambda *args: fj.ffn(*args, chunk_size=chunk), *case.args)
        np.testing.assert_allclose(y, case.reference(case.x, case.b1, case.b2) - case.x, rtol=1e-12, atol=1e-12)
        expected = adjoint(fj.ffn_reference, *case.args)(case.ybar)
        chex.assert_trees_all_close(pullback(case.ybar), expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("chunk", [None, 2])
    def test_output_may_have_another_shape(self, chunk):
        rng = np.random.default_rng(0)
        A1, A2 = (fj.Dense(jnp.asarray(rng.standard_normal(s))) for s in ((3, 7), (7, 2, 2)))
        args = (jnp.asarray(rng.standard_normal((5, 3))), A1, None, A2, jnp.asarray(rng.standard_normal((5, 1, 2))))
        y, pullback = jax.vjp(lambda *args: fj.ffn(*args, chunk_size=chunk), *args)
        chex.assert_shape(y, (5, 2, 2))
        ybar = jnp.asarray(rng.standard_normal(y.shape))
        expected = adjoint(fj.ffn_reference, *args)(ybar)
        chex.assert_trees_all_close(pullback(ybar), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("lead", [(0,), (2, 0)])
def test_zero_tokens(lead, chunk):
    case = Sublayer("dense", "gelu", lead)
    y, pullback = jax.vjp(lambda *args: fj.ffn_residual(*args, chunk_size=chunk), *case.args)
    chex.assert_shape(y, case.x.shape)
    bars = pullback(y)
    chex.assert_trees_all_equal_shapes(bars, case.args)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(bars))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_its_definition(activation):
    act, definition = ACTIVATIONS[activation]
    z = jnp.asarray([[-30.0, -5.0, -1.0, -1e-3], [0.5, 2.0, 7.0, 30.0]])
    np.testing.assert_allclose(act(z), definition(z), rtol=1e-13, atol=1e-15)
    if isinstance(act, fj.Activation):
        h, derivative = act.with_derivative(z)
        np.testing.assert_allclose(h, definition(z), rtol=1e-13, atol=1e-15)
        expected = jax.vjp(definition, z)[1](jnp.ones_like(h))[0]
        np.testing.assert_allclose(derivative, expected, rtol=1e-12, atol=1e-14)


def test_relu_lets_a_nan_through():
    for act in (fj.relu, fj.relu_squared):
        assert jnp.isnan(act(jnp.asarray(jnp.nan)))
