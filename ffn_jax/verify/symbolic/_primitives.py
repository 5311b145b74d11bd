"""What each JAX primitive does to tensors in index notation: one small function for each.

Read over the reals: a change of float format is the identity, an integer does not overflow, float to integer
is refused.
"""

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from ffn_jax.verify.symbolic import _ranges as ranges
from ffn_jax.verify.symbolic._atoms import Step
from ffn_jax.verify.symbolic._functions import HALF, function, power, step
from ffn_jax.verify.symbolic._polynomials import ONE, ZERO, Poly, as_poly, entry, size_polynomial
from ffn_jax.verify.symbolic._sizes import Size, is_one
from ffn_jax.verify.symbolic._sums import delta, sum_over
from ffn_jax.verify.symbolic._tensors import (
    Tensor,
    contract,
    elementwise,
    new_axis,
    reshaped,
    scalar,
)
from ffn_jax.verify.symbolic._workspace import Unsupported, workspace

Rule = Callable[..., list[Tensor]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function of (eqn, *tensors) as what these primitives do."""

    def register(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        for name in names:
            RULES[name] = lambda eqn, *ins: [f(eqn, *ins)]
        return f

    return register


def _is_float(eqn: Any) -> bool:
    return bool(jax.numpy.issubdtype(eqn.outvars[0].aval.dtype, np.floating))


def _is_bool(eqn: Any) -> bool:
    return bool(eqn.outvars[0].aval.dtype == np.bool_)


# --------------------------------------------------------------------------------------------------
# elementwise


def _unary(name: str, op: Callable[[Poly], Poly]) -> None:
    RULES[name] = lambda eqn, a: [Tensor(a.axes, op(a.entry))]


def _binary(name: str, op: Callable[[Poly, Poly], Poly]) -> None:
    RULES[name] = lambda eqn, a, b: [elementwise(op, a, b)]


for _name in (
    "exp",
    "exp2",
    "tanh",
    "erf",
    "erfc",
    "logistic",
    "log",
    "log1p",
    "expm1",
    "sin",
    "cos",
    "tan",
    "sinh",
):
    _unary(_name, lambda p, name=_name: function(name, p))  # type: ignore[misc]
_unary("cosh", lambda p: function("cosh", p))
_unary("neg", lambda p: -p)
_unary("square", lambda p: p * p)
_unary("one_minus_square", lambda p: ONE - p * p)
_unary("sqrt", lambda p: power(p, HALF))
_unary("rsqrt", lambda p: power(p, -HALF))
_unary("cbrt", lambda p: power(p, Fraction(1, 3)))
_unary("abs", lambda p: p * (2 * step(p) - 1))
_unary("is_finite", lambda p: ONE)
for _name in ("copy", "copy_p", "reduce_precision", "name", "sharding_constraint", "pvary"):
    _unary(_name, lambda p: p)
_binary("add", lambda p, q: p + q)
_binary("add_any", lambda p, q: p + q)
_binary("sub", lambda p, q: p - q)
_binary("mul", lambda p, q: p * q)
_binary("max", lambda p, q: q + (p - q) * step(p - q))
_binary("min", lambda p, q: p - (p - q) * step(p - q))


def _comparison(name: str, op: Callable[[Poly, Poly, bool], Poly]) -> None:
    """The comparison p > q is [p - q > 0]; of integers, [p - q - 1/2 > 0], which has no kink."""

    def apply(eqn: Any, a: Tensor, b: Tensor) -> list[Tensor]:
        floats = jax.numpy.issubdtype(eqn.invars[0].aval.dtype, np.floating)
        half = ZERO if floats else as_poly(HALF)
        return [elementwise(lambda p, q: op(p - q, half, bool(floats)), a, b)]

    RULES[name] = apply


_comparison("gt", lambda d, half, kink: step(d - half, kink=kink))
_comparison("lt", lambda d, half, kink: step(-d - half, kink=kink))
_comparison("ge", lambda d, half, kink: ONE - step(-d - half, kink=kink))
_comparison("le", lambda d, half, kink: ONE - step(d - half, kink=kink))


@rule("div")
def _div(eqn: Any, a: Tensor, b: Tensor) -> Tensor:
    if not _is_float(eqn):
        raise Unsupported("integer division")
    return elementwise(lambda p, q: p * power(q, -1), a, b)


@rule("integer_pow")
def _integer_pow(eqn: Any, a: Tensor) -> Tensor:
    return Tensor(a.axes, power(a.entry, eqn.params["y"]))


@rule("pow")
def _pow(eqn: Any, a: Tensor, b: Tensor) -> Tensor:
    exponent = b.entry.constant
    if exponent is None or not _is_float(eqn):
        raise Unsupported("a variable exponent")
    return Tensor(a.axes or b.axes, power(a.entry, exponent))


@rule("sign")
def _sign(eqn: Any, a: Tensor) -> Tensor:
    if not _is_float(eqn):
        raise Unsupported("the sign of an integer")
    workspace.assume("off the kink", a.entry)
    return Tensor(a.axes, 2 * step(a.entry) - 1)


@rule("not")
def _not(eqn: Any, a: Tensor) -> Tensor:
    return Tensor(a.axes, ONE - _boolean(eqn, a).entry)


@rule("and")
def _and(eqn: Any, a: Tensor, b: Tensor) -> Tensor:
    return elementwise(lambda p, q: p * q, _boolean(eqn, a), b)


@rule("or")
def _or(eqn: Any, a: Tensor, b: Tensor) -> Tensor:
    return elementwise(lambda p, q: p + q - p * q, _boolean(eqn, a), b)


def _boolean(eqn: Any, a: Tensor) -> Tensor:
    if not _is_bool(eqn):
        raise Unsupported("bitwise arithmetic of integers")
    return a


@rule("convert_element_type")
def _convert(eqn: Any, a: Tensor) -> Tensor:
    old = eqn.invars[0].aval.dtype
    if not _is_float(eqn) and jax.numpy.issubdtype(old, np.inexact) and a.entry.constant is None:
        raise Unsupported("a conversion from a float to another type")
    if _is_bool(eqn) and old != np.bool_ and a.entry.constant not in (0, 1):
        raise Unsupported("a conversion from a number to a bool")
    return a


@rule("clamp")
def _clamp(eqn: Any, low: Tensor, x: Tensor, high: Tensor) -> Tensor:
    x = elementwise(lambda p, q: q + (p - q) * step(p - q), x, low)
    return elementwise(lambda p, q: p - (p - q) * step(p - q), x, high)


@rule("select_n")
def _select(eqn: Any, condition: Tensor, *cases: Tensor) -> Tensor:
    chosen = condition.entry.constant
    if chosen is not None and not condition.axes:
        return cases[int(chosen)]
    if len(cases) != 2 or eqn.invars[0].aval.dtype != np.bool_:
        raise Unsupported("a selection among other than two cases")
    if chosen is not None:
        return cases[int(chosen)]
    no, yes = cases
    unless = Tensor(condition.axes, ONE - condition.entry)
    return elementwise(
        lambda p, q: p + q,
        elementwise(lambda p, q: p * q, condition, yes),
        elementwise(lambda p, q: p * q, unless, no),
    )


# ------------------------------------------------------------------------------------------------ comparison
# for equality


def _equal(p: Poly, q: Poly, is_float: bool) -> Poly:
    d = p - q
    if d.constant is not None:
        return ONE if d.is_zero else ZERO
    i, j = ranges.counter(p), ranges.counter(q)
    if i is not None and j is not None:
        return delta(i, j)
    if not is_float:
        raise Unsupported("a comparison of integers for equality")
    # p - q = f [c > 0] with f nonzero: equal exactly where c <= 0 (how JAX differentiates max)
    steps = {a for m in d.terms for a, _ in m if isinstance(a, Step)}
    for s in steps:
        factor = Poly(
            {tuple((a, e) for a, e in m if a is not s): c for m, c in d.terms.items() if any(a is s for a, _ in m)}
        )
        indicator = Poly({((s, 1),): 1})
        if (d - factor * indicator).is_zero:
            workspace.assume("off the kink", factor)
            return ONE - indicator
        if (d - factor * (indicator - 1)).is_zero:
            workspace.assume("off the kink", factor)
            return indicator
    if steps:
        raise Unsupported("a comparison of floats for equality")
    workspace.assume("off the kink", d)
    return ZERO


@rule("eq")
def _eq(eqn: Any, a: Tensor, b: Tensor) -> Tensor:
    floats = bool(jax.numpy.issubdtype(eqn.invars[0].aval.dtype, np.floating))
    return elementwise(lambda p, q: _equal(p, q, floats), a, b)


@rule("ne")
def _ne(eqn: Any, a: Tensor, b: Tensor) -> Tensor:
    floats = bool(jax.numpy.issubdtype(eqn.invars[0].aval.dtype, np.floating))
    return elementwise(lambda p, q: ONE - _equal(p, q, floats), a, b)


# ------------------------------------------------------------------------------------------------------
# structure


@rule("dot_general")
def _dot_general(eqn: Any, a: Tensor, b: Tensor) -> Tensor:
    (ca, cb), (ba, bb) = eqn.params["dimension_numbers"]
    return contract(a, b, list(zip(ca, cb, strict=True)), list(zip(ba, bb, strict=True)))


@rule("broadcast_in_dim")
def _broadcast(eqn: Any, a: Tensor, *_: Tensor) -> Tensor:
    shape = eqn.params["shape"]
    axes = [new_axis(s) for s in shape]
    for own, d in enumerate(eqn.params["broadcast_dimensions"]):
        if a.axes[own] or is_one(shape[d]):
            axes[d] = a.axes[own]
    return Tensor(axes, a.entry)


@rule("reshape")
def _reshape(eqn: Any, a: Tensor, *_: Tensor) -> Tensor:
    if eqn.params.get("dimensions") is not None:
        raise Unsupported("a reshape with dimensions")
    return reshaped(a, eqn.params["new_sizes"])


@rule("reduce_sum")
def _reduce_sum(eqn: Any, a: Tensor) -> Tensor:
    axes = eqn.params["axes"]
    kept = [axis for k, axis in enumerate(a.axes) if k not in axes]
    return Tensor(kept, sum_over([i for k in axes for i in a.axes[k]], a.entry))


@rule("transpose")
def _transpose(eqn: Any, a: Tensor) -> Tensor:
    return Tensor([a.axes[k] for k in eqn.params["permutation"]], a.entry)


@rule("squeeze")
def _squeeze(eqn: Any, a: Tensor) -> Tensor:
    gone = {d % len(a.axes) for d in eqn.params["dimensions"]}
    return Tensor([axis for k, axis in enumerate(a.axes) if k not in gone], a.entry)


@rule("iota")
def _iota(eqn: Any, *_: Tensor) -> Tensor:
    shape, k = eqn.params["shape"], eqn.params["dimension"]
    axes = [new_axis(s) for s in shape]
    return Tensor(axes, entry(f"iota:{shape[k]}", [axes[k]]) if axes[k] else ZERO)


@rule("dim_as_value")
def _dim_as_value(eqn: Any, *_: Tensor) -> Tensor:
    return scalar(size_polynomial(eqn.params["dim"]))


def _plain(size: Size) -> Size:
    return int(size) if isinstance(size, np.integer) else size


@rule("slice")
def _slice(eqn: Any, a: Tensor) -> Tensor:
    p = eqn.params
    if p["strides"] is not None and any(s != 1 for s in p["strides"]):
        raise Unsupported("a strided slice")
    for axis, (start, stop) in enumerate(zip(p["start_indices"], p["limit_indices"], strict=True)):
        a = ranges.part(a, axis, _plain(start), _plain(stop), eqn.invars[0].aval.shape[axis])
    return a


@rule("pad")
def _pad(eqn: Any, a: Tensor, value: Tensor) -> Tensor:
    if not value.entry.is_zero or any(inner for _, _, inner in eqn.params["padding_config"]):
        raise Unsupported("padding with other than zeros around")
    for axis, (low, _, _) in enumerate(eqn.params["padding_config"]):
        a = ranges.placed(a, axis, _plain(low), eqn.invars[0].aval.shape[axis], eqn.outvars[0].aval.shape[axis])
    return a


@rule("concatenate")
def _concatenate(eqn: Any, *pieces: Tensor) -> Tensor:
    axis, total = eqn.params["dimension"], eqn.outvars[0].aval.shape[eqn.params["dimension"]]
    out, start = None, 0
    for piece, var in zip(pieces, eqn.invars, strict=True):
        size = var.aval.shape[axis]
        whole = ranges.placed(piece, axis, start, size, total)
        out = whole if out is None else elementwise(lambda p, q: p + q, out, whole)
        start = start + size
    assert out is not None
    return out


def _split(eqn: Any, a: Tensor) -> list[Tensor]:
    axis, start, out = eqn.params["axis"], 0, []
    for size in map(_plain, eqn.params["sizes"]):
        out.append(ranges.part(a, axis, start, start + size, eqn.invars[0].aval.shape[axis]))
        start = start + size
    return out


def _unstack(eqn: Any, a: Tensor) -> list[Tensor]:
    axis = eqn.params["axis"]
    parts = [ranges.part(a, axis, k, k + 1, len(eqn.outvars)) for k in range(len(eqn.outvars))]
    return [Tensor([own for k, own in enumerate(t.axes) if k != axis], t.entry) for t in parts]


@rule("stack")
def _stack(eqn: Any, *pieces: Tensor) -> Tensor:
    axis, total = eqn.params["axis"], len(pieces)
    rows = [Tensor([*t.axes[:axis], (), *t.axes[axis:]], t.entry) for t in pieces]
    placed = [ranges.placed(t, axis, k, 1, total) for k, t in enumerate(rows)]
    return functools.reduce(lambda a, b: elementwise(lambda p, q: p + q, a, b), placed)


RULES["split"] = _split
RULES["unstack"] = _unstack
RULES["optimization_barrier"] = lambda eqn, *ins: list(ins)


def _dynamic_slice(eqn: Any, a: Tensor, *starts: Tensor) -> list[Tensor]:
    shape = eqn.invars[0].aval.shape
    for axis, (start, size) in enumerate(zip(starts, eqn.params["slice_sizes"], strict=True)):
        a = ranges.dynamic_part(a, axis, start.entry, size, shape[axis])
    return [a]


def _dynamic_update_slice(eqn: Any, a: Tensor, update: Tensor, *starts: Tensor) -> list[Tensor]:
    return [ranges.updated(a, update, [s.entry for s in starts], eqn.invars[0].aval.shape, eqn.invars[1].aval.shape)]


RULES["dynamic_slice"] = _dynamic_slice
RULES["dynamic_update_slice"] = _dynamic_update_slice
