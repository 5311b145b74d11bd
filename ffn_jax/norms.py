"""Layer normalisation and RMS normalisation over the last axis, with their reverse rules by hand.

For one row x of d features, with scale s, bias b and ε > 0,

    LayerNorm   μ = 1/d Σ x      c = x - μ      ρ = 1/√(1/d Σ c² + ε)      x̂ = ρ c      y = s ⊙ x̂ + b
    RMSNorm     μ = 0, so that   c = x          ρ = 1/√(1/d Σ x² + ε)      x̂ = ρ x      y = s ⊙ x̂

Reverse, with the seed ȳ and g = s ⊙ ȳ:

    x̄ = ρ (g - 1/d Σ g - x̂ · 1/d Σ g ⊙ x̂)      s̄ = Σ_rows ȳ ⊙ x̂      b̄ = Σ_rows ȳ

where RMSNorm has no term 1/d Σ g. The backward keeps x and the two numbers μ and ρ of each row; x̂ is computed again.
For half types all arithmetic is in float32, and each result is rounded once. The rule holds where the argument of the
root is positive, which ε > 0 grants over the reals.

Sources: Ba, Kiros and Hinton 2016 (arXiv:1607.06450), eq. 3; Zhang and Sennrich 2019 (arXiv:1910.07467), eq. 4.
"""

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ffn_jax._checks import check_floating, check_trailing, shown, wide
from ffn_jax._pytree import pytree_dataclass, static
from ffn_jax.maps._base import cast_like

if TYPE_CHECKING:
    from jax import Array
    from jax.typing import ArrayLike


class Form(NamedTuple):
    """The static choices: whether rows are centred (LayerNorm) or not (RMSNorm), and ε."""

    centred: bool
    eps: float


class Affine(NamedTuple):
    """The parameters after the normalisation, `(d,)` each or None."""

    scale: "Array | None"
    bias: "Array | None"


class Statistics(NamedTuple):
    """What a row is normalised by, `(*batch, 1)` each in float32 or wider; no mean for RMSNorm."""

    mean: "Array | None"
    rsqrt: "Array"


# --------------------------------------------------------------------------------------- the equations


def statistics(form: Form, x: "Array") -> Statistics:
    """μ and ρ of each row."""
    x = x.astype(wide(x.dtype))
    mean = jnp.mean(x, -1, keepdims=True) if form.centred else None
    centred = x if mean is None else x - mean
    return Statistics(mean, lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + form.eps))


def value(x: "Array", affine: Affine, rows: Statistics) -> "Array":
    """y, in x's dtype."""
    y = _normalised(x, rows)
    if affine.scale is not None:
        y = y * _features(affine.scale, y)
    if affine.bias is not None:
        y = y + _features(affine.bias, y)
    return y.astype(x.dtype)


def pull_back(x: "Array", affine: Affine, rows: Statistics, ybar: "Array") -> "tuple[Array, Affine]":
    """x̄ in x's dtype, and s̄ and b̄ before their last cast."""
    xhat, g = _normalised(x, rows), ybar.astype(wide(x.dtype))
    batch = tuple(range(x.ndim - 1))
    bias_bar = None if affine.bias is None else jnp.sum(g, batch)
    scale_bar = None if affine.scale is None else jnp.sum(g * xhat, batch)
    if affine.scale is not None:
        g = g * _features(affine.scale, g)
    xbar = g - xhat * jnp.mean(g * xhat, -1, keepdims=True)
    if rows.mean is not None:
        xbar = xbar - jnp.mean(g, -1, keepdims=True)
    return (rows.rsqrt * xbar).astype(x.dtype), Affine(scale_bar, bias_bar)


def _normalised(x: "Array", rows: Statistics) -> "Array":
    """x̂ in float32 or wider."""
    x = x.astype(rows.rsqrt.dtype)
    return (x if rows.mean is None else x - rows.mean) * rows.rsqrt


def _features(s: "Array", like: "Array") -> "Array":
    return jnp.broadcast_to(s.astype(like.dtype), like.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def normalise(form: Form, x: "Array", affine: Affine) -> "Array":
    """y, keeping x and the statistics of its rows for the backward pass."""
    return value(x, affine, statistics(form, x))


def _forward(form: Form, x: "Array", affine: Affine) -> Any:
    rows = statistics(form, x)
    return value(x, affine, rows), (x, affine, rows)


def _backward(form: Form, residuals: "tuple[Array, Affine, Statistics]", ybar: "Array") -> "tuple[Array, Affine]":
    xbar, bars = pull_back(*residuals, ybar)
    return xbar, cast_like(residuals[1], bars)


normalise.defvjp(_forward, _backward)


def undecorated(form: Form, x: "Array", affine: Affine) -> "Array":
    """`normalise` in plain JAX."""
    return value(x, affine, statistics(form, x))


# --------------------------------------------------------------------------------------- what a user calls


def layer_norm(
    x: "ArrayLike", scale: "ArrayLike | None" = None, bias: "ArrayLike | None" = None, *, eps: float = 1e-5
) -> "Array":
    """Each row of x shifted and scaled to mean 0 and variance 1, then `scale * row + bias`.

    Args:
      x: `(*batch, d)`.
      scale: `(d,)`, of x's dtype or float32 where x is of a half type; None is all ones.
      bias: `(d,)` likewise; None is all zeros.
      eps: added to the variance, > 0; PyTorch's default. BERT has 1e-12, Flax 1e-6.

    Returns:
      y of x's shape and dtype. The backward pass keeps x and two numbers per row.

    Raises:
      TypeError, ValueError: an argument is of the wrong kind, shape or dtype; the message says what was expected and
        what was got. `jax.jvp` raises TypeError: for forward mode use `layer_norm_reference`.

    Source: Ba, Kiros and Hinton 2016 (arXiv:1607.06450), eq. 3.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> fj.layer_norm(jnp.array([1.0, 2.0, 3.0]), 2.0 * jnp.ones(3), jnp.ones(3)).round(2).tolist()
    [-1.45, 1.0, 3.45]
    """
    return normalise(*_prepare("layer_norm", True, x, scale, bias, eps))


def rms_norm(x: "ArrayLike", scale: "ArrayLike | None" = None, *, eps: float = 1e-6) -> "Array":
    """Each row of x scaled to mean square 1, then `scale * row`.

    Args:
      x: `(*batch, d)`.
      scale: `(d,)`, of x's dtype or float32 where x is of a half type; None is all ones.
      eps: added to the mean square, > 0.

    Returns:
      y of x's shape and dtype. The backward pass keeps x and one number per row.

    Raises:
      TypeError, ValueError: as `layer_norm`; for forward mode use `rms_norm_reference`.

    Source: Zhang and Sennrich 2019 (arXiv:1910.07467), eq. 4.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> fj.rms_norm(jnp.array([3.0, -3.0]), jnp.array([1.0, 2.0])).round(2).tolist()
    [1.0, -2.0]
    """
    return normalise(*_prepare("rms_norm", False, x, scale, None, eps))


def layer_norm_reference(
    x: "ArrayLike", scale: "ArrayLike | None" = None, bias: "ArrayLike | None" = None, *, eps: float = 1e-5
) -> "Array":
    """`layer_norm` in undecorated JAX: the reference that the rule is compared with; it has forward mode.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> jax.jvp(fj.layer_norm_reference, (jnp.array([1.0, 2.0, 3.0]),), (jnp.ones(3),))[1].tolist()
    [0.0, 0.0, 0.0]
    """
    return undecorated(*_prepare("layer_norm_reference", True, x, scale, bias, eps))


def rms_norm_reference(x: "ArrayLike", scale: "ArrayLike | None" = None, *, eps: float = 1e-6) -> "Array":
    """`rms_norm` in undecorated JAX: the reference that the rule is compared with; it has forward mode.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> jax.jvp(fj.rms_norm_reference, (jnp.array([3.0, -3.0]),), (jnp.ones(2),))[1].round(2).tolist()
    [0.33, 0.33]
    """
    return undecorated(*_prepare("rms_norm_reference", False, x, scale, None, eps))


class Norm:
    """What `LayerNorm` and `RMSNorm` share; use one of them."""

    scale: "Array | None"
    eps: float

    @property
    def form(self) -> Form:
        """The static choices."""
        return Form(isinstance(self, LayerNorm), self.eps)

    @property
    def affine(self) -> Affine:
        """The parameters."""
        return Affine(self.scale, getattr(self, "bias", None))

    def _check(self) -> None:
        where = type(self).__name__
        object.__setattr__(self, "eps", _check_eps(self.eps, where))
        for name, s in self.affine._asdict().items():
            if s is None:
                continue
            s = _check_vector(s, where, name)
            if self.scale is not None and s.shape != self.scale.shape:
                raise ValueError(f"{where}: expected {name} of scale's shape {self.scale.shape}, got {tuple(s.shape)}")
            object.__setattr__(self, name, s)

    def __repr__(self) -> str:
        shapes = (f"{name}={getattr(s, 'shape', '...')}" for name, s in self.affine._asdict().items() if s is not None)
        return f"{type(self).__name__}({', '.join([*shapes, f'eps={self.eps}'])})"


@pytree_dataclass
class LayerNorm(Norm):
    """`layer_norm` with its parameters: a callable and a pytree, scale and bias its leaves.

    Args:
      scale: `(d,)`, or None for ones.
      bias: `(d,)`, or None for zeros.
      eps: added to the variance, > 0.

    Raises:
      TypeError, ValueError: a parameter is no floating vector, their shapes differ, or eps is no positive float.

    Source: Ba, Kiros and Hinton 2016 (arXiv:1607.06450), eq. 3.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> norm = fj.LayerNorm(jnp.ones(3), jnp.zeros(3), eps=1e-12)
    >>> norm, norm(jnp.array([1.0, 2.0, 3.0])).round(2).tolist()
    (LayerNorm(scale=(3,), bias=(3,), eps=1e-12), [-1.22, 0.0, 1.22])
    """

    scale: "Array | None" = None
    bias: "Array | None" = None
    eps: float = static(default=1e-5)

    def __post_init__(self) -> None:
        self._check()

    def __call__(self, x: "ArrayLike") -> "Array":
        """`layer_norm(x, scale, bias, eps=eps)`."""
        return normalise(*_prepare("LayerNorm", True, x, self.scale, self.bias, self.eps))


@pytree_dataclass
class RMSNorm(Norm):
    """`rms_norm` with its parameter: a callable and a pytree, scale its leaf.

    Args:
      scale: `(d,)`, or None for ones.
      eps: added to the mean square, > 0.

    Raises:
      TypeError, ValueError: scale is no floating vector, or eps is no positive float.

    Source: Zhang and Sennrich 2019 (arXiv:1910.07467), eq. 4.

    >>> import jax.numpy as jnp, ffn_jax as fj
    >>> fj.RMSNorm(jnp.ones(2))(jnp.array([3.0, -3.0])).round(2).tolist()
    [1.0, -1.0]
    """

    scale: "Array | None" = None
    eps: float = static(default=1e-6)

    def __post_init__(self) -> None:
        self._check()

    def __call__(self, x: "ArrayLike") -> "Array":
        """`rms_norm(x, scale, eps=eps)`."""
        return normalise(*_prepare("RMSNorm", False, x, self.scale, None, self.eps))


# --------------------------------------------------------------------------------------- what is checked


def check_norm(norm: Any, x: Any, where: str) -> None:
    """Raises TypeError or ValueError unless `norm` is a LayerNorm or RMSNorm that fits x, which may be abstract."""
    if not isinstance(norm, Norm):
        raise TypeError(f"{where}: expected norm to be an ffn_jax.LayerNorm, an RMSNorm or None, got {shown(norm)}")
    _prepare(f"{where}: norm", norm.form.centred, x, *norm.affine, norm.eps)


def _prepare(where: str, centred: bool, x: Any, scale: Any, bias: Any, eps: Any) -> "tuple[Form, Array, Affine]":
    eps = _check_eps(eps, where)
    check_floating(x, where, "x")
    x = jnp.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{where}: expected x of shape (..., d) with d >= 1, got {tuple(x.shape)}")
    vectors = []
    for name, s in (("scale", scale), ("bias", bias)):
        if s is not None:
            s = _check_vector(s, where, name)
            check_trailing(x, tuple(s.shape), where, f"x, to fit {name},")
            if s.dtype not in (x.dtype, wide(x.dtype)):
                allowed = " or ".join(dict.fromkeys([str(x.dtype), str(wide(x.dtype))]))
                raise TypeError(f"{where}: expected {name} of dtype {allowed} for x of dtype {x.dtype}, got {s.dtype}")
        vectors.append(s)
    return Form(centred, eps), x, Affine(*vectors)


def _check_vector(s: Any, where: str, name: str) -> "Array":
    check_floating(s, where, name)
    if s.ndim != 1:
        raise ValueError(f"{where}: expected {name} of shape (d,), got {tuple(s.shape)}")
    return jnp.asarray(s) if isinstance(s, (np.ndarray, np.generic)) else s


def _check_eps(eps: Any, where: str) -> float:
    if not isinstance(eps, (float, np.floating)):
        raise TypeError(f"{where}: expected eps to be a Python float > 0, got {shown(eps)}")
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"{where}: expected eps to be a finite float > 0, got {eps}")
    return float(eps)
