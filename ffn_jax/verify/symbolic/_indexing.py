"""`x[..., 0, :]` and `x[4:]` at symbolic sizes: JAX traces them as a gather of one window, and its transpose.

A gather whose indices are one vector s takes the window x[s_0 : s_0 + m_0, s_1 : s_1 + m_1, ...], without the
axes that are collapsed; the matching scatter-add adds a window to x.  Other gathers (table look-ups) are
refused.
"""

from collections.abc import Sequence
from typing import Any

from ffn_jax.verify.symbolic._atoms import At
from ffn_jax.verify.symbolic._polynomials import ZERO, Poly
from ffn_jax.verify.symbolic._primitives import RULES
from ffn_jax.verify.symbolic._ranges import dynamic_part, fixed_start, placed
from ffn_jax.verify.symbolic._sizes import Size
from ffn_jax.verify.symbolic._sums import substitute
from ffn_jax.verify.symbolic._tensors import Tensor, elementwise
from ffn_jax.verify.symbolic._workspace import Unsupported


def window_starts(indices: Tensor, axes: Sequence[int], ndim: int) -> list[Poly]:
    """Where the window begins on every axis; `axes` are those that the index vector speaks of."""
    if len(indices.axes) != 1:
        raise Unsupported("more than one window")
    starts = [ZERO] * ndim
    for k, axis in enumerate(axes):
        digits = indices.axes[0]
        place = {digits[0]: (At(None, k, digits[0].size),)} if digits else {}
        starts[axis] = substitute(indices.entry, place)
    return starts


def _gather(eqn: Any, x: Tensor, indices: Tensor) -> list[Tensor]:
    numbers, lengths = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    _refuse_batches(numbers.operand_batching_dims)
    shape = eqn.invars[0].aval.shape
    starts = window_starts(indices, numbers.start_index_map, len(shape))
    for axis, (start, length, total) in enumerate(zip(starts, lengths, shape, strict=True)):
        _refuse_outside(start, length, total)
        x = dynamic_part(x, axis, start, length, total)
    kept = [own for k, own in enumerate(x.axes) if k not in numbers.collapsed_slice_dims]
    return [Tensor(kept, x.entry)]


def _scatter_add(eqn: Any, x: Tensor, indices: Tensor, update: Tensor) -> list[Tensor]:
    numbers = eqn.params["dimension_numbers"]
    _refuse_batches(numbers.operand_batching_dims)
    shape, own = eqn.invars[0].aval.shape, list(eqn.invars[2].aval.shape)
    axes = list(update.axes)
    for axis in numbers.inserted_window_dims:
        axes.insert(axis, ())
        own.insert(axis, 1)
    starts = window_starts(indices, numbers.scatter_dims_to_operand_dims, len(shape))
    update = Tensor(axes, update.entry)
    for axis, (start, length, total) in enumerate(zip(starts, own, shape, strict=True)):
        _refuse_outside(start, length, total)
        first: Size | None = 0 if length == total else fixed_start(start, length, total)
        if first is None:
            raise Unsupported("a window whose place is not fixed")
        update = placed(update, axis, first, length, total)
    return [elementwise(lambda p, q: p + q, x, update)]


def _refuse_outside(start: Poly, length: Size, total: Size) -> None:
    """A window as long as its axis begins at 0; elsewhere it would be filled or dropped, by mode."""
    if length == total and not start.is_zero:
        raise Unsupported("a window that may leave its axis")


def _refuse_batches(dims: Sequence[int]) -> None:
    if dims:
        raise Unsupported("batches of windows")


RULES["gather"] = _gather
RULES["scatter-add"] = _scatter_add
RULES["scatter_add"] = _scatter_add
