"""What JAX's transformations make of the rule: higher derivatives, vmap, scan, remat, closures, and the work done."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sublayer_cases import Sublayer, adjoint

import ffn_jax as fj

OPTIONS = [{}, {"save": ()}, {"save": (), "chunk_size": 2}]
ids = lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "default"


@pytest.fixture(scope="module")
def case():
    return Sublayer("dense", "gelu", (5,))


def loss_of(f, case, **options):
    return lambda x, A1, b1, A2, b2: jnp.sum(jnp.sin(f(x, A1, b1, A2, b2, **options)))


@pytest.mark.parametrize("options", OPTIONS, ids=ids)
class TestHigherDerivatives:
    def test_grad_of_grad(self, case, options):
        def twice(f):
            inner = jax.grad(f, argnums=(0, 1, 2))
            norm = lambda *args: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(inner(*args)))
            return jax.grad(norm, argnums=(0, 1, 2, 3, 4))(*case.args)

        got = twice(loss_of(fj.ffn_residual, case, **options))
        chex.assert_trees_all_close(got, twice(loss_of(fj.ffn_residual_reference, case)), rtol=1e-10, atol=1e-10)

    def test_hessian(self, case, options):
        rule = lambda x: loss_of(fj.ffn_residual, case, **options)(x, *case.args[1:])
        reference = lambda x: loss_of(fj.ffn_residual_reference, case)(x, *case.args[1:])
        got = jax.jacrev(jax.grad(rule))(case.x)
        np.testing.assert_allclose(got, jax.hessian(reference)(case.x), rtol=1e-10, atol=1e-10)

    def test_vmap_of_grad_over_every_argument(self, case, options):
        rng = np.random.default_rng(0)
        many = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal((3, *a.shape))), case.args)
        got = jax.vmap(jax.grad(loss_of(fj.ffn_residual, case, **options), argnums=(0, 1, 2, 3, 4)))(*many)
        expected = jax.vmap(jax.grad(loss_of(fj.ffn_residual_reference, case), argnums=(0, 1, 2, 3, 4)))(*many)
        chex.assert_trees_all_close(got, expected, rtol=1e-11, atol=1e-11)

    def test_scan_over_layers_with_remat(self, case, options):
        layers = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a, -a]), case.args[1:])

        def stack(f, **options):
            def loss(x, layers):
                step = jax.checkpoint(lambda x, layer: (f(x, *layer, **options), None))
                return jnp.sum(jnp.sin(jax.lax.scan(step, x, layers)[0]))

            return jax.jit(jax.grad(loss, argnums=(0, 1)))(case.x, layers)

        got = stack(fj.ffn_residual, **options)
        chex.assert_trees_all_close(got, stack(fj.ffn_residual_reference), rtol=1e-10, atol=1e-10)


def test_hessian_by_forward_over_reverse_goes_through_the_reference(case):
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: fj.ffn_residual(x, *case.args[1:]), (case.x,), (case.x,))
    y, tangent = jax.jvp(lambda x: fj.ffn_residual_reference(x, *case.args[1:]), (case.x,), (case.ybar,))
    np.testing.assert_allclose(y, fj.ffn_residual(*case.args), rtol=1e-13)
    forward = jax.jacfwd(lambda x: fj.ffn_residual_reference(x, *case.args[1:]))(case.x)
    np.testing.assert_allclose(tangent, jnp.tensordot(forward, case.ybar, 2), rtol=1e-12, atol=1e-12)
    reverse = jax.jacrev(lambda x: fj.ffn_residual(x, *case.args[1:]))(case.x)
    np.testing.assert_allclose(reverse, forward, rtol=1e-12, atol=1e-12)


class TestCallables:
    """Bare callables: applied to the whole array, their closed-over arrays differentiated."""

    W1 = jnp.asarray(np.random.default_rng(0).standard_normal((3, 7)))
    W2 = jnp.asarray(np.random.default_rng(1).standard_normal((7, 3)))
    x = jnp.asarray(np.random.default_rng(2).standard_normal((5, 3)))

    def loss(self, W1, W2):
        y = fj.ffn_residual(self.x, lambda x: x @ W1, None, lambda h: h @ W2, None, activation=fj.silu)
        return jnp.sum(y**2)

    def plain(self, W1, W2):
        return jnp.sum((self.x + jax.nn.silu(self.x @ W1) @ W2) ** 2)

    @pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.checkpoint], ids=["eager", "jit", "remat"])
    def test_gradients_reach_closed_over_arrays(self, transform):
        got = jax.grad(transform(self.loss), (0, 1))(self.W1, self.W2)
        chex.assert_trees_all_close(got, jax.grad(self.plain, (0, 1))(self.W1, self.W2), rtol=1e-12)
        chex.assert_trees_all_close(jax.jit(jax.grad(self.loss, (0, 1)))(self.W1, self.W2), got, rtol=1e-12)

    def test_under_scan(self):
        def total(loss):
            def f(Ws):
                return jax.lax.scan(lambda c, W: (c + loss(*W), None), 0.0, Ws)[0]

            return jax.jit(jax.grad(f))((jnp.stack([self.W1, -self.W1]), jnp.stack([self.W2, self.W2])))

        chex.assert_trees_all_close(total(self.loss), total(self.plain), rtol=1e-12)

    def test_second_order(self):
        got = jax.grad(lambda W: jnp.sum(jax.grad(self.loss)(W, self.W2) ** 2))(self.W1)
        expected = jax.grad(lambda W: jnp.sum(jax.grad(self.plain)(W, self.W2) ** 2))(self.W1)
        np.testing.assert_allclose(got, expected, rtol=1e-10)

    def test_a_callable_may_mix_tokens(self):
        P = jnp.asarray(np.random.default_rng(3).standard_normal((5, 5)))
        f = lambda x: fj.ffn_residual(x, lambda x: P @ x @ self.W1, None, lambda h: P.T @ (h @ self.W2), None)
        g = lambda x: x + P.T @ (jax.nn.gelu(P @ x @ self.W1) @ self.W2)
        np.testing.assert_allclose(
            jax.vjp(f, self.x)[1](self.x)[0], jax.vjp(g, self.x)[1](self.x)[0], rtol=1e-11, atol=1e-11
        )

    @pytest.mark.parametrize("chunk_size", [None, 2])
    def test_an_activation_may_close_over_a_parameter(self, chunk_size):
        def prelu(a):
            A1, A2 = fj.Dense(self.W1), fj.Dense(self.W2)
            leaky = lambda z: jnp.where(z > 0, z, a * z)
            return jnp.sum(fj.ffn_residual(self.x, A1, None, A2, None, activation=leaky, chunk_size=chunk_size) ** 2)

        def plain(a):
            z = self.x @ self.W1
            return jnp.sum((self.x + jnp.where(z > 0, z, a * z) @ self.W2) ** 2)

        a = jnp.asarray(0.3)
        np.testing.assert_allclose(jax.grad(prelu)(a), jax.grad(plain)(a), rtol=1e-12)
        np.testing.assert_allclose(jax.jit(jax.grad(prelu))(0.3), jax.grad(plain)(a), rtol=1e-12)

    @pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
    def test_constants_may_be_concrete(self, transform):
        """Arrays at hand, not arguments: there is nothing to differentiate, and tracing must not ask their values."""
        f = lambda x: fj.ffn_residual(x, lambda t: t @ self.W1, None, lambda h: h @ self.W2, None)
        g = lambda x: x + jax.nn.gelu(x @ self.W1) @ self.W2
        np.testing.assert_allclose(
            transform(jax.grad(lambda x: jnp.sum(f(x))))(self.x), jax.grad(lambda x: jnp.sum(g(x)))(self.x), rtol=1e-11
        )
        _, ys = jax.lax.scan(lambda c, x: (c, f(x)), 0, jnp.stack([self.x, -self.x]))
        np.testing.assert_allclose(ys[1], g(-self.x), rtol=1e-12)

    def test_a_callable_may_hold_rules_of_its_own(self):
        """A custom_vjp has no transpose, but its rule is one."""
        product = jax.custom_vjp(lambda x, W: x @ W)
        product.defvjp(lambda x, W: (x @ W, (x, W)), lambda res, y: (y @ res[1].T, res[0].T @ y))
        A1 = fj.linear_map(lambda W, x: x @ W, 3, params=self.W1, transpose=lambda W, y: W @ y)

        def f(W1):
            both = lambda x: product(x, W1) + A1(x)
            return jnp.sum(fj.ffn_residual(self.x, both, None, lambda h: h @ self.W2, None) ** 2)

        def g(W1):
            return jnp.sum((self.x + jax.nn.gelu(self.x @ (W1 + self.W1)) @ self.W2) ** 2)

        np.testing.assert_allclose(jax.grad(f)(self.W1), jax.grad(g)(self.W1), rtol=1e-10, atol=1e-11)


class TestTokens:
    """A plain activation sees one token, however tokens are given."""

    def test_positions_of_a_shared_map_are_tokens(self):
        rng = np.random.default_rng(0)
        x, W1, W2 = (jnp.asarray(rng.standard_normal(s)) for s in ((3, 6, 4), (4, 8), (8, 4)))
        normed = lambda z: z / jnp.sqrt(jnp.mean(z**2) + 1)
        A1, A2 = fj.Dense(W1), fj.Dense(W2)
        expected = fj.ffn_residual(x, A1, None, A2, None, activation=normed)
        for T1, T2 in (
            (fj.TimeDistributed(A1, 6), fj.TimeDistributed(A2, 6)),
            (
                2.0 * fj.TimeDistributed(0.5 * A1, 6),
                fj.TimeDistributed(A2, 6) @ fj.TimeDistributed(fj.Dense(jnp.eye(8)), 6),
            ),
            (
                fj.TimeDistributed(fj.TimeDistributed(A1, 6), 3),
                0.5 * (fj.TimeDistributed(A2, 6) + fj.TimeDistributed(A2, 6)),
            ),
        ):
            for chunk_size in (None, 4):
                y = fj.ffn_residual(x, T1, None, T2, None, activation=normed, chunk_size=chunk_size)
                np.testing.assert_allclose(y, expected, rtol=1e-12)

    def test_a_derivative_in_half_precision_does_not_narrow_the_cotangent(self):
        x, A = jnp.linspace(-2.0, 2.0, 12).reshape(4, 3), fj.Dense(jnp.eye(3) * 1.1)
        rough = fj.activation(jnp.tanh, lambda z: (jnp.tanh(z), jnp.ones_like(z, "bfloat16")))
        f = lambda x: jnp.sum(jnp.sin(fj.ffn(x, A, None, A, None, activation=rough)))
        y = jnp.tanh(x * 1.1) * 1.1
        np.testing.assert_allclose(jax.grad(f)(x), jnp.cos(y) * 1.1 * 1.1, rtol=1e-12)


class TestWork:
    """What the compiled program does, and does not do."""

    @staticmethod
    def backward(case, **options):
        def f(args, ybar):
            return jax.vjp(lambda *args: fj.ffn_residual(*args, **options), *args)[1](ybar)

        return str(jax.make_jaxpr(f)(case.args, case.ybar))

    @pytest.mark.parametrize(
        ("activation", "primitive"),
        [
            ("gelu", "tanh"),
            ("gelu_exact", "erfc"),
            ("silu", "logistic"),
            ("quick_gelu", "logistic"),
            ("swiglu", "logistic"),
            ("geglu", "tanh"),
        ],
    )
    def test_one_evaluation_for_the_value_and_one_for_the_backward(self, activation, primitive):
        case = Sublayer("dense", activation, (5,))
        jaxpr = self.backward(case, activation=case.activation)
        assert len(re.findall(rf"= {primitive}\b", jaxpr)) == 2

    @pytest.mark.parametrize(("save", "products"), [((), 7), (("hidden_pre",), 6), (("hidden_pre", "hidden_act"), 6)])
    def test_number_of_matrix_products(self, case, save, products):
        assert self.backward(case, save=save).count("dot_general") == products

    @pytest.mark.parametrize("options", OPTIONS, ids=ids)
    def test_unused_parameter_cotangents_cost_nothing_under_jit(self, options):
        """The gradient of x alone needs the products of the forward pass and two more."""
        rng = np.random.default_rng(0)
        n, d, f = 64, 32, 128
        x, A1, A2 = (jnp.asarray(rng.standard_normal(s)) for s in ((n, d), (d, f), (f, d)))
        A1, A2, b1, b2 = fj.Dense(A1), fj.Dense(A2), jnp.zeros(f), jnp.zeros(d)

        def flops(argnums):
            loss = lambda *args: jnp.sum(fj.ffn_residual(*args, **options))
            compiled = jax.jit(jax.grad(loss, argnums)).lower(x, A1, b1, A2, b2).compile()
            text = compiled.as_text()
            return sum(
                1 for line in text.splitlines() if re.search(r"= \S+ (dot|custom-call)\(", line) and "dot" in line
            )

        every, only_x = flops((0, 1, 2, 3, 4)), flops(0)
        assert every - only_x >= 2, (every, only_x)

    def test_chunks_keep_the_hidden_tensor_from_existing_whole(self):
        n, d, f = 4096, 16, 256
        x = jnp.ones((n, d), "float32")
        A1, A2 = fj.Dense(jnp.ones((d, f), "float32")), fj.Dense(jnp.ones((f, d), "float32"))

        def temporary(**options):
            loss = lambda x, A1, A2: jnp.sum(fj.ffn_residual(x, A1, None, A2, None, **options))
            compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, A1, A2).compile()
            return compiled.memory_analysis().temp_size_in_bytes

        hidden = 4 * n * f
        assert temporary(save=(), chunk_size=256) < hidden / 2 < temporary()

    def test_a_dense_layer_is_traced_once_for_equal_shapes(self, case):
        traces = 0

        @jax.jit
        def step(x, A1, b1, A2, b2):
            nonlocal traces
            traces += 1
            return fj.ffn_residual(x, A1, b1, A2, b2)

        for _ in range(3):
            step(case.x, fj.Dense(case.A1.weight + 1), case.b1, 0.5 * case.A2, case.b2)
        assert traces == 1


class TestDtypesOfCotangents:
    def test_integer_leaves_get_float0(self):
        codes = jnp.asarray(np.random.default_rng(0).integers(-7, 8, (3, 7)), jnp.int8)
        A1 = fj.linear_map(
            lambda p, x: (x @ p["codes"].astype(x.dtype)) * p["scale"],
            (3,),
            params={"codes": codes, "scale": jnp.full(7, 0.1)},
        )
        A2, x = fj.Dense(jnp.ones((7, 3))), jnp.ones((5, 3))
        for options in OPTIONS:
            f = lambda A1: jnp.sum(fj.ffn_residual(x, A1, None, A2, None, **options))  # noqa: B023
            bars = jax.grad(f, allow_int=True)(A1)
            assert bars.params["codes"].dtype == jax.dtypes.float0
            dense = lambda s: jnp.sum(x + jax.nn.gelu((x @ codes.astype("float64")) * s[None]) @ A2.weight)
            np.testing.assert_allclose(bars.params["scale"], jax.grad(dense)(A1.params["scale"]), rtol=1e-12)

    @pytest.mark.parametrize("options", OPTIONS, ids=ids)
    def test_bias_cotangents_of_half_precision_are_summed_in_float32(self, options):
        """4,099 ones sum to 256 in bfloat16, one after the other; 4,099 rounds to 4,096."""
        x = jnp.zeros((4099, 2), "bfloat16")
        A = fj.Dense(jnp.eye(2, dtype="bfloat16"))
        b = jnp.zeros(2, "bfloat16")
        f = lambda b: jnp.sum(fj.ffn_residual(x, A, None, A, b, **(options | {"chunk_size": 512})), dtype="float32")
        assert jax.grad(f)(b).astype("float32").tolist() == [4096.0, 4096.0]


def test_the_seed_theorem_on_opaque_maps():
    """Arbitrary linear maps of the whole sequence and full biases: backprop is the adjoint of the derivative."""
    rng = np.random.default_rng(0)
    seq, d, f = 3, 2, 4
    M1, M2 = rng.standard_normal((seq * f, seq * d)), rng.standard_normal((seq * d, seq * f))
    A1 = fj.linear_map(lambda M, x: (M @ x.reshape(-1)).reshape(seq, f), (seq, d), params=jnp.asarray(M1))
    A2 = fj.linear_map(lambda M, h: (M @ h.reshape(-1)).reshape(seq, d), (seq, f), params=jnp.asarray(M2))
    args = tuple(jnp.asarray(rng.standard_normal(s)) for s in ((seq, d), (seq, f), (seq, d)))
    rule = lambda x, b1, b2: (x, fj.ffn_residual_tape(x, A1, b1, A2, b2))

    def reference(x, b1, b2):
        z = (M1 @ x.reshape(-1)).reshape(seq, f) + b1
        h = 0.5 * z * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        u = (M2 @ h.reshape(-1)).reshape(seq, d) + b2
        return x, fj.FFNTape(z, h, u, x + u)

    values, pullback = jax.vjp(rule, *args)
    sizes = [leaf.size for leaf in jax.tree.leaves(values)]
    for k in range(sum(sizes)):  # one basis seed at a time, on the input and on every saved tensor
        flat = jnp.split(jnp.zeros(sum(sizes)).at[k].set(1.0), np.cumsum(sizes)[:-1])
        leaves = [s.reshape(v.shape) for s, v in zip(flat, jax.tree.leaves(values), strict=True)]
        seed = jax.tree.unflatten(jax.tree.structure(values), leaves)
        chex.assert_trees_all_close(pullback(seed), adjoint(reference, *args)(seed), rtol=1e-11, atol=1e-12)
