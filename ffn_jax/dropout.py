"""Dropout by an explicit key: entries of the hidden tensor or of the output are zeroed at random.

With rate p and a mask m, m = 1 with probability 1 - p, entry by entry,

    v -> m ⊙ v / (1 - p)        ("inverted" scaling, so that the mean stays and inference leaves dropout out)

This is a diagonal linear map, its own transpose: the reverse rule applies the same function to the cotangent. The mask
is never stored. It is drawn again from the key, for token i from fold_in(key, i): working in chunks of tokens changes
nothing. Entries are kept where 32 random bits are at least p 2³², so m does not depend on the dtype.

Source: Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting" (JMLR 15), section
10 for the scaling.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffn_jax._checks import Shape, is_array, shown, size, wide
from ffn_jax._pytree import pytree_dataclass, static

if TYPE_CHECKING:
    from jax import Array

SITES = ("hidden", "output")
CHOICES = (*SITES, "both")


@pytree_dataclass
class Dropout:
    """What to drop in one call of `ffn_residual`: a pytree whose leaf is the key.

    Give every call a key of its own: equal keys draw equal masks, also over a `vmap` that does not split the key.

    Args:
      rate: the probability p that an entry is zeroed, 0 <= p < 1; 0 does nothing at all.
      key: one key, as `jax.random.key(seed)` makes it.
      on: "output", before the residual connection (Vaswani et al. 2017, section 5.4), "hidden", after the activation,
        or "both".

    Raises:
      TypeError, ValueError: an argument is of another kind or out of its range.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> x, A = jnp.zeros((2, 8)), fj.Dense(jnp.eye(8))
    >>> y = fj.ffn(x, A, None, A, jnp.ones(8), dropout=fj.Dropout(0.5, jax.random.key(0)))
    >>> sorted(set(y.ravel().tolist()))
    [0.0, 2.0]
    """

    rate: float = static()
    key: "Array"
    on: str = static(default="output")

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not isinstance(self.rate, (int, float, np.integer, np.floating)):
            raise TypeError(f"Dropout: expected rate to be a float, 0 <= rate < 1, got {self.rate!r}")
        if not 0 <= self.rate < 1:
            raise ValueError(f"Dropout: expected 0 <= rate < 1, got {self.rate}")
        object.__setattr__(self, "rate", float(self.rate))
        if self.on not in CHOICES:
            raise ValueError(f"Dropout: expected on to be one of {', '.join(CHOICES)}, got {self.on!r}")
        _check_key(self.key, "Dropout")

    def __repr__(self) -> str:
        return f"Dropout({self.rate}, on={self.on!r})"


class Rate(NamedTuple):
    """The static part of a dropout that does something."""

    rate: float
    on: str


class Seed(NamedTuple):
    """The random part: 64 bits made of the user's key, and which tokens are worked on (None: all, in order)."""

    bits: "Array"
    tokens: "Array | None" = None


def prepare(dropout: Any, where: str) -> tuple[Rate | None, Seed | None]:
    """Checks what a user gave as `dropout=`; (None, None) where it does nothing."""
    if dropout is None:
        return None, None
    if not isinstance(dropout, Dropout):
        raise TypeError(f"{where}: expected dropout to be an ffn_jax.Dropout or None, got {shown(dropout)}")
    _check_key(dropout.key, f"{where}: dropout")
    if dropout.rate == 0:
        return None, None
    # Whatever generator the key is of, the masks come from threefry: others draw other numbers under vmap.
    return Rate(dropout.rate, dropout.on), Seed(jax.random.bits(dropout.key, (2,), "uint32"))


def drop(rate: Rate | None, seed: Seed | None, site: str, v: "Array", features: Shape) -> "Array":
    """m ⊙ v / (1 - p) for `v: (*tokens, *features)`, in v's dtype; v itself where nothing is dropped at this site."""
    if rate is None or seed is None or rate.on not in (site, "both"):
        return v
    kept = keep_mask(rate.rate, seed, site, tuple(v.shape[: v.ndim - len(features)]), features)
    scaled = v.astype(wide(v.dtype)) / (1.0 - rate.rate)
    return jnp.where(kept, scaled, jnp.zeros_like(scaled)).astype(v.dtype)


def keep_mask(rate: float, seed: Seed, site: str, tokens: Shape, features: Shape) -> "Array":
    """m as booleans, `(*tokens, *features)`."""
    key = jax.random.wrap_key_data(seed.bits, impl="threefry2x32")
    key = jax.random.fold_in(key, SITES.index(site))
    threshold = np.uint32(min(math.floor(rate * 2.0**32), 2**32 - 1))

    def of_token(i: "Array") -> "Array":
        return jax.random.bits(jax.random.fold_in(key, i), features, "uint32") >= threshold

    ids = jnp.arange(size(tokens)) if seed.tokens is None else seed.tokens
    return jax.vmap(of_token)(ids).reshape(*tokens, *features)


def _check_key(key: Any, where: str) -> None:
    if not is_array(key):
        raise TypeError(f"{where}: expected key to be a key such as jax.random.key(0), got {shown(key)}")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        one = key.shape == ()
    else:
        one = key.dtype == jnp.uint32 and key.ndim == 1  # as jax.random.PRNGKey makes it
    if not one:
        raise TypeError(
            f"{where}: expected key to be one key such as jax.random.key(0), got {key.dtype}{list(key.shape)}"
        )
