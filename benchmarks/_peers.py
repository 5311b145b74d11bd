"""The same feed-forward sublayer as others write it: plain jnp, Flax (linen and nnx), Equinox, Haiku, torch, and ours.

A peer is given the weights as `(in, out)` arrays, keeps them in its own layout, and is a function of (x, params).
"""

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import ffn_jax as fj

ACTIVATIONS = {"tanh": fj.gelu, "erf": fj.gelu_exact, "swiglu": fj.swiglu}


class Peer(NamedTuple):
    """`apply(x, params) -> y` and its parameters."""

    name: str
    apply: Callable[[Any, Any], Any]
    params: Any


def plain_activation(kind: str) -> Callable[[Any], Any]:
    """The activation as one writes it in JAX, on a hidden of shape `(..., d_ff)`; gated: `(..., 2, d_ff)`."""
    if kind == "swiglu":
        return lambda z: jax.nn.silu(z[..., 0, :]) * z[..., 1, :]
    return functools.partial(jax.nn.gelu, approximate=kind == "tanh")


def plain(kind: str) -> Callable[[Any, Any], Any]:
    """The sublayer in plain jnp."""
    act = plain_activation(kind)

    def apply(x: Any, params: Any) -> Any:
        W1, b1, W2, b2 = params
        z = jnp.einsum("...d,dgf->...gf", x, W1) if kind == "swiglu" else x @ W1
        return x + (act(z + b1) @ W2 + b2)

    return apply


def ours(kind: str, **options: Any) -> Callable[[Any, Any], Any]:
    """The sublayer by this library."""

    def apply(x: Any, params: Any) -> Any:
        W1, b1, W2, b2 = params
        return fj.ffn_residual(x, fj.Dense(W1), b1, fj.Dense(W2), b2, activation=ACTIVATIONS[kind], **options)

    return apply


POLICIES = {
    "checkpoint, nothing saved": jax.checkpoint_policies.nothing_saveable,
    "checkpoint, dots saved": jax.checkpoint_policies.dots_saveable,
    "checkpoint, dots without batch saved": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


AGAIN = "plain jnp, again"  # the control


def sublayer_peers(kind: str, params: Any, policies: bool = False) -> Iterator[Peer]:
    """Those that are installed, plain jnp first, then once more: what two runs of one program differ by is noise.

    `jax.checkpoint` with its default policy, or with `policies` with each sensible one.
    """
    yield Peer("plain jnp", plain(kind), params)
    yield Peer(AGAIN, plain(kind), params)
    for name, policy in (POLICIES if policies else {"jax.checkpoint": None}).items():
        yield Peer(name, jax.checkpoint(plain(kind), policy=policy), params)
    if kind != "swiglu":
        for name, make in (("flax", _linen), ("flax", _nnx), ("equinox", _equinox), ("haiku", _haiku)):
            if importlib.util.find_spec(name) is not None:
                yield make(kind, params)
    yield Peer("ffn_jax", ours(kind), params)
    yield Peer("ffn_jax, chunk_size='none'", ours(kind, chunk_size="none"), params)
    yield Peer("ffn_jax, save=()", ours(kind, save=()), params)


def _linen(kind: str, params: Any) -> Peer:
    import flax.linen as nn

    W1, b1, W2, b2 = params
    act = plain_activation(kind)
    first, second = (nn.Dense(W.shape[1], dtype=W.dtype, param_dtype=W.dtype) for W in (W1, W2))

    def apply(x: Any, variables: Any) -> Any:
        return x + second.apply(variables[1], act(first.apply(variables[0], x)))

    return Peer("flax linen", apply, [{"params": {"kernel": W, "bias": b}} for W, b in ((W1, b1), (W2, b2))])


def _nnx(kind: str, params: Any) -> Peer:
    from flax import nnx

    act = plain_activation(kind)

    class Sublayer(nnx.Module):
        def __init__(self) -> None:
            W1, b1, W2, b2 = params
            for name, W, b in (("first", W1, b1), ("second", W2, b2)):
                layer = nnx.Linear(*W.shape, dtype=W.dtype, param_dtype=W.dtype, rngs=nnx.Rngs(0))
                layer.kernel, layer.bias = nnx.Param(W), nnx.Param(b)
                setattr(self, name, layer)

        def __call__(self, x: Any) -> Any:
            return x + self.second(act(self.first(x)))

    graph, state = nnx.split(Sublayer())
    return Peer("flax nnx", lambda x, state: nnx.merge(graph, state)(x), state)


def _equinox(kind: str, params: Any) -> Peer:
    import equinox as eqx

    W1, b1, W2, b2 = params
    act = plain_activation(kind)

    def layer(W: Any, b: Any) -> Any:
        empty = eqx.nn.Linear(*W.shape, key=jax.random.key(0))
        return eqx.tree_at(lambda m: (m.weight, m.bias), empty, (jnp.array(W.T), b))

    def apply(x: Any, layers: Any) -> Any:
        first, second = (jax.vmap(layer) for layer in layers)
        return x + second(act(first(x)))

    return Peer("equinox", apply, (layer(W1, b1), layer(W2, b2)))


def _haiku(kind: str, params: Any) -> Peer:
    import haiku as hk

    W1, b1, W2, b2 = params
    act = plain_activation(kind)
    network = hk.without_apply_rng(
        hk.transform(lambda x: x + hk.Linear(W2.shape[1], name="b")(act(hk.Linear(W1.shape[1], name="a")(x))))
    )
    return Peer("haiku", lambda x, params: network.apply(params, x), {"a": {"w": W1, "b": b1}, "b": {"w": W2, "b": b2}})


def torch_step(kind: str, args: Any, forward_only: bool) -> Callable[[], Any] | None:
    """The same step in eager torch, or None where torch is not installed."""
    if kind == "swiglu" or importlib.util.find_spec("torch") is None:
        return None
    import numpy as np
    import torch

    if args[0].dtype != jnp.float32:
        return None
    tensors = [torch.from_numpy(np.array(a)) for a in args]
    x, W1, b1, W2, b2, ybar = tensors
    leaves = [x, W1.T.contiguous(), b1, W2.T.contiguous(), b2]
    act = functools.partial(torch.nn.functional.gelu, approximate="tanh" if kind == "tanh" else "none")
    linear = torch.nn.functional.linear

    def step() -> None:
        for leaf in leaves:
            leaf.requires_grad_(not forward_only).grad = None
        x, W1, b1, W2, b2 = leaves
        y = x + linear(act(linear(x, W1, b1)), W2, b2)
        if not forward_only:
            y.backward(ybar)

    return step
