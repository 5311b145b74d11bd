"""Bad input: each case raises, before any work, an error that names the function and argument and both sides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ffn_jax as fj

x, b1, b2 = jnp.ones((4, 3)), jnp.ones(5), jnp.ones(3)
W1, W2 = jnp.ones((3, 5)), jnp.ones((5, 3))
A1, A2 = fj.Dense(W1), fj.Dense(W2)
T = fj.TimeDistributed(A1, 4)


def ffn(*args, f=fj.ffn_residual, **kwargs):
    given = dict(zip(("x", "A1", "b1", "A2", "b2"), (x, A1, b1, A2, b2), strict=True)) | dict(
        zip(("x", "A1", "b1", "A2", "b2"), args, strict=False)
    )
    options = {k: kwargs.pop(k) for k in list(kwargs) if k not in given}
    return f(**(given | kwargs), **options)


class Unregistered(fj.LinearMap):
    in_shape, out_shape = (3,), (5,)

    def apply(self, x):
        return x @ W1


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Shrinking(fj.LinearMap):
    """A map that promises 5 features and the dtype of x, and returns something else."""

    features: int
    of: str
    in_shape, out_shape = (3,), (5,)

    def apply(self, x):
        return jnp.broadcast_to(x[..., :1], (*x.shape[:-1], self.features)).astype(self.of)


own = lambda value, pair: fj.activation(value, pair)

# name: (call, error, every one of these texts must be in the message)
BAD = {
    # x
    "x too narrow": (lambda: ffn(jnp.ones((4, 2))), ValueError, ["ffn_residual", "(4, 2)", "A1.in_shape", "(..., 3)"]),
    "x a scalar": (lambda: ffn(jnp.ones(())), ValueError, ["ffn_residual", "x", "()", "(..., 3)"]),
    "x of integers": (lambda: ffn(jnp.ones((4, 3), int)), TypeError, ["ffn_residual", "x", "floating", "int64"]),
    "x boolean": (lambda: ffn(jnp.ones((4, 3), bool)), TypeError, ["x", "floating", "bool"]),
    "x complex": (lambda: ffn(jnp.ones((4, 3), complex)), TypeError, ["x", "real floating", "complex128"]),
    "x a list": (lambda: ffn([[1.0, 2.0, 3.0]]), TypeError, ["ffn_residual", "x", "array", "list"]),
    "x None": (lambda: ffn(None), TypeError, ["x", "array", "NoneType"]),
    "x in another dtype": (
        lambda: ffn(x.astype("float32")),
        TypeError,
        ["ffn_residual", "x", "float64", "A1", "float32"],
    ),
    # maps
    "maps do not compose": (lambda: ffn(A2=A1), ValueError, ["ffn_residual", "A2.in_shape", "(..., 3)", "(4, 5)"]),
    "A2 misses x's shape": (
        lambda: ffn(A2=fj.Dense(jnp.ones((5, 2))), b2=None),
        ValueError,
        ["A2.out_shape", "(4, 3)", "(2,)"],
    ),
    "A1 is an array": (
        lambda: ffn(A1=W1),
        TypeError,
        ["ffn_residual", "A1", "an array of shape (3, 5)", "Dense(weight)"],
    ),
    "A1 is None": (lambda: ffn(A1=None), TypeError, ["A1", "LinearMap or a callable", "got None"]),
    "A2 is a string": (lambda: ffn(A2="dense"), TypeError, ["A2", "LinearMap or a callable", "'dense'"]),
    "A2 in another dtype": (
        lambda: ffn(A2=fj.Dense(W2.astype("bfloat16"))),
        TypeError,
        ["ffn_residual", "bfloat16", "A2", "float64"],
    ),
    "A1 unregistered": (lambda: ffn(A1=Unregistered()), TypeError, ["A1", "Unregistered", "register_dataclass"]),
    "time-distributed of another length": (
        lambda: ffn(A1=fj.TimeDistributed(A1, 7)),
        ValueError,
        ["A1.in_shape", "(..., 7, 3)", "(4, 3)"],
    ),
    "callable affine": (lambda: ffn(A1=lambda x: x @ W1 + 1.0), ValueError, ["ffn_residual: A1", "affine", "constant"]),
    "callable not linear": (lambda: ffn(A1=lambda x: jnp.tanh(x @ W1)), ValueError, ["A1", "non-linear", "linearize"]),
    "callable a product": (lambda: ffn(A1=lambda x: (x * x) @ W1), ValueError, ["A1", "non-linear"]),
    "callable affine in A2": (lambda: ffn(A2=lambda h: h @ W2 - 1.0), ValueError, ["ffn_residual: A2", "affine"]),
    "callable fails": (lambda: ffn(A1=lambda x: x @ W2), TypeError, ["ffn_residual: A1", "(4, 3)", "dot_general"]),
    "callable returns a tuple": (lambda: ffn(A1=lambda x: (x, x)), TypeError, ["A1", "one array"]),
    "callable changes the dtype": (
        lambda: ffn(A1=lambda x: (x @ W1).astype("float32")),
        TypeError,
        ["A1", "float64", "float32"],
    ),
    # biases
    "b1 does not broadcast": (lambda: ffn(b1=jnp.ones(4)), ValueError, ["ffn_residual", "b1", "(4, 5)", "(4,)"]),
    "b1 has more axes": (lambda: ffn(b1=jnp.ones((1, 1, 5))), ValueError, ["b1", "(4, 5)", "(1, 1, 5)"]),
    "b2 does not broadcast": (lambda: ffn(b2=jnp.ones((2, 3))), ValueError, ["b2", "(4, 3)", "(2, 3)"]),
    "b1 of integers": (lambda: ffn(b1=jnp.ones(5, int)), TypeError, ["b1", "floating", "int64"]),
    "b2 in another dtype": (lambda: ffn(b2=b2.astype("float16")), TypeError, ["b2", "float64", "float16"]),
    "b1 a number": (lambda: ffn(b1=0.5), TypeError, ["b1", "array", "float"]),
    # save, chunk_size, activation
    "unknown name in save": (
        lambda: ffn(save=("hidden",)),
        ValueError,
        ["ffn_residual", "save", "hidden_pre", "'hidden'"],
    ),
    "a tape name that is no use": (lambda: ffn(save=("projected",)), ValueError, ["save", "'projected'"]),
    "save a string": (lambda: ffn(save="hidden_pre"), TypeError, ["save", "tuple of names", "'hidden_pre'"]),
    "save None": (lambda: ffn(save=None), TypeError, ["save", "tuple of names", "None"]),
    "chunk_size zero": (lambda: ffn(chunk_size=0), ValueError, ["ffn_residual", "chunk_size >= 1", "0"]),
    "chunk_size negative": (lambda: ffn(chunk_size=-4), ValueError, ["chunk_size >= 1", "-4"]),
    "chunk_size a float": (lambda: ffn(chunk_size=2.0), TypeError, ["chunk_size", "int", "2.0"]),
    "chunk_size a bool": (lambda: ffn(chunk_size=True), TypeError, ["chunk_size", "int", "True"]),
    "chunk_size another word": (lambda: ffn(chunk_size="all"), TypeError, ["chunk_size", "'none'", "'all'"]),
    "hidden_chunk_size that does not divide": (
        lambda: ffn(hidden_chunk_size=7),
        ValueError,
        ["hidden_chunk_size", "divide", "got 7"],
    ),
    "hidden_chunk_size zero": (lambda: ffn(hidden_chunk_size=0), ValueError, ["hidden_chunk_size", "got 0"]),
    "hidden_chunk_size a float": (lambda: ffn(hidden_chunk_size=2.0), TypeError, ["hidden_chunk_size", "2.0"]),
    "hidden blocks of a general map": (
        lambda: ffn(A1=lambda x: x @ W1, hidden_chunk_size=2),
        TypeError,
        ["hidden_chunk_size", "Dense"],
    ),
    "hidden blocks of a plain activation": (
        lambda: ffn(activation=jnp.tanh, hidden_chunk_size=2),
        TypeError,
        ["hidden_chunk_size", "Activation"],
    ),
    "hidden blocks of a pre-norm": (
        lambda: ffn(hidden_chunk_size=5, norm=fj.LayerNorm(jnp.ones(3))),
        ValueError,
        ["hidden_chunk_size", "no pre-norm"],
    ),
    "chunks of a map over tokens": (
        lambda: ffn(A1=lambda x: x @ W1, chunk_size=2),
        ValueError,
        ["chunk_size=2", "A1", "spans the token axes"],
    ),
    "chunks of a second map over tokens": (
        lambda: ffn(A2=lambda h: h @ W2, chunk_size=2),
        ValueError,
        ["chunk_size=2", "A2", "spans the token axes"],
    ),
    "activation a name": (lambda: ffn(activation="gelu"), TypeError, ["ffn_residual", "activation", "'gelu'"]),
    "activation changes the dtype": (
        lambda: ffn(activation=lambda z: z > 0),
        TypeError,
        ["activation", "float64", "bool"],
    ),
    "activation changes the shape": (
        lambda: ffn(activation=lambda z: z[:2]),
        ValueError,
        ["(4, 2)", "A2.in_shape", "(..., 5)"],
    ),
    "gated activation without gates": (
        lambda: ffn(activation=fj.swiglu),
        ValueError,
        ["gated", "(..., 2, d_ff)", "(5,)"],
    ),
    "derivative of another shape": (
        lambda: ffn(activation=own(jnp.sin, lambda z: (jnp.sin(z), jnp.cos(z)[0]))),
        ValueError,
        ["activation sin", "(5,)", "()"],
    ),
    "derivative of another dtype": (
        lambda: ffn(activation=own(jnp.tanh, lambda z: (jnp.tanh(z), z > 0))),
        TypeError,
        ["activation tanh", "D floating", "bool"],
    ),
    "no pair of value and derivative": (
        lambda: ffn(activation=own(jnp.tanh, jnp.tanh)),
        TypeError,
        ["ffn_residual", "activation tanh", "pair (h, D)"],
    ),
    "map that changes the dtype": (
        lambda: ffn(A1=Shrinking(5, "float32")),
        TypeError,
        ["ffn_residual: A1", "float64", "float32"],
    ),
    "map that lies about its shape": (
        lambda: Shrinking(4, "float64")(x),
        ValueError,
        ["Shrinking", "(4, 5)", "(4, 4)"],
    ),
    "multiple of an unregistered map": (
        lambda: ffn(A1=2.0 * Unregistered()),
        TypeError,
        ["Unregistered", "not registered"],
    ),
    "tape names itself": (
        lambda: ffn(jnp.ones((4, 2)), f=fj.ffn_residual_tape),
        ValueError,
        ["ffn_residual_tape", "(4, 2)"],
    ),
    "reference names itself": (
        lambda: ffn(b1=jnp.ones(4), f=fj.ffn_residual_reference),
        ValueError,
        ["ffn_residual_reference", "b1"],
    ),
    "ffn names itself": (lambda: ffn(chunk_size=0, f=fj.ffn), ValueError, ["ffn: expected chunk_size"]),
    # makers of maps
    "dense of integers": (lambda: fj.Dense(jnp.ones((2, 3), int)), TypeError, ["Dense", "weight", "floating", "int64"]),
    "dense of a list": (lambda: fj.Dense([[1.0]]), TypeError, ["Dense", "weight", "array", "list"]),
    "dense with too many axes": (lambda: fj.Dense(W1, in_ndim=3), ValueError, ["Dense", "in_ndim=3", "(3, 5)"]),
    "dense with half an axis": (lambda: fj.Dense(W1, in_ndim=1.0), TypeError, ["Dense", "in_ndim", "int", "1.0"]),
    "dense with an unknown layout": (
        lambda: fj.Dense(W1, layout="io"),
        ValueError,
        ["Dense", "'in_out' or 'out_in'", "'io'"],
    ),
    "dense called on a wrong shape": (lambda: A1(jnp.ones((4, 2))), ValueError, ["Dense", "(..., 3)", "(4, 2)"]),
    "dense called on a wrong dtype": (lambda: A1(x.astype("float32")), TypeError, ["Dense", "float64", "float32"]),
    "transpose called on a wrong shape": (lambda: A1.T(x), ValueError, ["Dense", "(..., 5)", "(4, 3)"]),
    "map called on integers": (lambda: T(jnp.ones((4, 3), int)), TypeError, ["TimeDistributed", "x", "int64"]),
    "length zero": (lambda: fj.TimeDistributed(A1, 0), ValueError, ["TimeDistributed", "length >= 1", "0"]),
    "length a float": (lambda: fj.TimeDistributed(A1, 4.0), TypeError, ["TimeDistributed", "length", "int", "4.0"]),
    "time-distributed callable": (
        lambda: fj.TimeDistributed(lambda x: x, 4),
        TypeError,
        ["TimeDistributed", "LinearMap", "linear_map(...)"],
    ),
    "no blocks": (lambda: fj.BlockDiagonal([]), ValueError, ["BlockDiagonal", "at least one"]),
    "block an array": (lambda: fj.BlockDiagonal([W1]), TypeError, ["BlockDiagonal", "block 0", "LinearMap"]),
    "block with two axes": (lambda: fj.BlockDiagonal([A1, T]), ValueError, ["block 1", "one axis", "(4, 3)"]),
    "blocks of two dtypes": (
        lambda: fj.BlockDiagonal([A1, fj.Dense(W1.astype("float32"))]),
        TypeError,
        ["BlockDiagonal", "one dtype", "float32", "float64"],
    ),
    "stack without an axis": (
        lambda: fj.BlockDiagonal(fj.Dense(jnp.ones(()), in_ndim=0)),
        ValueError,
        ["BlockDiagonal", "leading axis"],
    ),
    "sum of two shapes": (lambda: A1 + A2, ValueError, ["A + B", "(3,) -> (5,)", "(5,) -> (3,)"]),
    "product of two shapes": (lambda: A1 @ A1, ValueError, ["A @ B", "(3,)", "(5,)"]),
    "product of two dtypes": (lambda: A1 @ fj.Dense(W2.astype("float32")), TypeError, ["A @ B", "one dtype"]),
    "map times map": (lambda: A1 * A2, TypeError, ["A @ B"]),
    "map times vector": (lambda: A1 * jnp.ones(3), TypeError, ["scalar", "(3,)"]),
    "map times complex": (lambda: A1 * np.complex64(1j), TypeError, ["scalar", "real number", "1j"]),
    "transpose of another dtype": (
        lambda: fj.linear_map(lambda W, x: x @ W, 3, params=W1, transpose=lambda W, y: (W @ y).astype("float32")),
        TypeError,
        ["transpose", "float64", "float32"],
    ),
    "pullback of integers": (
        lambda: fj.linear_map(lambda W, x: x @ W, 3, params=W1, params_vjp=lambda W, x, y: jnp.zeros((3, 5), int)),
        TypeError,
        ["params_vjp", "floating", "int64"],
    ),
    "gated of a list": (lambda: fj.gated([]), TypeError, ["gated", "Activation", "[]"]),
    "map times string": (lambda: A1 * "2", TypeError, ["scalar", "'2'"]),
    "map times another dtype": (lambda: A1 * jnp.float32(2), TypeError, ["scalar", "float64", "float32"]),
    "linear_map of no callable": (lambda: fj.linear_map(W1, 3), TypeError, ["linear_map", "apply", "callable"]),
    "linear_map of a bad shape": (lambda: fj.linear_map(jnp.negative, (-3,)), TypeError, ["in_shape", "(-3,)"]),
    "linear_map affine": (
        lambda: fj.linear_map(lambda p, x: x + p, 3, params=b2),
        ValueError,
        ["linear_map", "affine"],
    ),
    "linear_map not linear": (lambda: fj.linear_map(lambda p, x: x**2, 3), ValueError, ["linear_map", "non-linear"]),
    "linear_map constant": (lambda: fj.linear_map(lambda p, x: b1, 3), ValueError, ["linear_map", "constant"]),
    "transpose of a wrong shape": (
        lambda: fj.linear_map(lambda W, x: x @ W, 3, params=W1, transpose=lambda W, y: y),
        ValueError,
        ["transpose", "(3,)", "(5,)"],
    ),
    "pullback of a wrong shape": (
        lambda: fj.linear_map(lambda W, x: x @ W, 3, params=W1, params_vjp=lambda W, x, y: jnp.outer(y, x)),
        ValueError,
        ["params_vjp", "(3, 5)", "(5, 3)"],
    ),
    "transpose not callable": (
        lambda: fj.linear_map(lambda W, x: x @ W, 3, params=W1, transpose=W2),
        TypeError,
        ["linear_map", "transpose", "callable"],
    ),
    "kernel closes over a tracer": (
        lambda: jax.grad(lambda W: jnp.sum(fj.linear_map(lambda _, x: x @ W, 3, transpose=lambda _, y: y @ W.T)(x)))(
            W1
        ),
        TypeError,
        ["linear_map", "traced array", "params="],
    ),
    "linearize at integers": (lambda: fj.linearize(jnp.sin, jnp.arange(3)), TypeError, ["linearize", "x", "int64"]),
    "linearize of two outputs": (lambda: fj.linearize(lambda x: (x, x), b2), TypeError, ["linearize", "one array"]),
    "activation of no callable": (lambda: fj.activation(1.0, jnp.sin), TypeError, ["activation", "value", "1.0"]),
    "gated of a function": (lambda: fj.gated(jnp.tanh), TypeError, ["gated", "Activation"]),
    "swiglu on three gates": (lambda: fj.swiglu(jnp.ones((3, 4))), ValueError, ["(..., 2, d_ff)", "(3, 4)"]),
    "gelu of integers": (lambda: fj.gelu(jnp.arange(3)), TypeError, ["gelu", "floating", "int64"]),
}


def test_there_are_many():
    assert len(BAD) >= 40


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, texts = BAD[name]
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) in (TypeError, ValueError), type(caught.value)
    message = str(caught.value)
    missing = [text for text in texts if text not in message]
    assert not missing, f"{missing} not in {message!r}"


def test_transposing_what_only_looks_linear_says_so():
    """An opaque function hides that it is not linear until JAX transposes it."""

    def opaque(x):
        return jax.pure_callback(
            lambda x: np.sin(x), jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential"
        )

    A = fj.linear_map(lambda _, x: opaque(x), 3)
    with pytest.raises((ValueError, TypeError), match=r"FunctionMap.*(linear|transpos)"):
        A.T(jnp.ones(3))


def test_what_must_just_work():
    """Chunks that do not divide the tokens, more than there are, one token, numpy arrays and numpy ints."""
    expected = ffn()
    for chunk_size in (1, 3, 4, 5, 100, np.int64(3)):
        np.testing.assert_allclose(ffn(chunk_size=chunk_size), expected, rtol=1e-14)
    np.testing.assert_allclose(ffn(x[0], chunk_size=2), expected[0], rtol=1e-14)
    numpy = [np.asarray(a) for a in (x, b1, b2)]
    np.testing.assert_allclose(fj.ffn_residual(numpy[0], A1, numpy[1], A2, numpy[2]), expected, rtol=1e-14)
    np.testing.assert_allclose(ffn(A1=lambda x: x @ W1, chunk_size=4), expected, rtol=1e-14)
    B = fj.Dense(jnp.ones((2, 2, 8)), in_ndim=2)
    np.testing.assert_allclose(fj.ffn_residual(x[:2, :2], B, None, B.T, None, chunk_size=4).shape, (2, 2))
    assert fj.TimeDistributed(A1, np.int64(4)).in_shape == (4, 3)
    np.testing.assert_allclose(ffn(save=["hidden_act"]), expected, rtol=1e-14)
    np.testing.assert_allclose(ffn(A1=fj.Dense(np.asarray(W1))), expected, rtol=1e-14)
