"""Tensors in index notation: an entry as a polynomial in the indices of the axes.

An axis carries a row of digits, most significant first: one index where nothing was reshaped, none where its
size is 1. `x.reshape(n, k*c)` of an (n, k, c) tensor keeps the polynomial and puts the digits (k, c) on one
axis.  Elementwise operations match the digits of their operands, splitting where one side is finer.
"""

from collections.abc import Callable, Iterable, Sequence

from ffn_jax.verify.symbolic._atoms import Index
from ffn_jax.verify.symbolic._polynomials import Poly, entry
from ffn_jax.verify.symbolic._sizes import Size, exact_quotient, is_one
from ffn_jax.verify.symbolic._sums import substitute, sum_over
from ffn_jax.verify.symbolic._workspace import Unsupported

Digits = tuple[Index, ...]


class Tensor:
    """A tensor: the digits of each axis, and its entry there."""

    __slots__ = ("axes", "entry")

    def __init__(self, axes: Iterable[Iterable[Index]], entry: Poly) -> None:
        self.axes: tuple[Digits, ...] = tuple(tuple(a) for a in axes)
        self.entry = entry

    @property
    def indices(self) -> list[Index]:
        """All digits, in order."""
        return [i for axis in self.axes for i in axis]


def new_axis(size: Size) -> Digits:
    """The digits of an axis that was never reshaped."""
    return () if is_one(size) else (Index(size),)


def variable(name: str, shape: Sequence[Size]) -> Tensor:
    """An arbitrary tensor of this name."""
    axes = [new_axis(s) for s in shape]
    return Tensor(axes, entry(name, axes))


def scalar(p: Poly) -> Tensor:
    """A tensor without axes."""
    return Tensor((), p)


def renamed(t: Tensor) -> Tensor:
    """The same tensor on new indices."""
    new = {i: (i.like(),) for i in t.indices}
    return Tensor([[new[i][0] for i in axis] for axis in t.axes], substitute(t.entry, new))


def split_digit(t: Tensor, i: Index, sizes: Sequence[Size]) -> tuple[Tensor, list[Index]]:
    """The tensor with the digit i written as several, and these digits."""
    digits = [Index(s) for s in sizes]
    axes = [[d for own in axis for d in (digits if own is i else [own])] for axis in t.axes]
    return Tensor(axes, substitute(t.entry, {i: tuple(digits)})), digits


def match_axes(a: Tensor, axis_a: int, b: Tensor, axis_b: int) -> tuple[Tensor, Tensor, list[tuple[Index, Index]]]:
    """Both tensors with equal digit sizes on two axes of equal length, and the pairs of equal digits."""
    pairs: list[tuple[Index, Index]] = []
    left, right = list(a.axes[axis_a]), list(b.axes[axis_b])
    while left or right:
        if not (left and right):
            raise Unsupported("axes of different lengths")
        x, y = left[0], right[0]
        if x.size == y.size:
            pairs.append((x, y))
            left.pop(0)
            right.pop(0)
        elif (q := exact_quotient(x.size, y.size)) is not None:
            a, left[0:1] = split_digit(a, x, (y.size, q))
        elif (q := exact_quotient(y.size, x.size)) is not None:
            b, right[0:1] = split_digit(b, y, (x.size, q))
        else:
            raise Unsupported(f"digits of sizes {x.size} and {y.size} on one axis")
    return a, b, pairs


def on_common_axes(a: Tensor, b: Tensor) -> tuple[tuple[Digits, ...], Poly, Poly]:
    """Two operands of an elementwise operation, on the same indices."""
    if not a.axes or not b.axes:
        return a.axes or b.axes, a.entry, b.entry
    if len(a.axes) != len(b.axes):
        raise Unsupported("operands of different ranks")
    b = renamed(b)
    same: dict[Index, tuple[Index]] = {}
    for k in range(len(a.axes)):
        if a.axes[k] and b.axes[k]:
            a, b, pairs = match_axes(a, k, b, k)
            same.update((y, (x,)) for x, y in pairs)
    axes = tuple(x or y for x, y in zip(a.axes, b.axes, strict=True))
    return axes, a.entry, substitute(b.entry, same)


def elementwise(op: Callable[[Poly, Poly], Poly], a: Tensor, b: Tensor) -> Tensor:
    """A binary elementwise operation."""
    axes, p, q = on_common_axes(a, b)
    return Tensor(axes, op(p, q))


def contract(a: Tensor, b: Tensor, contracted: Sequence[tuple[int, int]], batch: Sequence[tuple[int, int]]) -> Tensor:
    """The product of two tensors, summed over paired axes; axes: batch, rest of a, rest of b."""
    b = renamed(b)
    same: dict[Index, tuple[Index]] = {}
    for x, y in (*contracted, *batch):
        a, b, pairs = match_axes(a, x, b, y)
        same.update((j, (i,)) for i, j in pairs)
    paired_a = {x for x, _ in (*contracted, *batch)}
    paired_b = {y for _, y in (*contracted, *batch)}
    p = sum_over([i for x, _ in contracted for i in a.axes[x]], a.entry * substitute(b.entry, same))
    axes = [a.axes[x] for x, _ in batch]
    axes += [axis for k, axis in enumerate(a.axes) if k not in paired_a]
    axes += [axis for k, axis in enumerate(b.axes) if k not in paired_b]
    return Tensor(axes, p)


def reshaped(t: Tensor, shape: Sequence[Size]) -> Tensor:
    """Row-major reshape: the digits are dealt out again."""
    digits, axes = t.indices, []
    for size in shape:
        taken: list[Index] = []
        while not is_one(size):
            if not digits:
                raise Unsupported("a reshape that needs more digits")
            i = digits[0]
            rest = 1 if size == i.size else exact_quotient(size, i.size)
            if rest is not None:
                taken.append(digits.pop(0))
                size = rest
                continue
            q = exact_quotient(i.size, size)
            if q is None:
                raise Unsupported(f"a reshape of {i.size} into {size}")
            t, digits[0:1] = split_digit(t, i, (size, q))
        axes.append(taken)
    if digits:
        raise Unsupported("a reshape that leaves digits over")
    return Tensor(axes, t.entry)
