"""The model of rounding: what a bound consists of, and how bounds combine.

Every scalar operation in a dtype with unit roundoff u returns the exact result times (1 + δ), plus η when it
underflows (|η| ≤ the smallest normal number, since XLA may flush). Two readings of δ:

* **deterministic**: |δ| ≤ u, worst case everywhere. A sum of k terms, in any order, errs by at most
  γ_k Σ|aᵢ| with γ_k = k u / (1 - k u) (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed.,
  §3.1, §4.2).
* **statistical**: δ independent, of mean zero and variance u²/3. A random walk of k terms has variance
  u²/3 (Σⱼ sⱼ²) over its partial sums sⱼ, here u² ((k/2 + 1) Σaᵢ² + k/3 s²)/3 with s the sum (terms of random
  sign and a drift). Six standard deviations are the tolerance (Higham & Mary, *SIAM J. Sci. Comput.* 41
  (2019) A2815 and 42 (2020) A3427). Errors at different positions of an array are independent unless one
  value was broadcast to them.

So an error has two parts: `shared`, which adds up linearly under a sum, and `free`, which adds up in squares;
the deterministic reading has only the first. `None` for both is a value that is exact *and* constant.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Linear = Callable[..., jax.Array]


class Error(NamedTuple):
    """The two parts of an error bound, each an array of the value's shape or None for zero."""

    shared: Any = None
    free: Any = None

    @property
    def exact(self) -> bool:
        """Whether the value is a constant without error."""
        return self.shared is None and self.free is None

    def total(self) -> Any:
        """The whole error: a bound (deterministic) or a standard deviation (statistical)."""
        if self.shared is None:
            return 0.0 if self.free is None else self.free
        return self.shared if self.free is None else self.shared + self.free

    def each(self, function: Linear) -> "Error":
        """`function` on each part; for what moves entries without mixing them, or scales them."""
        return Error(*(None if part is None else function(part) for part in self))

    def scaled(self, factor: Any) -> "Error":
        """Times a non-negative factor, where 0 · ∞ = 0."""
        return self.each(lambda part: times(factor, part))

    def spread(self) -> "Error":
        """The same error once it is common to many positions."""
        return Error(self.total()) if self.free is not None else self


class Bound(NamedTuple):
    """A value (float64 for any float dtype) and the error of computing it in its own dtype."""

    value: Any
    error: Error


def times(a: Any, b: Any) -> Any:
    """A product of non-negative numbers in which zero wins over infinity."""
    return jnp.where((a == 0) | (b == 0), 0.0, a * b)


def plus(*errors: Error) -> Error:
    """The sum of errors of operands, which may be correlated with each other."""
    parts = []
    for each in zip(*errors, strict=True):
        present = [part for part in each if part is not None]
        parts.append(sum(present[1:], start=present[0]) if present else None)
    return Error(*parts)


def largest(first: Error, second: Error) -> Error:
    """The entrywise larger error."""
    parts = []
    for one, other in zip(first, second, strict=True):
        parts.append(other if one is None else one if other is None else jnp.maximum(one, other))
    return Error(*parts)


@dataclasses.dataclass(frozen=True)
class Model:
    """One of the two readings of rounding errors."""

    statistical: bool

    @property
    def width(self) -> float:
        """How many units of the error the tolerance is: one, or six standard deviations."""
        return 6.0 if self.statistical else 1.0

    def rounding(self, size: Any) -> Error:
        """A fresh rounding error of at most `size`."""
        return Error(None, size / math.sqrt(3)) if self.statistical else Error(size)

    def summed(self, error: Error, linear: Linear) -> Error:
        """The error of a sum; `linear` sums non-negative arrays."""
        shared, free = error
        return Error(
            None if shared is None else linear(shared),
            None if free is None else jnp.sqrt(linear(free * free)),
        )

    def weighted(self, error: Error, weights: Any, bilinear: Linear) -> Error:
        """The error of a contraction with `weights` (magnitudes); `bilinear(error, weights)` contracts."""
        shared, free = error
        return Error(
            None if shared is None else bilinear(shared, weights),
            None if free is None else jnp.sqrt(bilinear(free * free, weights * weights)),
        )

    def accumulation(self, terms: Any, u: float, out: Any, sum_abs: Linear, sum_squares: Linear) -> Error:
        """The rounding of a sum of `terms` terms (k), evaluated in any order.

        Args:
            terms: the number of roundings, a number or an array.
            u: unit roundoff of the accumulation.
            out: the sum itself.
            sum_abs: a thunk for the sum of the terms' magnitudes.
            sum_squares: a thunk for the sum of their squares.
        """
        if self.statistical:
            variance = (terms / 2 + 1) * sum_squares() + terms / 3 * out * out
            return Error(None, u / math.sqrt(3) * jnp.sqrt(variance))
        k_u = terms * u
        return Error(jnp.where(k_u < 1, k_u / jnp.maximum(1 - k_u, 1e-300), np.inf) * sum_abs())


@dataclasses.dataclass(frozen=True)
class Precision:
    """The constants of a float dtype that bounds are made of."""

    u: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, dtype: Any) -> "Precision":
        """Of any JAX float dtype; integers and booleans are exact."""
        if not jnp.issubdtype(dtype, jnp.floating):
            return cls(0.0, 0.0, np.inf)
        info = jnp.finfo(dtype)
        # float16 is computed through float32, where its subnormal numbers are normal and nothing is flushed
        smallest = info.smallest_subnormal if dtype == jnp.float16 else info.tiny
        return cls(float(info.eps) / 2, float(smallest), float(info.max))
