"""Substitution of indices, sums over indices, and deltas.

sum_i c = |i| c                       sum_i [i = j + o] P(i) = P(j + o)        (0 <= j + o < |i| for all j)
sum_i sum_j = sum_j sum_i             sum_i P = sum over ranges of i           (ranges that deltas speak of)
sum_i P Q = P sum_i Q                 (P free of i)
sum_{i,j} F(.., i j, ..) = sum_k F(.., k, ..)    (i always the digit before j)
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from ffn_jax.verify.symbolic._atoms import (
    At,
    Atom,
    Axis,
    Base,
    Delta,
    Digit,
    Entry,
    Function,
    Index,
    Monomial,
    Rational,
    Step,
    Sum,
    index_of,
)
from ffn_jax.verify.symbolic._functions import function, power, step
from ffn_jax.verify.symbolic._polynomials import ONE, ZERO, Poly, of_atom, product, size_polynomial
from ffn_jax.verify.symbolic._sizes import Size, is_one, no_greater
from ffn_jax.verify.symbolic._workspace import Unsupported, workspace

Substitution = Mapping[Index, tuple[Digit, ...]]  # () puts an index to 0, the only position of an axis of size 1


# -------------------------------------------------------------------------------------------------
# substitution


def substitute(p: Poly, new: Substitution) -> Poly:
    """The polynomial with indices replaced by digits; binders are private, so nothing is captured."""
    if not any(i in new for i in p.free):
        return p
    out = ZERO
    for m, c in p.terms.items():
        out = out + c * _substitute_monomial(m, new)
    return out


def _substitute_monomial(m: Monomial, new: Substitution) -> Poly:
    workspace.tick()
    kept: list[tuple[Atom, Rational]] = []
    changed: list[Poly] = []
    for atom, e in m:
        if any(i in new for i in atom.free):
            changed.append(_to_power(_substitute_atom(atom, new), e))
        else:
            kept.append((atom, e))
    out = Poly({tuple(kept): 1})
    for p in changed:
        out = out * p
    return out


def _to_power(p: Poly, e: Rational) -> Poly:
    if len(p.terms) == 1:
        ((m, c),) = p.terms.items()
        if c == 1 and len(m) == 1 and m[0][1] == 1:
            return product([(m[0][0], e)])
    return power(p, e)


def _substitute_atom(atom: Atom, new: Substitution) -> Poly:
    if isinstance(atom, Entry):
        return of_atom(Entry(atom.name, tuple(_digits(axis, new) for axis in atom.axes)))
    if isinstance(atom, Function):
        return function(atom.name, substitute(atom.argument, new))
    if isinstance(atom, Base):
        inner = substitute(atom.poly, new)
        return of_atom(Base(inner)) if len(inner.terms) > 1 else inner
    if isinstance(atom, Step):
        return step(substitute(atom.poly, new))
    if isinstance(atom, Delta):
        left = _single(_digits((atom.left,), new))
        right = _single(_digits((At(atom.right, atom.offset, 0),), new))
        return delta(left, right)
    if isinstance(atom, Sum):
        return sum_over(atom.bound, _substitute_monomial(atom.body, new))
    raise AssertionError(f"an atom without indices: {atom.key}")


def _digits(axis: Axis, new: Substitution) -> Axis:
    out: list[Digit] = []
    for digit in axis:
        index = index_of(digit)
        if index is None or index not in new:
            out.append(digit)
        elif isinstance(digit, Index):
            out.extend(new[index])
        else:
            out.append(_shifted(new[index], digit))
    return tuple(out)


def _shifted(digits: tuple[Digit, ...], place: At) -> Digit:
    """The digits that replace the index of `place`, moved by its offset."""
    if not digits:
        return At(None, place.offset, place.size)
    if len(digits) > 1:
        raise Unsupported("a slice of an axis that is split into digits")
    inner = digits[0]
    if isinstance(inner, Index):
        return At(inner, place.offset, place.size)
    return At(inner.index, inner.offset + place.offset, place.size)


def _single(axis: Axis) -> Digit:
    if len(axis) > 1:
        raise Unsupported("a comparison of positions on an axis that is split into digits")
    return axis[0] if axis else At(None, 0, 1)


# -------------------------------------------------------------------------------------------------------
# deltas


def delta(a: Digit, b: Digit) -> Poly:
    """[a = b], two positions on the same axis."""
    (i, o1), (j, o2) = _position(a), _position(b)
    if i is j or (i is not None and j is not None and is_one(i.size) and is_one(j.size)):
        return _compare(o1, o2)
    if i is None:
        i, j, o1, o2 = j, i, o2, o1
    assert i is not None
    offset = o2 - o1  # i = j + offset
    if not no_greater(0, offset) and no_greater(offset, 0):
        if j is None:
            return ZERO  # a position before the axis begins
        i, j, offset = j, i, -offset
    if no_greater(i.size, offset) or (j is not None and no_greater(offset + j.size, 0)):
        return ZERO  # disjoint ranges
    return of_atom(Delta(i, j, offset))


def _position(digit: Digit) -> tuple[Index | None, Size]:
    return (digit, 0) if isinstance(digit, Index) else (digit.index, digit.offset)


def _compare(a: Size, b: Size) -> Poly:
    if isinstance(a - b, int):
        return ONE if a == b else ZERO
    if no_greater(a + 1, b) or no_greater(b + 1, a):
        return ZERO
    raise Unsupported(f"a comparison of the positions {a} and {b}")


def _eliminated(atom: Delta, i: Index) -> Digit | None:
    """What i is where the delta is 1, if that position exists for every value of the other index."""
    if atom.right is None:
        inside = no_greater(0, atom.offset) and no_greater(atom.offset + 1, i.size)
        return At(None, atom.offset, i.size) if inside else None
    other, offset = (atom.right, atom.offset) if atom.left is i else (atom.left, -atom.offset)
    if isinstance(offset, int) and offset == 0 and other.size == i.size:
        return other
    inside = no_greater(0, offset) and no_greater(other.size + offset, i.size)
    return At(other, offset, i.size) if inside else None


def atoms_within(m: Monomial) -> Iterator[Atom]:
    """All atoms of a monomial, those inside other atoms included."""
    for atom, _ in m:
        yield atom
        if isinstance(atom, Sum):
            yield from atoms_within(atom.body)
        for p in atom.polys():
            for inner in p.terms:
                yield from atoms_within(inner)


def ranges(i: Index, monomials: Iterable[Monomial]) -> list[tuple[Size, Size]]:
    """The ranges [start, stop) of i between the ends that deltas speak of; [] if these cannot be ordered."""
    points: list[Size] = [0, i.size]
    for m in monomials:
        for atom in atoms_within(m):
            if isinstance(atom, Delta) and i in atom.free:
                if atom.right is None:
                    points += [atom.offset, atom.offset + 1]
                elif atom.left is i:
                    points += [atom.offset, atom.offset + atom.right.size]
                else:
                    points += [-atom.offset, atom.left.size - atom.offset]
    ordered: list[Size] = []
    for point in points:
        if not (no_greater(0, point) and no_greater(point, i.size)) or any(point == p for p in ordered):
            continue
        after = [k for k, p in enumerate(ordered) if no_greater(point, p)]
        before = [k for k, p in enumerate(ordered) if no_greater(p, point)]
        if len(after) + len(before) != len(ordered):
            return []
        ordered.insert(len(before), point)
    return list(pairwise(ordered))


def restricted(p: Poly, i: Index, start: Size, stop: Size) -> tuple[Poly, Index | None]:
    """P at the positions start <= i < stop, and the index that runs over them (None: a single position)."""
    length = stop - start
    part = None if is_one(length) else Index(length)
    return substitute(p, {i: (At(part, start, i.size),)}), part


# ---------------------------------------------------------------------------------------------------------
# sums


def sum_over(indices: Iterable[Index], p: Poly) -> Poly:
    """The sum over some indices."""
    for i in indices:
        p = _sum_one(i, p)
    return p


def _sum_one(i: Index, p: Poly) -> Poly:
    out = ZERO
    for m, c in p.terms.items():
        workspace.tick()
        inner = [(a, e) for a, e in m if i in a.free]
        outer = Poly({tuple((a, e) for a, e in m if i not in a.free): c})
        out = out + outer * (_sum_factors(i, inner) if inner else size_polynomial(i.size))
    return out


def _sum_factors(i: Index, factors: list[tuple[Atom, Rational]]) -> Poly:
    for atom, _ in factors:
        if isinstance(atom, Delta):
            digit = _eliminated(atom, i)
            if digit is not None:
                rest = tuple((a, e) for a, e in factors if a is not atom)
                return _substitute_monomial(rest, {i: (digit,)})
    parts = ranges(i, [tuple(factors)])
    if len(parts) > 1:
        out = ZERO
        for start, stop in parts:
            part, index = restricted(Poly({tuple(factors): 1}), i, start, stop)
            out = out + (part if index is None else _sum_one(index, part))
        return out
    return _sum_atom([i], factors)


def _sum_atom(bound: list[Index], factors: Iterable[tuple[Atom, Rational]]) -> Poly:
    """The sum of a product; sums to a natural power among the factors are merged into it."""
    flat: list[tuple[Atom, Rational]] = []
    for atom, e in factors:
        if isinstance(atom, Sum) and isinstance(e, int) and e > 0:
            for _ in range(e):
                renamed = {b: (b.like(),) for b in atom.bound}
                m = _renamed(atom.body, renamed)
                bound = bound + [new[0] for new in renamed.values()]
                flat.extend(m)
        else:
            flat.append((atom, e))
    body = product(flat)
    if len(body.terms) != 1 or next(iter(body.terms.values())) != 1:
        return sum_over(bound, body)
    private = {b: (b.like(),) for b in bound}
    m = _renamed(next(iter(body.terms)), private)
    indices, m = _coarsened([new[0] for new in private.values()], m)
    return of_atom(Sum(tuple(indices), m))


def _renamed(m: Monomial, new: Substitution) -> Monomial:
    """A monomial under new names, which leave it a monomial."""
    terms = _substitute_monomial(m, new).terms
    if len(terms) != 1 or next(iter(terms.values())) != 1:
        raise Unsupported("a sum whose body changes form when its indices are renamed")
    return next(iter(terms))


# Digits that always stand side by side are one digit: sum_{i,j} x[(i,j)] and sum_k x[k] must be the same
# text.


def _coarsened(bound: list[Index], m: Monomial) -> tuple[list[Index], Monomial]:
    while True:
        axes = list(axes_within(m))
        pair = next(
            (
                (i, j)
                for axis in axes
                for i, j in pairwise(axis)
                if i in bound
                and j in bound
                and isinstance(i, Index)
                and isinstance(j, Index)
                and side_by_side(axes, i, j)
            ),
            None,
        )
        if pair is None:
            return bound, m
        i, j = pair
        k = Index(i.size * j.size)
        m = _renamed(m, {i: (k,), j: ()})
        bound = [b for b in bound if b is not i and b is not j] + [k]


def axes_within(m: Monomial) -> Iterator[Axis]:
    for atom in atoms_within(m):
        if isinstance(atom, Entry):
            yield from atom.axes
        elif isinstance(atom, Delta):
            yield (At(atom.left, atom.offset, 0),)
            if atom.right is not None:
                yield (At(atom.right, 0, 0),)


def side_by_side(axes: list[Axis], i: Index, j: Index) -> bool:
    """Whether i and j occur only as the neighbours (i, j)."""
    for axis in axes:
        for q, digit in enumerate(axis):
            if isinstance(digit, At) and digit.index in (i, j):
                return False
            if digit is i and not (q + 1 < len(axis) and axis[q + 1] is j):
                return False
            if digit is j and not (q > 0 and axis[q - 1] is i):
                return False
    return True
