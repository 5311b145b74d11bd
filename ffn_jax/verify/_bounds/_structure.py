"""Error bounds of primitives that move entries about: the error moves with the value.

A broadcast makes one error common to many positions, which matters to the statistical reading. Where an index
is itself uncertain (it was rounded from a float near a tie), nothing is known of what it selects.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ffn_jax.verify._bounds._elementwise import exact_or_unknown
from ffn_jax.verify._bounds._model import Bound, Error, plus
from ffn_jax.verify._bounds._registry import Context, anywhere, is_float, rule, unknown_where


@rule(
    "reshape",
    "transpose",
    "squeeze",
    "expand_dims",
    "slice",
    "rev",
    "name",
    "concatenate",
    "pad",
    "split",
    "dynamic_slice",
    "dynamic_update_slice",
    "gather",
    "scatter",
    "optimization_barrier",
    "sharding_constraint",
    "reshard",
    "pvary",
    "pcast",
    "stop_gradient",
    "stack",
    "unstack",
)
def _move(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    outs = _as_list(ctx, ctx.evaluate(*(value for value, _ in operands)))
    # booleans carry their uncertainty as a float, so they move as one too
    data = [is_float(value) or jnp.result_type(value) == jnp.bool_ for value, _ in operands]
    if not any(data):
        return exact_or_unknown(ctx, operands)
    parts_of_outs: list[list[Any]] = []
    for part in range(2):
        if all(bound.error[part] is None for bound, moves in zip(operands, data, strict=True) if moves):
            parts_of_outs.append([None] * len(outs))
            continue
        moved = [_part(bound, part) if moves else bound.value for bound, moves in zip(operands, data, strict=True)]
        parts_of_outs.append([_clean(each) for each in _as_list(ctx, ctx.evaluate(*moved))])
    errors = [Error(shared, free) for shared, free in zip(*parts_of_outs, strict=True)]
    index_errors = [
        bound.error for bound, moves in zip(operands, data, strict=True) if not moves and not bound.error.exact
    ]
    if index_errors:
        lost = jnp.any(jnp.stack([anywhere(error) for error in index_errors]))
        errors = [plus(error, unknown_where(lost, out.shape)) for error, out in zip(errors, outs, strict=True)]
    return [Bound(out, error) for out, error in zip(outs, errors, strict=True)]


def _part(bound: Bound, part: int) -> Any:
    error = bound.error[part]
    shape = jnp.shape(bound.value)
    if error is None:
        return jnp.zeros(shape)
    return jnp.broadcast_to(jnp.where(jnp.isnan(error), jnp.inf, error), shape)


def _clean(error: Any) -> Any:
    # a gather fills what lies out of bounds with NaN: a known value, without error
    return jnp.where(jnp.isnan(error), 0.0, error)


def _as_list(ctx: Context, outs: Any) -> list[Any]:
    return list(outs) if ctx.eqn.primitive.multiple_results else [outs]


@rule("broadcast_in_dim")
def _broadcast(ctx: Context, operands: Sequence[Bound]) -> list[Bound]:
    (x, e), *sizes = operands
    extra = [value for value, _ in sizes]
    out = ctx.evaluate(x, *extra)
    grows = out.size > jnp.size(x)
    error = e.spread() if grows else e
    shape = jnp.shape(x)
    return [Bound(out, error.each(lambda part: ctx.evaluate(jnp.broadcast_to(part, shape), *extra)))]
