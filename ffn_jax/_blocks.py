"""Running the sublayer block by block over its hidden features, which it is a sum over.

    y = x + b2 + Σ_k A2_k σ(A1_k x + b1_k)        x̄ = ȳ + Σ_k A1_kᵀ z̄_k

Only y and x̄ accumulate, in float32 or wider; the cotangents of A1_k, b1_k and A2_k come out block by block, written
once, where chunks of tokens rewrite their sum for each chunk. The hidden tensor exists for one block at a time. The
maps are `Dense`; the activation acts on each hidden feature, its gates included, alone.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from ffn_jax._checks import wide
from ffn_jax.maps import Dense

if TYPE_CHECKING:
    from jax import Array


class Blocks(NamedTuple):
    """How many hidden features make a block; it divides d_ff."""

    features: int

    def split(self, params: Any) -> "tuple[Array, Array | None, Array]":
        """W1, b1 and W2 with a leading axis of blocks."""
        A1, b1, A2, *_ = params
        return (
            self._split(A1.weight, hidden_axis(A1, out=True)),
            None if b1 is None else self._split(b1, b1.ndim - 1),
            self._split(A2.weight, hidden_axis(A2, out=False)),
        )

    def join(self, params: Any, bars: "tuple[Array, Array | None, Array]") -> "tuple[Dense, Array | None, Dense]":
        """The inverse of `split`, for cotangents."""
        A1, b1, A2, *_ = params
        W1_bar, b1_bar, W2_bar = bars
        return (
            dataclasses.replace(A1, weight=self._join(W1_bar, hidden_axis(A1, out=True))),
            None if b1 is None or b1_bar is None else self._join(b1_bar, b1.ndim - 1),
            dataclasses.replace(A2, weight=self._join(W2_bar, hidden_axis(A2, out=False))),
        )

    def _split(self, a: "Array", axis: int) -> "Array":
        blocks = a.shape[axis] // self.features
        return jnp.moveaxis(a.reshape(*a.shape[:axis], blocks, self.features, *a.shape[axis + 1 :]), axis, 0)

    def _join(self, a: "Array", axis: int) -> "Array":
        a = jnp.moveaxis(a, 0, axis)
        return a.reshape(*a.shape[:axis], a.shape[axis] * self.features, *a.shape[axis + 2 :])


def hidden_axis(A: Dense, out: bool) -> int:
    """The axis of A's weight that runs over d_ff: the last of its output axes, or its only input axis."""
    in_out = A.layout == "in_out"
    if out:
        return A.weight.ndim - 1 if in_out else A.weight.ndim - A.in_ndim - 1
    return 0 if in_out else A.weight.ndim - 1


def forward(blocks: Blocks, step: Callable[..., Any], x: "Array", params: Any, u: "Array") -> "tuple[Array, Any]":
    """`step(x, params_k) -> (u_k, saved_k)` over all blocks: u + Σ u_k, and what was saved, stacked."""

    def body(u: "Array", block: Any) -> Any:
        u_k, saved_k = step(x, _one_block(params, block))
        return u + u_k.astype(u.dtype), saved_k

    total, saved = lax.scan(body, u.astype(wide(u.dtype)), blocks.split(params))
    return total.astype(u.dtype), saved


def backward(
    blocks: Blocks, step: Callable[..., Any], x: "Array", saved: Any, params: Any, xbar: "Array"
) -> "tuple[Array, Any]":
    """`step(x, saved_k, params_k) -> (x̄_k, params̄_k)` over all blocks: x̄ + Σ x̄_k, and the cotangents joined."""

    def body(xbar: "Array", block: Any) -> Any:
        xbar_k, bars_k = step(x, block[1], _one_block(params, block[0]))
        return xbar + xbar_k.astype(xbar.dtype), (bars_k.A1.weight, bars_k.b1, bars_k.A2.weight)

    total, bars = lax.scan(body, xbar.astype(wide(xbar.dtype)), (blocks.split(params), saved))
    A1_bar, b1_bar, A2_bar = blocks.join(params, bars)
    return total.astype(xbar.dtype), params._replace(A1=A1_bar, b1=b1_bar, A2=A2_bar, b2=None)


def _one_block(params: Any, block: Any) -> Any:
    W1, b1, W2 = block
    A1, A2 = dataclasses.replace(params.A1, weight=W1), dataclasses.replace(params.A2, weight=W2)
    return params._replace(A1=A1, b1=b1, A2=A2, b2=None)
