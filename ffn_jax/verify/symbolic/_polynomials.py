"""Polynomials over atoms with exact rational coefficients and rational exponents: the normal form itself.

    P = sum_m c_m prod_a a^e        c_m in Q, e in Q

Adding collects equal monomials.  Multiplying distributes, adds the exponents of equal atoms, and applies the
few relations that powers of atoms obey: p^(3/2) = p p^(1/2) for a prime p, [.]^2 = [.] for steps and deltas,
<P>^n = P^n for natural n, and, for e = exp(2q) and t = tanh(q),

    e t = e - 1 - t,        t / e = 1 - t - 1/e,

which hold because t = (e - 1)/(e + 1); they rewrite every polynomial in e, 1/e and t to one without mixed
terms.
"""

from collections.abc import Iterable
from fractions import Fraction

from ffn_jax.verify.symbolic._atoms import (
    Atom,
    Axis,
    Base,
    Constant,
    Delta,
    Dimension,
    Entry,
    Function,
    Index,
    Monomial,
    Names,
    Rational,
    Step,
    intern,
    monomial_text,
)
from ffn_jax.verify.symbolic._sizes import Size, names_of, read_expression
from ffn_jax.verify.symbolic._workspace import Unsupported, workspace

Factors = Iterable[tuple[Atom, Rational]]


class Poly:
    """A polynomial; immutable."""

    __slots__ = ("_free", "_key", "terms")

    def __init__(self, terms: dict[Monomial, Rational]) -> None:
        self.terms = terms
        self._free: frozenset[Index] | None = None
        self._key: str | None = None

    @property
    def free(self) -> frozenset[Index]:
        """The indices it depends on."""
        if self._free is None:
            self._free = frozenset(i for m in self.terms for atom, _ in m for i in atom.free)
        return self._free

    @property
    def key(self) -> str:
        """Equal keys, equal functions."""
        if self._key is None:
            self._key = self.text({}, 0)
        return self._key

    def text(self, names: Names, depth: int) -> str:
        """The key with indices written as in `names`."""
        return " + ".join(sorted(f"{monomial_text(m, names, depth)}:{c}" for m, c in self.terms.items())) or "0"

    @property
    def is_zero(self) -> bool:
        """Whether this is the zero polynomial."""
        return not self.terms

    @property
    def constant(self) -> Rational | None:
        """The number that this polynomial is, or None."""
        if not self.terms:
            return 0
        return self.terms.get(()) if len(self.terms) == 1 else None

    def __add__(self, other: "Poly | Rational") -> "Poly":
        terms = dict(self.terms)
        for m, c in as_poly(other).terms.items():
            _add_term(terms, m, c)
        return Poly(terms)

    def __neg__(self) -> "Poly":
        return Poly({m: -c for m, c in self.terms.items()})

    def __sub__(self, other: "Poly | Rational") -> "Poly":
        return self + (-as_poly(other))

    def __mul__(self, other: "Poly | Rational") -> "Poly":
        terms: dict[Monomial, Rational] = {}
        others = as_poly(other).terms
        for m1, c1 in self.terms.items():
            workspace.tick()
            for m2, c2 in others.items():
                joined = _disjoint_product(m1, m2)
                if joined is not None:
                    _add_term(terms, joined, c1 * c2)
                    continue
                for m, c in product((*m1, *m2)).terms.items():
                    _add_term(terms, m, c * c1 * c2)
        return Poly(terms)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: Rational) -> "Poly":
        return as_poly(other) - self


def _add_term(terms: dict[Monomial, Rational], m: Monomial, c: Rational) -> None:
    total = terms.get(m, 0) + c
    if total:
        terms[m] = total
    else:
        terms.pop(m, None)


def as_poly(value: Poly | Rational) -> Poly:
    """A number as a polynomial."""
    return value if isinstance(value, Poly) else Poly({(): value} if value else {})


ONE, ZERO = as_poly(1), as_poly(0)


def of_atom(atom: Atom) -> Poly:
    """The atom itself."""
    return Poly({((intern(atom), 1),): 1})


def entry(name: str, axes: Iterable[Iterable[Index]]) -> Poly:
    """The entry of the tensor `name` at these digits."""
    digits: tuple[Axis, ...] = tuple(tuple(axis) for axis in axes)
    return of_atom(Entry(name, digits))


def irrational(name: int | str, exponent: Rational = 1) -> Poly:
    """A power of a prime or of pi."""
    return product([(intern(Constant(name)), exponent)])


def size_polynomial(size: Size) -> Poly:
    """A size as a number."""
    values = {name: of_atom(Dimension(name)) for name in names_of(size)}
    return as_poly(size if isinstance(size, int) else read_expression_poly(str(size), values))


def read_expression_poly(text: str, values: dict[str, Poly]) -> Poly:
    """A dimension expression over polynomials."""
    try:
        return as_poly(read_expression(text, {k: _Powered(v) for k, v in values.items()}))
    except TypeError:
        raise Unsupported(f"the size {text} as a number") from None


class _Powered(Poly):
    """A polynomial that takes natural powers, for reading dimension expressions."""

    def __init__(self, poly: Poly) -> None:
        super().__init__(poly.terms)

    def __pow__(self, n: int) -> Poly:
        return natural_power(self, n)


def natural_power(poly: Poly, n: int) -> Poly:
    """poly^n for n >= 0."""
    out = ONE
    for _ in range(n):
        out = out * poly
    return out


def _disjoint_product(m1: Monomial, m2: Monomial) -> Monomial | None:
    """m1 * m2 where no relation can apply; None where one might."""
    if not m1:
        return m2
    if not m2:
        return m1
    atoms, relation = {a for a, _ in m1}, 0
    for a, _ in m1:
        relation |= a.relation
    for a, _ in m2:
        relation |= a.relation
        if a in atoms:
            return None
    return None if relation == 3 else tuple(sorted(m1 + m2, key=_serial))


def _serial(factor: tuple[Atom, Rational]) -> int:
    return factor[0].serial


def integral(e: Rational) -> bool:
    """Whether a rational is an integer."""
    return e.denominator == 1


def product(factors: Factors) -> Poly:
    """The product of powers of atoms, with every relation applied."""
    exponents: dict[Atom, Rational] = {}
    for atom, e in factors:
        exponents[atom] = exponents.get(atom, 0) + e
    coefficient: Rational = 1
    kept: dict[Atom, Rational] = {}
    extra: list[Poly] = []
    for atom, e in exponents.items():
        if e == 0:
            continue
        if isinstance(e, Fraction) and integral(e):
            e = int(e)
        if isinstance(atom, Constant) and isinstance(atom.name, int):
            whole = e.numerator // e.denominator
            coefficient *= Fraction(atom.name) ** whole
            if e != whole:
                kept[atom] = e - whole
        elif isinstance(atom, Step | Delta):
            kept[atom] = 1
        elif isinstance(atom, Base) and isinstance(e, int) and (e > 0 or len(atom.poly.terms) == 1):
            extra.append(natural_power(atom.poly, e) if e > 0 else _inverse_power(atom.poly, e))
        else:
            kept[atom] = e
    out = _without_mixed(kept, coefficient)
    for p in extra:
        out = out * p
    return out


def _inverse_power(poly: Poly, e: int) -> Poly:
    """(c m)^e for one monomial; that it is nonzero was recorded when it became a base."""
    ((m, c),) = poly.terms.items()
    return product([(a, x * e) for a, x in m]) * Fraction(c) ** e


def _without_mixed(exponents: dict[Atom, Rational], coefficient: Rational) -> Poly:
    """The monomial, rewritten by the relation between exp(2q) and tanh(q) as long as it applies."""
    exps = {
        next(iter(a.argument.terms)): (a, e)
        for a, e in exponents.items()
        if isinstance(a, Function) and a.name == "exp"
    }
    for atom in exponents if exps else ():
        e = exponents[atom]
        if not (isinstance(atom, Function) and atom.name == "tanh" and isinstance(e, int) and e > 0):
            continue
        twice = {m: 2 * c for m, c in atom.argument.terms.items()}
        if any(m not in exps for m in twice):
            continue
        ratios = [Fraction(exps[m][1]) / c for m, c in twice.items()]
        sign = 1 if all(r >= 1 for r in ratios) else -1 if all(r <= -1 for r in ratios) else 0
        if sign:
            exp_factors = [(exps[m][0], sign * c) for m, c in twice.items()]
            rest = [*exponents.items(), (atom, -1), *((a, -x) for a, x in exp_factors)]
            with_exp, with_tanh, bare = (
                product([*rest, *exp_factors]),
                product([*rest, (atom, 1)]),
                product(rest),
            )
            # e t = e - 1 - t   and   t / e = 1 - t - 1 / e
            return (sign * with_exp - sign * bare - with_tanh) * coefficient
    return Poly({tuple(sorted(exponents.items(), key=_serial)): coefficient})
