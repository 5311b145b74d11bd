"""`ffn_jax.convert`: each family against a numpy computation in the family's own convention."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ffn_jax as fj
from ffn_jax import convert

D, F, N = 3, 5, 4  # d_model, d_ff, tokens
X = np.random.default_rng(7).normal(size=(N, D))
erf = np.vectorize(math.erf)


def gelu_erf(z):
    return z * (1 + erf(z / math.sqrt(2))) / 2


def gelu_tanh(z):
    return z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def silu(z):
    return z / (1 + np.exp(-z))


def encoder(prefix, layers=2, seed=0):
    rng, weights = np.random.default_rng(seed), {}
    for n in range(layers):
        at = f"{prefix}encoder.layer.{n}."
        weights |= {
            at + "attention.output.dense.weight": rng.normal(size=(D, D)),  # not a feed-forward weight
            at + "attention.output.dense.bias": rng.normal(size=D),
            at + "intermediate.dense.weight": rng.normal(size=(F, D)),
            at + "intermediate.dense.bias": rng.normal(size=F),
            at + "output.dense.weight": rng.normal(size=(D, F)),
            at + "output.dense.bias": rng.normal(size=D),
        }
    return weights


def gpt2_weights(prefix="transformer.", layers=2):
    rng, weights = np.random.default_rng(1), {}
    for n in range(layers):
        at = f"{prefix}h.{n}."
        weights |= {
            at + "attn.c_proj.weight": rng.normal(size=(D, D)),
            at + "mlp.c_fc.weight": rng.normal(size=(D, F)),
            at + "mlp.c_fc.bias": rng.normal(size=F),
            at + "mlp.c_proj.weight": rng.normal(size=(F, D)),
            at + "mlp.c_proj.bias": rng.normal(size=D),
        }
    return weights


def llama_weights(prefix="model.", layers=2, bias=False):
    rng, weights = np.random.default_rng(2), {}
    for n in range(layers):
        for part, shape in (("gate_proj", (F, D)), ("up_proj", (F, D)), ("down_proj", (D, F))):
            weights[f"{prefix}layers.{n}.mlp.{part}.weight"] = rng.normal(size=shape)
            if bias:
                weights[f"{prefix}layers.{n}.mlp.{part}.bias"] = rng.normal(size=shape[0])
    return weights


def linear(w, name, x):
    """torch.nn.Linear: x Wᵀ + b."""
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)


def conv1d(w, name, x):
    """transformers.pytorch_utils.Conv1D: x W + b."""
    return x @ w[name + ".weight"] + w[name + ".bias"]


def encoder_ffn(w, at, x):
    return linear(w, at + "output.dense", gelu_erf(linear(w, at + "intermediate.dense", x)))


def llama_ffn(w, at, x):
    gate, up = linear(w, at + "mlp.gate_proj", x), linear(w, at + "mlp.up_proj", x)
    return linear(w, at + "mlp.down_proj", silu(gate) * up)


def gpt2_ffn(w, at, x):
    return conv1d(w, at + "mlp.c_proj", gelu_tanh(conv1d(w, at + "mlp.c_fc", x)))


FAMILIES = [
    pytest.param(convert.bert, encoder("bert."), "bert.encoder.layer.1.", encoder_ffn, id="bert"),
    pytest.param(convert.bert, encoder(""), "encoder.layer.1.", encoder_ffn, id="bert-bare"),
    pytest.param(convert.vit, encoder("vit."), "vit.encoder.layer.1.", encoder_ffn, id="vit"),
    pytest.param(convert.gpt2, gpt2_weights(), "transformer.h.1.", gpt2_ffn, id="gpt2"),
    pytest.param(convert.llama, llama_weights(), "model.layers.1.", llama_ffn, id="llama"),
    pytest.param(convert.llama, llama_weights("a.b.model.", bias=True), "a.b.model.layers.1.", llama_ffn, id="biases"),
]


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize(("family", "weights", "at", "own"), FAMILIES)
def test_sublayer_equals_the_familys_own_convention(family, weights, at, own, kind):
    ff = family({name: kind(w) for name, w in weights.items()}, 1)
    y = fj.ffn_residual(X, *ff[:4], activation=ff.activation)
    np.testing.assert_allclose(y, X + own(weights, at, X), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("given", ["a.bert", "a.bert."])
def test_prefix_with_or_without_its_dot(given):
    weights = encoder("a.bert.", seed=3) | encoder("b.bert.", seed=4)
    ff = convert.bert(weights, 1, prefix=given)
    assert (ff.A1.weight == weights["a.bert.encoder.layer.1.intermediate.dense.weight"]).all()


def test_no_weight_is_transposed_or_copied_by_shape():
    assert convert.bert(encoder("bert."), 0).A1.weight.shape == (F, D)
    assert convert.gpt2(gpt2_weights(), 0).A1.weight.shape == (D, F)
    ff = convert.llama(llama_weights(), 0)
    assert (ff.A1.weight.shape, ff.A1.in_shape, ff.A1.out_shape) == ((2, F, D), (D,), (2, F))
    eqns = jax.make_jaxpr(lambda w: convert.llama(w, 0)[:4])(llama_weights()).eqns
    copies = [eqn.primitive.name for eqn in eqns if max(var.aval.size for var in eqn.invars) >= D * F]
    assert "transpose" not in copies
    assert copies.count("stack") + copies.count("concatenate") == 1


def test_result_is_a_pytree_of_its_arrays():
    ff = convert.llama(llama_weights(bias=True), 0)

    @jax.jit
    def loss(ff, x):
        return jnp.sum(fj.ffn_residual(x, *ff[:4], activation=ff.activation) ** 2)

    bars = jax.grad(loss)(ff, X)
    assert bars.activation is ff.activation
    assert [b.shape for b in jax.tree.leaves(bars)] == [(2, F, D), (2, F), (D, F), (D,)]


@pytest.mark.parametrize(
    ("weights", "family", "expected"),
    [
        (encoder("bert.", 3), "bert", 3),
        (encoder("vit.", 2), "vit", 2),
        (gpt2_weights(layers=11), "gpt2", 11),
        (llama_weights(), "llama", 2),
    ],
)
def test_num_layers(weights, family, expected):
    assert convert.num_layers(weights, family) == expected
    assert convert.num_layers(weights | {"x.unrelated.7.weight": X}, family) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gelu", fj.gelu_exact), ("gelu_new", fj.gelu), ("relu", fj.relu), (fj.silu, fj.silu)],
)
def test_activation_by_its_name_in_config_json(name, expected):
    assert convert.bert(encoder(""), 0, activation=name).activation is expected


def test_activation_of_a_gate():
    assert convert.llama(llama_weights(), 0, activation="gelu_pytorch_tanh").activation is fj.geglu
    assert convert.llama(llama_weights(), 0, activation="relu").activation is fj.gated(fj.relu)


def test_half_types_stay():
    weights = {name: jnp.asarray(w, "bfloat16") for name, w in llama_weights().items()}
    assert convert.llama(weights, 0).A1.dtype == jnp.bfloat16


def without(weights, name):
    return {k: v for k, v in weights.items() if k != name}


BERT, UP = "bert.encoder.layer.0.", "model.layers.0.mlp.up_proj"
BAD = {
    "missing weight": (
        lambda: convert.bert(without(encoder("bert."), BERT + "output.dense.weight"), 0),
        KeyError,
        ["convert.bert", "no 'bert.encoder.layer.0.output.dense.weight'", "nearest", "bert.encoder.layer.1.output"],
    ),
    "missing projection": (lambda: convert.llama(without(llama_weights(), UP + ".weight"), 0), KeyError, [UP]),
    "half the biases": (
        lambda: convert.llama(without(llama_weights(bias=True), UP + ".bias"), 0),
        KeyError,
        [f"no '{UP}.bias'", "gate_proj.bias"],
    ),
    "layer beyond": (lambda: convert.bert(encoder("bert."), 2), KeyError, ["layer.2.inter", "'bert.' are 0 to 1"]),
    "other family": (lambda: convert.gpt2(encoder("bert."), 0), KeyError, ["'h.N.mlp.c_fc.weight'", "none like it"]),
    "empty": (lambda: convert.llama({}, 0), KeyError, ["the mapping has 0 names"]),
    "wrong prefix": (lambda: convert.bert(encoder("bert."), 0, prefix="rob"), KeyError, ["'rob.encoder", "'bert.'"]),
    "num_layers of none": (lambda: convert.num_layers({}, "bert"), KeyError, ["encoder.layer.N"]),
    "two encoders": (
        lambda: convert.bert(encoder("question.") | encoder("context."), 0),
        ValueError,
        ["['context.', 'question.']", "prefix="],
    ),
    "negative layer": (lambda: convert.bert(encoder(""), -1), ValueError, ["layer >= 0, got -1"]),
    "layer kind": (lambda: convert.bert(encoder(""), "0"), TypeError, ["an int, got '0'"]),
    "prefix kind": (lambda: convert.bert(encoder(""), 0, prefix=1), TypeError, ["prefix", "got 1"]),
    "not a mapping": (lambda: convert.bert([X], 0), TypeError, ["mapping", "got list"]),
    "unknown family": (lambda: convert.num_layers({}, "t5"), ValueError, ["'gpt2'", "got 't5'"]),
    "unknown activation": (
        lambda: convert.gpt2(gpt2_weights(), 0, activation="erf"),
        ValueError,
        ["gelu_new", "'erf'"],
    ),
    "activation kind": (lambda: convert.gpt2(gpt2_weights(), 0, activation=3), TypeError, ["got 3"]),
    "shape": (
        lambda: convert.bert(encoder("bert.") | {BERT + "output.dense.weight": np.ones((F, D))}, 0),
        ValueError,
        ["output.dense.weight' of shape (3, 5)", "intermediate.dense.weight' of shape (5, 3), got (5, 3)"],
    ),
    "bias shape": (
        lambda: convert.gpt2(gpt2_weights() | {"transformer.h.0.mlp.c_fc.bias": np.ones(D)}, 0),
        ValueError,
        ["c_fc.bias' of shape (5,)", "got (3,)"],
    ),
    "gate and up": (
        lambda: convert.llama(llama_weights() | {UP + ".weight": np.ones((F + 1, D))}, 0),
        ValueError,
        ["up_proj.weight' of shape (5, 3)", "got (6, 3)"],
    ),
    "not a matrix": (
        lambda: convert.bert(encoder("bert.") | {BERT + "intermediate.dense.weight": np.ones(F)}, 0),
        ValueError,
        ["a matrix, got shape (5,)"],
    ),
    "mixed dtypes": (
        lambda: convert.bert(encoder("bert.") | {BERT + "output.dense.bias": np.ones(D, "float32")}, 0),
        TypeError,
        ["output.dense.bias' of dtype float64", "got float32"],
    ),
    "quantised": (
        lambda: convert.bert(encoder("bert.") | {BERT + "output.dense.weight": np.ones((D, F), "int8")}, 0),
        TypeError,
        ["floating dtype, got int8"],
    ),
    "not an array": (
        lambda: convert.bert(encoder("bert.") | {BERT + "output.dense.weight": [[1.0]]}, 0),
        TypeError,
        ["numpy or JAX array, got builtins.list"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, error, sentences = BAD[case]
    with pytest.raises(error) as caught:
        call()
    for sentence in sentences:
        assert sentence in caught.value.args[0]
