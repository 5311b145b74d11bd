"""Inputs to check at, reproducible from a key; made in NumPy, so that JAX's settings do not change them.

| draw | entries |
|---|---|
| given | the arrays as they were passed |
| normal | normal, with the root mean square of the given leaf |
| tails[leaf] | the leaf's rows scaled by 1 to 30, clipped to ±30 root mean squares; the rest normal |
| zeros | 0 for half of the entries, -0.0 for a quarter, else normal |
| subnormal | below the smallest normal number of the dtype for half of the entries, else normal |

A leaf whose given entries are all positive (a variance, a temperature) stays positive in every draw. Integer
leaves and random keys stay as they are given.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("given", "normal", "tails", "zeros", "subnormal")
_MOST_TAILS = 8


def shape_dtype(shape: Sequence[int], dtype: Any) -> Any:
    """A template for an array."""
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array among the arguments: its name for the reader, its template, and its values if it has any."""

    label: str
    shape: tuple[int, ...]
    dtype: Any
    given: Any = None

    @property
    def inexact(self) -> bool:
        """Whether the leaf is differentiated."""
        return bool(jnp.issubdtype(self.dtype, jnp.floating))

    @property
    def scale(self) -> float:
        """The root mean square of the finite given entries, 1 where there is none."""
        if self.given is None:
            return 1.0
        values = np.asarray(self.given, np.float64)
        values = values[np.isfinite(values)]
        size = float(np.sqrt(np.mean(values**2))) if values.size else 0.0
        return size if size > 0 and np.isfinite(size) else 1.0

    @property
    def positive(self) -> bool:
        """Whether all given entries are positive."""
        return self.given is not None and self.inexact and bool(np.all(np.asarray(self.given, np.float64) > 0))


@dataclasses.dataclass(frozen=True)
class Draw:
    """A named set of inputs, one NumPy array (or random key) for each leaf."""

    name: str
    arrays: list[Any]


def generator(key: Any) -> np.random.Generator:
    """A NumPy generator seeded by a JAX key, an integer, or None for the seed 0."""
    if key is None or isinstance(key, int | np.integer):
        return np.random.default_rng(0 if key is None else int(key))
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return np.random.default_rng([int(word) for word in np.asarray(key).ravel()])


def draw_inputs(rng: np.random.Generator, leaves: Sequence[Leaf], kinds: Sequence[str], dtype: Any) -> Iterator[Draw]:
    """The draws of these kinds, with float leaves cast to `dtype` (None: to the dtype of each leaf).

    Raises:
        ValueError: an unknown kind.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"draws: expected some of {KINDS}, got {unknown[0]!r}")

    def cast(leaf: Leaf, values: Any) -> Any:
        target = leaf.dtype if dtype is None or not leaf.inexact else dtype
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(values).astype(target) if leaf.inexact else values

    def sample(leaf: Leaf, kind: str) -> Any:
        if not leaf.inexact:
            return leaf.given if leaf.given is not None else np.zeros(leaf.shape, leaf.dtype)
        values = _sample(rng, leaf, kind, leaf.dtype if dtype is None else dtype)
        return cast(leaf, np.abs(values) if leaf.positive else values)

    inexact = [i for i, leaf in enumerate(leaves) if leaf.inexact]
    for kind in kinds:
        if kind == "given":
            if all(leaf.given is not None for leaf in leaves):
                yield Draw("given", [cast(leaf, leaf.given) for leaf in leaves])
        elif kind == "tails":
            for i in inexact[:_MOST_TAILS]:
                arrays = [sample(leaf, "tails" if i == j else "normal") for j, leaf in enumerate(leaves)]
                yield Draw(f"tails[{leaves[i].label}]", arrays)
        else:
            yield Draw(kind, [sample(leaf, kind) for leaf in leaves])


def _sample(rng: np.random.Generator, leaf: Leaf, kind: str, dtype: Any) -> Any:
    normal = leaf.scale * rng.standard_normal(leaf.shape)
    if kind == "tails":
        rows = leaf.shape[:1] + (1,) * (len(leaf.shape) - 1)
        factors = np.exp(rng.uniform(0.0, np.log(30.0), rows))
        return np.clip(normal * factors, -30 * leaf.scale, 30 * leaf.scale)
    chance = rng.uniform(size=leaf.shape)
    if kind == "zeros" and not leaf.positive:
        return np.where(chance < 0.5, 0.0, np.where(chance < 0.75, -0.0, normal))
    if kind == "subnormal":
        tiny = float(jnp.finfo(dtype).tiny)
        return np.where(chance < 0.5, tiny * rng.uniform(-1.0, 1.0, leaf.shape), normal)
    return normal


def draw_seeds(
    rng: np.random.Generator,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[Any],
    *,
    basis: bool,
    count: int,
) -> Iterator[tuple[str, list[Any]]]:
    """Cotangent seeds for outputs of these shapes: every unit vector (`basis`), or `count` normal ones."""
    if basis:
        for i, shape in enumerate(shapes):
            for index in np.ndindex(*shape):
                seeds = [np.zeros(s, d) for s, d in zip(shapes, dtypes, strict=True)]
                seeds[i][index] = 1
                yield f"basis[{i}]{list(index)}" if len(shapes) > 1 else f"basis{list(index)}", seeds
        return
    for n in range(count):
        yield (
            f"normal[{n}]",
            [rng.standard_normal(s).astype(d) for s, d in zip(shapes, dtypes, strict=True)],
        )
