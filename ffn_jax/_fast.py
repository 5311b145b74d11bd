"""The choices that make the default fast, by backend and static sizes: one place, one rule each.

On one CPU device XLA leaves something to be gained, and the library takes it:

1. *Weight cotangents of `Dense`.* W̄ = Σ_tokens x ȳᵀ contracts the leading axis of both factors, for which XLA has only
   a slow product. Written as the plain product xᵀ ȳ of a transposed copy of the thinner factor it is as fast as any
   other. XLA would undo the copy; `optimization_barrier` keeps it. From `TRANSPOSE_FROM` tokens on (the copy costs more
   than it gains below).
2. *Chunks of tokens.* Products of a few hundred tokens run in the cache and in buffers that are used again, where one
   large product writes fresh memory throughout. From `CHUNK_FROM` tokens on, near `CHUNK` tokens at a time; an equal
   number in each chunk where some number near it divides the tokens. The weight cotangents' sums are rewritten once per
   chunk, which is why chunks are not smaller.

3. *One evaluation of erfc.* Where σ(z) and σ'(z) are both wanted, XLA evaluates erfc for each, in a loop that is not
   vectorised. A barrier behind it makes one vectorised evaluation of it. From `KEEP_FROM` numbers on.

Elsewhere (GPU, TPU, several devices, where reshaping tokens could move them between devices; symbolic sizes) none of
it is done. `chunk_size=` overrides the second: an integer insists, "none" never chunks. `benchmarks/` measures them.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
from jax import lax

from ffn_jax._checks import Shape, size, wide

if TYPE_CHECKING:
    from jax import Array

TRANSPOSE_FROM = 384
CHUNK_FROM = 2048
CHUNK = 512
KEEP_FROM = 2**16

_assumed: contextvars.ContextVar[bool | None] = contextvars.ContextVar("assumed", default=None)


@contextlib.contextmanager
def assume(one_cpu: bool) -> Iterator[None]:
    """Choose as on one CPU device, whatever the sizes, or as elsewhere: for proofs, checks and benchmarks.

    The choice is made when a function is traced; what `jit` has in its cache stays as it is.
    """
    token = _assumed.set(one_cpu)
    try:
        yield
    finally:
        _assumed.reset(token)


def _worthwhile(tokens: int, at_least: int) -> bool:
    assumed = _assumed.get()
    if assumed is not None:
        return assumed
    # A symbolic size cannot be compared; it is no int.
    return isinstance(tokens, int) and tokens >= at_least and jax.default_backend() == "cpu" and jax.device_count() == 1


def outer(x: "Array", ybar: "Array") -> "Array":
    """Σ_tokens x ȳᵀ.

    Args:
      x: `(*tokens, m)`.
      ybar: `(*tokens, n)`.

    Returns:
      `(m, n)`, in float32 for half types.
    """
    if not _worthwhile(size(x.shape[:-1]), TRANSPOSE_FROM):
        axes = tuple(range(x.ndim - 1))
        return lax.dot_general(x, ybar, ((axes, axes), ((), ())), preferred_element_type=wide(x.dtype))
    x, ybar = (a.reshape(size(a.shape[:-1]), a.shape[-1]) for a in (x, ybar))
    if x.shape[1] <= ybar.shape[1]:
        return _product(lax.optimization_barrier(x.T), ybar)
    # The second barrier keeps XLA from folding the last transpose into the product.
    return lax.optimization_barrier(_product(lax.optimization_barrier(ybar.T), x)).T


def _product(a: "Array", b: "Array") -> "Array":
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=wide(a.dtype))


def kept(a: "Array") -> "Array":
    """`a`, computed once for all that use it."""
    return lax.optimization_barrier(a) if _worthwhile(size(a.shape), KEEP_FROM) else a


def chunk_size(tokens: Shape) -> int | None:
    """How many tokens to work on at a time, or None for all at once."""
    count = size(tokens)
    if not isinstance(count, int) or not _worthwhile(count, CHUNK_FROM):
        return None
    near = sorted(range(CHUNK // 2, 2 * CHUNK + 1), key=lambda c: abs(c - CHUNK))
    return next((c for c in near if count % c == 0), CHUNK)
