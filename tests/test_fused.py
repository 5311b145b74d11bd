"""`FusedDense` against `Dense` in the sublayer: values and all cotangents, and kernels that are wrong are caught."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ffn_jax as fj
from ffn_jax import verify
from ffn_jax.maps import _fused_kernels

ROUNDING = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 3e-2}
SMALL = (16, 16, 16)


def arguments(tokens, d, f, dtype="float64", gates=(), layout="in_out", bias=True):
    rng = np.random.default_rng([*tokens, d, f])
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    W1, W2 = draw(d, *gates, f) / np.sqrt(d).astype(dtype), draw(f, d) / np.sqrt(f).astype(dtype)
    if layout == "out_in":
        W1, W2 = jnp.moveaxis(W1, 0, -1), W2.T
    b1, b2 = (draw(*gates, f), draw(d)) if bias else (None, None)
    return draw(*tokens, d), W1, b1, W2, b2


def sublayer(make, layout, activation, options, x, W1, b1, W2, b2):
    A1, A2 = make(W1, layout=layout), make(W2, layout=layout)
    return fj.ffn_residual(x, A1, b1, A2, b2, activation=activation, **options)


def both(make, layout, activation, options, args):
    y, pull = jax.vjp(functools.partial(sublayer, make, layout, activation, options), *args)
    return y, pull(jnp.cos(jnp.arange(y.size, dtype="float32")).reshape(y.shape).astype(y.dtype))


def assert_equal(args, activation=fj.gelu, layout="in_out", tiles=SMALL, **options):
    fused = functools.partial(fj.FusedDense, tiles=tiles)
    program = str(jax.make_jaxpr(functools.partial(both, fused, layout, activation, options))(args))
    assert program.count("pallas_call") >= 2  # forward and backward
    got = both(fused, layout, activation, options, args)
    expected = both(fj.Dense, layout, activation, options, args)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
        np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING[str(args[0].dtype)] * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize(
    ("tokens", "d", "f", "layout"),
    [((1,), 5, 12, "in_out"), ((7,), 17, 33, "out_in"), ((33,), 5, 33, "in_out"), ((), 16, 16, "out_in")],
)
def test_odd_sizes(tokens, d, f, layout):
    assert_equal(arguments(tokens, d, f, layout=layout), layout=layout)


CASES = [(fj.gelu, "bfloat16"), (fj.gelu_exact, "float32"), (fj.swiglu, "bfloat16"), (fj.swiglu, "float32")]


@pytest.mark.parametrize(("activation", "dtype"), [*CASES, (fj.relu, "float64"), (fj.gelu_exact, "float64")], ids=str)
def test_activations_and_dtypes(activation, dtype):
    gates, layout = ((2,), "out_in") if activation is fj.swiglu else ((), "in_out")
    assert_equal(arguments((3, 7), 9, 20, dtype, gates, layout), activation, layout)


@pytest.mark.parametrize("save", [(), ("hidden_pre", "hidden_act"), ("hidden_act",)], ids=str)
@pytest.mark.parametrize("chunk_size", ["none", 4])
def test_every_choice_of_save_and_chunks(save, chunk_size):
    assert_equal(arguments((9,), 5, 12, bias=chunk_size == 4), save=save, chunk_size=chunk_size)


def test_blocks_of_hidden_features_and_norms():
    args = arguments((9,), 5, 12)
    assert_equal(args, hidden_chunk_size=4)
    assert_equal(args, norm=fj.LayerNorm(jnp.ones(5), jnp.ones(5)))
    assert_equal(args, dropout=fj.Dropout(0.5, jax.random.key(0), on="output"))


def test_default_tiles():
    assert_equal(arguments((70,), 40, 70), tiles=None)


def test_under_jit_vmap_and_scan():
    args = arguments((2, 6), 5, 12)
    x, *params = args
    fused = functools.partial(sublayer, fj.FusedDense, "in_out", fj.gelu, {})
    expected = sublayer(fj.Dense, "in_out", fj.gelu, {}, *args)
    np.testing.assert_allclose(jax.jit(fused)(*args), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(fused, (0, *[None] * 4))(x, *params), expected, rtol=1e-12)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
    stack = lambda f: jax.jit(jax.grad(lambda two: jnp.sum(jnp.sin(jax.lax.scan(f, x, two)[0]))))(two)
    got = stack(lambda x, layer: (fused(x, *layer), None))
    plain = stack(lambda x, layer: (sublayer(fj.Dense, "in_out", fj.gelu, {}, x, *layer), None))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_where_the_step_does_not_apply_the_plain_path_runs():
    x, W1, b1, W2, b2 = arguments((6,), 5, 12)
    A1, A2 = fj.FusedDense(W1), fj.FusedDense(W2)
    by_position = jnp.ones((6, 12))
    for b, activation in ((b1, jnp.tanh), (by_position, fj.gelu)):
        f = lambda x: fj.ffn_residual(x, A1, b, A2, b2, activation=activation)  # noqa: B023
        assert "pallas_call" not in str(jax.make_jaxpr(f)(x))
    empty = fj.ffn_residual(x[:0], A1, b1, A2, b2)
    assert empty.shape == (0, 5)
    seeds = lambda x: jnp.sum(jnp.sin(fj.ffn_residual_tape(x, A1, b1, A2, b2).hidden_act))
    plain = lambda x: jnp.sum(jnp.sin(fj.ffn_residual_tape(x, fj.Dense(W1), b1, fj.Dense(W2), b2).hidden_act))
    np.testing.assert_allclose(jax.grad(seeds)(x), jax.grad(plain)(x), rtol=1e-12)


def test_second_derivatives_are_those_of_dense():
    args = arguments((3,), 4, 6)
    loss = lambda make: lambda x: jnp.sum(jnp.sin(sublayer(make, "in_out", fj.gelu, {}, x, *args[1:])))
    expected = jax.hessian(loss(fj.Dense))(args[0])
    np.testing.assert_allclose(jax.jacrev(jax.grad(loss(fj.FusedDense)))(args[0]), expected, rtol=1e-11, atol=1e-12)


def test_is_a_linear_map():
    verify.check_linear_map(fj.FusedDense(arguments((1,), 5, 12)[1]))


def checked():
    """What check_vjp says of the fused rule, against the plain one."""
    args = arguments((6,), 5, 20)
    fused = functools.partial(fj.FusedDense, tiles=SMALL)
    rule = functools.partial(sublayer, fused, "in_out", fj.silu, {})

    def reference(x, W1, b1, W2, b2):
        return fj.ffn_residual_reference(x, fj.Dense(W1), b1, fj.Dense(W2), b2, activation=fj.silu)

    return verify.check_vjp(rule, reference, *args, dtypes=())


def test_check_vjp():
    assert checked().ok


def without_bias(original):
    return lambda step, x, weight, b: original(step, x, weight, jnp.zeros_like(b))


def first_tile_only(original):
    """As if the grid ended after the first tile of hidden features."""

    def mutant(step, *args):
        outs = original(step, *args)
        return tuple(None if out is None else jnp.where(jnp.arange(out.shape[-1]) < 16, out, 0.0) for out in outs)

    return mutant


def without_the_slope(original):
    def mutant(step, y, weight, z):
        h, _ = original(step, y, weight, z)
        return h, fj.Dense(weight, layout=step.layout).transpose_apply(y)

    return mutant


MUTANTS = [("forward", without_bias), ("forward", first_tile_only)]
MUTANTS += [("backward", first_tile_only), ("backward", without_the_slope)]


@pytest.mark.parametrize(("kernel", "mutate"), MUTANTS)
def test_a_wrong_kernel_is_caught(kernel, mutate, monkeypatch):
    monkeypatch.setattr(_fused_kernels, kernel, mutate(getattr(_fused_kernels, kernel)))
    with pytest.raises(verify.VerificationError):
        checked()


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_kernels_lower_for_other_hardware(backend):
    """Compiled nowhere here: what is known is that Triton's and Mosaic's front ends take them."""
    args = arguments((128,), 128, 256, "float32")
    fused = functools.partial(fj.FusedDense, backend=backend)
    program = jax.jit(functools.partial(both, fused, "in_out", fj.gelu, {}))
    platform = {"gpu": "cuda"}.get(backend, backend)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(False))
        if backend == "gpu" and jax.__version_info__ >= (0, 12):  # asks for which GPU, and is deprecated
            h200 = jax.sharding.AbstractDevice("NVIDIA H200", num_cores=None, platform="gpu")
            mesh = jax.sharding.AbstractMesh((), (), abstract_device=h200)
            stack.enter_context(jax.sharding.use_abstract_mesh(mesh))
            stack.enter_context(pytest.warns(DeprecationWarning, match="Triton"))
        text = program.trace(args).lower(lowering_platforms=(platform,)).as_text()
    assert "custom_call" in text


BAD = {
    "three axes": (lambda: fj.FusedDense(jnp.ones((3, 4, 5))), ValueError, ["(d, 2, d_ff)", "(3, 4, 5)", "Dense"]),
    "two input axes": (lambda: fj.FusedDense(jnp.ones((3, 4, 5)), 2), ValueError, ["in_ndim=1", "got 2"]),
    "tiles too small": (lambda: fj.FusedDense(jnp.ones((3, 4)), tiles=(8, 16, 16)), ValueError, ["powers of two", "8"]),
    "two tiles": (lambda: fj.FusedDense(jnp.ones((3, 4)), tiles=(16, 16)), TypeError, ["three ints", "(16, 16)"]),
    "no such backend": (lambda: fj.FusedDense(jnp.ones((3, 4)), backend="cuda"), ValueError, ["'gpu'", "'cuda'"]),
    "integers": (lambda: fj.FusedDense(jnp.ones((3, 4), int)), TypeError, ["floating", "int64"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    f, error, said = BAD[case]
    with pytest.raises(error) as caught:
        f()
    message = str(caught.value)
    assert "expected" in message
    assert all(text in message for text in said), message
