"""Powers, elementwise functions and steps of polynomials, brought to one form each.

    exp(P) = prod exp(m_i)^c_i               logistic(x) = 1/2 + tanh(x/2)/2        erfc(x) = 1 - erf(x)
    tanh, erf, sin odd, cos even             (1 + exp(-x))^-k = logistic(x)^k
    (c g P)^r = c^r g^r P^r                  for positive numbers c and sizes g
    [-P > 0] = 1 - [P > 0]                   off P = 0

Where an identity needs P != 0 or P > 0, or holds only off the kink P = 0, the side condition is recorded.
"""

from fractions import Fraction

from ffn_jax.verify.symbolic._atoms import (
    Atom,
    Base,
    Constant,
    Dimension,
    Entry,
    Function,
    Monomial,
    Rational,
    Step,
    Sum,
    intern,
    monomial_text,
)
from ffn_jax.verify.symbolic._polynomials import (
    ONE,
    ZERO,
    Poly,
    integral,
    irrational,
    natural_power,
    of_atom,
    product,
)
from ffn_jax.verify.symbolic._workspace import Unsupported, workspace

HALF = Fraction(1, 2)
ODD, EVEN = ("tanh", "erf", "sin"), ("cos",)


def is_positive_atom(atom: Atom) -> bool:
    """Whether the atom is > 0 for every input."""
    return isinstance(atom, Constant | Dimension) or (isinstance(atom, Function) and atom.name == "exp")


def _nonnegative_factor(atom: Atom, e: Rational) -> bool:
    if is_positive_atom(atom) or isinstance(atom, Step) or (integral(e) and e % 2 == 0):
        return True
    if isinstance(atom, Base):
        return not integral(e)  # the base of a fractional power was assumed positive
    if isinstance(atom, Entry):
        return atom.name.startswith("iota:")
    return isinstance(atom, Sum) and all(_nonnegative_factor(a, x) for a, x in atom.body)


def is_nonnegative(poly: Poly) -> bool:
    """True only if the polynomial is >= 0 for every input (under the conditions already recorded)."""
    return all(c > 0 and all(_nonnegative_factor(a, e) for a, e in m) for m, c in poly.terms.items())


def is_positive(poly: Poly) -> bool:
    """True only if the polynomial is > 0 for every input."""
    return is_nonnegative(poly) and any(all(is_positive_atom(a) for a, _ in m) for m in poly.terms)


def _assume_positive(poly: Poly) -> None:
    if not is_positive(poly):
        workspace.assume("positive", poly)


def _assume_nonzero(poly: Poly) -> None:
    if not (is_positive(poly) or is_positive(-poly)):
        workspace.assume("nonzero", poly)


# Orders and signs must not depend on what indices are called, so they are read off texts in which every free
# index is written "?".


def _leading_sign(poly: Poly) -> int:
    """The sign of the leading coefficient in an order blind to the names of indices; 0 if it cancels."""
    names = dict.fromkeys(poly.free, "?")
    totals: dict[str, Rational] = {}
    for m, c in poly.terms.items():
        text = monomial_text(m, names, 0)
        totals[text] = totals.get(text, 0) + c
    lead = next((totals[t] for t in sorted(totals) if totals[t]), 0)
    return (lead > 0) - (lead < 0)


def _numeric(m: Monomial) -> Monomial:
    return tuple((a, e) for a, e in m if isinstance(a, Constant | Dimension))


def _content(poly: Poly) -> Poly:
    """A positive monomial in numbers and sizes whose removal makes the leading coefficient +1 or -1."""
    names = dict.fromkeys(poly.free, "?")

    def order(m: Monomial) -> tuple[str, str]:
        shape = tuple((a, e) for a, e in m if not isinstance(a, Constant | Dimension))
        return monomial_text(shape, names, 0), monomial_text(m, names, 0)

    lead = min(poly.terms, key=order)
    c = poly.terms[lead]
    return Poly({_numeric(lead): c if c > 0 else -c})


def power(poly: Poly, r: Rational, *, primitive: bool = False) -> Poly:
    """poly^r; `primitive` says that its content is already 1."""
    if integral(r):
        r = int(r)
        if r >= 0:
            return natural_power(poly, r)
    if poly.is_zero:
        raise Unsupported("a negative or fractional power of zero")
    if len(poly.terms) == 1:
        return _monomial_power(poly, r)
    if isinstance(r, int):
        as_logistic = _logistic_factors(poly)
        if as_logistic is not None:
            factor, argument, k = as_logistic
            return power(factor, r) * natural_power(function("logistic", argument), -r * k)
    content = ONE if primitive else _content(poly)
    if content.constant != 1:
        return power(poly * power(content, -1), r, primitive=True) * power(content, r)
    if isinstance(r, int):
        if _leading_sign(poly) < 0:
            return power(-poly, r, primitive=True) * (-1 if r % 2 else 1)
        _assume_nonzero(poly)
    else:
        _assume_positive(poly)
    return product([(intern(Base(poly)), r)])


def _monomial_power(poly: Poly, r: Rational) -> Poly:
    ((m, c),) = poly.terms.items()
    if isinstance(r, int):
        if not all(is_positive_atom(a) for a, _ in m):
            _assume_nonzero(poly)
        return product([(a, e * r) for a, e in m]) * Fraction(c) ** r
    out = _number_power(abs(Fraction(c)), r) * product([(a, e * r) for a, e in m if is_positive_atom(a)])
    rest = tuple((a, e) for a, e in m if not is_positive_atom(a))
    if not rest and c > 0:
        return out
    base = Poly({rest: 1 if c > 0 else -1})
    _assume_positive(base)
    return out * product([(intern(Base(base)), r)])


def _number_power(c: Fraction, r: Rational) -> Poly:
    """c^r for a positive rational, as a product of powers of primes."""
    out = ONE
    for sign, n in ((1, c.numerator), (-1, c.denominator)):
        if n > 10**9:  # too large to factor here: an opaque root
            return product([(intern(Base(Poly({(): c}))), r)])
        for p, e in _factored(n).items():
            out = out * irrational(p, sign * e * r)
    return out


def _factored(n: int) -> dict[int, int]:
    out: dict[int, int] = {}
    p = 2
    while n > 1:
        if p * p > n:
            p = n
        while n % p == 0:
            out[p] = out.get(p, 0) + 1
            n //= p
        p += 1
    return out


def _logistic_factors(poly: Poly) -> tuple[Poly, Poly, int] | None:
    """(f, q, k) with poly = f (1 + exp(-q))^k and f a monomial; None if it has no such form."""
    k = len(poly.terms) - 1
    if not 1 <= k <= 4:
        return None
    for first, c1 in poly.terms.items():
        for second, c2 in poly.terms.items():
            if second is first or c2 != k * c1:
                continue
            ratio = product([*second, *((a, -e) for a, e in first)])
            q = _minus_logarithm(ratio)
            if q is None:
                continue
            f = Poly({first: c1})
            if (poly - f * natural_power(ONE + ratio, k)).is_zero:
                return f, q, k
    return None


def _minus_logarithm(p: Poly) -> Poly | None:
    """The q with p = exp(-q); None if p is not a product of exponentials."""
    ((m, c),) = p.terms.items()
    if c != 1 or not all(isinstance(a, Function) and a.name == "exp" for a, _ in m):
        return None
    q = ZERO
    for a, e in m:
        if isinstance(a, Function):
            q = q - a.argument * e
    return q


def function(name: str, p: Poly) -> Poly:
    """An elementwise function of a polynomial."""
    c = p.constant
    if name == "exp":
        factors = [(intern(Function("exp", Poly({m: 1}))), c) for m, c in p.terms.items()]
        return product(factors)
    if name == "logistic":
        return HALF + HALF * function("tanh", HALF * p)
    if name == "erfc":
        return ONE - function("erf", p)
    if name == "expm1":
        return function("exp", p) - 1
    if name == "log1p":
        return function("log", p + 1)
    if name == "exp2":
        return function("exp", p * function("log", Poly({(): 2})))
    if name == "tan":
        return function("sin", p) * power(function("cos", p), -1)
    if name in ("sinh", "cosh"):
        return HALF * function("exp", p) + (HALF if name == "cosh" else -HALF) * function("exp", -p)
    if name not in (*ODD, *EVEN, "log"):
        raise Unsupported(f"the function {name}")
    if c == 0 and name in ODD:
        return ZERO
    if c == 0 and name in EVEN:
        return ONE
    if name == "log":
        if c == 1:
            return ZERO
        _assume_positive(p)
        return of_atom(Function("log", p))
    if _leading_sign(p) < 0:
        return of_atom(Function(name, -p)) * (1 if name in EVEN else -1)
    return of_atom(Function(name, p))


def step(p: Poly, *, kink: bool = True) -> Poly:
    """[p > 0], with p taken to a leading coefficient of +1 off the kink p = 0, if p can be 0 at all."""
    c = p.constant
    if c is not None:
        return ONE if c > 0 else ZERO
    if is_positive(p):
        return ONE
    if is_nonnegative(-p):
        return ZERO
    p = p * power(_content(p), -1)
    if _leading_sign(p) < 0:
        if kink:
            workspace.assume("off the kink", -p)
        return ONE - of_atom(Step(-p))
    return of_atom(Step(p))
