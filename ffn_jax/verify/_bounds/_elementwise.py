"""Error bounds of elementwise primitives.

For out = f(a, b) with operands known to ea, eb:  |error| ≤ |∂f/∂a| ea + |∂f/∂b| eb + c u |out|,  the
derivatives taken as the largest over the ends and the middle of [a - ea, a + ea]. c is 1 for arithmetic. For
elementary functions c was measured against 40-digit arithmetic on XLA's CPU backend in float32 and float64,
and rounded up to a power of two.

A comparison whose operands are closer than their errors, or equal (a kink such as relu's at 0), may go either
way. Its result carries an error of 1, and a selection by it is known only to within the distance of its
cases.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ffn_jax.verify._bounds._model import Bound, Error, Precision, largest, plus, times
from ffn_jax.verify._bounds._registry import Context, anywhere, is_float, rule, unknown_where

# Accuracy of elementary functions, in units of u.
_UNITS = {
    "exp": 4,
    "exp2": 128,
    "expm1": 8,
    "log": 4,
    "log1p": 32,
    "tanh": 8,
    "erf": 8,
    "erfc": 128,
    "logistic": 4,
    "rsqrt": 4,
    "sqrt": 2,
    "cbrt": 8,
    "sin": 4,
    "cos": 4,
    "tan": 4,
    "asin": 4,
    "acos": 4,
    "atan": 4,
    "sinh": 32,
    "cosh": 32,
    "asinh": 8,
    "acosh": 8,
    "atanh": 256,
    "erf_inv": 64,
    "atan2": 4,
    "bessel_i0e": 32,
    "bessel_i1e": 32,
}
_HALF_UNIT_ROUNDOFF = 2.0**-12  # float16 and bfloat16 are computed in float32 and rounded once


@rule("add", "sub", "add_any")
def _add(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (a, ea), (b, eb) = operands
    out = ctx.evaluate(a, b)
    return [Bound(out, plus(ea, eb, ctx.rounding(out)))]


@rule("mul")
def _mul(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (a, ea), (b, eb) = operands
    out = ctx.evaluate(a, b)
    second_order = Error() if ea.exact or eb.exact else Error(times(ea.total(), eb.total()))
    first_order = plus(ea.scaled(jnp.abs(b)), eb.scaled(jnp.abs(a)))
    return [Bound(out, plus(first_order, second_order, ctx.rounding(out)))]


@rule("square")
def _square(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    return _mul_like_power(ctx, operands[0], 2, 1)


@rule("integer_pow")
def _integer_pow(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    y = ctx.params["y"]
    return _mul_like_power(ctx, operands[0], y, max(abs(y), 1))


def _mul_like_power(ctx: Context, operand: Bound, y: int, units: int) -> list[Bound]:
    x, e = operand
    out = ctx.evaluate(x)
    if y == 0:
        return [Bound(out, Error())]
    total = e.total()
    # the slope is largest at the far end for y >= 1 and at the near end for y < 0
    end = jnp.abs(x) + total if y >= 1 else jnp.maximum(jnp.abs(x) - total, 0.0)
    return [Bound(out, plus(e.scaled(abs(y) * end ** (y - 1)), ctx.rounding(out, units)))]


@rule("div")
def _div(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (a, ea), (b, eb) = operands
    out = ctx.evaluate(a, b)
    near = jnp.abs(b) - eb.total()
    smallest_divisor = jnp.where(near > 0, near, 0.0)
    error = plus(ea, eb.scaled(jnp.where(jnp.isinf(out), 1.0, jnp.abs(out))))
    error = error.each(lambda part: jnp.where(part == 0, 0.0, part / smallest_divisor))
    return [Bound(out, plus(error, ctx.rounding(out)))]


@rule("neg", "real", "copy", "copy_p", "abs")
def _isometry(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (x, e) = operands[0]
    return [Bound(ctx.evaluate(x), e)]


@rule(*(name for name in _UNITS if name != "atan2"), "lgamma", "digamma")
def _elementary(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (x, e) = operands[0]
    out = ctx.evaluate(x)
    error = e if e.exact else e.scaled(_steepest(ctx, (x,), (e.total(),), 0))
    return [Bound(out, plus(error, _evaluation_error(ctx, out, x)))]


@rule("one_minus_square")  # (1 - x)(1 + x), from JAX 0.12 on
def _one_minus_square(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (x, e) = operands[0]
    out = ctx.evaluate(x)
    return [Bound(out, plus(e.scaled(2 * jnp.abs(x) + e.total()), ctx.rounding(out, 3)))]


@rule("exp_neg_sq")  # exp(-x²), which JAX 0.12 differentiates erf by; the steepest slope is at 1/sqrt(2)
def _exp_neg_sq(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (x, e) = operands[0]
    out = jnp.exp(-x * x)
    near = jnp.maximum(jnp.abs(x) - e.total(), 0.0)
    slope = 2 * (jnp.abs(x) + e.total()) * jnp.exp(-near * near)
    return [Bound(out, plus(e.scaled(slope), ctx.rounding(out, 8)))]


@rule("polynomial")  # Horner's rule, from JAX 0.12 on: a0 + x (a1 + x (a2 + ...))
def _polynomial(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (x, ex), *coefficients = operands
    value, error = coefficients[-1]
    for a, ea in coefficients[-2::-1]:
        product = x * value
        second_order = Error() if ex.exact or error.exact else Error(times(ex.total(), error.total()))
        error = plus(error.scaled(jnp.abs(x)), ex.scaled(jnp.abs(value)), second_order, ctx.rounding(product))
        value = product + a
        error = plus(error, ea.spread(), ctx.rounding(value))
    return [Bound(value, error)]


@rule("pow", "atan2")
def _binary(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    values = [value if is_float(value) else jnp.asarray(value, jnp.float64) for value, _ in operands]
    errors = [error for _, error in operands]
    out = ctx.evaluate(*values)
    totals = tuple(error.total() for error in errors)
    parts = [
        error.scaled(_steepest(ctx, tuple(values), totals, i))
        for i, error in enumerate(errors)
        if not error.exact and is_float(operands[i].value)
    ]
    if ctx.eqn.primitive.name == "pow":  # exp(y log x): the error of the logarithm is multiplied by y
        units: Any = 8 * (1 + jnp.abs(values[1] * jnp.log(jnp.maximum(jnp.abs(values[0]), 1e-300))))
    else:
        units = _UNITS["atan2"]
    return [Bound(out, plus(*parts, ctx.rounding(out, units)))]


def _steepest(ctx: Context, values: tuple[Any, ...], totals: tuple[Any, ...], i: int) -> Any:
    """The largest |∂f/∂valueᵢ| over the ends and middle of the interval (statistical: its middle)."""

    def slope(shift: Any) -> Any:
        moved = lambda v: ctx.evaluate(*values[:i], v, *values[i + 1 :])  # noqa: E731
        return jnp.abs(jax.jvp(moved, (values[i] + shift,), (jnp.ones_like(values[i]),))[1])

    if ctx.model.statistical:
        return slope(0.0)
    # one batched evaluation keeps the compiled program small
    shifts = jnp.stack([jnp.broadcast_to(sign * totals[i], values[i].shape) for sign in (-1.0, 0.0, 1.0)])
    slopes = jax.vmap(slope)(shifts)
    return jnp.where(totals[i] == 0, slopes[1], jnp.max(slopes, axis=0))


def _evaluation_error(ctx: Context, out: Any, x: Any) -> Error:
    name = ctx.eqn.primitive.name
    if ctx.precision.u >= _HALF_UNIT_ROUNDOFF:
        return ctx.rounding(out)
    if name in ("lgamma", "digamma"):  # relative accuracy is lost near their zeros
        return ctx.rounding(64 * (jnp.abs(out) + 1 + jnp.abs(x)))
    return ctx.rounding(out, _UNITS[name])


# --- choices ------------------------------------------------------------------------------------------------


@rule("eq", "ne", "lt", "le", "gt", "ge")
def _compare(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (a, ea), (b, eb) = operands
    out = ctx.evaluate(a, b)
    same = ctx.eqn.invars[0] is ctx.eqn.invars[1]  # x != x asks for NaN
    if (ea.exact and eb.exact) or same:
        return [Bound(out, Error())]
    distance = jnp.abs(a - b) if is_float(a) else jnp.where(a == b, 0.0, 1.0)
    slack = ea.total() + eb.total()
    undecided = (distance <= slack) | jnp.isnan(slack) if is_float(a) else slack > 0
    return [Bound(out, Error(jnp.broadcast_to(jnp.where(undecided, 1.0, 0.0), out.shape)))]


@rule("select_n")
def _select(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (which, undecided), *cases = operands
    out = ctx.evaluate(which, *(case.value for case in cases))
    parts: list[Any] = []
    for each in zip(*(case.error for case in cases), strict=True):
        if all(part is None for part in each):
            parts.append(None)
        else:
            filled = [jnp.zeros(out.shape) if part is None else jnp.broadcast_to(part, out.shape) for part in each]
            parts.append(ctx.evaluate(which, *filled))
    error = Error(*parts)
    if not undecided.exact:
        distance = jnp.zeros(out.shape)
        for value, case_error in cases:
            gap = jnp.abs(jnp.asarray(value, jnp.float64) - jnp.asarray(out, jnp.float64))
            gap = jnp.where(value == out, 0.0, gap)
            distance = jnp.maximum(distance, jnp.nan_to_num(gap, nan=jnp.inf, posinf=jnp.inf) + case_error.total())
        error = plus(error, Error(jnp.where(undecided.total() > 0, distance, 0.0)))
    return [Bound(out, error)]


@rule("max", "min")
def _max(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (a, ea), (b, eb) = operands
    out = ctx.evaluate(a, b)
    if not is_float(out):
        return exact_or_unknown(ctx, operands)
    a_wins, close = out == a, ~(jnp.abs(a - b) > ea.total() + eb.total())
    parts: list[Any] = []
    for one, other in zip(ea, eb, strict=True):
        if one is None and other is None:
            parts.append(None)
            continue
        one, other = (0.0 if part is None else part for part in (one, other))
        parts.append(jnp.where(close, jnp.maximum(one, other), jnp.where(a_wins, one, other)))
    return [Bound(out, Error(*parts))]


@rule("clamp")
def _clamp(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    out = ctx.evaluate(*(value for value, _ in operands))
    if not is_float(out):
        return exact_or_unknown(ctx, operands)
    low, x, high = (error.each(lambda part: jnp.broadcast_to(part, out.shape)) for _, error in operands)
    return [Bound(out, largest(largest(low, high), x))]


@rule("sign", "floor", "ceil", "round", "rem", "nextafter")
def _jump(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    out = ctx.evaluate(*(value for value, _ in operands))
    if len(operands) > 1 or not is_float(out):
        return exact_or_unknown(ctx, operands)
    (x, e) = operands[0]
    if e.exact:
        return [Bound(out, e)]
    above, below = (ctx.evaluate(x + shift) for shift in (e.total(), -e.total()))
    return [Bound(out, Error(jnp.maximum(jnp.abs(above - out), jnp.abs(out - below))))]


@rule("is_finite")
def _is_finite(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    return [Bound(ctx.evaluate(operands[0].value), Error())]


@rule("and", "or", "xor", "not")
def _logic(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    out = ctx.evaluate(*(value for value, _ in operands))
    if out.dtype != jnp.bool_:
        return exact_or_unknown(ctx, operands)
    error = operands[0].error
    for _, other in operands[1:]:
        error = largest(error, other)
    return [Bound(out, error)]


# --- casts --------------------------------------------------------------------------------------------------


@rule("convert_element_type", "reduce_precision")
def _cast(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (x, e) = operands[0]
    source, target = ctx.eqn.invars[0].aval.dtype, ctx.eqn.outvars[0].aval.dtype
    if ctx.eqn.primitive.name == "reduce_precision":
        u = 2.0 ** -(ctx.params["mantissa_bits"] + 1)
        return [Bound(x, plus(e, ctx.model.rounding(u * jnp.abs(x) + ctx.precision.smallest)))]
    out = ctx.evaluate(x)
    if not jnp.issubdtype(target, jnp.floating):
        if not is_float(x):
            return exact_or_unknown(ctx, operands) if target != jnp.bool_ else [Bound(out, e)]
        if e.exact:
            return [Bound(out, e)]
        if target == jnp.bool_:
            return [Bound(out, Error(jnp.where(jnp.abs(x) > e.total(), 0.0, 1.0)))]
        above, below = jnp.trunc(x + e.total()), jnp.trunc(x - e.total())
        return [Bound(out, Error(jnp.maximum(jnp.abs(above - jnp.trunc(x)), jnp.abs(jnp.trunc(x) - below))))]
    if not jnp.issubdtype(source, jnp.floating):  # integers up to 2^p are exact
        rounded = jnp.where(jnp.abs(out) <= 1 / ctx.precision.u, 0.0, ctx.precision.u * jnp.abs(out))
        return [Bound(out, e if source == jnp.bool_ else plus(e, ctx.model.rounding(rounded)))]
    narrower = ctx.precision.u > Precision.of(source).u or ctx.precision.smallest > Precision.of(source).smallest
    return [Bound(out, plus(e, ctx.rounding(out)) if narrower else e)]


@rule("bitcast_convert_type")
def _bitcast(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (x, e) = operands[0]
    source, target = ctx.eqn.invars[0].aval.dtype, ctx.eqn.outvars[0].aval.dtype
    out = ctx.eqn.primitive.bind(jnp.asarray(x, source), new_dtype=target)
    if is_float(out):
        out = jnp.asarray(out, jnp.float64)
    return [Bound(out, Error() if e.exact else unknown_where(anywhere(e), out.shape))]


def exact_or_unknown(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    """Results that are exact when every operand is, and unknown otherwise."""
    outs = ctx.evaluate(*(value for value, _ in operands))
    outs = list(outs) if ctx.eqn.primitive.multiple_results else [outs]
    errors = [error for _, error in operands if not error.exact]
    if not errors:
        return [Bound(out, Error()) for out in outs]
    wrong = jnp.any(jnp.stack([anywhere(error) for error in errors]))
    return [Bound(out, unknown_where(wrong, out.shape)) for out in outs]
