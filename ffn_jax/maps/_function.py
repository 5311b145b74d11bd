"""Maps from callables: `linear_map`, `linearize`, and the lifting of bare callables.

A callable becomes a `FunctionMap` with its arrays as leaves. Arrays that it closes over while they are being
traced (and so may be differentiated) are found by tracing it once and become leaves too: a custom derivative
rule that closed over them would raise UnexpectedTracerError. The trace also shows whether it is linear at all.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from ffn_jax._checks import (
    Shape,
    check_floating,
    check_shape,
    contains_tracer,
    is_array,
    is_inexact,
    shown,
    size,
)
from ffn_jax._compat import evaluate_with_consts
from ffn_jax._pytree import pytree_dataclass, static
from ffn_jax.maps._base import LinearMap
from ffn_jax.maps._linearity import Kind, classify

if TYPE_CHECKING:
    from jax import Array


class Functions(NamedTuple):
    """The static half of a `FunctionMap`; functions are compared by identity."""

    apply: Callable[[Any, "Array"], "Array"]
    transpose: Callable[[Any, "Array"], "Array"] | None = None
    params_vjp: Callable[[Any, "Array", "Array"], Any] | None = None
    batched: bool = False


@pytree_dataclass
class FunctionMap(LinearMap):
    """A map given by functions of (params, x); made by `linear_map`, `linearize` and `lift`."""

    params: Any
    functions: Functions = static()
    shapes: tuple[Shape, Shape] = static()
    traced_dtype: Any = static(default=None)

    @property
    def in_shape(self) -> Shape:
        """Shape of one input, without batch axes."""
        return self.shapes[0]

    @property
    def out_shape(self) -> Shape:
        """Shape of one output, without batch axes."""
        return self.shapes[1]

    @property
    def dtype(self) -> Any:
        """The dtype that a lifted function was traced in; None for one that is traced at every call."""
        return self.traced_dtype

    @property
    def has_rule(self) -> bool:
        """Whether a transpose or a parameter pullback was given."""
        return self.functions.transpose is not None or self.functions.params_vjp is not None

    def apply(self, x: "Array") -> "Array":
        """apply(params, x) over every batch axis."""
        return self._over_batch(self.functions.apply, "apply", x, self.in_shape)

    def transpose_apply(self, y: "Array") -> "Array":
        """transpose(params, y) over every batch axis if given, else `jax.linear_transpose` of apply."""
        if self.functions.transpose is None:
            return super().transpose_apply(y)
        return self._over_batch(self.functions.transpose, "transpose", y, self.out_shape)

    def params_vjp(self, x: "Array", ybar: "Array") -> Self:
        """params_vjp(params, x, ȳ) summed over the batch if given, else `jax.vjp` of apply in params."""
        if self.functions.params_vjp is None:
            return super().params_vjp(x, ybar)
        n = size(self._batch(x, self.in_shape))
        flat_x, flat_ybar = x.reshape(n, *self.in_shape), ybar.reshape(n, *self.out_shape)
        if self.functions.batched:
            bars = self.functions.params_vjp(self.params, flat_x, flat_ybar)
        else:
            each = jax.vmap(self.functions.params_vjp, in_axes=(None, 0, 0))(self.params, flat_x, flat_ybar)
            bars = jax.tree.map(lambda p, c: jnp.sum(c, 0) if is_inexact(p) else c, self.params, each)
        return type(self)(bars, self.functions, self.shapes, self.traced_dtype)

    def _over_batch(self, step: Any, name: str, x: "Array", in_shape: Shape) -> "Array":
        batch = self._batch(x, in_shape)
        if self.functions.batched:
            y = step(self.params, x.reshape(size(batch), *in_shape))
            y = y.reshape(*batch, *y.shape[1:])
        else:
            for _ in batch:
                step = jax.vmap(step, in_axes=(None, 0))
            y = step(self.params, x)
        if y.dtype != x.dtype:
            raise TypeError(f"linear_map: expected {name} to keep the dtype {x.dtype} of its input, got {y.dtype}")
        return y

    def _details(self) -> str:
        given = [name for name in ("transpose", "params_vjp") if getattr(self.functions, name) is not None]
        return f", by hand: {' and '.join(given)}" if given else ""


def linear_map(
    apply: Callable[[Any, "Array"], "Array"],
    in_shape: int | tuple[int, ...],
    *,
    params: Any = (),
    transpose: Callable[[Any, "Array"], "Array"] | None = None,
    params_vjp: Callable[[Any, "Array", "Array"], Any] | None = None,
    batched: bool = False,
) -> FunctionMap:
    """A `LinearMap` from any callable `apply(params, x)`, a fused kernel with its own derivatives included.

    Args:
      apply: `(params, x: in_shape) -> out_shape`, linear in x. Batch axes are added by `jax.vmap`.
      in_shape: shape of one input.
      params: any pytree; gradients reach its floating leaves.
      transpose: `(params, y: out_shape) -> in_shape`; by default `jax.linear_transpose` of apply. Given it,
        `jax.grad` never differentiates apply in x.
      params_vjp: `(params, x, ybar) -> cotangents` of params' structure, where `<ybar, d apply>` is to be
        pulled back; by default `jax.vjp` of apply in params. Given it, apply is never differentiated in params.
      batched: the functions take one leading batch axis themselves, `x: (n, *in_shape)`, and params_vjp sums
        over it. A kernel that tiles the batch wants this.

    Returns:
      A map whose leaves are those of `params`. Functions are compared by identity: define them once, outside of
      the training step, or each new one will be traced anew.

    Raises:
      TypeError: something other than one array is returned, or a dtype changes, or a hand-written rule meets
        traced arrays that the functions close over (pass those through `params`).
      ValueError: apply is visibly not linear in x, or a given function returns other shapes than it must.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> kernel = jnp.array([1.0, -1.0])
    >>> A = fj.linear_map(lambda k, x: jnp.convolve(x, k), in_shape=(3,), params=kernel)
    >>> A.as_matrix().astype(int).tolist()
    [[1, 0, 0], [-1, 1, 0], [0, -1, 1], [0, 0, -1]]
    """
    where = "linear_map"
    for name, value in (("apply", apply), ("transpose", transpose), ("params_vjp", params_vjp)):
        if not callable(value) and (value is not None or name == "apply"):
            raise TypeError(f"{where}: expected {name} to be callable, got {shown(value)}")
    in_shape = check_shape(in_shape, where, "in_shape")
    one = (1,) if batched else ()
    traced = _trace(apply, params, one + in_shape, _dtypes_to_try(params), where)
    out_shape = traced.out.shape
    if batched:
        if out_shape[:1] != (1,):
            raise ValueError(f"{where}: expected a batched apply to return (1, ...) for one input, got {out_shape}")
        out_shape = out_shape[1:]
    by_hand = transpose is not None or params_vjp is not None
    if contains_tracer(traced.closed.consts):
        if by_hand or batched:
            raise TypeError(
                f"{where}: expected functions with hand-written rules or batched=True to close over no traced "
                "array, but apply does; pass it through params="
            )
        return _lifted(traced, params, (in_shape, out_shape))
    functions = Functions(apply, transpose, params_vjp, batched)
    _check_rules(functions, params, one, in_shape, out_shape, traced.x.dtype, where)
    return FunctionMap(params, functions, (in_shape, out_shape))


def linearize(f: Callable[["Array"], "Array"], x: "Array") -> FunctionMap:
    """The derivative of `f` at `x`, as a `LinearMap`: `A(t)` is the jvp, `A.T(y)` the vjp.

    Args:
      f: a function of one floating array that returns one floating array of the same dtype.
      x: the point, any shape; the map's `in_shape` is all of it.

    Raises:
      TypeError: x or f(x) is not a floating array, or the dtypes differ.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> A = fj.linearize(lambda x: x**2, jnp.array([1.0, 2.0, 3.0]))
    >>> A.as_matrix().diagonal().tolist()
    [2.0, 4.0, 6.0]
    """
    check_floating(x, "linearize", "x")
    x = jnp.asarray(x)
    y, jvp = jax.linearize(f, x)
    if not is_array(y) or y.dtype != x.dtype:
        got = f"an array of {y.dtype}" if is_array(y) else type(y).__name__
        raise TypeError(f"linearize: expected f(x) to be one array of dtype {x.dtype}, got {got}")
    traced = _trace(lambda _, t: jvp(t), (), x.shape, [x.dtype], "linearize")
    return _lifted(traced, (), (x.shape, y.shape))


def lift(f: Any, x: Any, where: str, name: str) -> LinearMap:
    """`f` itself if it is a LinearMap, else the bare callable as a map on the whole array `x`."""
    if isinstance(f, LinearMap):
        for leaf in jax.tree.leaves(f):
            if isinstance(leaf, LinearMap):
                raise TypeError(
                    f"{where}: expected {name} to be a pytree, but {type(leaf).__name__} is not registered: "
                    "decorate it with jax.tree_util.register_dataclass"
                )
        return f
    if not callable(f):
        hint = "; Dense(weight) makes a map of a weight" if is_array(f) else ""
        raise TypeError(f"{where}: expected {name} to be a LinearMap or a callable, got {shown(f)}{hint}")
    traced = _trace(lambda _, t: f(t), (), x.shape, [x.dtype], f"{where}: {name}")
    shapes = (x.shape, traced.out.shape)
    if contains_tracer(traced.closed.consts):
        return _lifted(traced, (), shapes)
    return FunctionMap((), Functions(lambda _, t: f(t)), shapes)


# ------------------------------------------------------------------------------------------ tracing


class _Traced(NamedTuple):
    closed: Any  # a ClosedJaxpr of (*leaves of params, x)
    x: jax.ShapeDtypeStruct
    out: jax.ShapeDtypeStruct


def _dtypes_to_try(params: Any) -> list[Any]:
    """A function may fix its dtype by what it closes over; under strict promotion only that one traces."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    first = leaves[0].dtype if leaves and is_array(leaves[0]) else jnp.result_type(float)
    candidates = (first, jnp.result_type(float), "float32", "bfloat16", "float16")
    return list(dict.fromkeys(jnp.dtype(candidate) for candidate in candidates))


def _trace(f: Any, params: Any, x_shape: Shape, dtypes: list[Any], where: str) -> _Traced:
    failure: Exception | None = None
    for dtype in dtypes:
        x = jax.ShapeDtypeStruct(x_shape, dtype)
        try:
            closed, out = jax.make_jaxpr(f, return_shape=True)(params, x)
        except (TypeError, ValueError) as error:
            failure = failure or error
            continue
        if not isinstance(out, jax.ShapeDtypeStruct):
            raise TypeError(f"{where}: expected the function to return one array, got a {type(out).__name__}")
        if out.dtype != dtype:
            failure = failure or TypeError(
                f"expected the function to keep the dtype {dtype} of its input, got {out.dtype}"
            )
            continue
        _check_linear(closed, params, x, where)
        return _Traced(closed, x, out)
    assert failure is not None
    raise type(failure)(f"{where}: the function fails on x of shape {x_shape}: {failure}") from failure


def _check_linear(closed: Any, params: Any, x: jax.ShapeDtypeStruct, where: str) -> None:
    leaves = jax.tree.leaves(params)
    (kind,) = classify(closed, [Kind.CONST] * len(leaves) + [Kind.LINEAR])
    if kind is Kind.AFFINE and not contains_tracer((closed.consts, leaves)):
        with jax.ensure_compile_time_eval():  # such as g(x) - g(0), whose constant cancels
            (at_zero,) = jex.jaxpr_as_fun(closed)(*leaves, jnp.zeros(x.shape, x.dtype))
            kind = Kind.AFFINE if bool(jnp.any(at_zero != 0)) else Kind.LINEAR
    if kind in (Kind.AFFINE, Kind.CONST):
        raise ValueError(
            f"{where}: expected a function that is linear in x, got an affine one: it adds a constant (a bias?); "
            "give the constant as the bias, or take linearize(f, x)"
        )
    if kind is Kind.NONLINEAR:
        raise ValueError(
            f"{where}: expected a function that is linear in x, got a non-linear one; "
            "for its derivative at x take linearize(f, x)"
        )


def _lifted(traced: _Traced, params: Any, shapes: tuple[Shape, Shape]) -> FunctionMap:
    """The traced program as a map whose leaves are the arrays that the function closed over, and params."""

    def apply(leaves: Any, x: "Array") -> "Array":
        consts, inner = leaves
        return evaluate_with_consts(traced.closed, consts, *jax.tree.leaves(inner), x)[0]

    return FunctionMap((tuple(traced.closed.consts), params), Functions(apply), shapes, traced.x.dtype)


def _check_rules(
    functions: Functions, params: Any, one: Shape, in_shape: Shape, out_shape: Shape, dtype: Any, where: str
) -> None:
    """Traces the hand-written rules once, so that a wrong shape is told here and not in the backward pass."""
    x, y = (jax.ShapeDtypeStruct(one + shape, dtype) for shape in (in_shape, out_shape))
    if functions.transpose is not None:
        closed, out = jax.make_jaxpr(functions.transpose, return_shape=True)(params, y)
        _check_closure(closed, where, "transpose")
        got = out.shape if is_array(out) else out
        if got != x.shape:
            raise ValueError(f"{where}: expected transpose to return shape {x.shape} for y of {y.shape}, got {got}")
        if out.dtype != dtype:
            raise TypeError(f"{where}: expected transpose to keep the dtype {dtype} of its input, got {out.dtype}")
    if functions.params_vjp is not None:
        closed, out = jax.make_jaxpr(functions.params_vjp, return_shape=True)(params, x, y)
        _check_closure(closed, where, "params_vjp")
        expected, got = (jax.tree.map(jnp.shape, tree) for tree in (params, out))
        if expected != got:
            raise ValueError(f"{where}: expected params_vjp to return the shapes of params {expected}, got {got}")
        for p, c in zip(jax.tree.leaves(params), jax.tree.leaves(out), strict=True):
            if is_inexact(p) and not jnp.issubdtype(c.dtype, jnp.inexact):
                raise TypeError(f"{where}: expected params_vjp to return floating cotangents, got {c.dtype}")


def _check_closure(closed: Any, where: str, name: str) -> None:
    if contains_tracer(closed.consts):
        raise TypeError(f"{where}: expected {name} to close over no traced array; pass it through params=")
