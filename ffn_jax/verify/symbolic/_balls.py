"""Rigorous real numbers: balls [m - r, m + r] that contain the exact result (Arb, through python-flint).

Two disjoint balls are a proof that the exact values differ.  A literal stands for any real within one
rounding of it, so a difference is never an artefact of how a decimal was rounded.
"""

import random
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from ffn_jax.verify.symbolic._evaluate import Array, NotEvaluable
from ffn_jax.verify.symbolic._literals import Reading

PRECISION = 200  # bits
Sampling = Literal["signed", "positive", "unit"]  # "unit": between 0 and 1


class FlintMissing(Exception):  # noqa: N818
    """python-flint is not installed."""


def _flint() -> Any:
    try:
        import flint
    except ImportError:
        raise FlintMissing("python-flint is not installed (pip install 'ffn_jax[prove]')") from None
    return flint


class Balls:
    """The domain of balls; `sampling` says where random inputs lie."""

    def __init__(self, sampling: Sampling = "signed") -> None:
        self.flint = _flint()
        self.signs = (1, -1) if sampling == "signed" else (1,)
        self.denominators = (4,) if sampling == "unit" else (1, 2, 4)
        self.flint.ctx.prec = PRECISION

    def integer(self, n: int) -> Any:
        """An integer."""
        return self.flint.arb(n)

    def rational(self, f: Fraction) -> Any:
        """A rational number."""
        return self.flint.arb(f.numerator) / f.denominator

    def literal(self, value: float, reading: Reading) -> Any:
        """A literal: exact if it is a small dyadic number, else a ball of one relative rounding."""
        middle = self.rational(Fraction(value))
        if not reading.text:
            return middle
        radius = max(abs(value) * 2.0**-52, 2 * reading.gap * abs(value))
        return self.flint.arb(middle.mid(), radius)

    def sample(self, rng: random.Random) -> Any:
        """A small dyadic number."""
        return self.flint.arb(rng.choice(self.signs) * rng.choice((1, 2, 3))) / rng.choice(self.denominators)

    def function(self, name: str, x: Any) -> Any:
        """An elementary function, enclosed."""
        match name:
            case "logistic":
                out = 1 / (1 + (-x).exp())
            case "cbrt":
                out = x.root(3)
            case "exp2":
                out = (x * self.flint.arb(2).log()).exp()
            case _:
                out = getattr(x, name)()
        if not out.is_finite():
            raise NotEvaluable(f"{name} outside its domain")
        return out

    def positive(self, x: Any) -> bool:
        """Whether the ball is right of 0; at a kink that is not known."""
        if x > 0:
            return True
        if x <= 0:
            return False
        raise NotEvaluable("a comparison at a kink")


def first_disjoint(a: Array, b: Array) -> tuple[int, ...] | None:
    """An entry at which the exact values provably differ."""
    for i in np.ndindex(*a.shape):
        ours: Any = a[i]
        if not ours.overlaps(b[i]):
            return i
    return None


def is_sharp(a: Array) -> bool:
    """Whether every ball is small enough for an overlap to say something."""
    return all(bool(x.is_finite()) and float(x.rad()) <= 1e-9 * (1 + abs(float(x.mid()))) for x in a.flat)
