"""Error bounds of sums and products over axes.

A contraction C = A·B with errors Ea, Eb errs by |A|·Eb + Ea·|B| + Ea·Eb plus its own rounding, whose size is
that of a sum of k terms in any order (`Model.accumulation`). Products in float16 and bfloat16 accumulate in
float32 and are rounded once, as every XLA backend does; sums in these types round at each step unless the
jaxpr says otherwise.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ffn_jax.verify._bounds._elementwise import exact_or_unknown
from ffn_jax.verify._bounds._model import Bound, Error, Precision, plus
from ffn_jax.verify._bounds._registry import Context, anywhere, is_float, rule, unknown_where


@rule("dot_general", "conv_general_dilated")
def _contraction(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (a, ea), (b, eb) = operands
    size_a, size_b = jnp.abs(a), jnp.abs(b)
    if not is_float(jnp.zeros((), ctx.eqn.outvars[0].aval.dtype)):
        return exact_or_unknown(ctx, operands)

    def contract(x: Any, y: Any) -> Any:
        x, y = (jnp.asarray(each, jnp.float64) for each in (x, y))
        return ctx.evaluate(x, y, preferred_element_type=jnp.dtype("float64"))

    out = contract(a, b)
    terms = _contracted_size(ctx)
    p = ctx.precision
    coarse = p.u > Precision.of(jnp.float32).u
    u = Precision.of(jnp.float32).u if coarse else p.u
    parts = [ctx.model.rounding(jnp.full(out.shape, terms * p.smallest))]
    if coarse:
        parts.append(ctx.rounding(out))
    if not ctx.model.statistical:
        # γ|A||B| + Ea|B| + |A|Eb + EaEb in two products
        grown = terms * u / (1 - terms * u) * size_a + ea.total()
        parts.append(Error(contract(grown, size_b)))
        if not eb.exact:
            parts.append(Error(contract(size_a + ea.total(), _full(eb, b))))
        return [Bound(out, plus(*parts))]
    parts.append(
        ctx.model.accumulation(
            terms, u, out, lambda: contract(size_a, size_b), lambda: contract(size_a * size_a, size_b * size_b)
        )
    )
    if not ea.exact:
        parts.append(ctx.model.weighted(ea, size_b, contract))
    if not eb.exact:
        parts.append(ctx.model.weighted(eb, size_a, lambda error, weights: contract(weights, error)))
    if not ea.exact and not eb.exact:
        parts.append(Error(contract(_full(ea, a), _full(eb, b))))
    return [Bound(out, plus(*parts))]


def _full(error: Error, like: Any) -> Any:
    return jnp.broadcast_to(error.total(), like.shape)


def _contracted_size(ctx: Context) -> int:
    a, b = (atom.aval for atom in ctx.eqn.invars)
    if ctx.eqn.primitive.name == "dot_general":
        (contracted, _), _ = ctx.params["dimension_numbers"]
        return max(1, int(math.prod(a.shape[i] for i in contracted)))
    out_features = b.shape[ctx.params["dimension_numbers"].rhs_spec[0]]
    return max(1, int(math.prod(b.shape)) // max(1, int(out_features)))


@rule("reduce_sum", "cumsum", "reduce_window_sum")
def _sum(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (x, e) = operands[0]
    out = ctx.evaluate(x)
    size = jnp.abs(x)
    name, shape = ctx.eqn.primitive.name, ctx.eqn.invars[0].aval.shape
    if name == "reduce_sum":
        terms = math.prod(shape[i] for i in ctx.params["axes"])
    elif name == "cumsum":
        terms = shape[ctx.params["axis"]]
    else:
        terms = math.prod(ctx.params["window_dimensions"])
    fresh = ctx.model.accumulation(
        max(terms - 1, 0),
        ctx.precision.u,
        out,
        lambda: ctx.evaluate(size),
        lambda: ctx.evaluate(size * size),
    )
    if terms <= 1:
        return [Bound(out, ctx.model.summed(e, ctx.evaluate))]
    return [Bound(out, plus(ctx.model.summed(e, ctx.evaluate), fresh))]


@rule("scatter-add")
def _scatter_add(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (x, ex), (index, ei), (updates, eu) = operands
    out = ctx.evaluate(x, index, updates)

    def scatter(into: Any, what: Any) -> Any:
        return ctx.evaluate(into, index, what)

    counts = scatter(jnp.zeros(x.shape), jnp.ones(updates.shape))
    fresh = ctx.model.accumulation(
        counts,
        ctx.precision.u,
        out,
        lambda: scatter(jnp.abs(x), jnp.abs(updates)),
        lambda: scatter(x * x, updates * updates),
    )
    moved = ctx.model.summed(eu, lambda part: scatter(jnp.zeros(x.shape), part))
    error = plus(ex, moved, fresh.each(lambda part: jnp.where(counts == 0, 0.0, part)))
    if not ei.exact:
        error = plus(error, unknown_where(anywhere(ei), out.shape))
    return [Bound(out, error)]


@rule("sort")
def _sort(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (key, e), *others = operands
    axis = ctx.params["dimension"]
    if e.exact or not is_float(key) or ctx.params["num_keys"] > 1:
        return exact_or_unknown(ctx, operands)
    outs = ctx.evaluate(*(value for value, _ in operands))
    error = jnp.max(_full(e, key), axis=axis, keepdims=True)
    bounds = [Bound(outs[0], Error(jnp.broadcast_to(error, key.shape)))]
    # what is carried along is known if the order is: no two neighbours are closer than their errors
    ambiguous = jnp.any(~(jnp.diff(outs[0], axis=axis) > 2 * error), axis=axis, keepdims=True)
    for out, (_, other) in zip(outs[1:], others, strict=True):
        moved = jnp.max(_full(other, key), axis=axis, keepdims=True)
        spread = Error(jnp.broadcast_to(moved, out.shape))
        bounds.append(Bound(out, plus(spread, unknown_where(ambiguous, out.shape))))
    return bounds


@rule("reduce_max", "reduce_min", "cummax", "cummin")
def _order_statistic(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    # each of these is 1-Lipschitz in the largest error along its axis
    if not is_float(operands[0].value):
        return exact_or_unknown(ctx, operands)
    (x, e) = operands[0]
    out = ctx.evaluate(x)
    if e.exact:
        return [Bound(out, e)]
    name, params = ctx.eqn.primitive.name, ctx.params
    error = _full(e, x)
    if name.startswith("reduce"):
        axes = tuple(params["axes"])
        return [Bound(out, Error(jnp.max(error, axis=axes, initial=0.0)))]
    axis = params["axis"]
    return [Bound(out, Error(jnp.broadcast_to(jnp.max(error, axis=axis, keepdims=True), out.shape)))]


@rule("argmax", "argmin")
def _argmax(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (x, e) = operands[0]
    out = ctx.evaluate(x)
    if e.exact or not is_float(x):
        return exact_or_unknown(ctx, operands)
    (axis,) = ctx.params["axes"]
    sign = 1.0 if ctx.eqn.primitive.name == "argmax" else -1.0
    error = _full(e, x)
    lowest = jnp.max(sign * x - error, axis=axis, keepdims=True)
    contenders = jnp.sum(sign * x + error >= lowest, axis=axis)
    return [Bound(out, unknown_where(contenders > 1, out.shape))]


@rule("reduce_prod", "cumprod")
def _product(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (x, e) = operands[0]
    out = ctx.evaluate(x)
    size = jnp.abs(x)
    grown = ctx.evaluate(size + e.total()) - ctx.evaluate(size)
    k = math.prod(x.shape[i] for i in ctx.params["axes"]) if "axes" in ctx.params else x.shape[ctx.params["axis"]]
    return [Bound(out, plus(Error(grown), ctx.rounding(out, max(k - 1, 1))))]


@rule("reduce_and", "reduce_or")
def _reduce_logic(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (x, e) = operands[0]
    out: jax.Array = ctx.evaluate(x)
    if e.exact:
        return [Bound(out, e)]
    return [Bound(out, Error(jnp.max(_full(e, x), axis=tuple(ctx.params["axes"]), initial=0.0)))]
