"""Feed-forward weights by their Hugging Face names, as arguments of `ffn_residual`.

    family   first map A1                                        second map A2                   activation
    bert     encoder.layer.N.intermediate.dense   (d_ff, d)      ....output.dense     (d, d_ff)  GELU, exact
    vit      encoder.layer.N.intermediate.dense   (d_ff, d)      ....output.dense     (d, d_ff)  GELU, exact
    gpt2     h.N.mlp.c_fc                         (d, d_ff)      ....mlp.c_proj       (d_ff, d)  GELU, tanh
    llama    layers.N.mlp.gate_proj, .up_proj     (d_ff, d) two  ....mlp.down_proj    (d, d_ff)  SwiGLU

Every weight is used in the layout it is stored in: `Dense(..., layout="out_in")` for `torch.nn.Linear`, "in_out" for
GPT-2's `Conv1D`. Nothing is transposed and nothing copied, but for Llama's gate and up projections: they become one
map with outputs (2, d_ff), which takes one stack, along a new first axis, of two arrays (out, in).

`weights` is any mapping from names to arrays: what `safetensors.numpy.load_file` returns, a Flax `flatten_dict`, a
dict of yours. What stands before the names above ("bert.", "model.", "transformer.") is found, or given as `prefix`.
"""

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffn_jax.activations import Activation, gated, geglu, gelu, gelu_exact, quick_gelu, relu, relu_squared, silu, swiglu
from ffn_jax.encoder import FeedForward
from ffn_jax.maps import Dense

if TYPE_CHECKING:
    Weights = Mapping[str, Any]

HIDDEN_ACT: dict[str, Activation] = {
    "gelu": gelu_exact,
    "gelu_new": gelu,
    "gelu_pytorch_tanh": gelu,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": relu_squared,
    "silu": silu,
    "swish": silu,
}
"""Hugging Face's names of activations (`hidden_act` in config.json). Note that its "gelu" is the exact one."""


class _Family(NamedTuple):
    first: tuple[str, ...]  # one name, or the gate's and the up projection's
    second: str
    layout: Any
    activation: str

    @property
    def marker(self) -> str:
        return f"{self.first[0]}.weight"


_ENCODER = _Family(("encoder.layer.N.intermediate.dense",), "encoder.layer.N.output.dense", "out_in", "gelu")
_FAMILIES = {
    "bert": _ENCODER,
    "vit": _ENCODER,
    "gpt2": _Family(("h.N.mlp.c_fc",), "h.N.mlp.c_proj", "in_out", "gelu_new"),
    "llama": _Family(("layers.N.mlp.gate_proj", "layers.N.mlp.up_proj"), "layers.N.mlp.down_proj", "out_in", "silu"),
}


def bert(
    weights: "Weights", layer: int, *, prefix: str | None = None, activation: "str | Activation" = "gelu"
) -> FeedForward:
    """The feed-forward of a BERT layer (RoBERTa, MiniLM, ELECTRA and others of its names).

    Reads, after the prefix, `encoder.layer.N.intermediate.dense.weight` (d_ff, d_model) and `.bias` (d_ff,),
    `encoder.layer.N.output.dense.weight` (d_model, d_ff) and `.bias` (d_model,). The layer is post-norm: its output
    is LayerNorm(y), with `encoder.layer.N.output.LayerNorm`.

    Args:
      weights: a mapping from names to arrays (numpy or JAX).
      layer: which layer, from 0.
      prefix: what stands before "encoder.layer", as "bert."; by default it is found.
      activation: Hugging Face's name (`hidden_act` in config.json, where "gelu" is the exact one), or an `Activation`.

    Returns:
      A `FeedForward`; see there for shapes. A bias that the checkpoint lacks is None.

    Raises:
      KeyError: a weight is missing; the message names it, and the nearest names that there are.
      ValueError: a shape does not fit, several prefixes are possible, layer < 0, or the activation is unknown.
      TypeError: an argument or a weight is of the wrong kind, or dtypes differ.

    >>> import numpy as np, ffn_jax as fj
    >>> from ffn_jax import convert
    >>> weights = {
    ...     "bert.encoder.layer.0.intermediate.dense.weight": np.ones((8, 2), "float32"),
    ...     "bert.encoder.layer.0.intermediate.dense.bias": np.zeros(8, "float32"),
    ...     "bert.encoder.layer.0.output.dense.weight": np.ones((2, 8), "float32"),
    ...     "bert.encoder.layer.0.output.dense.bias": np.zeros(2, "float32"),
    ... }
    >>> ff = convert.bert(weights, 0)
    >>> ff.A1, ff.activation
    (Dense((2,) -> (8,), float32, out_in), gelu_exact)
    >>> fj.ffn_residual(np.ones((3, 2), "float32"), *ff[:4], activation=ff.activation).shape
    (3, 2)
    """
    return _convert("bert", weights, layer, prefix, activation)


def vit(
    weights: "Weights", layer: int, *, prefix: str | None = None, activation: "str | Activation" = "gelu"
) -> FeedForward:
    """The feed-forward of a ViT layer (DeiT, and others of its names): BERT's names under "vit.".

    The layer is pre-norm: x here is what enters `encoder.layer.N.layernorm_after`, and the residual goes around it.

    Arguments, result and errors are those of `bert`.

    >>> import numpy as np
    >>> from ffn_jax import convert
    >>> weights = {
    ...     "vit.encoder.layer.0.intermediate.dense.weight": np.ones((8, 2), "float32"),
    ...     "vit.encoder.layer.0.output.dense.weight": np.ones((2, 8), "float32"),
    ... }
    >>> convert.vit(weights, 0).A2
    Dense((8,) -> (2,), float32, out_in)
    """
    return _convert("vit", weights, layer, prefix, activation)


def gpt2(
    weights: "Weights", layer: int, *, prefix: str | None = None, activation: "str | Activation" = "gelu_new"
) -> FeedForward:
    """The feed-forward of a GPT-2 block, whose `Conv1D` keeps weights as (in, out).

    Reads, after the prefix, `h.N.mlp.c_fc.weight` (d_model, d_ff) and `.bias` (d_ff,), `h.N.mlp.c_proj.weight`
    (d_ff, d_model) and `.bias` (d_model,). The block is pre-norm, with `h.N.ln_2`.

    Arguments, result and errors are those of `bert`; here `activation` is config.json's `activation_function`.

    >>> import numpy as np
    >>> from ffn_jax import convert
    >>> weights = {
    ...     "transformer.h.0.mlp.c_fc.weight": np.ones((2, 8), "float32"),
    ...     "transformer.h.0.mlp.c_proj.weight": np.ones((8, 2), "float32"),
    ... }
    >>> convert.gpt2(weights, 0).A1
    Dense((2,) -> (8,), float32, in_out)
    """
    return _convert("gpt2", weights, layer, prefix, activation)


def llama(
    weights: "Weights", layer: int, *, prefix: str | None = None, activation: "str | Activation" = "silu"
) -> FeedForward:
    """The gated feed-forward of a Llama layer (Mistral, Qwen, Gemma and others of its names).

    Reads, after the prefix, `layers.N.mlp.gate_proj.weight` and `layers.N.mlp.up_proj.weight`, both (d_ff, d_model),
    `layers.N.mlp.down_proj.weight` (d_model, d_ff), and each `.bias` where there is one. Gate and up become one map
    with a hidden of shape (2, d_ff), gate first: their stack (2, d_ff, d_model), read as (out, in), is the one copy.

    The layer is pre-norm, with `layers.N.post_attention_layernorm`.

    Arguments, result and errors are those of `bert`; `activation` is that of the gate, by its name in config.json
    ("silu" gives SwiGLU, "gelu_pytorch_tanh" GEGLU), or an `Activation` that takes a hidden of shape (..., 2, d_ff).

    >>> import numpy as np
    >>> from ffn_jax import convert
    >>> shapes = {"gate_proj": (8, 2), "up_proj": (8, 2), "down_proj": (2, 8)}
    >>> weights = {f"model.layers.0.mlp.{k}.weight": np.ones(s, "float32") for k, s in shapes.items()}
    >>> convert.llama(weights, 0)
    FeedForward(A1=Dense((2,) -> (2, 8), float32, out_in), b1=None, A2=Dense((8,) -> (2,), float32, out_in), b2=None, \
activation=swiglu)
    """
    return _convert("llama", weights, layer, prefix, activation)


def num_layers(weights: "Weights", family: str, *, prefix: str | None = None) -> int:
    """How many layers of a family ("bert", "vit", "gpt2" or "llama") the mapping holds.

    Raises:
      KeyError: there is none; the message says what was looked for, and the nearest names that there are.
      ValueError: the family is unknown, or several prefixes are possible.

    >>> from ffn_jax import convert
    >>> convert.num_layers({f"h.{n}.mlp.c_fc.weight": None for n in range(12)}, "gpt2")
    12
    """
    where = "convert.num_layers"
    if family not in _FAMILIES:
        raise ValueError(f"{where}: expected family to be one of {tuple(_FAMILIES)}, got {family!r}")
    return len(_find(weights, _FAMILIES[family], prefix, where)[1])


# ------------------------------------------------------------------------------------------- how it reads


def read(weights: "Weights", name: str, where: str, optional: bool = False) -> Any:
    """The array of that name; an error names the nearest names that there are, or what is there instead."""
    if name not in weights:
        if optional:
            return None
        raise KeyError(f"{where}: no {name!r}{_nearest(name, weights)}")
    value = weights[name]
    if not isinstance(value, (np.ndarray, jax.Array)):
        got = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{where}: expected {name!r} to be a numpy or JAX array, got {got}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{where}: expected {name!r} of a real floating dtype, got {value.dtype}")
    return value


def _convert(family: str, weights: "Weights", layer: int, prefix: str | None, activation: Any) -> FeedForward:
    where, names = f"convert.{family}", _FAMILIES[family]
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)):
        raise TypeError(f"{where}: expected layer to be an int, got {layer!r}")
    if layer < 0:
        raise ValueError(f"{where}: expected layer >= 0, got {layer}")
    sigma = _activation(activation, len(names.first) == 2, where)
    prefix, layers = _find(weights, names, prefix, where)

    def name(of: str) -> str:
        return prefix + of.replace("N", str(layer), 1)

    if layer not in layers:
        there = f"{min(layers)} to {max(layers)}" if len(layers) > 1 else str(min(layers))
        raise KeyError(f"{where}: no {name(names.marker)!r}; the layers under the prefix {prefix!r} are {there}")

    firsts = [read(weights, f"{name(first)}.weight", where) for first in names.first]
    second = read(weights, f"{name(names.second)}.weight", where)
    biases = [read(weights, f"{name(first)}.bias", where, optional=True) for first in names.first]
    b2 = read(weights, f"{name(names.second)}.bias", where, optional=True)

    # Everything must fit the first weight.
    anchor = f"{name(names.first[0])}.weight"
    if firsts[0].ndim != 2:
        raise ValueError(f"{where}: expected {anchor!r} to be a matrix, got shape {tuple(firsts[0].shape)}")
    d_ff, d_model = firsts[0].shape if names.layout == "out_in" else firsts[0].shape[::-1]
    down = (d_model, d_ff) if names.layout == "out_in" else (d_ff, d_model)
    expected = [
        *((f"{name(first)}.weight", w, firsts[0].shape) for first, w in zip(names.first, firsts, strict=True)),
        *((f"{name(first)}.bias", b, (d_ff,)) for first, b in zip(names.first, biases, strict=True)),
        (f"{name(names.second)}.weight", second, down),
        (f"{name(names.second)}.bias", b2, (d_model,)),
    ]
    for key, value, shape in expected:
        if value is not None and tuple(value.shape) != tuple(shape):
            raise ValueError(
                f"{where}: expected {key!r} of shape {tuple(shape)}, to fit {anchor!r} of shape "
                f"{tuple(firsts[0].shape)}, got {tuple(value.shape)}"
            )
        if value is not None and value.dtype != firsts[0].dtype:
            raise TypeError(
                f"{where}: expected {key!r} of dtype {firsts[0].dtype}, as {anchor!r} has, got {value.dtype}"
            )

    A2 = Dense(second, layout=names.layout)
    b2 = None if b2 is None else jnp.asarray(b2)
    if len(firsts) == 1:
        b1 = None if biases[0] is None else jnp.asarray(biases[0])
        return FeedForward(Dense(firsts[0], layout=names.layout), b1, A2, b2, sigma)
    if (biases[0] is None) != (biases[1] is None):
        has, lacks = names.first if biases[1] is None else names.first[::-1]
        raise KeyError(f"{where}: no {name(lacks) + '.bias'!r}, though there is {name(has) + '.bias'!r}")
    b1 = None if biases[0] is None else jnp.stack(biases)
    return FeedForward(Dense(jnp.stack(firsts), layout="out_in"), b1, A2, b2, sigma)


def _find(weights: "Weights", family: _Family, prefix: str | None, where: str) -> tuple[str, set[int]]:
    """The prefix, and the numbers of the layers that have the family's first weight under it."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"{where}: expected weights to be a mapping from names to arrays, got {type(weights).__name__}")
    if prefix is not None and not isinstance(prefix, str):
        raise TypeError(f"{where}: expected prefix to be a string or None, got {prefix!r}")
    before, after = map(re.escape, family.marker.split("N"))
    pattern = re.compile(rf"((?:.*\.)?){before}(\d+){after}")
    found: dict[str, set[int]] = {}
    for key in weights:
        match = pattern.fullmatch(key) if isinstance(key, str) else None
        if match:
            found.setdefault(match[1], set()).add(int(match[2]))
    if prefix is not None:
        prefix = prefix if not prefix or prefix.endswith(".") else prefix + "."
        if prefix in found:
            return prefix, found[prefix]
        instead = f"; the prefixes that have it: {', '.join(map(repr, sorted(found)))}" if found else ""
        raise KeyError(f"{where}: no {prefix + family.marker!r} for any N{instead or _near(prefix, family, weights)}")
    if not found:
        raise KeyError(f"{where}: no {family.marker!r} for any N, after any prefix{_near('', family, weights)}")
    if len(found) > 1:
        raise ValueError(f"{where}: several prefixes are possible; give prefix= one of {sorted(found)}")
    return next(iter(found.items()))


def _near(prefix: str, family: _Family, weights: "Weights") -> str:
    return _nearest(prefix + family.marker.replace("N", "0", 1), weights)


def _nearest(name: str, weights: "Weights") -> str:
    keys = [key for key in weights if isinstance(key, str)]
    near = difflib.get_close_matches(name, keys, n=3, cutoff=0.5)
    return f"; nearest: {', '.join(map(repr, near))}" if near else f"; the mapping has {len(keys)} names, none like it"


def _activation(activation: Any, with_gate: bool, where: str) -> Activation:
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str):
        raise TypeError(f"{where}: expected activation to be a name or an Activation, got {activation!r}")
    if activation not in HIDDEN_ACT:
        raise ValueError(f"{where}: expected activation to be one of {tuple(HIDDEN_ACT)}, got {activation!r}")
    base = HIDDEN_ACT[activation]
    if not with_gate:
        return base
    return {silu: swiglu, gelu: geglu}.get(base) or gated(base)
