"""Every map, in every dtype and under every transformation, against its matrix in float64."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from map_cases import BY_NAME, CASES, DTYPES, LENGTH, MapCase, error_bound, identity, to64

import ffn_jax as fj

TRANSFORMS = ("eager", "jit", "vmap", "grad", "scan", "remat")
BATCH = (2, 3)


def size(shape):
    return int(np.prod(shape, dtype=int))


def uses(A, x, y):
    """What a rule asks of a map: A x, Aᵀ y and the pullback of the parameters at (x, y)."""
    return A(x), A.T(y), A.params_vjp(x, y)


def uses_by_grad(A, x, y):
    """The same through JAX's own reverse mode of A(x)."""
    Ax, pullback = jax.vjp(lambda A, x: A(x), A, x)
    A_bar, x_bar = pullback(y)
    return Ax, x_bar, A_bar


def uses_by_grad_of_remat(A, x, y):
    Ax, pullback = jax.vjp(jax.checkpoint(lambda A, x: A(x)), A, x)
    A_bar, x_bar = pullback(y)
    return Ax, x_bar, A_bar


def under(transform, A, x, y):
    if transform == "eager":
        return uses(A, x, y)
    if transform == "jit":
        return jax.jit(uses)(A, x, y)
    if transform == "grad":
        return uses_by_grad(A, x, y)
    if transform == "remat":
        return jax.jit(uses_by_grad_of_remat)(A, x, y)
    if transform == "vmap":
        Ax, Aty, bars = jax.vmap(uses, in_axes=(None, 0, 0))(A, x, y)
        return Ax, Aty, jax.tree.map(lambda c: jnp.sum(c, 0), bars)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * x.shape[0]), A)
    _, (Ax, Aty, bars) = jax.lax.scan(lambda _, s: (None, uses(*s)), None, (stacked, x, y))
    return Ax, Aty, jax.tree.map(lambda c: jnp.sum(c, 0), bars)


@functools.cache
def expected_uses(name, dtype):
    """Parameters, inputs, and from the matrix in float64 what `uses` must give, with its bounds."""
    case = BY_NAME[name]
    params = case.params(dtype=dtype)
    A = case.make(params)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal(BATCH + A.in_shape)).astype(dtype)
    y = jnp.asarray(rng.standard_normal(BATCH + A.out_shape)).astype(dtype)

    @jax.jit
    def reference(params, x, y):
        M, magnitude = (case.matrix(params, f) for f in (identity, jnp.abs))
        X, Y = x.reshape(size(BATCH), -1), y.reshape(size(BATCH), -1)

        # The pullback is the gradient of <y, M(params) x>.
        def pairing(p, f, x, y):
            return jnp.sum((x @ case.matrix(p, f).T) * y)

        bars = jax.grad(pairing)(params, identity, X, Y)
        bars_bound = jax.grad(pairing)(jax.tree.map(jnp.abs, params), jnp.abs, jnp.abs(X), jnp.abs(Y))
        n = max(M.shape)
        return (
            (X @ M.T, error_bound(dtype, n, jnp.abs(X) @ magnitude.T)),
            (Y @ M, error_bound(dtype, n, jnp.abs(Y) @ magnitude)),
            # JAX's own transposes, vmap and scan sum or return cotangents in the dtype itself, term by term.
            jax.tree.map(lambda b, m: (b, error_bound(dtype, 40, 2 * jnp.abs(m))), bars, bars_bound),
        )

    def leaves_of(params):
        return jax.tree.leaves(case.make(params))

    to_params = jax.vjp(leaves_of, to64(params))[1]
    return A, x, y, reference(to64(params), to64(x), to64(y)), to_params


def uses_of_every_map():
    """Every map under every transformation in float64, and in each other dtype under two of them in turn."""
    for k, name in enumerate(BY_NAME):
        for j, dtype in enumerate(DTYPES):
            some = {TRANSFORMS[(k + j) % 6], TRANSFORMS[(k + j + 3) % 6]}
            for transform in TRANSFORMS:
                if dtype == "float64" or transform in some:
                    yield name, dtype, transform


@pytest.mark.parametrize(("name", "dtype", "transform"), list(uses_of_every_map()))
def test_map_is_its_matrix(name: str, dtype: str, transform: str):
    A, x, y, (expected_Ax, expected_Aty, expected_bars), to_params = expected_uses(name, dtype)
    Ax, Aty, bars = under(transform, A, x, y)
    assert Ax.dtype == Aty.dtype == jnp.dtype(dtype)
    chex.assert_shape(Ax, y.shape)
    chex.assert_shape(Aty, x.shape)
    assert_within(to64(Ax).reshape(size(BATCH), -1), *expected_Ax)
    assert_within(to64(Aty).reshape(size(BATCH), -1), *expected_Aty)
    (got,) = to_params(to64(jax.tree.leaves(bars)))
    for key, expected in expected_bars.items():
        assert_within(got[key], *expected, key)


def assert_within(got, expected, bound, name=""):
    excess = np.max(np.abs(np.asarray(got) - np.asarray(expected)) / np.asarray(bound))
    assert excess <= 1.0, f"{name}: error is {excess:.3g} times what rounding explains"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_as_matrix(case: MapCase):
    params = case.params()
    A = case.make(params)
    M = case.matrix(params, identity)
    np.testing.assert_allclose(A.as_matrix(), M, rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(A.T.as_matrix(), M.T, rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(A.T.T.as_matrix(), M, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_zero_size_batch(case: MapCase, dtype: str):
    A = case.make(case.params(dtype=dtype))
    x, y = jnp.zeros((2, 0, *A.in_shape), dtype), jnp.zeros((2, 0, *A.out_shape), dtype)
    Ax, Aty, bars = uses(A, x, y)
    chex.assert_shape(Ax, y.shape)
    chex.assert_shape(Aty, x.shape)
    for leaf, bar in zip(jax.tree.leaves(A), jax.tree.leaves(bars), strict=True):
        chex.assert_shape(bar, leaf.shape)
        assert not np.any(np.asarray(bar, "float64"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_batch_axes(case: MapCase):
    params = case.params()
    A, M = case.make(params), case.matrix(params, identity)
    x = jnp.asarray(np.random.default_rng(2).standard_normal(A.in_shape))
    np.testing.assert_allclose(A(x).reshape(-1), M @ x.reshape(-1), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pullback_has_the_maps_structure_and_a_wide_dtype(case: MapCase):
    A = case.make(case.params(dtype="bfloat16"))
    x, y = jnp.ones((3, *A.in_shape), "bfloat16"), jnp.ones((3, *A.out_shape), "bfloat16")
    bars = A.params_vjp(x, y)
    chex.assert_trees_all_equal_structs(A, bars)
    chex.assert_trees_all_equal_shapes(A, bars)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_second_derivatives_pass_through(case: MapCase):
    """A rule's backward is differentiated again by grad(grad): the maps must allow it."""
    params = case.params()
    A, M = case.make(params), case.matrix(params, identity)
    n = size(A.in_shape)
    f = lambda x: jnp.sum(A(x) ** 3) / 6
    x = jnp.asarray(np.random.default_rng(3).standard_normal(A.in_shape))
    hessian = jax.jacrev(jax.grad(f))(x).reshape(n, n)
    expected = M.T @ jnp.diag(M @ x.reshape(-1)) @ M
    np.testing.assert_allclose(hessian, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_maps_flatten_and_print(case: MapCase):
    A = case.make(case.params())
    leaves, structure = jax.tree.flatten(A)
    assert jax.tree.structure(jax.tree.unflatten(structure, leaves)) == structure
    assert hash(structure) == hash(jax.tree.structure(A))
    jax.tree.unflatten(structure, [None] * len(leaves))  # as JAX does, without validation
    assert f"{A.in_shape} -> {A.out_shape}" in repr(A)


def test_weights_are_never_transposed():
    for layout in ("in_out", "out_in"):
        A = fj.Dense(jnp.ones((3, 3)), layout=layout)
        x = jnp.ones((4, 3))
        jaxpr = str(jax.make_jaxpr(lambda A, x: (A(x), A.T(x), A.params_vjp(x, x)))(A, x))
        assert "transpose" not in jaxpr


def test_stacked_blocks_are_one_batched_product():
    A = fj.BlockDiagonal(fj.Dense(jnp.ones((8, 2, 3))))
    jaxpr = str(jax.make_jaxpr(lambda A, x: A(x))(A, jnp.ones((5, 16))))
    assert jaxpr.count("dot_general") == 1


def test_half_precision_products_accumulate_in_float32():
    """Summed in bfloat16, 1 + 1 + ... + 1 stops at 256."""
    for dtype in ("bfloat16", "float16"):
        A = fj.Dense(jnp.ones((4096, 1), dtype))
        assert A(jnp.ones(4096, dtype)).astype("float32") == 4096.0
        assert A.params_vjp(jnp.ones((4099, 4096), dtype), jnp.ones((4099, 1), dtype)).weight.max() == 4099.0


class TestAlgebra:
    def test_laws(self):
        rng = np.random.default_rng(5)
        W, V, U = (fj.Dense(jnp.asarray(rng.standard_normal(s))) for s in ((3, 4), (3, 4), (2, 3)))
        M, N, K = (A.as_matrix() for A in (W, V, U))
        for got, expected in (
            (W + V, M + N),
            (W - V, M - N),
            (-W, -M),
            (2 * W, 2 * M),
            (W * 2.5, 2.5 * M),
            (np.float64(3) * W, 3 * M),
            (jnp.float64(3) * W, 3 * M),
            (W @ U, M @ K),
            ((W + V) @ U, (M + N) @ K),
            (2.0 * (3.0 * W), 6 * M),
        ):
            np.testing.assert_allclose(got.as_matrix(), expected, rtol=1e-14)
            np.testing.assert_allclose(got.T.as_matrix(), expected.T, rtol=1e-14)

    def test_scalars_on_their_way_through_jit(self):
        A = fj.Dense(jnp.ones((2, 3), "bfloat16"))
        assert jax.jit(lambda a: (a * A)(jnp.ones(2, "bfloat16")))(0.5).dtype == jnp.bfloat16
        np.testing.assert_array_equal((A / 4).as_matrix("float32"), jnp.full((3, 2), 0.25, "float32"))
        assert (A / 4).as_matrix("float32").dtype == A.as_matrix("float32").dtype == jnp.float32

    def test_a_subclass_that_overrides_a_rule_is_called_through_it(self):
        @jax.tree_util.register_dataclass
        @dataclasses.dataclass(frozen=True)
        class Wrong(fj.LinearMap):
            scale: jax.Array
            in_shape = out_shape = (2,)

            def apply(self, x):
                return self.scale * x

            def transpose_apply(self, y):
                return 10 * self.scale * y

        A, ones = Wrong(jnp.ones(2)), jnp.ones(2)
        assert jax.grad(lambda x: jnp.sum(A(x)))(ones).tolist() == [10.0, 10.0]

    def test_transposing_twice_gives_the_map_itself(self):
        A = fj.linear_map(lambda k, x: jnp.convolve(x, k), 3, params=jnp.ones(2))
        assert A.T.T is A

    def test_python_scalars_are_not_leaves(self):
        A = 0.5 * fj.Dense(jnp.ones((2, 2)))
        assert len(jax.tree.leaves(A)) == 1
        assert len(jax.tree.leaves(jnp.float64(0.5) * fj.Dense(jnp.ones((2, 2))))) == 2


class TestTimeDistributed:
    def test_matrix_is_the_kronecker_product(self):
        W = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)))
        A = fj.TimeDistributed(fj.Dense(W), LENGTH)
        np.testing.assert_array_equal(A.as_matrix(), np.kron(np.eye(LENGTH), W.T))


class TestLinearize:
    def test_is_the_derivative(self):
        f = lambda x: jnp.tanh(x) * jnp.sum(x)
        x = jnp.asarray([0.3, -1.2, 2.0])
        np.testing.assert_allclose(fj.linearize(f, x).as_matrix(), jax.jacfwd(f)(x), rtol=1e-14)

    def test_gradients_reach_what_the_function_depends_on(self):
        x = jnp.asarray([0.3, -1.2, 2.0])
        f = lambda a: jnp.sum(fj.linearize(lambda t: jnp.sin(a * t), x)(jnp.ones(3)))
        g = lambda a: jnp.sum(a * jnp.cos(a * x))
        np.testing.assert_allclose(jax.grad(f)(0.7), jax.grad(g)(0.7), rtol=1e-13)


class TestLinearMap:
    def test_a_rule_by_hand_is_used_in_both_modes_and_orders(self):
        """Rules that are wrong on purpose: their traces in the result show where each was used."""
        A = fj.linear_map(
            lambda W, x: x @ W,
            (2,),
            params=jnp.eye(2),
            transpose=lambda W, y: 10 * (y @ W.T),
            params_vjp=lambda W, x, ybar: 100 * jnp.outer(x, ybar),
        )
        x, y = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 4.0])
        A_bar, x_bar = jax.vjp(lambda A, x: A(x), A, x)[1](y)
        np.testing.assert_array_equal(x_bar, 10 * y)
        np.testing.assert_array_equal(A_bar.params, 100 * jnp.outer(x, y))
        A_bar, y_bar = jax.vjp(lambda A, y: A.T(y), A, y)[1](x)
        np.testing.assert_array_equal(y_bar, x)
        np.testing.assert_array_equal(A_bar.params, 100 * jnp.outer(x, y))
        ffn = lambda x: fj.ffn(x, A, None, A, None, activation=fj.relu)
        np.testing.assert_array_equal(jax.vjp(ffn, x)[1](y)[0], 100 * y)

    def test_integer_leaves_get_float0(self):
        table = {"scale": jnp.asarray([0.5, 2.0]), "codes": jnp.asarray([[1, -2, 3], [4, 5, -6]], jnp.int8)}
        A = fj.linear_map(lambda p, x: (x * p["scale"]) @ p["codes"].astype(x.dtype), 2, params=table)
        bars = jax.grad(lambda A: jnp.sum(A(jnp.ones((4, 2)))), allow_int=True)(A)
        assert bars.params["codes"].dtype == jax.dtypes.float0
        np.testing.assert_allclose(bars.params["scale"], [8.0, 12.0])

    def test_closures_over_traced_arrays_become_leaves(self):
        W = jnp.arange(6.0).reshape(2, 3)
        x = jnp.asarray([[1.0, 2.0]])
        f = lambda W: jnp.sum(fj.linear_map(lambda _, x: x @ W, 2)(x))
        np.testing.assert_array_equal(jax.grad(f)(W), jnp.asarray([[1.0] * 3, [2.0] * 3]))
        np.testing.assert_array_equal(jax.jit(jax.grad(f))(W), jax.grad(f)(W))

    def test_an_affine_function_whose_constant_cancels_is_linear(self):
        g = lambda x: 2.0 * x + 1.0
        A = fj.linear_map(lambda _, x: g(x) - g(jnp.zeros_like(x)), 3)
        np.testing.assert_array_equal(A.as_matrix(), 2 * jnp.eye(3))


def test_registry_covers_every_public_maker():
    assert {"dense", "time_distributed", "block_diagonal", "linear_map", "linearize"} <= set(BY_NAME)
