"""Running the sublayer chunk by chunk over its tokens, so that the hidden tensor never exists whole.

The tokens are the leading axes that both maps treat as batch, flattened to N. With chunks of c tokens

    forward    y_k = F(x_k)                          k = 0, ..., ⌈N/c⌉ - 1, in a scan
    backward   x̄_k, θ̄_k = pull_back(x_k, ȳ_k)        θ̄ = Σ_k θ̄_k, accumulated in the scan's carry

in float32 or wider. Where c does not divide N the last, shorter chunk runs after the scan. A bias that
varies over the tokens enters each chunk as the rows that its tokens use; its cotangent is added to those rows.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ffn_jax._checks import Shape, is_inexact, size, wide

if TYPE_CHECKING:
    from jax import Array


class Tokens(NamedTuple):
    """The token axes' shape, and how many tokens make a chunk; `size(shape) > chunk >= 1`."""

    shape: Shape
    chunk: int

    @property
    def whole(self) -> int:
        """The number of whole chunks."""
        return size(self.shape) // self.chunk

    @property
    def rest(self) -> int:
        """The tokens left over."""
        return size(self.shape) % self.chunk

    def split(self, x: "Array") -> "tuple[Array, Array]":
        """`(*tokens, ...)` as whole chunks `(whole, chunk, ...)` and the rest `(rest, ...)`."""
        flat = x.reshape(size(self.shape), *x.shape[len(self.shape) :])
        cut, end = self.whole * self.chunk, size(self.shape)
        whole, rest = lax.slice_in_dim(flat, 0, cut), lax.slice_in_dim(flat, cut, end)
        return whole.reshape(self.whole, self.chunk, *flat.shape[1:]), rest

    def join(self, whole: "Array", rest: "Array | None") -> "Array":
        """The inverse of `split`."""
        flat = whole.reshape(self.whole * self.chunk, *whole.shape[2:])
        flat = flat if rest is None else jnp.concatenate([flat, rest])
        return flat.reshape(*self.shape, *flat.shape[1:])


def forward(tokens: Tokens, step: Callable[..., Any], x: "Array", params: Any) -> "tuple[Array, Any]":
    """`step(x_k, params_k) -> (y_k, saved_k)` over all chunks.

    Returns y whole, and what was saved as a pair (whole chunks, rest): only `backward` reads it, chunk by chunk.
    """
    x_whole, x_rest = tokens.split(x)

    def body(_: None, chunk: Any) -> Any:
        k, x_k = chunk
        return None, step(x_k, _rows_of(tokens, params, _token_ids(tokens, k, tokens.chunk)))

    _, (y, saved) = lax.scan(body, None, (jnp.arange(tokens.whole), x_whole))
    if not tokens.rest:
        return tokens.join(y, None), (saved, None)
    ids = _token_ids(tokens, tokens.whole, tokens.rest)
    y_rest, saved_rest = step(x_rest, _rows_of(tokens, params, ids))
    return tokens.join(y, y_rest), (saved, saved_rest)


def backward(
    tokens: Tokens, step: Callable[..., Any], x: "Array", saved: Any, params: Any, ybar: "Array"
) -> "tuple[Array, Any]":
    """`step(x_k, saved_k, params_k, ȳ_k) -> (x̄_k, params̄_k)` over all chunks, params̄_k summed."""
    (x_whole, x_rest), (ybar_whole, ybar_rest) = tokens.split(x), tokens.split(ybar)
    saved_whole, saved_rest = saved

    def add_chunk(total: Any, ids: "Array", x_k: "Array", saved_k: Any, ybar_k: "Array") -> Any:
        xbar_k, bars_k = step(x_k, saved_k, _rows_of(tokens, params, ids), ybar_k)
        return _accumulate(tokens, total, bars_k, ids), xbar_k

    def body(total: Any, chunk: Any) -> Any:
        k, *slices = chunk
        return add_chunk(total, _token_ids(tokens, k, tokens.chunk), *slices)

    chunks = (jnp.arange(tokens.whole), x_whole, saved_whole, ybar_whole)
    total, xbar = lax.scan(body, _zeros(params), chunks)
    xbar_rest = None
    if tokens.rest:
        ids = _token_ids(tokens, tokens.whole, tokens.rest)
        total, xbar_rest = add_chunk(total, ids, x_rest, saved_rest, ybar_rest)
    return tokens.join(xbar, xbar_rest), total


def _token_ids(tokens: Tokens, k: Any, count: int) -> "Array":
    return k * tokens.chunk + jnp.arange(count)


# ------------------------------------------------------------------------------- parameters of a chunk
#
# Biases come here with all their axes, `(*token axes, *feature axes)`, repeated axes of length 1.


def _rows_of(tokens: Tokens, params: Any, ids: "Array") -> Any:
    """The parameters as one chunk sees them: biases that vary over the tokens give the rows of `ids`; dropout its."""

    def rows(b: "Array | None") -> "Array | None":
        if b is None or not _varies(tokens, b):
            return None if b is None else b.reshape(_feature_shape(tokens, b))
        return _table(tokens, b)[_row_ids(tokens, b, ids)]

    seed = None if params.seed is None else params.seed._replace(tokens=ids)
    return params._replace(b1=rows(params.b1), b2=rows(params.b2), seed=seed)


def _accumulate(tokens: Tokens, total: Any, bars: Any, ids: "Array") -> Any:
    """total + bars, in total's dtype; rows of a bias that varies over tokens are added where they belong."""

    def add(total_leaf: "Array", bar: Any) -> "Array":
        return total_leaf + bar.astype(total_leaf.dtype) if is_inexact(total_leaf) else total_leaf

    def add_bias(total_b: "Array | None", bar: Any) -> "Array | None":
        if total_b is None or not _varies(tokens, total_b):
            return None if total_b is None else add(total_b, bar.reshape(total_b.shape))
        table = _table(tokens, total_b).at[_row_ids(tokens, total_b, ids)].add(bar.astype(total_b.dtype))
        return table.reshape(total_b.shape)

    without = {"b1": None, "b2": None}
    summed = jax.tree.map(add, total._replace(**without), bars._replace(**without))
    return summed._replace(b1=add_bias(total.b1, bars.b1), b2=add_bias(total.b2, bars.b2))


def _zeros(params: Any) -> Any:
    """The accumulators; integer leaves, which have no cotangent, get an empty placeholder."""

    def zeros(p: "Array") -> "Array":
        # zeros_like keeps, inside shard_map, the mesh axes over which p varies: a carry's type must not change.
        return jnp.zeros_like(p, wide(jnp.result_type(p))) if is_inexact(p) else jnp.zeros(0, bool)

    return jax.tree.map(zeros, params)


def _varies(tokens: Tokens, b: "Array") -> bool:
    return any(n != 1 for n in b.shape[: len(tokens.shape)])


def _feature_shape(tokens: Tokens, b: "Array") -> Shape:
    return tuple(b.shape[len(tokens.shape) :])


def _table(tokens: Tokens, b: "Array") -> "Array":
    """b as rows `(distinct tokens, *feature axes)`."""
    return b.reshape(size(b.shape[: len(tokens.shape)]), *_feature_shape(tokens, b))


def _row_ids(tokens: Tokens, b: "Array", ids: "Array") -> "Array":
    """The row of `_table` that each token uses: its coordinates, with repeated axes left out."""
    rows, stride = jnp.zeros_like(ids), 1
    for tokens_here, rows_here in zip(reversed(tokens.shape), reversed(b.shape[: len(tokens.shape)]), strict=True):
        coordinate, ids = ids % tokens_here, ids // tokens_here
        if rows_here != 1:
            rows, stride = rows + coordinate * stride, stride * rows_here
    return rows
