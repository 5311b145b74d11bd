"""Indices and atoms: what the polynomials of the normal form are made of.

An atom is a real-valued expression in named indices:

    entry      x[i, (j,k)]        entry of a tensor; each axis holds digits, most significant first
    function   tanh(P), exp(m)    elementwise function of a polynomial (exp: of one bare monomial)
    base       <P>                a polynomial that is raised to a negative or fractional power
    sum        sum_{i,j} m        sum over bound indices of one monomial, its factors connected through them
    constant   2, 3, pi           a prime (to a power in (0, 1)) or pi
    dimension  |n|                a symbolic size
    step       [P > 0]            1 or 0
    delta      [i = j + o]        1 or 0, a comparison of positions

Every atom has a key, a text that is the same for two atoms exactly when they are equal up to the names of
bound indices; equal keys imply equal real functions, which is what every proof here rests on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from typing import TYPE_CHECKING, Union

from ffn_jax.verify.symbolic._canonical import canonical_sum
from ffn_jax.verify.symbolic._sizes import Size
from ffn_jax.verify.symbolic._workspace import workspace

if TYPE_CHECKING:
    from ffn_jax.verify.symbolic._polynomials import Poly

Rational = int | Fraction
Monomial = tuple[tuple["Atom", Rational], ...]  # sorted by the serial numbers of the atoms
Names = Mapping["Index", str]

_UID = count()
_SERIAL = count()


class Index:
    """A named index over the positions 0 .. size-1; two indices are equal only if they are one object."""

    __slots__ = ("size", "uid")

    def __init__(self, size: Size) -> None:
        self.size, self.uid = size, next(_UID)

    def __repr__(self) -> str:
        return f"#{self.uid}"

    def like(self) -> "Index":
        """Another index over the same positions."""
        return Index(self.size)


@dataclass(frozen=True, slots=True)
class At:
    """The position `index + offset` (or `offset` alone) on an axis of the given size."""

    index: Index | None
    offset: Size
    size: Size


Digit = Union[Index, At]  # noqa: UP007  (a runtime alias of classes with slots)
Axis = tuple[Digit, ...]


def index_of(digit: Digit) -> Index | None:
    """The index that a digit depends on."""
    return digit if isinstance(digit, Index) else digit.index


def free_of(digits: Axis) -> Iterator[Index]:
    """The indices of a row of digits."""
    for digit in digits:
        index = index_of(digit)
        if index is not None:
            yield index


def _named(index: Index, names: Names) -> str:
    return names.get(index) or f"#{index.uid}"


def _digit_text(digit: Digit, names: Names) -> str:
    if isinstance(digit, Index):
        return _named(digit, names)
    head = "" if digit.index is None else _named(digit.index, names)
    return f"({head}+{digit.offset}/{digit.size})"


class Atom:
    """One interned atom; see the table at the top of this module."""

    __slots__ = ("free", "key", "serial")
    free: frozenset[Index]
    key: str
    serial: int
    relation = 0  # 1 for exp, 2 for tanh: a monomial with both needs a closer look

    def text(self, names: Names, depth: int) -> str:
        """The key with free indices written as in `names`; binders below use names of this depth."""
        raise NotImplementedError

    def polys(self) -> Iterator["Poly"]:
        """The polynomials inside this atom."""
        return iter(())

    def text_under(self, names: Names, depth: int) -> str:
        """`text`, cached, and skipped where no free index is renamed."""
        renamed = [i for i in self.free if i in names]
        if not renamed:
            return self.key
        cache_key = (self.serial, tuple(sorted((i.uid, names[i]) for i in renamed)), depth)
        found = workspace.texts.get(cache_key)
        if found is None:
            workspace.tick()
            found = workspace.texts[cache_key] = self.text(names, depth)
        return found


class Entry(Atom):
    """Entry of the tensor `name` at the digits in `axes`."""

    __slots__ = ("axes", "name")

    def __init__(self, name: str, axes: tuple[Axis, ...]) -> None:
        self.name, self.axes = name, axes
        self.free = frozenset(i for axis in axes for i in free_of(axis))

    def text(self, names: Names, depth: int) -> str:
        return self.name + "[" + ",".join(".".join(_digit_text(d, names) for d in axis) for axis in self.axes) + "]"


class Function(Atom):
    """An elementwise function of a polynomial."""

    __slots__ = ("argument", "name")

    def __init__(self, name: str, argument: "Poly") -> None:
        self.name, self.argument, self.free = name, argument, argument.free

    @property
    def relation(self) -> int:  # type: ignore[override]
        return {"exp": 1, "tanh": 2}.get(self.name, 0)

    def text(self, names: Names, depth: int) -> str:
        return f"{self.name}({self.argument.text(names, depth)})"

    def polys(self) -> Iterator["Poly"]:
        yield self.argument


class Base(Atom):
    """A polynomial as the base of a power that is not a natural number."""

    __slots__ = ("poly",)

    def __init__(self, poly: "Poly") -> None:
        self.poly, self.free = poly, poly.free

    def text(self, names: Names, depth: int) -> str:
        return f"<{self.poly.text(names, depth)}>"

    def polys(self) -> Iterator["Poly"]:
        yield self.poly


class Sum(Atom):
    """The sum over `bound` of the monomial `body`; the bound indices belong to this atom alone."""

    __slots__ = ("body", "bound")

    def __init__(self, bound: tuple[Index, ...], body: Monomial) -> None:
        self.bound, self.body = bound, body
        self.free = frozenset(i for atom, _ in body for i in atom.free) - frozenset(bound)

    def text(self, names: Names, depth: int) -> str:
        return canonical_sum(self.bound, self.body, names, depth)


class Constant(Atom):
    """A prime number or "pi": positive irrational powers of these stay as they are."""

    __slots__ = ("name",)

    def __init__(self, name: int | str) -> None:
        self.name, self.free = name, frozenset()

    def text(self, names: Names, depth: int) -> str:
        return f"K{self.name}"


class Dimension(Atom):
    """A symbolic size, a positive number."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name, self.free = name, frozenset()

    def text(self, names: Names, depth: int) -> str:
        return f"|{self.name}|"


class Step(Atom):
    """1 where the polynomial is positive, else 0."""

    __slots__ = ("poly",)

    def __init__(self, poly: "Poly") -> None:
        self.poly, self.free = poly, poly.free

    def text(self, names: Names, depth: int) -> str:
        return f"1[{self.poly.text(names, depth)}>0]"

    def polys(self) -> Iterator["Poly"]:
        yield self.poly


class Delta(Atom):
    """1 where left = right + offset (right None: left = offset), else 0."""

    __slots__ = ("left", "offset", "right")

    def __init__(self, left: Index, right: Index | None, offset: Size) -> None:
        self.left, self.right, self.offset = left, right, offset
        self.free = frozenset((left,) if right is None else (left, right))

    def text(self, names: Names, depth: int) -> str:
        left = _named(self.left, names)
        right = "" if self.right is None else _named(self.right, names)
        if self.right is not None and isinstance(self.offset, int) and self.offset == 0:
            left, right = sorted((left, right))  # [i = j] is symmetric
        return f"delta({left}={right}+{self.offset})"


def intern(atom: Atom) -> Atom:
    """The one object that stands for all atoms with this key."""
    key = atom.text({}, 0)
    found: Atom | None = workspace.atoms.get(key)
    if found is None:
        atom.key, atom.serial = key, next(_SERIAL)
        workspace.atoms[key] = found = atom
    return found


def monomial_text(monomial: Monomial, names: Names, depth: int) -> str:
    """The key of a product of powers."""
    return "*".join(sorted(a.text_under(names, depth) + (f"^{e}" if e != 1 else "") for a, e in monomial))
