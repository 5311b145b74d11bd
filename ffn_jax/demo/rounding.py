"""How far the computed gradients of the sublayer may be from the true ones: a bound from the data, none chosen.

A sum of k products in any order errs by at most γ_k Σ|a||b|, with γ_k = k u / (1 - k u) and u half an ulp of 1
(2⁻²⁴ in float32, 2⁻⁵³ in float64). Followed through the reverse rule's equations, entry by entry, with E(a) the
bound on a's error and products of bounds kept:

    E(z)  = γ_{d+1} (|A1||x| + |b1|)                  E(h)  = |σ'|E(z) + s E(z)²/2 + ε_σ
    E(h̄)  = γ_d |A2|ᵀ|ȳ|                              E(σ') = s E(z) + ε_σ'
    E(z̄)  = |σ'|E(h̄) + E(σ')(|h̄| + E(h̄)) + rounding   E(x̄)  = |A1|ᵀE(z̄) + γ_{m+1}(|A1|ᵀ(|z̄| + E(z̄)) + |ȳ|)
    E(Ā2) = |ȳ| ⊗ E(h) + γ_N |ȳ| ⊗ (|h| + E(h))       E(b̄2) = γ_N Σ|ȳ|
    E(Ā1) = E(z̄) ⊗ |x| + γ_N (|z̄| + E(z̄)) ⊗ |x|       E(b̄1) = Σ E(z̄) + γ_N Σ(|z̄| + E(z̄))

for d = d_model, m = d_ff, N tokens and the exact GELU: s = 2φ(0) = √(2/π) bounds |σ''|, and ε are the errors of
evaluating σ and σ'. XLA's erfc and exp enter these with (8 + z²) u and 4 u relative, z² for z < 0 only: measured on
the CPU in both precisions, with a margin of 1.5 and more. Both the rule and `linear_transpose` of `jvp` evaluate the
same real function through these sums, so both obey the bound, and their difference obeys the sum of two.

Source: Higham, "Accuracy and Stability of Numerical Algorithms" (2nd ed., 2002), sections 3.1 and 3.5.
"""

import math
from typing import Any

import numpy as np

ARGUMENTS = ("x", "A1", "b1", "A2", "b2")
ERFC_RELATIVE, EXP_RELATIVE = 8.0, 4.0  # in units of u; erfc's grows by z² in its tail

_SUP_SECOND_DERIVATIVE = math.sqrt(2.0 / math.pi)


def unit_roundoff(dtype: Any) -> float:
    """u: the largest relative error of one rounding, 2⁻²⁴ for float32.

    >>> unit_roundoff("float32") == 2.0**-24
    True
    """
    return float(np.finfo(dtype).eps) / 2


def gamma(k: int, u: float) -> float:
    """γ_k = k u / (1 - k u).

    Raises:
      ValueError: k u >= 1; a sum of so many terms has no such bound.

    >>> gamma(1, 0.5)
    1.0
    """
    if k * u >= 1:
        raise ValueError(f"gamma: expected k u < 1, got k = {k} terms of unit roundoff {u:.1e}")
    return k * u / (1 - k * u)


def gradient_bounds(
    x: np.ndarray, m1: np.ndarray, b1: np.ndarray, m2: np.ndarray, b2: np.ndarray, ybar: np.ndarray, dtype: Any
) -> dict[str, np.ndarray]:
    """E of the module's equations, for the gradient in each argument of the exact-GELU sublayer.

    Args:
      x: tokens, `(N, d)`, float64.
      m1: A1's matrix, `(m, d)`, float64.
      b1: `(m,)`.
      m2: A2's matrix, `(d, m)`.
      b2: `(d,)`; its gradient does not depend on it.
      ybar: the seed, `(N, d)`.
      dtype: the precision whose rounding is bounded.

    Returns:
      Bounds by argument name, of the arguments' shapes, float64.

    >>> one = np.ones((1, 1))
    >>> bounds = gradient_bounds(one, one, one[0], one, one[0], one, "float64")
    >>> bool(0 < bounds["A1"][0, 0] < 1e-14)
    True
    """
    n, d = x.shape
    m = m1.shape[0]
    u, tiny = unit_roundoff(dtype), float(np.finfo(dtype).tiny)

    # Forward: z, h, and σ' = Φ + z φ with its two terms' magnitudes.
    z, z_err = x @ m1.T + b1, gamma(d + 1, u) * (np.abs(x) @ np.abs(m1).T + np.abs(b1))
    cdf = np.vectorize(math.erfc, otypes=[float])(-z * math.sqrt(0.5)) / 2
    zpdf = np.abs(z) * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    slope = cdf + np.sign(z) * zpdf
    cdf_err = u * ((ERFC_RELATIVE + 4 + np.where(z < 0, z * z, 0.0)) * cdf + 2 * zpdf) + tiny
    slope_err = _SUP_SECOND_DERIVATIVE * z_err + cdf_err + u * (EXP_RELATIVE + 12 + 2.5 * z * z) * zpdf + tiny
    h, h_err = z * cdf, np.abs(slope) * z_err + _SUP_SECOND_DERIVATIVE * z_err**2 / 2 + np.abs(z) * cdf_err

    # Reverse: the equations of `ffn_jax._rule`.
    hbar, hbar_err = ybar @ m2, gamma(d, u) * (np.abs(ybar) @ np.abs(m2))
    hbar_size = np.abs(hbar) + hbar_err
    zbar = slope * hbar
    zbar_err = np.abs(slope) * hbar_err + (slope_err + u * (cdf + zpdf)) * hbar_size
    zbar_size = np.abs(zbar) + zbar_err
    a1, seed = np.abs(m1), np.abs(ybar)
    return {
        "x": zbar_err @ a1 + gamma(m + 1, u) * (zbar_size @ a1 + seed),
        "A1": (zbar_err + gamma(n, u) * zbar_size).T @ np.abs(x),
        "b1": np.sum(zbar_err + gamma(n, u) * zbar_size, 0),
        "A2": seed.T @ (h_err + gamma(n, u) * (np.abs(h) + h_err)),
        "b2": gamma(n, u) * np.sum(seed, 0),
    }
