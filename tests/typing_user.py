"""A user's program, for mypy alone: public names have the types an editor should show, and mistakes are found.

mypy runs in strict mode, so an `ignore` for a mistake that is no longer found is an error as well.
"""

from typing import assert_type

import jax
import jax.numpy as jnp
from jax import Array

import ffn_jax as fj
from ffn_jax import convert, graph, verify


def maps(weight: Array) -> list[fj.LinearMap]:
    A = fj.Dense(weight, layout="out_in")
    assert_type(A, fj.Dense)
    assert_type(A(weight), Array)
    assert_type(A.T, fj.Dense)
    assert_type(A @ A + 2.0 * A, fj.LinearMap)
    assert_type(A.in_shape, tuple[int, ...])
    assert_type(A.as_matrix(), Array)
    assert_type(fj.TimeDistributed(A, 4).T, fj.TimeDistributed)
    assert_type(fj.BlockDiagonal([A, A]).T, fj.BlockDiagonal)
    return [fj.linear_map(lambda W, x: x @ W, 3, params=weight), fj.linearize(jnp.sin, weight)]


def sublayer(x: Array, A: fj.LinearMap, b: Array) -> None:
    assert_type(fj.ffn_residual(x, A, b, A.T, None, activation=fj.gelu_exact), Array)
    assert_type(fj.ffn_residual(x, lambda x: 2.0 * x, None, jnp.negative, None), Array)
    assert_type(fj.ffn(x, A, b, A.T, None, activation=jnp.tanh, save=(), chunk_size="none"), Array)
    assert_type(fj.ffn_residual_reference(x, A, b, A.T, None), Array)
    tape = fj.ffn_residual_tape(x, A, b, A.T, None)
    assert_type(tape, fj.FFNTape)
    assert_type(tape.hidden_pre, Array)
    assert_type(fj.gelu(x), Array)
    assert_type(fj.layer_norm(x, b, None), Array)
    assert_type(fj.LayerNorm(b)(x), Array)
    assert_type(fj.Dropout(0.1, jax.random.key(0), on="hidden"), fj.Dropout)


def verification(x: Array, A: fj.LinearMap) -> None:
    assert_type(verify.check_vjp(jnp.tanh, None, x), verify.VJPReport)
    assert_type(verify.check_linear_map(A).ok, bool)
    verdict = verify.prove_vjp(jnp.tanh, jnp.tanh, "f64[n]")
    assert_type(verdict, verify.Certificate | verify.Refutation | verify.Undecided)
    assert_type(verdict.proved, bool)
    if isinstance(verdict, verify.Certificate):
        assert_type(verdict.latex(), str)


def graphs(x: Array, A: fj.LinearMap, b: Array) -> None:
    g = graph.ffn_residual_graph(A, b, A.T, None)
    assert_type(g, graph.Graph)
    assert_type(g.evaluate({"x": x}), dict[str, Array])
    assert_type(g.backprop({"x": x}, {"output": x}), graph.Cotangents)
    assert_type(g.certify({"x": x}), graph.GraphCertificate)


def conversion() -> None:
    ff = convert.bert({}, 0)
    assert_type(ff, fj.FeedForward)
    assert_type(ff.b1, Array | None)


def mistakes(x: Array, weight: Array, A: fj.LinearMap) -> None:
    fj.Dense(weight, layout="io")  # type: ignore[arg-type]
    fj.ffn_residual(x, weight, None, A, None)  # type: ignore[arg-type]
    fj.ffn_residual(x, A, None, A, None, activation="gelu")  # type: ignore[arg-type]
    fj.ffn_residual(x, A, None, A, None, chunk_size="all")  # type: ignore[arg-type]
    fj.ffn_residual(x, A, None, A, None, norm=fj.layer_norm)  # type: ignore[arg-type]
