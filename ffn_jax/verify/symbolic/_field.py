"""Random evaluation in a prime field: a fast test of identities that shares no code with the normal form.

Two rational expressions that are equal over the reals are equal modulo a random prime; two that differ almost
never are (Schwartz and Zippel).  Functions that are not rational have to be modelled:

    oracle    every elementary function is a random oracle, with the symmetries and identities of the real one
              (tanh, erf odd; logistic and erfc by them)
    group     exp(x) = g^x with g of prime order q modulo p = k q + 1, so exp(a + b) = exp(a) exp(b) holds and
              tanh and logistic are rational in exp; a number is then a pair of residues, mod p and mod q

"different" here is not a refutation over the reals: it means that no proof within these identities exists.
"""

import hashlib
import random
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from ffn_jax.verify.symbolic._evaluate import Array, NotEvaluable
from ffn_jax.verify.symbolic._literals import Reading

Mode = Literal["oracle", "group"]


def is_prime(n: int) -> bool:
    """Miller and Rabin's test, exact below 3e24 with these bases."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if n < 2 or any(n % b == 0 for b in bases):
        return n in bases
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for b in bases:
        x = pow(b, odd, n)
        if x in (1, n - 1):
            continue
        if not any((x := x * x % n) == n - 1 for _ in range(twos - 1)):
            return False
    return True


@dataclass(frozen=True, slots=True, eq=False)
class Residue:
    """A number modulo p and, where it may be an exponent, modulo q."""

    field: "PrimeField"
    p: int
    q: int | None

    def _with(self, other: Any, p: int, q: int | None) -> "Residue":
        return Residue(self.field, p % self.field.p, None if q is None else q % self.field.q)

    def _lift(self, other: Any) -> "Residue":
        return other if isinstance(other, Residue) else self.field.integer(int(other))

    def __add__(self, other: Any) -> "Residue":
        o = self._lift(other)
        return self._with(o, self.p + o.p, None if self.q is None or o.q is None else self.q + o.q)

    def __neg__(self) -> "Residue":
        return self._with(self, -self.p, None if self.q is None else -self.q)

    def __sub__(self, other: Any) -> "Residue":
        return self + (-self._lift(other))

    def __rsub__(self, other: Any) -> "Residue":
        return self._lift(other) - self

    def __mul__(self, other: Any) -> "Residue":
        o = self._lift(other)
        return self._with(o, self.p * o.p, None if self.q is None or o.q is None else self.q * o.q)

    def __truediv__(self, other: Any) -> "Residue":
        o = self._lift(other)
        if o.p == 0 or o.q == 0:
            raise ZeroDivisionError
        q = None if o.q is None else pow(o.q, -1, self.field.q)
        return self * Residue(self.field, pow(o.p, -1, self.field.p), q)

    def __pow__(self, n: int) -> "Residue":
        return self._with(self, pow(self.p, n, self.field.p), None if self.q is None else pow(self.q, n, self.field.q))

    __radd__ = __add__
    __rmul__ = __mul__

    def same(self, other: "Residue") -> bool:
        """Equality in the residues that both have."""
        return self.p == other.p and (self.q is None or other.q is None or self.q == other.q)


class PrimeField:
    """A domain of residues; see the top of this module."""

    def __init__(self, seed: int, mode: Mode = "oracle", bits: int = 61) -> None:
        self.mode, rng = mode, random.Random(seed)
        self.salt = str(rng.random())
        bits -= 6 if mode == "group" else 0
        while True:  # q = 7 mod 8: 2 is a square, and roots of squares are powers
            q = rng.getrandbits(bits) | 7 | (1 << (bits - 1))
            if not is_prime(q):
                continue
            k = (
                1
                if mode == "oracle"
                else next((k for k in range(2, 4000, 2) if (k * q + 1) % 8 == 7 and is_prime(k * q + 1)), 0)
            )
            if k:
                break
        self.q, self.p = q, q if mode == "oracle" else k * q + 1
        self.g = 1
        while mode == "group" and self.g == 1:
            self.g = pow(rng.randrange(2, self.p), k, self.p)
        self.root_of_two = self._root(self.integer(2))
        self.root_of_pi = self.sample(rng)

    def integer(self, n: int) -> Residue:
        """An integer."""
        return Residue(self, n % self.p, n % self.q)

    def rational(self, f: Fraction) -> Residue:
        """A rational number."""
        return self.integer(f.numerator) / self.integer(f.denominator)

    def literal(self, value: float, reading: Reading) -> Residue:
        """A literal as the certificate reads it; pi is a random number."""
        out = self.rational(reading.q)
        if reading.root:
            out = out * self.root_of_two
        for _ in range(abs(reading.half_pi)):
            out = out * self.root_of_pi if reading.half_pi > 0 else out / self.root_of_pi
        return out

    def sample(self, rng: random.Random) -> Residue:
        """A random residue."""
        p = rng.randrange(self.p)
        return Residue(self, p, p if self.mode == "oracle" else rng.randrange(self.q))

    def _root(self, x: Residue) -> Residue:
        p = pow(x.p, (self.p + 1) // 4, self.p)
        if p * p % self.p != x.p:
            raise NotEvaluable("a root of a non-square")
        if self.mode == "oracle":
            return Residue(self, p, p)
        q = None if x.q is None else pow(x.q, (self.q + 1) // 4, self.q)
        return Residue(self, p, q if q is not None and q * q % self.q == x.q else None)

    def _oracle(self, name: str, x: Residue, parity: int = 0) -> Residue:
        """A random function of the residue; parity -1 odd, 1 even."""
        v, sign = x.p, 1
        if parity and v > self.p // 2:
            v, sign = self.p - v, parity
        if parity < 0 and v == 0:
            return self.integer(0)
        h = sign * int.from_bytes(hashlib.sha256(f"{self.salt}{name}{v}".encode()).digest(), "big")
        return Residue(self, h % self.p, h % self.p if self.mode == "oracle" else None)

    def function(self, name: str, x: Residue) -> Residue:
        """An elementary function, by the identities that the model keeps."""
        one, half = self.integer(1), self.rational(Fraction(1, 2))
        match name:
            case "sqrt":
                return self._root(x)
            case "rsqrt":
                return one / self._root(x)
            case "erfc":
                return one - self._oracle("erf", x, -1)
            case "expm1":
                return self.function("exp", x) - one
            case "log1p":
                return self.function("log", x + one)
        if self.mode == "group" and x.q is not None:
            match name:
                case "exp":
                    return Residue(self, pow(self.g, x.q, self.p), None)
                case "tanh":
                    e = self.function("exp", x + x)
                    return (e - one) / (e + one)
                case "logistic":
                    return one / (one + self.function("exp", -x))
        match name:
            case "logistic":
                return half * (one + self.function("tanh", x * half))
            case "tanh" | "erf" | "sin":
                return self._oracle(name, x, -1)
            case "cos":
                return self._oracle(name, x, 1)
            case "exp" | "log":
                return self._oracle(name, x)
        raise NotEvaluable(f"the function {name}")

    def positive(self, x: Residue) -> bool:
        """A random predicate that holds for exactly one of x and -x, x != 0."""
        return x.p != 0 and (self._oracle(">", x, 1).p % 2 == 0) == (x.p <= self.p // 2)


def differs(a: Array, b: Array) -> bool:
    """Whether two arrays differ somewhere."""
    if a.shape != b.shape:
        return True
    return any(not _same(a[i], b[i]) for i in np.ndindex(*a.shape))


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, Residue) and isinstance(y, Residue):
        return x.same(y)
    return bool(x == y)
