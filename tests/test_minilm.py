"""The MiniLM encoder: against torch and transformers in float64, fine-tuned, and what it refuses."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ffn_jax as fj
from ffn_jax.models import bert, minilm

DATA = np.load(Path(__file__).parent / "data" / "encoder_reference.npz")
IDS, MASK, STATES, EMBEDDINGS = (DATA[f"minilm/{name}"] for name in ("ids", "mask", "states", "embeddings"))
SENTENCES = DATA["minilm/sentences"].tolist()
FEATURE_STEP = 24  # of the states, every 24th feature is kept


@pytest.fixture(scope="module")
def checkpoint():
    try:
        return minilm.load()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-10), ("float32", 1e-5)])
def test_states_and_embeddings_are_those_of_transformers(checkpoint, dtype, atol):
    encoder = jax.tree.map(lambda leaf: leaf.astype(dtype), minilm.encoder(checkpoint))
    states = jax.jit(lambda *args: bert.token_states(*args, every_layer=True))(encoder, IDS, MASK)
    assert states.dtype == dtype
    assert len(states) == 7
    np.testing.assert_allclose(states[..., ::FEATURE_STEP][:, MASK], STATES[:, MASK], rtol=0, atol=atol)
    embeddings = jax.jit(bert.sentence_embeddings)(encoder, IDS, MASK)
    assert embeddings.dtype == dtype
    np.testing.assert_allclose(embeddings, EMBEDDINGS, rtol=0, atol=atol)


def test_sentences_become_their_embeddings(checkpoint):
    some = [k for k, sentence in enumerate(SENTENCES) if sentence]  # "" is refused
    tokens = minilm.tokenize(checkpoint, [SENTENCES[k] for k in some])
    np.testing.assert_array_equal(tokens.mask, MASK[some])
    np.testing.assert_array_equal(tokens.ids, IDS[some])
    embeddings = minilm.embed(checkpoint, [SENTENCES[k] for k in some])
    np.testing.assert_allclose(embeddings, EMBEDDINGS[some], rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------- a small encoder, fine-tuned

HEADS, LAYERS, D, FF, WORDS = 2, 2, 8, 12, 30


def small_weights(dtype="float64", prefix=""):
    rng = np.random.default_rng(5)
    shapes = {f"embeddings.{of}_embeddings.weight": (n, D) for of, n in {"word": WORDS, "position": 9}.items()}
    shapes["embeddings.token_type_embeddings.weight"] = (2, D)
    norms = ["embeddings.LayerNorm"]
    for n in range(LAYERS):
        at = f"encoder.layer.{n}."
        linears = {f"{at}attention.{name}": (D, D) for name in ("self.query", "self.key", "self.value", "output.dense")}
        linears |= {f"{at}intermediate.dense": (FF, D), f"{at}output.dense": (D, FF)}
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
        shapes |= {f"{name}.weight": shape for name, shape in linears.items()}
        shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    shapes |= {f"{name}.{part}": (D,) for name in norms for part in ("weight", "bias")}
    near_one = lambda name: name.endswith("LayerNorm.weight")
    draws = {name: 0.3 * rng.normal(size=shape) + near_one(name) for name, shape in shapes.items()}
    return {prefix + name: draw.astype(dtype) for name, draw in draws.items()}


def plain_embeddings(w, ids, mask):
    """The same model in plain jnp, one layer after another, without anything of this library."""

    def norm(x, at):
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return x * w[f"{at}.LayerNorm.weight"][None, None] + w[f"{at}.LayerNorm.bias"][None, None]

    def linear(x, at):
        return x @ w[f"{at}.weight"].T + w[f"{at}.bias"][None, None]

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][None, : ids.shape[1]]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][None, :1], "embeddings")
    for n in range(LAYERS):
        at = f"encoder.layer.{n}."
        q, k, v = (
            linear(x, f"{at}attention.self.{name}").reshape(*ids.shape, HEADS, -1) for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(D / HEADS)
        p = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30))
        a = jnp.einsum("bhts,bshd->bthd", p, v).reshape(x.shape)
        x = norm(x + linear(a, f"{at}attention.output.dense"), f"{at}attention.output")
        h = jax.nn.gelu(linear(x, f"{at}intermediate.dense"), approximate=False)
        x = norm(x + linear(h, f"{at}output.dense"), f"{at}output")
    mean = x.mean(1, where=mask[..., None])
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def contrastive(e):
    """Sentences 2k and 2k+1 mean the same: each should be nearest to the other."""
    similarities = jnp.where(jnp.eye(len(e), dtype=bool), -jnp.inf, 5.0 * e @ e.T)
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(similarities)[:, np.arange(len(e)) ^ 1]))


SMALL_IDS = np.random.default_rng(6).integers(0, WORDS, (6, 5))
SMALL_MASK = np.arange(5) < np.array([5, 3, 4, 5, 2, 5])[:, None]
FF_NAMES = "intermediate.dense.weight", "intermediate.dense.bias", "output.dense.weight", "output.dense.bias"


def loss_of_ff(encoder):
    def loss(ff):
        trained = encoder._replace(blocks=encoder.blocks._replace(ff=ff))
        return contrastive(bert.sentence_embeddings(trained, SMALL_IDS, SMALL_MASK))

    return loss


def test_gradients_in_the_feed_forward_are_those_of_plain_autodiff():
    w = small_weights()
    encoder = bert.from_weights(w, heads=HEADS)
    loss, bars = jax.jit(jax.value_and_grad(loss_of_ff(encoder)))(encoder.blocks.ff)
    names = [f"encoder.layer.{n}.{name}" for n in range(LAYERS) for name in FF_NAMES]
    plain = jax.jit(jax.value_and_grad(lambda t: contrastive(plain_embeddings(w | t, SMALL_IDS, SMALL_MASK))))
    expected, plain_bars = plain({name: jnp.asarray(w[name]) for name in names})
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    for got, name in zip(jax.tree.leaves(bars), FF_NAMES, strict=True):
        by_layer = np.stack([plain_bars[f"encoder.layer.{n}.{name}"] for n in range(LAYERS)])
        assert np.abs(by_layer).max() > 1e-3
        np.testing.assert_allclose(got, by_layer, rtol=0, atol=1e-12)


def test_fine_tuning_the_feed_forward_lowers_the_loss():
    encoder = bert.from_weights(small_weights("float32"), heads=HEADS)
    step = jax.jit(jax.value_and_grad(loss_of_ff(encoder)))
    ff, losses = encoder.blocks.ff, []
    for _ in range(10):
        loss, bars = step(ff)
        losses.append(float(loss))
        ff = jax.tree.map(lambda p, g: p - 0.1 * g, ff, bars)
    assert all(after < before for before, after in itertools.pairwise(losses)), losses
    assert losses[-1] < 0.5 * losses[0], losses


def test_padding_and_batch_do_not_matter():
    encoder = bert.from_weights(small_weights(), heads=HEADS)
    alone = bert.sentence_embeddings(encoder, SMALL_IDS[1, :3])
    np.testing.assert_allclose(bert.sentence_embeddings(encoder, SMALL_IDS, SMALL_MASK)[1], alone, rtol=0, atol=1e-12)
    nothing = bert.sentence_embeddings(encoder, SMALL_IDS, np.zeros((6, 5), bool))
    assert not nothing.any()


# ------------------------------------------------------------------------------- bad input

SMALL = bert.from_weights(small_weights(), heads=HEADS)
LETTERS = minilm.synthetic()
QUERY = "encoder.layer.1.attention.self.query.weight"


def read(heads=HEADS, without=None, **changed):
    weights = {name: value for name, value in small_weights().items() if name != without}
    return bert.from_weights(weights | changed.get("weights", {}), heads=heads)


BAD = {
    "heads that do not divide": (lambda: read(heads=3), ValueError, ["bert.from_weights", "d_model=8", "got 3"]),
    "heads 0": (lambda: read(heads=0), ValueError, ["heads", "got 0"]),
    "heads a float": (lambda: read(heads=2.0), TypeError, ["heads", "an int", "2.0"]),
    "a weight missing": (lambda: read(without=QUERY), KeyError, [f"no '{QUERY}'", "nearest"]),
    "a weight of another shape": (
        lambda: read(weights={QUERY: np.ones((D, 4))}),
        ValueError,
        [QUERY, "shape (8, 8)", "got (8, 4)"],
    ),
    "a weight of another dtype": (
        lambda: read(weights={QUERY: np.ones((D, D), "float32")}),
        TypeError,
        [QUERY, "float64", "got float32"],
    ),
    "beyond the positions": (
        lambda: bert.token_states(SMALL, np.zeros((2, 10), int)),
        ValueError,
        ["token_states", "1 <= seq <= 9", "(2, 10)"],
    ),
    "no tokens": (lambda: bert.sentence_embeddings(SMALL, np.zeros((2, 0), int)), ValueError, ["1 <= seq", "(2, 0)"]),
    "ids floats": (lambda: bert.token_states(SMALL, np.zeros((2, 3))), TypeError, ["ids", "integers", "float64"]),
    "ids a list": (lambda: bert.token_states(SMALL, [[1, 2]]), TypeError, ["ids", "integers", "list"]),
    "mask of integers": (
        lambda: bert.token_states(SMALL, SMALL_IDS, SMALL_MASK.astype(int)),
        TypeError,
        ["mask", "boolean", "int64"],
    ),
    "mask of another shape": (
        lambda: bert.sentence_embeddings(SMALL, SMALL_IDS, SMALL_MASK[:, :4]),
        ValueError,
        ["mask", "(6, 5)", "got (6, 4)"],
    ),
    "no encoder": (lambda: bert.token_states(LETTERS, SMALL_IDS), TypeError, ["encoder", "bert.Encoder", "Checkpoint"]),
    "no sentences": (lambda: minilm.embed(LETTERS, []), ValueError, ["at least one sentence", "none"]),
    "an empty sentence": (lambda: minilm.embed(LETTERS, ["a", " \t"]), ValueError, ["a word", "' \\t'", "number 2"]),
    "one string": (lambda: minilm.embed(LETTERS, "ab"), TypeError, ["sequence of strings", "'ab'"]),
    "not strings": (lambda: minilm.embed(LETTERS, ["a", 3]), TypeError, ["sequence of strings", "3"]),
    "too long a sentence": (lambda: minilm.embed(LETTERS, ["a " * 511]), ValueError, ["at most 512", "got 513"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    f, error, said = BAD[case]
    with pytest.raises(error) as caught:
        f()
    message = str(caught.value)
    assert all(text in message for text in said), message


def test_an_unknown_id_is_not_a_number():
    assert np.isnan(bert.token_states(SMALL, np.array([[0, WORDS]]))).any()


def test_prefix_of_a_checkpoint():
    prefixed = bert.from_weights(small_weights(prefix="bert."), heads=HEADS, prefix="bert.")
    for a, b in zip(jax.tree.leaves(prefixed), jax.tree.leaves(SMALL), strict=True):
        np.testing.assert_array_equal(a, b)
    assert prefixed.blocks.ff.activation is fj.gelu_exact
