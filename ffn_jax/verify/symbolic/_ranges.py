"""Slices, concatenations and updates: an axis as a union of index ranges.

    slice         y[i] = x[i + start]                      a shifted index
    pad           y[j] = sum_i [j = i + start] x[i]        a delta between an axis and a range of it
    concatenate   the sum of its padded pieces
    update        y[j] = x[j] (1 - inside(j)) + (padded update)[j],   inside(j) = sum_i [j = i + start]

Deltas of disjoint ranges multiply to zero where they meet, and sums over j eliminate them, so a slice of a
concatenation is its piece again.  A start that is `length * t` for a loop counter t picks the digit t of the
axis split as (blocks, length).
"""

from collections.abc import Sequence

from ffn_jax.verify.symbolic._atoms import At, Digit, Entry, Index
from ffn_jax.verify.symbolic._functions import power
from ffn_jax.verify.symbolic._polynomials import ONE, Poly, size_polynomial
from ffn_jax.verify.symbolic._sizes import Size, exact_quotient, is_one, no_greater
from ffn_jax.verify.symbolic._sums import delta, substitute, sum_over
from ffn_jax.verify.symbolic._tensors import Digits, Tensor, elementwise, split_digit
from ffn_jax.verify.symbolic._workspace import Unsupported


def counter(p: Poly) -> Index | None:
    """The index i where p is the position of i as a number, else None."""
    if len(p.terms) == 1:
        ((m, c),) = p.terms.items()
        if c == 1 and len(m) == 1 and m[0][1] == 1:
            atom = m[0][0]
            if isinstance(atom, Entry) and atom.name.startswith("iota:") and len(atom.axes[0]) == 1:
                digit = atom.axes[0][0]
                return digit if isinstance(digit, Index) else None
    return None


def _with_axis(t: Tensor, axis: int, digits: Digits, entry: Poly) -> Tensor:
    return Tensor([digits if k == axis else own for k, own in enumerate(t.axes)], entry)


def part(t: Tensor, axis: int, start: Size, stop: Size, size: Size) -> Tensor:
    """t[start:stop] along an axis of the given size."""
    digits = t.axes[axis]
    if stop - start == size or not digits:
        return t
    lead, trail = digits[0], digits[1:]
    if trail:  # whole blocks of the leading digit
        block = exact_quotient(size, lead.size)
        first = 0 if start == 0 else exact_quotient(start, block)
        last = exact_quotient(stop, block)
        if first is None or last is None:
            raise Unsupported("a slice of an axis that is split into digits")
        start, stop = first, last
    run = () if is_one(stop - start) else (Index(stop - start),)
    place = At(run[0] if run else None, start, lead.size)
    return _with_axis(t, axis, run + trail, substitute(t.entry, {lead: (place,)}))


def _range_delta(j: Index, digits: Digits, start: Size) -> Poly:
    """[j = start + i] for the position i that the digits make up."""
    if len(digits) > 1:
        raise Unsupported("a piece whose axis is split into digits")
    own: Digit = At(digits[0] if digits else None, start, j.size)
    return delta(j, own)


def placed(t: Tensor, axis: int, start: Size, own_size: Size, total: Size) -> Tensor:
    """T with zeros around it along one axis: its position 0 comes to `start` on an axis of size `total`."""
    if own_size == total:
        return t
    if not (no_greater(0, start) and no_greater(start + own_size, total)):
        raise Unsupported("padding by a negative amount")
    j = Index(total)
    digits = t.axes[axis]
    return _with_axis(t, axis, (j,), sum_over(digits, _range_delta(j, digits, start) * t.entry))


def _loop_counter(start: Poly, length: Size, total: Size) -> tuple[Index, Size] | None:
    """(t, number of blocks) where start = length * t always lies on the axis; None otherwise."""
    t = counter(start * power(size_polynomial(length), -1))
    blocks = exact_quotient(total, length)
    if t is None or blocks is None or not no_greater(t.size, blocks):
        return None
    return t, blocks


def fixed_start(start: Poly, length: Size, total: Size) -> Size | None:
    """The start as a size, where it is a number, or the last possible one, and the range lies on the axis."""
    value = start.constant
    if value is None:
        last = total - length
        return last if no_greater(0, last) and (start - size_polynomial(last)).is_zero else None
    if value.denominator != 1:
        return None
    inside = no_greater(0, int(value)) and no_greater(int(value) + length, total)
    return int(value) if inside else None


def _blocks(t: Tensor, axis: int, blocks: Size, length: Size) -> Tensor:
    """The tensor with a leading digit of size `blocks` on the axis."""
    lead = t.axes[axis][0]
    if lead.size == blocks:
        return t
    if len(t.axes[axis]) > 1 or is_one(length):
        raise Unsupported("a block of an axis that is split into other digits")
    return split_digit(t, lead, (blocks, length))[0]


def _at(t: Index, blocks: Size) -> Digit:
    return t if t.size == blocks else At(t, 0, blocks)


def dynamic_part(t: Tensor, axis: int, start: Poly, length: Size, total: Size) -> Tensor:
    """`lax.dynamic_slice` along one axis."""
    if length == total:
        return t  # the start is clamped to 0
    fixed = fixed_start(start, length, total)
    if fixed is not None:
        return part(t, axis, fixed, fixed + length, total)
    loop = _loop_counter(start, length, total)
    if loop is None:
        raise Unsupported("a start that is neither constant nor a loop counter times the length")
    now, blocks = loop
    t = _blocks(t, axis, blocks, length)
    lead, trail = t.axes[axis][0], t.axes[axis][1:]
    return _with_axis(t, axis, trail, substitute(t.entry, {lead: (_at(now, blocks),)}))


def updated(t: Tensor, update: Tensor, starts: Sequence[Poly], shape: Sequence[Size], own: Sequence[Size]) -> Tensor:
    """`lax.dynamic_update_slice`."""
    inside = ONE
    for axis, (start, length, total) in enumerate(zip(starts, own, shape, strict=True)):
        if length == total:
            continue
        fixed, loop = fixed_start(start, length, total), _loop_counter(start, length, total)
        if fixed is not None:
            if len(t.axes[axis]) != 1:
                raise Unsupported("an update of an axis that is split into digits")
            j, digits = t.axes[axis][0], tuple(i.like() for i in update.axes[axis])
            inside = inside * sum_over(digits, _range_delta(j, digits, fixed))
            update = placed(update, axis, fixed, length, total)
        elif loop is not None:
            now, blocks = loop
            t = _blocks(t, axis, blocks, length)
            lead = t.axes[axis][0]
            inside = inside * delta(lead, _at(now, blocks))
            block = lead.like()
            marked = delta(block, _at(now, blocks)) * update.entry
            update = _with_axis(update, axis, (block, *update.axes[axis]), marked)
        else:
            raise Unsupported("a start that is neither constant nor a loop counter times the length")
    rest = Tensor(t.axes, t.entry * (ONE - inside))
    return elementwise(lambda p, q: p + q, rest, update)
