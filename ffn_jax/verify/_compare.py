"""Comparing two programs that are equal over the reals, with tolerances derived from both.

A `Side` is one program, traced once for the dtypes of a gate, with two ways to run it: compiled as it is, and under
the running error analysis. The tolerance of an entry is the sum of the two bounds there, times one (deterministic)
or six (statistical), times 1 + 2⁻⁶ for what the analysis itself leaves out (second-order terms and its own roundings).
An entry whose tolerance exceeds √u times the largest entry of the array says little: it is counted as loose.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ffn_jax.verify._bounds import Model, UnsupportedPrimitiveError, bounds_of, unsupported_primitives
from ffn_jax.verify._jaxprs import all_equations
from ffn_jax.verify._report import Row

_SECOND_ORDER = 1 + 2.0**-6


@dataclasses.dataclass(frozen=True)
class Gate:
    """A dtype to run in (None: as the arguments are given) and a reading of rounding errors."""

    dtype: Any
    statistical: bool
    name: str

    @property
    def model(self) -> Model:
        """The model of rounding."""
        return Model(self.statistical)

    def __str__(self) -> str:
        return f"{self.name} {'six-sigma' if self.statistical else 'deterministic'}"

    def types(self) -> contextlib.AbstractContextManager[Any]:
        """The context to trace and run in: 64-bit types for a float64 gate, else as the process has them."""
        return jax.enable_x64(True) if self.dtype == jnp.float64 else contextlib.nullcontext()


class Side:
    """A program of flat arrays, traced for one set of shapes and dtypes."""

    def __init__(self, function: Callable[..., list[Any]], *like: Any) -> None:
        self.like = like
        self.closed = jax.make_jaxpr(function)(*like)
        self._bounds: dict[bool, Callable[..., Any]] = {}

    @cached_property
    def run(self) -> Callable[..., list[Any]]:
        """The compiled program."""
        return jax.jit(jex.jaxpr_as_fun(self.closed))

    def bounds(self, model: Model) -> Callable[..., list[tuple[Any, Any]]]:
        """The compiled error analysis; call it with 64-bit types on."""
        if model.statistical not in self._bounds:
            self._bounds[model.statistical] = jax.jit(bounds_of(self.closed, model))
        return self._bounds[model.statistical]

    @property
    def missing(self) -> list[str]:
        """Primitives whose errors cannot be bounded."""
        return unsupported_primitives(self.closed.jaxpr)

    @property
    def coarsest(self) -> float:
        """The unit roundoff of the narrowest float type among the program's results."""
        types = [v.aval.dtype for eqn in all_equations(self.closed.jaxpr) for v in eqn.outvars]
        types += [v.aval.dtype for v in self.closed.jaxpr.invars]
        return max((float(jnp.finfo(t).eps) / 2 for t in types if jnp.issubdtype(t, jnp.floating)), default=0.0)


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What one flat result of both sides is, for the report."""

    what: str
    where: str
    seeded: bool = False


class Comparison:
    """Two sides under one dtype, and the bounds that apply to them."""

    def __init__(self, ours: Side, reference: Side, quantities: Sequence[Quantity]) -> None:
        self.ours, self.reference, self.quantities = ours, reference, quantities
        if reference.missing:
            raise UnsupportedPrimitiveError(reference.missing[0])
        self.borrowed = ours.missing
        self.sqrt_u = max(ours.coarsest, reference.coarsest, 2.0**-53) ** 0.5

    @property
    def seeds(self) -> Any:
        """What the sides' last argument was traced with."""
        return self.ours.like[-1]

    def rows(self, gates: Sequence[Gate], args: Sequence[Any], draw: str, seed: str) -> list[Row]:
        """Compare at one set of inputs; a row for each gate and quantity."""
        args = jax.tree.leaves(args)
        with gates[0].types():
            got = [np.asarray(out) for out in self.ours.run(*args)]
            expected = [np.asarray(out) for out in self.reference.run(*args)]
        rows = []
        for gate in gates:
            tolerances = self._tolerances(gate.model, args)
            for i, quantity in enumerate(self.quantities):
                row = compare_entries(got[i], expected[i], tolerances[i], self.sqrt_u)
                rows.append(
                    dataclasses.replace(
                        row,
                        gate=str(gate),
                        what=quantity.what,
                        where=quantity.where,
                        draw=draw,
                        seed=seed if quantity.seeded else "",
                    )
                )
        return rows

    def _tolerances(self, model: Model, args: Sequence[Any]) -> list[Any]:
        with jax.enable_x64(True):
            reference = [np.asarray(error) for _, error in self.reference.bounds(model)(*args)]
            if self.borrowed:  # a kernel is granted the error of the reference
                ours = reference
            else:
                ours = [np.asarray(error) for _, error in self.ours.bounds(model)(*args)]
        return [model.width * (a + b) * _SECOND_ORDER for a, b in zip(ours, reference, strict=True)]


def compare_entries(got: Any, expected: Any, tolerance: Any, sqrt_u: float) -> Row:
    """The worst entry of one array; gate and names are left for the caller to fill in."""
    got, expected = (np.asarray(array).astype(np.float64) for array in (got, expected))
    with np.errstate(all="ignore"):
        error = np.abs(got - expected)
        same = (got == expected) | (np.isnan(got) & np.isnan(expected))
        error = np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))
        nonfinite = ~np.isfinite(expected)
        tolerance = np.where(nonfinite & ~same, np.inf, tolerance)
        ratio = np.where((error == 0) | np.isinf(tolerance), 0.0, error / np.where(tolerance > 0, tolerance, 0.0))
    size = np.max(np.abs(np.where(nonfinite, 0.0, expected)), initial=0.0)
    loose = (tolerance > sqrt_u * size) & (tolerance > np.finfo(np.float32).tiny) & ~nonfinite
    row = Row("", "", "", entries=got.size, loose=int(loose.sum()), nonfinite=int(nonfinite.sum()))
    if not got.size:
        return row
    flat = int(np.argmax(ratio))
    index = tuple(int(i) for i in np.unravel_index(flat, ratio.shape))
    worst = (float(array[index]) for array in (error, tolerance, ratio))
    return dataclasses.replace(row, **dict(zip(("error", "tolerance", "ratio"), worst, strict=True)), index=index)
