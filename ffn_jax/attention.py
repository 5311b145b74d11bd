"""Multi-head self-attention as a pure function over any four linear maps.

With q = Q x + bq, k = K x + bk and v = V x + bv, each of shape (*batch, seq, heads, head_dim), for every head

    p[t, s] = softmax_s(<q[t], k[s]> / √head_dim + m[t, s])      a[t] = Σ_s p[t, s] v[s]      y = O a + bo

where m is 0 where t may attend to s and a very large negative number elsewhere. Scores and softmax are
`jax.nn.dot_product_attention`, in float32 for half types, each result rounded once. That function takes its softmax
in float32 for float64 too; here float64 stays float64.

Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2; keys and values shared by groups of heads: Ainslie et al.
2023 (arXiv:2305.13245), section 2.2.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffn_jax._checks import check_floating, check_same_dtype, is_array, size, wide
from ffn_jax.maps import LinearMap
from ffn_jax.maps._function import lift

if TYPE_CHECKING:
    from collections.abc import Callable

    from jax import Array
    from jax.typing import ArrayLike

    Linear = LinearMap | Callable[[Array], Array]

WHERE = "attention"
_MASKED = -0.7 * float(np.finfo("float32").max)  # as jax.nn: a row without any key attends to all alike, not to NaN


class Attention(NamedTuple):
    """The parameters of one attention sublayer: `attention(x, *params)`. A pytree.

    Attributes:
      Q: the queries' map, `(d_model,) -> (heads, head_dim)`.
      bq: its bias `(heads, head_dim)`, or None.
      K: the keys' map, `(d_model,) -> (key_heads, head_dim)`, where key_heads divides heads.
      bk: its bias, or None.
      V: the values' map, of K's shapes.
      bv: its bias, or None.
      O: the map from all heads back, `(heads, head_dim) -> (d_model,)`.
      bo: its bias `(d_model,)`, or None.
    """

    Q: "Linear"
    bq: "Array | None"
    K: "Linear"
    bk: "Array | None"
    V: "Linear"
    bv: "Array | None"
    O: "Linear"
    bo: "Array | None"


def attention(
    x: "ArrayLike",
    Q: "Linear",
    bq: "ArrayLike | None",
    K: "Linear",
    bk: "ArrayLike | None",
    V: "Linear",
    bv: "ArrayLike | None",
    O: "Linear",
    bo: "ArrayLike | None",
    *,
    mask: "ArrayLike | None" = None,
    is_causal: bool = False,
) -> "Array":
    """O a + bo: every token attends to the tokens that `mask` and `is_causal` allow. Without "x +".

    Args:
      x: tokens, `(*batch, seq, d_model)`.
      Q: the queries' map to `(heads, head_dim)`: a `Dense` whose weight has an axis for the heads, any `LinearMap`, or
        a callable that is given all of x.
      bq: its bias, of any shape that broadcasts to Q's output, or None.
      K: the keys' map, to `(key_heads, head_dim)`. Fewer key_heads than heads, dividing them, are grouped queries.
      bk: its bias, likewise.
      V: the values' map, to K's output shape.
      bv: its bias, likewise.
      O: the map from `(heads, head_dim)` to the output's features; a `Dense` with in_ndim=2.
      bo: its bias, likewise.
      mask: boolean, True where a key may be attended to: `(*batch, seq)` for the keys alone (padding), or
        `(*batch, heads, seq, seq)` with queries before keys; axes of length 1 broadcast. A token that may attend to
        nothing attends to all alike.
      is_causal: each token attends to itself and those before it.

    Returns:
      `(*batch, seq, d_model)`, of x's dtype. Half types are computed in float32 between the four maps.

    Raises:
      TypeError, ValueError: an argument is of the wrong kind, shape or dtype; the message says what was expected and
        what was got.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> k1, k2 = jax.random.split(jax.random.key(0))
    >>> Q = K = V = fj.Dense(jax.random.normal(k1, (8, 2, 4)))               # d_model 8, 2 heads of 4
    >>> O = fj.Dense(jax.random.normal(k2, (2, 4, 8)), in_ndim=2)
    >>> x, mask = jnp.ones((3, 5, 8)), jnp.arange(5)[None] < jnp.array([[5], [3], [1]])
    >>> fj.attention(x, Q, None, K, None, V, None, O, None, mask=mask).shape
    (3, 5, 8)
    """
    tokens: Array = _array(x, "x")
    if tokens.ndim < 2 or (isinstance(tokens.shape[-2], int) and tokens.shape[-2] < 1):
        raise ValueError(f"{WHERE}: expected x of shape (..., seq, d_model) with seq >= 1, got {tuple(tokens.shape)}")
    if not isinstance(is_causal, bool):
        raise TypeError(f"{WHERE}: expected is_causal to be a bool, got {is_causal!r}")

    # Every argument is checked before the first product.
    given = (("Q", Q, bq), ("K", K, bk), ("V", V, bv))
    to_q, to_k, to_v = (_affine(tokens, A, b, name) for name, A, b in given)
    heads = to_q.out
    _check_heads(tokens, heads, to_k.out, to_v.out)
    back = _affine(heads, O, bo, "O")
    if back.out.shape[:-1] != tokens.shape[:-1]:
        expected = f"({', '.join(map(str, tokens.shape[:-1]))}, d_model)"
        raise ValueError(f"{WHERE}: expected O to bring the heads {heads.shape} to {expected}, got {back.out.shape}")
    allowed = None if mask is None else _check_mask(mask, tuple(tokens.shape[:-2]), heads.shape[-2], tokens.shape[-2])

    return back(_attend(to_q(tokens), to_k(tokens), to_v(tokens), allowed, is_causal))


# ------------------------------------------------------------------------------------- the one place that attends


def _attend(q: "Array", k: "Array", v: "Array", mask: "Array | None", is_causal: bool) -> "Array":
    """The heads' outputs (*batch, seq, heads, head_dim); the mask's axes (*batch, heads, seq, seq) may be 1."""
    batch = q.shape[:-3]
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*batch, *mask.shape[-3:])).reshape(size(batch), *mask.shape[-3:])
    # Half types in float32: dot_product_attention has no float16 on CPUs, and under strict promotion its own bfloat16
    # has no gradient.
    q3, k3, v3 = (t.astype(wide(t.dtype)).reshape(size(batch), *t.shape[-3:]) for t in (q, k, v))
    attend = _attend_in_float64 if q.dtype.itemsize > 4 else jax.nn.dot_product_attention
    return attend(q3, k3, v3, mask=mask, is_causal=is_causal).astype(q.dtype).reshape(q.shape)


def _attend_in_float64(q: "Array", k: "Array", v: "Array", mask: "Array | None", is_causal: bool) -> "Array":
    """`jax.nn.dot_product_attention`, whose softmax is in float32 whatever q is, with a softmax in q's dtype."""
    seq, group = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(t, group, axis=2) for t in (k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    allowed = jnp.tri(seq, dtype=bool) if is_causal else jnp.ones((seq, seq), bool)
    allowed = allowed[None, None] if mask is None else allowed[None, None] & mask
    p = jax.nn.softmax(jnp.where(allowed, scores, _MASKED), axis=-1)
    return jnp.einsum("bhts,bshd->bthd", p, v)


# ------------------------------------------------------------------------------------- what is checked


class _Affine(NamedTuple):
    """x -> A x + b with everything checked, and the shape and dtype of what it returns."""

    A: LinearMap
    b: "Array | None"
    out: jax.ShapeDtypeStruct

    def __call__(self, x: "Array") -> "Array":
        y = self.A.call(x)
        return y if self.b is None else y + jnp.broadcast_to(self.b, y.shape)


def _array(value: Any, name: str) -> Any:
    check_floating(value, WHERE, name)
    return jnp.asarray(value) if isinstance(value, (np.ndarray, np.generic)) else value


def _affine(x: Any, A: Any, b: Any, name: str) -> _Affine:
    A = lift(A, x, WHERE, name)
    n = len(A.in_shape)
    check_same_dtype(x, A.dtype, WHERE, "x", name)
    if x.ndim < n or tuple(x.shape[x.ndim - n :]) != A.in_shape:
        got = f"the heads {tuple(x.shape)}" if name == "O" else f"x of shape {tuple(x.shape)}"
        raise ValueError(f"{WHERE}: expected {got} to end in {name}.in_shape {A.in_shape}")
    out = jax.ShapeDtypeStruct((*x.shape[: x.ndim - n], *A.out_shape), x.dtype)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    A.check_output(jax.eval_shape(A.apply, like), out, f"{WHERE}: {name}")
    if b is not None:
        bias = f"b{name.lower()}"
        b = _array(b, bias)
        check_same_dtype(b, x.dtype, WHERE, bias, "x")
        if b.ndim > len(out.shape) or not _broadcasts(b.shape, out.shape[len(out.shape) - b.ndim :]):
            raise ValueError(
                f"{WHERE}: expected {bias} to broadcast to {name}'s output of shape {out.shape}, got {tuple(b.shape)}"
            )
    return _Affine(A, b, out)


def _check_heads(x: Any, q: Any, k: Any, v: Any) -> None:
    for name, t in (("Q", q), ("K", k), ("V", v)):
        if len(t.shape) != x.ndim + 1 or t.shape[:-2] != x.shape[:-1]:
            expected = f"({', '.join(map(str, x.shape[:-1]))}, heads, head_dim)"
            raise ValueError(f"{WHERE}: expected {name} to bring x {tuple(x.shape)} to {expected}, got {t.shape}")
    if k.shape != v.shape:
        raise ValueError(f"{WHERE}: expected V's (heads, head_dim) to be K's {k.shape[-2:]}, got {v.shape[-2:]}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"{WHERE}: expected K's head_dim to be Q's {q.shape[-1]}, got {k.shape[-1]}")
    if 0 in q.shape[-2:] or 0 in k.shape[-2:] or q.shape[-2] % k.shape[-2]:
        raise ValueError(f"{WHERE}: expected K's heads to divide Q's {q.shape[-2]} heads, got {k.shape[-2]}")


def _check_mask(mask: Any, batch: tuple[int, ...], heads: int, seq: int) -> "Array":
    """`mask` with axes for the heads and the queries, in front of the keys'."""
    if not is_array(mask) or mask.dtype != bool:
        got = mask.dtype if is_array(mask) else type(mask).__name__
        raise TypeError(f"{WHERE}: expected mask to be a boolean array, True where a key may be attended to, got {got}")
    keys, full = (*batch, seq), (*batch, heads, seq, seq)
    if mask.ndim == len(keys) and _broadcasts(mask.shape, keys):
        return jnp.asarray(mask)[..., None, None, :]
    if mask.ndim == len(full) and _broadcasts(mask.shape, full):
        return jnp.asarray(mask)
    raise ValueError(
        f"{WHERE}: expected mask of shape (*batch, seq) = {keys}, or (*batch, heads, seq, seq) = {full} with axes of 1 "
        f"where all are alike, got {tuple(mask.shape)}"
    )


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return all(n in (1, m) for n, m in zip(shape, to, strict=True))
