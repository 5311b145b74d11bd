"""BERT's encoder as pure functions of a pytree: token ids to token states to one embedding per sentence.

For token t of a sentence with ids i, mask m (true on tokens, false on padding) and L post-norm blocks,

    x[t] = LayerNorm(word[i[t]] + position[t] + type[0])      x <- block(x), L times, by one `lax.scan`
    s = Σ_t m[t] x[t] / Σ_t m[t]                              e = s / ‖s‖

The mean of the tokens' states has the direction of their sum, so that e does not need how many they are.

Weights are read by their Hugging Face names and in their layout: nothing is transposed; a layer's are stacked with the
other layers'.

Sources: Devlin et al. 2018 (arXiv:1810.04805), section 3; Reimers and Gurevych 2019 (arXiv:1908.10084), section 3.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ffn_jax import convert
from ffn_jax._checks import is_array, wide
from ffn_jax.attention import Attention
from ffn_jax.encoder import EncoderBlock, encoder_block
from ffn_jax.maps import Dense
from ffn_jax.norms import LayerNorm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jax import Array
    from jax.typing import ArrayLike


class Embeddings(NamedTuple):
    """What a token becomes before the first block. A pytree.

    Attributes:
      word: by id, `(vocabulary, d_model)`.
      position: by position, `(positions, d_model)`.
      kind: by token type, `(types, d_model)`; here every token is of type 0.
      norm: the norm of their sum.
    """

    word: "Array"
    position: "Array"
    kind: "Array"
    norm: LayerNorm


class Encoder(NamedTuple):
    """All weights of an encoder. A pytree: to train the feed-forward sublayers alone, differentiate in `blocks.ff`.

    Attributes:
      embeddings: the tables and their norm.
      blocks: the blocks, stacked: each leaf has a leading axis of layers.
    """

    embeddings: Embeddings
    blocks: EncoderBlock


def token_states(
    encoder: Encoder, ids: "ArrayLike", mask: "ArrayLike | None" = None, *, every_layer: bool = False
) -> "Array":
    """The states of all tokens after the last block, or after the embeddings and after each block.

    Args:
      encoder: the weights; their dtype is that of the computation.
      ids: integers from 0, `(*batch, seq)`. An id beyond the vocabulary makes its sentence NaN.
      mask: boolean `(*batch, seq)`, False on padding; None where there is none.
      every_layer: whether all states are wanted.

    Returns:
      `(*batch, seq, d_model)`, or `(layers + 1, *batch, seq, d_model)`. States of padding mean nothing.

    Raises:
      TypeError, ValueError: ids are no integers, mask is no boolean array of their shape, there is no token or there
        are more than positions.

    >>> import numpy as np
    >>> from ffn_jax.models import bert, minilm
    >>> bert.token_states(minilm.encoder(minilm.synthetic()), np.array([[1, 7, 2]]), every_layer=True).shape
    (2, 1, 3, 384)
    """
    ids, mask = _check("token_states", encoder, ids, mask)
    x = embed(encoder.embeddings, ids)

    def layer(x: "Array", block: EncoderBlock) -> "tuple[Array, Array | None]":
        y = encoder_block(x, *block, norm_first=False, mask=mask)
        return y, y if every_layer else None

    last, states = lax.scan(layer, x, encoder.blocks)
    return last if states is None else jnp.concatenate([x[None], states])


def sentence_embeddings(encoder: Encoder, ids: "ArrayLike", mask: "ArrayLike | None" = None) -> "Array":
    """One vector of length 1 for each sentence: the mean of its tokens' last states, normalised.

    Arguments and errors are those of `token_states`. A sentence that is all padding becomes zeros.

    Returns:
      `(*batch, d_model)`.

    >>> import numpy as np
    >>> from ffn_jax.models import bert, minilm
    >>> ids, mask = np.array([[1, 7, 8, 2], [1, 7, 2, 0]]), np.array([[True] * 4, [True] * 3 + [False]])
    >>> bert.sentence_embeddings(minilm.encoder(minilm.synthetic()), ids, mask).shape
    (2, 384)
    """
    ids, mask = _check("sentence_embeddings", encoder, ids, mask)
    x = token_states(encoder, ids, mask)
    s = jnp.sum(x.astype(wide(x.dtype)), -2, where=True if mask is None else mask[..., None])
    return (s * lax.rsqrt(jnp.maximum(jnp.sum(s * s, -1, keepdims=True), 1e-24))).astype(x.dtype)


def embed(embeddings: Embeddings, ids: "Array") -> "Array":
    """`(*batch, seq, d_model)`: the sum of each token's three embeddings, normalised; `ids: (*batch, seq)`."""
    word, position, kind, norm = embeddings
    x = jnp.take(word, ids, axis=0, mode="fill")
    return norm(x + jnp.broadcast_to(position[: ids.shape[-1]] + kind[:1], x.shape))


def from_weights(weights: "Mapping[str, Any]", *, heads: int, eps: float = 1e-12, prefix: str = "") -> Encoder:
    """The encoder out of a checkpoint with BERT's Hugging Face names.

    Args:
      weights: a mapping from names to arrays (numpy or JAX) of one dtype.
      heads: config.json's `num_attention_heads`, which the weights do not tell.
      eps: config.json's `layer_norm_eps`.
      prefix: what stands before "embeddings." and "encoder.", as "bert.".

    Raises:
      KeyError: a weight is missing; the message names it, and the nearest names that there are.
      TypeError, ValueError: a shape or dtype does not fit, or heads do not divide d_model.

    >>> from ffn_jax.models import bert, minilm
    >>> bert.from_weights(minilm.synthetic().weights, heads=12).blocks.ff.A1.weight.shape  # layers, d_ff, d_model
    (1, 1536, 384)
    """
    where = "bert.from_weights"
    dtype = convert.read(weights, f"{prefix}embeddings.word_embeddings.weight", where).dtype

    def get(name: str, *shape: int | None) -> "Array":
        value = convert.read(weights, prefix + name, where)
        if value.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, value.shape, strict=True)):
            expected = tuple("any" if n is None else n for n in shape)
            raise ValueError(f"{where}: expected {prefix + name!r} of shape {expected}, got {tuple(value.shape)}")
        if value.dtype != dtype:
            raise TypeError(f"{where}: expected {prefix + name!r} of dtype {dtype}, as the others, got {value.dtype}")
        return jnp.asarray(value)

    word = get("embeddings.word_embeddings.weight", None, None)
    d = word.shape[1]
    if isinstance(heads, bool) or not isinstance(heads, int):
        raise TypeError(f"{where}: expected heads to be an int, got {heads!r}")
    if heads < 1 or d % heads:
        raise ValueError(f"{where}: expected heads to divide d_model={d}, got {heads}")

    def norm(at: str) -> LayerNorm:
        return LayerNorm(get(f"{at}.LayerNorm.weight", d), get(f"{at}.LayerNorm.bias", d), eps)

    def block(layer: int) -> EncoderBlock:
        at, head = f"encoder.layer.{layer}", (heads, d // heads)

        def to_heads(name: str) -> "tuple[Dense, Array]":
            W, b = get(f"{at}.attention.self.{name}.weight", d, d), get(f"{at}.attention.self.{name}.bias", d)
            return Dense(W.reshape(*head, d), layout="out_in"), b.reshape(head)

        O = Dense(get(f"{at}.attention.output.dense.weight", d, d).reshape(d, *head), 2, "out_in")
        bo = get(f"{at}.attention.output.dense.bias", d)
        attention = Attention(*to_heads("query"), *to_heads("key"), *to_heads("value"), O, bo)
        ff = convert.bert(weights, layer, prefix=prefix)
        return EncoderBlock(attention, norm(f"{at}.attention.output"), ff, norm(f"{at}.output"))

    position = get("embeddings.position_embeddings.weight", None, d)
    kind = get("embeddings.token_type_embeddings.weight", None, d)
    blocks = [block(layer) for layer in range(convert.num_layers(weights, "bert", prefix=prefix))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return Encoder(Embeddings(word, position, kind, norm("embeddings")), stacked)


def _check(where: str, encoder: Any, ids: Any, mask: Any) -> "tuple[Array, Array | None]":
    if not isinstance(encoder, Encoder):
        raise TypeError(f"{where}: expected encoder to be a bert.Encoder, got {type(encoder).__name__}")
    if not is_array(ids) or not jnp.issubdtype(ids.dtype, jnp.integer):
        got = ids.dtype if is_array(ids) else type(ids).__name__
        raise TypeError(f"{where}: expected ids to be an array of integers, got {got}")
    positions = len(encoder.embeddings.position)
    if ids.ndim < 1 or not 1 <= ids.shape[-1] <= positions:
        raise ValueError(
            f"{where}: expected ids of shape (*batch, seq) with 1 <= seq <= {positions}, the positions that there are, "
            f"got {tuple(ids.shape)}"
        )
    if mask is None:
        return jnp.asarray(ids), None
    if not is_array(mask) or mask.dtype != bool:
        got = mask.dtype if is_array(mask) else type(mask).__name__
        raise TypeError(f"{where}: expected mask to be a boolean array, True on tokens, got {got}")
    if mask.shape != ids.shape:
        raise ValueError(f"{where}: expected mask of ids' shape {tuple(ids.shape)}, got {tuple(mask.shape)}")
    return jnp.asarray(ids), jnp.asarray(mask)
