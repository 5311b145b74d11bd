"""One Transformer block, attention and feed-forward, as a pure function; blocks stack for `lax.scan` over layers.

With the attention of `ffn_jax.attention`, the feed-forward of `ffn_jax.ffn` and a norm N for each,

    pre-norm  (GPT-2, ViT)    h = x + attention(N1(x))      y = h + ffn(N2(h))
    post-norm (BERT)          h = N1(x + attention(x))      y = N2(h + ffn(h))

Sources: Vaswani et al. 2017 (arXiv:1706.03762), section 3.1; Xiong et al. 2020 (arXiv:2002.04745), table 1.
"""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffn_jax._checks import check_floating
from ffn_jax.attention import Attention
from ffn_jax.attention import attention as attend
from ffn_jax.ffn import ffn_residual
from ffn_jax.norms import LayerNorm, RMSNorm, check_norm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jax import Array
    from jax.typing import ArrayLike

    from ffn_jax.activations import Activation
    from ffn_jax.dropout import Dropout
    from ffn_jax.maps import LinearMap

    Linear = LinearMap | Callable[[Array], Array]

WHERE = "encoder_block"


class FeedForward(NamedTuple):
    """The parameters of one feed-forward sublayer: `ffn_residual(x, *ff[:4], activation=ff.activation)`.

    A pytree whose leaves are the weights and biases: pass it to `jax.jit` and `jax.grad` as it is.

    Attributes:
      A1: `(d_model,) -> (d_ff,)`, or `(d_model,) -> (2, d_ff)` where the activation is gated.
      b1: A1's bias, of A1's out_shape, or None.
      A2: `(d_ff,) -> (d_model,)`.
      b2: A2's bias `(d_model,)`, or None.
      activation: the activation between them.
    """

    A1: "Linear"
    b1: "Array | None"
    A2: "Linear"
    b2: "Array | None"
    activation: "Activation"


class EncoderBlock(NamedTuple):
    """The parameters of one block, in the order in which they act: `encoder_block(x, *block)`. A pytree.

    Blocks of equal shapes stack to one whose leaves have a leading axis of layers, over which `lax.scan` runs:
    `jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)`.

    Attributes:
      attention: the attention sublayer.
      norm1: its norm.
      ff: the feed-forward sublayer.
      norm2: its norm.
    """

    attention: Attention
    norm1: "LayerNorm | RMSNorm"
    ff: FeedForward
    norm2: "LayerNorm | RMSNorm"


def encoder_block(
    x: "ArrayLike",
    attention: Attention,
    norm1: "LayerNorm | RMSNorm",
    ff: FeedForward,
    norm2: "LayerNorm | RMSNorm",
    *,
    norm_first: bool = True,
    mask: "ArrayLike | None" = None,
    is_causal: bool = False,
    dropout: "Dropout | None" = None,
    save: "Sequence[str]" = ("hidden_pre",),
    chunk_size: "int | Literal['none'] | None" = None,
) -> "Array":
    """One block: attention, then feed-forward, each with its residual and its norm.

    Args:
      x: tokens, `(*batch, seq, d_model)`.
      attention: the maps and biases of the attention sublayer.
      norm1: the norm of the attention sublayer.
      ff: the maps, biases and activation of the feed-forward sublayer.
      norm2: the norm of the feed-forward sublayer.
      norm_first: whether norms stand before the sublayers (pre-norm, as in GPT-2 and ViT), or after their sums
        (post-norm, as in BERT).
      mask: which keys may be attended to, as `ffn_jax.attention` takes it: `(*batch, seq)` for padding.
      is_causal: each token attends to itself and those before it.
      dropout: dropout in the feed-forward sublayer, as `ffn_residual` takes it.
      save: what the feed-forward sublayer keeps for the backward pass, likewise.
      chunk_size: how many tokens it works on at a time, likewise.

    Returns:
      `(*batch, seq, d_model)`, of x's dtype.

    Raises:
      TypeError, ValueError: an argument is of the wrong kind, shape or dtype; the message names the part, and says
        what was expected and what was got.

    Source: Xiong et al. 2020 (arXiv:2002.04745), table 1.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> Q = K = V = fj.Dense(jax.random.normal(keys[0], (8, 2, 4)))          # d_model 8, 2 heads of 4
    >>> O = fj.Dense(jax.random.normal(keys[1], (2, 4, 8)), in_ndim=2)
    >>> A1, A2 = fj.Dense(jax.random.normal(keys[2], (8, 32))), fj.Dense(jax.random.normal(keys[3], (32, 8)))
    >>> block = fj.EncoderBlock(
    ...     fj.Attention(Q, None, K, None, V, None, O, None),
    ...     fj.LayerNorm(),
    ...     fj.FeedForward(A1, None, A2, None, fj.gelu),
    ...     fj.LayerNorm(),
    ... )
    >>> fj.encoder_block(jnp.ones((3, 5, 8)), *block, is_causal=True).shape
    (3, 5, 8)
    """
    tokens = _check(x, attention, norm1, ff, norm2, norm_first)

    def self_attention(x: "Array") -> "Array":
        return attend(x, *attention, mask=mask, is_causal=is_causal)

    def feed_forward(x: "Array") -> "Array":
        options: dict[str, Any] = {"dropout": dropout, "save": save, "chunk_size": chunk_size}
        return ffn_residual(x, *ff[:4], activation=ff.activation, norm=norm2, norm_first=norm_first, **options)

    jax.eval_shape(feed_forward, tokens)  # what is wrong with the second sublayer is said before the first one works
    if norm_first:
        return feed_forward(_add(tokens, self_attention(norm1(tokens))))
    return feed_forward(norm1(_add(tokens, self_attention(tokens))))


def _add(x: "Array", attended: "Array") -> "Array":
    if attended.shape != x.shape:
        raise ValueError(
            f"{WHERE}: expected attention's O to bring the heads back to x's shape {tuple(x.shape)}, "
            f"got {tuple(attended.shape)}"
        )
    return x + attended


def _check(x: Any, attention: Any, norm1: Any, ff: Any, norm2: Any, norm_first: Any) -> Any:
    check_floating(x, WHERE, "x")
    norms = LayerNorm, RMSNorm
    parts = {"attention": (attention, (Attention,)), "ff": (ff, (FeedForward,)), "norm1": (norm1, norms)}
    for name, (given, kinds) in {**parts, "norm2": (norm2, norms)}.items():
        if not isinstance(given, kinds):
            expected = " or ".join(f"ffn_jax.{kind.__name__}" for kind in kinds)
            raise TypeError(f"{WHERE}: expected {name} to be an {expected}, got {type(given).__name__}")
    if not isinstance(norm_first, bool):
        raise TypeError(f"{WHERE}: expected norm_first to be a bool, got {norm_first!r}")
    check_norm(norm1, x, f"{WHERE}: norm1")
    return jnp.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x
