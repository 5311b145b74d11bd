"""`encoder_block` against GPT-2's block and ViT's layer as transformers computes them, and what it refuses."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ffn_jax as fj

D, HEADS, DIM = 12, 3, 4
DATA = np.load(Path(__file__).parent / "data" / "encoder_reference.npz")


def reference(model):
    return {name.removeprefix(f"{model}/"): value for name, value in DATA.items() if name.startswith(f"{model}/")}


def gpt2_block(w):
    """Weights (in, out); queries, keys and values side by side."""
    Wq, Wk, Wv = (part.reshape(D, HEADS, DIM) for part in np.split(w["attn.c_attn.weight"], 3, axis=1))
    bq, bk, bv = (part.reshape(HEADS, DIM) for part in np.split(w["attn.c_attn.bias"], 3))
    O = fj.Dense(w["attn.c_proj.weight"].reshape(HEADS, DIM, D), in_ndim=2)
    return fj.EncoderBlock(
        fj.Attention(fj.Dense(Wq), bq, fj.Dense(Wk), bk, fj.Dense(Wv), bv, O, w["attn.c_proj.bias"]),
        fj.LayerNorm(w["ln_1.weight"], w["ln_1.bias"]),
        fj.FeedForward(
            fj.Dense(w["mlp.c_fc.weight"]),
            w["mlp.c_fc.bias"],
            fj.Dense(w["mlp.c_proj.weight"]),
            w["mlp.c_proj.bias"],
            fj.gelu,
        ),
        fj.LayerNorm(w["ln_2.weight"], w["ln_2.bias"]),
    )


def vit_block(w):
    """Weights (out, in)."""

    def linear(at, *out, in_ndim=1):
        W = w[f"{at}.weight"].reshape(*out, *((HEADS, DIM) if in_ndim == 2 else (-1,)))
        return fj.Dense(W, in_ndim, "out_in"), w[f"{at}.bias"].reshape(out)

    qkv = [part for name in "qkv" for part in linear(f"attention.{name}_proj", HEADS, DIM)]
    return fj.EncoderBlock(
        fj.Attention(*qkv, *linear("attention.o_proj", D, in_ndim=2)),
        fj.LayerNorm(w["layernorm_before.weight"], w["layernorm_before.bias"], eps=1e-12),
        fj.FeedForward(*linear("mlp.fc1", 20), *linear("mlp.fc2", D), fj.gelu_exact),
        fj.LayerNorm(w["layernorm_after.weight"], w["layernorm_after.bias"], eps=1e-12),
    )


BLOCKS = {"gpt2": (gpt2_block, True), "vit": (vit_block, False)}


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("model", BLOCKS)
def test_is_the_block_of_transformers(model, dtype, rtol):
    w, (make, is_causal) = reference(model), BLOCKS[model]
    x, block = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (w["x"], make(w)))
    y = jax.jit(lambda x, block: fj.encoder_block(x, *block, is_causal=is_causal))(x, block)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, w["y"], rtol=0, atol=rtol * np.abs(w["y"]).max())


W = reference("vit")
X, BLOCK = jnp.asarray(W["x"]), vit_block(W)
MASK = np.arange(5) < np.array([[5], [3]])


def test_post_norm_is_its_formula_and_masks_keys():
    attention, norm1, ff, norm2 = BLOCK

    def by_hand(x, mask=None):
        h = norm1(x + fj.attention(x, *attention, mask=mask))
        return norm2(h + fj.ffn(h, *ff[:4], activation=ff.activation))

    y = fj.encoder_block(X, *BLOCK, norm_first=False, mask=MASK)
    np.testing.assert_allclose(y, by_hand(X, MASK), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(y[1:, :3], by_hand(X[1:, :3]), rtol=1e-12, atol=1e-12)


def test_scan_over_stacked_blocks_is_one_after_another():
    blocks = [jax.tree.map(lambda leaf, s=s: s * leaf, BLOCK) for s in (1.0, 0.5, -1.0)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)

    def block(x, block):
        return fj.encoder_block(x, *block, norm_first=False, mask=MASK, save=(), chunk_size=4), None

    x = X
    for one in blocks:
        x = fj.encoder_block(x, *one, norm_first=False, mask=MASK)
    np.testing.assert_allclose(jax.lax.scan(block, X, stack)[0], x, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------- bad input


def call(x=X, mask=None, norm_first=True, part=None, **parts):
    block = BLOCK if part is None else BLOCK._replace(**{part: getattr(BLOCK, part)._replace(**parts)})
    return fj.encoder_block(x, *(block._replace(**parts) if part is None else block), mask=mask, norm_first=norm_first)


def never(x):
    raise AssertionError("attention ran before the feed-forward was checked")


SHORT = fj.LayerNorm(jnp.ones(5), jnp.ones(5))
BAD = {
    "x a list": (lambda: call([[1.0]]), TypeError, ["encoder_block", "x", "list"]),
    "x a vector": (lambda: call(jnp.ones(D)), ValueError, ["(..., seq, d_model)", "(12,)"]),
    "x too narrow": (lambda: call(jnp.ones((5, 8))), ValueError, ["encoder_block: norm1", "(..., 12)", "(5, 8)"]),
    "attention a tuple": (lambda: call(attention=(1, 2)), TypeError, ["attention", "ffn_jax.Attention", "tuple"]),
    "ff a tuple": (lambda: call(ff=tuple(BLOCK.ff)), TypeError, ["ff", "ffn_jax.FeedForward", "tuple"]),
    "norm1 None": (lambda: call(norm1=None), TypeError, ["norm1", "ffn_jax.LayerNorm", "NoneType"]),
    "norm2 short": (lambda: call(norm2=SHORT), ValueError, ["ffn_residual: norm", "(..., 5)", "(2, 5, 12)"]),
    "norm_first a string": (lambda: call(norm_first="post"), TypeError, ["norm_first", "bool", "'post'"]),
    "mask too long": (lambda: call(mask=jnp.ones((2, 6), bool)), ValueError, ["mask", "(2, 5)", "got (2, 6)"]),
    "O to other features": (
        lambda: call(part="attention", O=fj.Dense(jnp.ones((HEADS, DIM, 7)), 2), bo=None),
        ValueError,
        ["attention's O", "(2, 5, 12)", "(2, 5, 7)"],
    ),
    "heads that do not divide": (
        lambda: call(part="attention", O=fj.Dense(jnp.ones((5, 2, D)), 2)),
        ValueError,
        ["heads (2, 5, 3, 4)", "O.in_shape (5, 2)"],
    ),
    "A1 too narrow": (
        lambda: call(
            attention=BLOCK.attention._replace(O=never, bo=None),
            ff=BLOCK.ff._replace(A1=fj.Dense(jnp.ones((7, 20))), b1=None),
        ),
        ValueError,
        ["ffn_residual", "(2, 5, 12)", "A1.in_shape", "(..., 7)"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    f, error, said = BAD[case]
    with pytest.raises(error) as caught:
        f()
    message = str(caught.value)
    assert "expected" in message
    assert all(text in message for text in said), message
