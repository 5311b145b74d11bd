"""Nodes: a function of parameters and earlier values, with its pullback by hand or by JAX.

A node is y = f(θ, v_1, ..., v_k). Its rule takes the seed ȳ to θ̄ and v̄_1, ..., v̄_k:

    affine        y = A v + b             v̄ = Aᵀ ȳ                     Ā by the map, b̄ = Σ ȳ
    elementwise   y = σ(v)                v̄ = σ'(v) ⊙ ȳ
    add, mul      y = v + w, v ⊙ w        v̄ = ȳ, w̄ = ȳ                 v̄ = ȳ ⊙ w, w̄ = ȳ ⊙ v
    norm          `ffn_jax.norms`
    softmax       y = eᵛ / Σ eᵛ           v̄ = y ⊙ (ȳ - Σ ȳ ⊙ y)
    matmul        y = v w                 v̄ = ȳ wᵀ, w̄ = vᵀ ȳ

Products and sums of half types are taken in float32.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from ffn_jax import norms
from ffn_jax._checks import check_floating, check_same_dtype, shown, wide
from ffn_jax._pytree import pytree_dataclass, static
from ffn_jax._rule import add_bias, sum_to
from ffn_jax.activations import Activation
from ffn_jax.maps._base import LinearMap

if TYPE_CHECKING:
    from jax import Array
    from jax.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class Op:
    """What a node does, without its parameters: hashable, and equal for equal nodes.

    Attributes:
      name: the kind of node.
      forward: (*options, θ, *values) -> y.
      vjp: (*options, θ, values, ȳ) -> (θ̄, (v̄, ...)); None: by `jax.vjp` of forward.
      reference: forward in undecorated JAX, for forward mode and the proof; None: forward itself.
      arity: how many values it reads; None: any number.
      options: static choices, given to the functions first.
      lemma: (θ, values) -> (fun, reference, arguments), where the theorem to prove is not about forward itself.
    """

    name: str
    forward: Callable[..., Any]
    vjp: Callable[..., Any] | None = None
    reference: Callable[..., Any] | None = None
    arity: int | None = None
    options: tuple[Any, ...] = ()
    lemma: Callable[..., Any] | None = None


@pytree_dataclass
class Node:
    """A node that is not yet part of a graph: a pytree whose leaves are its parameters."""

    op: Op = static()
    params: Any = ()

    def __repr__(self) -> str:
        names = [getattr(o, "__name__", str(o)) for o in self.op.options if not isinstance(o, bool)]
        return f"{self.op.name}[{', '.join(names)}]" if names else self.op.name


def node(
    forward: Callable[..., "Array"],
    *,
    params: Any = (),
    vjp: Callable[..., Any] | None = None,
    reference: Callable[..., "Array"] | None = None,
    name: str | None = None,
) -> Node:
    """A node of your own.

    Args:
      forward: `forward(params, *values) -> y`, one floating array. Give differentiated arrays as params or values: it
        must close over none. Functions defined at module level keep `jit` from tracing again.
      params: a pytree of arrays, which get cotangents.
      vjp: the pullback by hand, `vjp(params, values, ybar) -> (params_bar, values_bar)` with a tuple of cotangents, one
        per value; None: JAX's.
      reference: forward in undecorated JAX, needed where forward itself has no forward mode.
      name: what it prints as; by default the function's name.

    Raises:
      TypeError: one of the functions is not callable.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> square = fj.graph.node(lambda _, x: x * x, vjp=lambda _, values, ybar: ((), (2 * values[0] * ybar,)))
    >>> graph = fj.graph.Graph("x").add("y", square, "x")
    >>> graph.backprop({"x": jnp.array([3.0])}, {"y": jnp.array([1.0])}).inputs["x"].tolist()
    [6.0]
    """
    for argument, f in (("forward", forward), ("vjp", vjp), ("reference", reference)):
        if not callable(f) and (f is not None or argument == "forward"):
            raise TypeError(f"graph.node: expected {argument} to be callable, got {shown(f)}")
    return Node(Op(name or str(getattr(forward, "__name__", "node")), forward, vjp, reference), params)


# ------------------------------------------------------------------------------------- the ready nodes


class AffineParams(NamedTuple):
    """The parameters of `affine`."""

    A: LinearMap
    b: "Array | None"


def affine(A: LinearMap, b: "ArrayLike | None" = None) -> Node:
    """y = A v + b for any `LinearMap`; b of any shape that broadcasts to A's output, or None.

    Raises:
      TypeError: A is no `LinearMap`, or b no floating array.
    """
    if not isinstance(A, LinearMap):
        raise TypeError(f"graph.affine: expected A to be a LinearMap (fj.linear_map(...) makes one), got {shown(A)}")
    if b is not None:
        check_floating(b, "graph.affine", "b")
        b = jnp.asarray(b)
    return Node(Op("affine", _affine, _affine_vjp, _affine_reference, 1), AffineParams(A, b))


def _affine(params: AffineParams, x: "Array") -> "Array":
    return _with_bias(params.A(x), params.b)


def _affine_reference(params: AffineParams, x: "Array") -> "Array":
    return _with_bias(params.A.apply(params.A.check_input(x)), params.b)


def _with_bias(y: "Array", b: Any) -> "Array":
    if b is not None:
        check_same_dtype(b, y.dtype, "affine", "b", "A's output")
        if b.ndim > y.ndim or any(m not in (n, 1) for m, n in zip(b.shape[::-1], y.shape[::-1], strict=False)):
            raise ValueError(f"affine: expected b to broadcast to A's output {tuple(y.shape)}, got {tuple(b.shape)}")
    return add_bias(y, b)


def _affine_vjp(params: AffineParams, values: "tuple[Array]", ybar: "Array") -> Any:
    A, b = params
    return AffineParams(A.params_vjp(values[0], ybar), sum_to(ybar, b)), (A.transpose_call(ybar),)


def elementwise(activation: "Activation | Callable[[Array], Array]") -> Node:
    """y = σ(v): an `Activation` with its derivative by hand, a gated unit included, or a plain function by JAX's."""
    if isinstance(activation, Activation):
        return Node(Op("elementwise", _activate, _activate_vjp, arity=1, options=(activation,)))
    if not callable(activation):
        raise TypeError(f"graph.elementwise: expected an Activation or a callable, got {shown(activation)}")
    return Node(Op("elementwise", _call, arity=1, options=(activation,)))


def _activate(activation: Activation, _: Any, z: "Array") -> "Array":
    return activation(z)


def _activate_vjp(activation: Activation, _: Any, values: "tuple[Array]", hbar: "Array") -> Any:
    h, derivative = activation.with_derivative(values[0])
    hbar = hbar.astype(derivative.dtype)
    return (), (derivative * (hbar if h.ndim == derivative.ndim else jnp.expand_dims(hbar, -2)),)


def _call(f: Callable[["Array"], "Array"], _: Any, z: "Array") -> "Array":
    return f(z)


def add() -> Node:
    """y = v + w, of equal shapes."""
    return Node(Op("add", _add, _add_vjp, arity=2))


def _add(_: Any, v: "Array", w: "Array") -> "Array":
    _same_shape("add", v, w)
    return v + w


def _add_vjp(_: Any, values: "tuple[Array, Array]", ybar: "Array") -> Any:
    return (), (ybar, ybar)


def mul() -> Node:
    """y = v ⊙ w, of equal shapes."""
    return Node(Op("mul", _mul, _mul_vjp, arity=2))


def _mul(_: Any, v: "Array", w: "Array") -> "Array":
    _same_shape("mul", v, w)
    return v * w


def _mul_vjp(_: Any, values: "tuple[Array, Array]", ybar: "Array") -> Any:
    v, w = values
    return (), (ybar * w, ybar * v)


def norm(normalisation: norms.Norm) -> Node:
    """y = a `LayerNorm` or `RMSNorm` of v, as one node.

    Raises:
      TypeError: it is neither.
    """
    if not isinstance(normalisation, norms.Norm):
        raise TypeError(f"graph.norm: expected an ffn_jax.LayerNorm or RMSNorm, got {shown(normalisation)}")
    return Node(Op(type(normalisation).__name__, _norm, _norm_vjp, arity=1), normalisation)


def _norm(normalisation: norms.Norm, x: "Array") -> "Array":
    norms.check_norm(normalisation, x, "norm")
    return norms.undecorated(normalisation.form, x, normalisation.affine)


def _norm_vjp(normalisation: Any, values: "tuple[Array]", ybar: "Array") -> Any:
    (x,) = values
    xbar, bars = norms.pull_back(x, normalisation.affine, norms.statistics(normalisation.form, x), ybar)
    return jax.tree.unflatten(jax.tree.structure(normalisation), [bar for bar in bars if bar is not None]), (xbar,)


def softmax() -> Node:
    """y = eᵛ / Σ eᵛ over the last axis, computed from v less its maximum."""
    return Node(Op("softmax", _softmax, _softmax_vjp, arity=1, lemma=_softmax_lemma))


def _softmax(_: Any, v: "Array") -> "Array":
    wide_v = v.astype(wide(v.dtype))
    return _shifted_softmax(wide_v, jax.lax.stop_gradient(jnp.max(wide_v, -1, keepdims=True))).astype(v.dtype)


def _shifted_softmax(v: "Array", shift: "Array") -> "Array":
    e = jnp.exp(v - shift)
    return e / jnp.sum(e, -1, keepdims=True)


def _softmax_vjp(_: Any, values: "tuple[Array]", ybar: "Array") -> Any:
    return (), (_softmax_pullback(_softmax(_, values[0]), ybar),)


def _softmax_pullback(y: "Array", ybar: "Array") -> "Array":
    y, ybar = y.astype(wide(y.dtype)), ybar.astype(wide(y.dtype))
    return y * (ybar - jnp.sum(ybar * y, -1, keepdims=True))


def _softmax_lemma(_: Any, values: Any) -> Any:
    """For every shift c, not the maximum alone: x ↦ e^(x - c) / Σ e^(x - c) has the rule's pullback, and none to c.

    So whatever function of x the shift is, it adds nothing to the derivative, and the prover need not know a maximum.
    """

    def softmax(v: "Array", shift: "Array") -> "Array":
        @jax.custom_vjp
        def rule(v: "Array", shift: "Array") -> "Array":
            return _shifted_softmax(v, shift)

        def forward(v: "Array", shift: "Array") -> Any:
            y = _shifted_softmax(v, shift)
            return y, (y, shift)

        rule.defvjp(forward, lambda res, ybar: (_softmax_pullback(res[0], ybar), jnp.zeros_like(res[1])))
        return rule(v, shift)

    (v,) = values
    return softmax, _shifted_softmax, (v, jax.ShapeDtypeStruct((*v.shape[:-1], 1), v.dtype))


def matmul(transpose: bool = False) -> Node:
    """y = v w over the last two axes, `(*batch, m, k)` and `(*batch, k, n)`.

    With transpose, y = v wᵀ for w `(*batch, n, k)`, as attention scores have it.
    """
    name = "matmul_transposed" if transpose else "matmul"
    return Node(Op(name, _matmul, _matmul_vjp, arity=2, options=(bool(transpose),)))


def _matmul(transpose: bool, _: Any, v: "Array", w: "Array") -> "Array":
    inner = w.shape[-1 if transpose else -2] if w.ndim >= 2 else None
    if v.ndim < 2 or v.ndim != w.ndim or v.shape[:-2] != w.shape[:-2] or v.shape[-1] != inner:
        second = "(*batch, n, k)" if transpose else "(*batch, k, n)"
        raise ValueError(f"matmul: expected shapes (*batch, m, k) and {second}, got {v.shape} and {w.shape}")
    return _product(v, w, -1, -1 if transpose else -2)


def _matmul_vjp(transpose: bool, _: Any, values: "tuple[Array, Array]", ybar: "Array") -> Any:
    v, w = values
    vbar = _product(ybar, w, -1, -2 if transpose else -1)
    wbar = _product(ybar, v, -2, -2) if transpose else _product(v, ybar, -2, -2)
    return (), (vbar, wbar)


def _product(a: "Array", b: "Array", i: int, j: int) -> "Array":
    """Sums axis i of a against axis j of b, batched over all axes but the last two."""
    batch = tuple(range(a.ndim - 2))
    dims = (((a.ndim + i,), (b.ndim + j,)), (batch, batch))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=wide(a.dtype)).astype(a.dtype)


def _same_shape(where: str, v: "Array", w: "Array") -> None:
    if v.shape != w.shape:
        raise ValueError(f"{where}: expected two values of one shape, got {tuple(v.shape)} and {tuple(w.shape)}")
    check_same_dtype(w, v.dtype, where, "the second value", "the first")
