"""What the package claims, as theorems for `prove_vjp`: every shipped rule, map and choice, for all sizes.

Each theorem is a function as users call it, a reference without custom rules, and the shapes of its arguments. The
sublayer is compared with `ffn_residual_reference`; a map's own transpose and pullback with a plain product. The last
ones are the theorem that the package comes from, TorchLean's `seqFfnResidual_backpropVec_eq_adjoint_fderiv`: the
sublayer of a whole sequence over *arbitrary* linear maps, of which only linearity is known, with biases of the full
shape and a seed on the input and on every saved tensor.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import ffn_jax as fj
from ffn_jax import _fast
from ffn_jax._pytree import pytree_dataclass
from ffn_jax._rule import add_bias
from ffn_jax.maps._base import ruled_call, ruled_transpose
from ffn_jax.verify.symbolic import opaque_linear_map

if TYPE_CHECKING:
    from jax import Array

ELEMENTWISE = (fj.gelu, fj.gelu_exact, fj.silu, fj.quick_gelu, fj.relu, fj.relu_squared)
GATED = (fj.swiglu, fj.geglu)
TOKENS = {"a token": "", "a sequence": "n,", "a batch": "b,n,"}


class Theorem(NamedTuple):
    """`jax.vjp(fun)` is the adjoint of the derivative of `reference`, and their values are equal.

    Attributes:
      name: what it is about.
      fun: the function whose rule is proved.
      reference: the same function in undecorated JAX.
      specs: one specification such as "f64[n,d]" per argument.
    """

    name: str
    fun: Callable[..., Any]
    reference: Callable[..., Any]
    specs: tuple[Any, ...]


def theorems() -> Iterator[Theorem]:
    """All of them, in the order in which they are told."""
    for activation in (*ELEMENTWISE, *GATED):
        yield _sublayer(f"ffn_residual, {activation}", activation=activation)
    yield _sublayer("ffn_residual, a token", tokens="")
    yield _sublayer("ffn_residual, a batch", tokens="b,n,")
    yield _sublayer("ffn_residual, biases by position", tokens="b,n,", bias="n,")
    yield _sublayer("ffn_residual, x alone kept", save=())
    yield _sublayer("ffn_residual, everything kept", save=("hidden_pre", "hidden_act"))
    yield _sublayer("ffn_residual, chunks of 3 tokens", tokens="3*k+3,", chunk_size=3)
    yield _sublayer("ffn_residual, chunks of 3, x alone kept", tokens="3*k+3,", chunk_size=3, save=())
    yield _sublayer("ffn_residual, chunks of 3, swiglu", tokens="3*k+3,", chunk_size=3, activation=fj.swiglu)
    yield _sublayer("ffn_residual, blocks of 3 hidden features", hidden="3*k", hidden_chunk_size=3)
    yield _sublayer("ffn_residual, blocks of 3, x alone kept", hidden="3*k", hidden_chunk_size=3, save=())
    yield _on_one_cpu(_sublayer("ffn_residual, weight cotangents as on one CPU", hidden="d+e"))
    yield _on_one_cpu(_sublayer("ffn_residual, as on one CPU, a batch", tokens="b,n,", hidden="d+e", save=()))
    yield _sublayer("ffn_residual, maps with a fused step", dense=_InOneStep)
    yield _sublayer("ffn_residual, maps with a fused step, swiglu, x alone kept", fj.swiglu, dense=_InOneStep, save=())
    yield _tape("ffn_residual_tape, seeds on all, gelu", fj.gelu)
    yield _tape("ffn_residual_tape, seeds on all, gelu_exact", fj.gelu_exact)
    yield _normed("ffn_residual, pre-norm LayerNorm", fj.LayerNorm)
    yield _normed("ffn_residual, pre-norm RMSNorm", fj.RMSNorm)
    yield _normed("ffn_residual, pre-norm RMSNorm, x alone kept", fj.RMSNorm, save=())
    yield _normed("ffn_residual, pre-norm RMSNorm, chunks of 3", fj.RMSNorm, tokens="3*k+3,", chunk_size=3)
    yield from _maps()
    yield from _norms()
    yield _opaque("opaque maps of a sequence, seeds on all, gelu", fj.gelu)
    yield _opaque("opaque maps of a sequence, seeds on all, gelu_exact", fj.gelu_exact)


def _sublayer(
    name: str,
    activation: fj.Activation = fj.gelu,
    tokens: str = "n,",
    hidden: str = "f",
    bias: str = "",
    dense: Any = fj.Dense,
    **options: Any,
) -> Theorem:
    def fun(x: "Array", W1: "Array", b1: "Array", W2: "Array", b2: "Array") -> "Array":
        return fj.ffn_residual(x, dense(W1), b1, dense(W2), b2, activation=activation, **options)

    def reference(x: "Array", W1: "Array", b1: "Array", W2: "Array", b2: "Array") -> "Array":
        return fj.ffn_residual_reference(x, fj.Dense(W1), b1, fj.Dense(W2), b2, activation=activation)

    z = f"2,{hidden}" if activation in GATED else hidden
    shapes = (f"{tokens}d", f"d,{z}", f"{bias}{z}", f"{hidden},d", f"{bias}d")
    return Theorem(name, fun, reference, tuple(f"f64[{shape}]" for shape in shapes))


@pytree_dataclass
class _InOneStep(fj.Dense):
    """A map that offers both fused steps as plain formulas: what `FusedDense`'s kernels have to equal."""

    def activated(self, x: "Array", b: "Array | None", activation: fj.Activation, keep_pre: bool) -> Any:
        z = add_bias(self.call(x), b)
        return z if keep_pre else None, activation(z)

    def transpose_activated(self, y: "Array", z: "Array", activation: fj.Activation, want_act: bool) -> Any:
        h, derivative = activation.with_derivative(z)
        hbar = self.transpose_call(y)
        return h if want_act else None, derivative * (hbar if activation.base is None else jnp.expand_dims(hbar, -2))


def _on_one_cpu(theorem: Theorem) -> Theorem:
    """The same, with the products that `ffn_jax._fast` chooses on one CPU device, forward and backward."""

    @jax.custom_vjp
    def fun(*args: "Array") -> Any:
        return forward(*args)[0]

    def forward(*args: "Array") -> Any:
        with _fast.assume(one_cpu=True):
            return jax.vjp(theorem.fun, *args)

    def backward(pullback: Any, ybar: Any) -> Any:
        with _fast.assume(one_cpu=True):
            return pullback(ybar)

    fun.defvjp(forward, backward)
    return theorem._replace(fun=fun)


def _normed(name: str, norm: Any, tokens: str = "n,", **options: Any) -> Theorem:
    """With silu, whose calculus is the shortest. A post-norm is `layer_norm` of `ffn_residual`, proved one by one."""

    def fun(x: "Array", scale: "Array", W1: "Array", b1: "Array", W2: "Array", b2: "Array") -> "Array":
        maps = fj.Dense(W1), b1, fj.Dense(W2), b2
        return fj.ffn_residual(x, *maps, norm=norm(scale), activation=fj.silu, **options)

    def reference(x: "Array", scale: "Array", W1: "Array", b1: "Array", W2: "Array", b2: "Array") -> "Array":
        return fj.ffn_residual_reference(x, fj.Dense(W1), b1, fj.Dense(W2), b2, norm=norm(scale), activation=fj.silu)

    shapes = (f"{tokens}d", "d", "d,f", "f", "f,d", "d")
    return Theorem(name, fun, reference, tuple(f"f64[{shape}]" for shape in shapes))


def _tape(name: str, activation: fj.Activation) -> Theorem:
    def fun(x: "Array", W1: "Array", b1: "Array", W2: "Array", b2: "Array") -> Any:
        return x, fj.ffn_residual_tape(x, fj.Dense(W1), b1, fj.Dense(W2), b2, activation=activation)

    return Theorem(name, fun, fun, ("f64[n,d]", "f64[d,f]", "f64[f]", "f64[f,d]", "f64[d]"))


def _opaque(name: str, activation: fj.Activation) -> Theorem:
    def fun(x: "Array", b1: "Array", b2: "Array") -> Any:
        A1 = opaque_linear_map("A1", x.shape, b1.shape)
        A2 = opaque_linear_map("A2", b1.shape, x.shape)
        return x, fj.ffn_residual_tape(x, A1, b1, A2, b2, activation=activation)

    return Theorem(name, fun, fun, ("f64[n,d]", "f64[n,f]", "f64[n,d]"))


# ------------------------------------------------------------------------------------------ the norms


def _norms() -> Iterator[Theorem]:
    """On the domain where variance + eps (mean square + eps) is positive, which the certificates print."""
    for name, tokens in (("layer_norm", "n,"), ("layer_norm, a token", "")):
        yield Theorem(name, fj.layer_norm, fj.layer_norm_reference, (f"f64[{tokens}d]", "f64[d]", "f64[d]"))
    yield Theorem("layer_norm, no scale and bias", fj.layer_norm, fj.layer_norm_reference, ("f64[n,d]",))
    yield Theorem("rms_norm", fj.rms_norm, fj.rms_norm_reference, ("f64[n,d]", "f64[d]"))
    yield Theorem("rms_norm, no scale", fj.rms_norm, fj.rms_norm_reference, ("f64[n,d]",))


# ------------------------------------------------------------------------------------------ the maps


def _maps() -> Iterator[Theorem]:
    yield from _map("Dense", lambda W: fj.Dense(W), lambda W, x: x @ W, "f64[d,m]", "d", "m")
    yield from _map("Dense, out_in", lambda W: fj.Dense(W, layout="out_in"), lambda W, x: x @ W.T, "f64[m,d]", "d", "m")
    yield from _map(
        "Dense, several axes",
        lambda W: fj.Dense(W, in_ndim=2),
        lambda W, x: jnp.einsum("nab,abcd->ncd", x, W),
        "f64[d,e,g,m]",
        "d,e",
        "g,m",
    )

    def time_distributed(W: "Array", x: "Array", at: int) -> fj.LinearMap:
        return fj.TimeDistributed(fj.Dense(W), x.shape[at])

    yield Theorem(
        "TimeDistributed",
        lambda W, x: ruled_call(time_distributed(W, x, 1), x),
        lambda W, x: jnp.einsum("nld,dm->nlm", x, W),
        ("f64[d,m]", "f64[n,l,d]"),
    )
    yield from _map(
        "BlockDiagonal, stacked",
        lambda W: fj.BlockDiagonal(fj.Dense(W)),
        lambda W, x: jnp.einsum("nkd,kdm->nkm", x.reshape(x.shape[0], *W.shape[:2]), W).reshape(x.shape[0], -1),
        "f64[3,d,m]",
        "3*d",
        "3*m",
    )
    yield Theorem(
        "BlockDiagonal, different blocks",
        lambda U, V, x: ruled_call(fj.BlockDiagonal([fj.Dense(U), fj.Dense(V)]), x),
        lambda U, V, x: jnp.concatenate(
            [lax.slice_in_dim(x, 0, U.shape[0], axis=1) @ U, lax.slice_in_dim(x, U.shape[0], x.shape[1], axis=1) @ V],
            axis=1,
        ),
        ("f64[d,m]", "f64[e,g]", "f64[n,d+e]"),
    )
    yield Theorem(
        "A @ B",
        lambda U, V, x: ruled_call(fj.Dense(U) @ fj.Dense(V), x),
        lambda U, V, x: (x @ V) @ U,
        ("f64[e,m]", "f64[d,e]", "f64[n,d]"),
    )
    yield Theorem(
        "A - c B, c an array",
        lambda U, V, c, x: ruled_call(fj.Dense(U) - c * fj.Dense(V), x),
        lambda U, V, c, x: x @ U - c * (x @ V),
        ("f64[d,m]", "f64[d,m]", "f64[]", "f64[n,d]"),
    )
    yield from _map(
        "linear_map with a transpose and a pullback by hand",
        lambda W: fj.linear_map(_product, W.shape[0], params=W, transpose=_transpose, params_vjp=_outer),
        lambda W, x: x @ W,
        "f64[d,m]",
        "d",
        "m",
    )


def _product(W: "Array", x: "Array") -> "Array":
    return x @ W


def _transpose(W: "Array", y: "Array") -> "Array":
    return W @ y


def _outer(W: "Array", x: "Array", ybar: "Array") -> "Array":
    return x[:, None] * ybar[None, :]


def _map(
    name: str,
    make: Callable[["Array"], fj.LinearMap],
    apply: Callable[["Array", "Array"], "Array"],
    weight: str,
    in_shape: str,
    out_shape: str,
) -> Iterator[Theorem]:
    """The map's rule against a plain product, and its transpose's."""
    yield Theorem(name, lambda W, x: ruled_call(make(W), x), apply, (weight, f"f64[n,{in_shape}]"))
    yield Theorem(
        f"{name}: transpose",
        lambda W, y: ruled_transpose(make(W), y),
        lambda W, y: make(W).T.apply(y),
        (weight, f"f64[n,{out_shape}]"),
    )
