"""Which real number does a float literal stand for?

A program says 0.044715 and means the decimal; it says 0.7978845608028654 and means sqrt(2/pi); 0.5 is itself.
In order:

1. a small dyadic number is exact;
2. up to 6 digits: the decimal;
3. q sqrt(2)^a pi^(b/2) with a short rational q, within 4 units of rounding;
4. up to 8 digits: the decimal;
5. a short decimal (0.1 + 0.2) or a small fraction (1/3) within 4 units of rounding;
6. else its shortest decimal, and the certificate says that no closed form was found.

Every reading other than 1 is listed in the certificate with its relative gap.  0.7978845608 is not sqrt(2/pi)
(3.6e-12 away), and is read as the decimal.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Reading:
    """The number q * sqrt(2)^root * pi^(half_pi / 2), and whether that is worth a line in the certificate."""

    q: Fraction
    root: int = 0
    half_pi: int = 0
    text: str = ""
    gap: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        factors = [] if self.q == 1 and (self.root or self.half_pi) else [str(self.q)]
        if self.root:
            factors.append("sqrt(2)")
        if self.half_pi:
            factors.append({1: "sqrt(pi)", 2: "pi", -1: "1/sqrt(pi)", -2: "1/pi"}[self.half_pi])
        return " * ".join(factors) + self.note


_CONSTANTS = [(2 ** (a / 2) * math.pi ** (b / 2), a, b) for a in (0, 1) for b in (-2, -1, 0, 1, 2) if a or b]


def _short_rationals(r: float, eps: float) -> Iterator[Fraction]:
    q = Fraction(r).limit_denominator(64)
    if q and abs(q.numerator) <= 64:
        yield q
    if eps < 1e-12:  # a short decimal times a constant, multiplied out by Python; hopeless in float32
        yield Fraction(f"{r:.7g}")


def read_literal(value: float, eps: float, text: str) -> Reading:
    """The real number that a finite float literal stands for.

    Args:
        value: the literal.
        eps: spacing of floats at 1 in the literal's dtype.
        text: its shortest decimal in that dtype.
    """
    exact = Fraction(value)
    if exact.denominator <= 4096 and abs(exact.numerator) < 2**24:
        return Reading(exact)
    decimal = Fraction(text)
    digits = len(text.lstrip("-").split("e")[0].replace(".", "").strip("0"))
    tolerance = 4 * eps

    def reading(q: Fraction, note: str = "") -> Reading:
        return Reading(q, 0, 0, text, float(abs(exact - q) / abs(exact)), note)

    if digits <= 6:
        return reading(decimal)
    for constant, a, b in _CONSTANTS:
        for q in _short_rationals(value / constant, eps):
            gap = abs(float(q) * constant - value) / abs(value)
            if gap <= tolerance:
                return Reading(q, a, b, text, gap)
    if digits <= 8:
        return reading(decimal)
    short = Fraction(f"{value:.7g}")
    if eps < 1e-12 and abs(exact - short) <= tolerance * abs(exact):
        return reading(short)
    ratio = exact.limit_denominator(1000)
    if abs(exact - ratio) <= tolerance * abs(exact):
        return reading(ratio)
    return reading(decimal, " (no closed form found; its shortest decimal)")
