"""Comparing two programs that are equal over the reals, with tolerances derived from both.

A `Side` is one program, traced once for the dtypes of a gate, with two ways to run it: compiled as it is, and
under the running error analysis. The tolerance of an entry is the sum of the two bounds there, times one
(deterministic) or six (statistical), times 1 + 2⁻⁶ for what the analysis itself leaves out (second-order
terms and its own roundings). An entry whose tolerance exceeds √u times the largest entry of the array says
little: it is counted as loose.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ffn_jax.verify._bounds import (
    Model,
    Precision,
    UnsupportedPrimitiveError,
    bounds_of,
    unsupported_primitives,
)
from ffn_jax.verify._jaxprs import all_equations
from ffn_jax.verify._report import Row

_SECOND_ORDER = 1 + 2.0**-6
# On small arrays compiling the error analysis is most of its cost, so it is compiled without optimisation; on large
# ones that loses more than it saves. The programs themselves are compiled as their users compile them.
_SMALL = 10_000
_QUICKLY = {"xla_backend_optimization_level": 0}


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

    def lower(self, model: Model | None) -> Any:
        """The program itself (None), or its error analysis under a model, ready to be compiled."""
        program = jex.jaxpr_as_fun(self.closed) if model is None else bounds_of(self.closed, model)
        return jax.jit(program).lower(*jax.tree.leaves(self.like))

    @property
    def missing(self) -> list[str]:
        """Primitives whose errors cannot be bounded."""
        return unsupported_primitives(self.closed.jaxpr)

    @property
    def coarsest(self) -> float:
        """The unit roundoff of the narrowest float type among the program's results."""
        variables = [var for eqn in all_equations(self.closed.jaxpr) for var in eqn.outvars]
        return max(Precision.of(var.aval.dtype).u for var in [*variables, *self.closed.jaxpr.invars])


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What one flat result of both sides is, for the report."""

    what: str
    where: str
    seeded: bool = False
    exact: bool = False


class Comparison:
    """Two sides under one dtype, compiled with the bounds that the gates ask for."""

    def __init__(self, ours: Side, reference: Side, quantities: Sequence[Quantity], gates: Sequence[Gate]) -> None:
        self.ours, self.reference, self.quantities, self.gates = ours, reference, quantities, gates
        if reference.missing:
            raise UnsupportedPrimitiveError(reference.missing[0])
        self.borrowed = ours.missing
        self.sqrt_u = max(ours.coarsest, reference.coarsest, 2.0**-53) ** 0.5
        sides = [ours, reference]
        with gates[0].types():
            lowered = [side.lower(None) for side in sides]
        with jax.enable_x64(True):
            for gate in gates:
                lowered += [side.lower(gate.model) for side in (sides[1:] if self.borrowed else sides)]
        entries = sum(math.prod(each.shape) for each in jax.tree.leaves(ours.like))
        options: list[Any] = [None, None, *[_QUICKLY if entries < _SMALL else None] * (len(lowered) - 2)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # XLA compiles outside the interpreter's lock
            self._run, self._reference_run, *bounds = pool.map(
                lambda each, how: each.compile(compiler_options=how), lowered, options
            )
        # a kernel without known bounds is granted the error of the reference
        width = 1 if self.borrowed else 2
        self._bounds = [(bounds[i], bounds[i + width - 1]) for i in range(0, len(bounds), width)]

    @property
    def seeds(self) -> Any:
        """What the sides' last argument was traced with."""
        return self.ours.like[-1]

    def rows(
        self,
        args: Sequence[Any],
        draw: str,
        seed: str,
        instead: Callable[[list[Any]], list[Any]] | None = None,
    ) -> list[Row]:
        """Compare at one set of inputs; a row for each gate and quantity.

        `instead` may replace results of our side that were obtained in another way.
        """
        args = jax.tree.leaves(args)
        with self.gates[0].types():
            got = [np.asarray(out) for out in self._run(*args)]
            expected = [np.asarray(out) for out in self._reference_run(*args)]
            got = got if instead is None else instead(got)
        rows = []
        for gate, bounds in zip(self.gates, self._bounds, strict=True):
            with jax.enable_x64(True):
                ours, reference = ([np.asarray(error) for _, error in bound(*args)] for bound in bounds)
            for i, quantity in enumerate(self.quantities):
                tolerance = ours[i] + reference[i]
                if not gate.statistical:
                    tolerance = np.where(
                        _untrusted(got[i], ours[i], expected[i], self.sqrt_u), 2 * reference[i], tolerance
                    )
                tolerance = gate.model.width * tolerance * _SECOND_ORDER
                if quantity.exact:
                    tolerance = np.zeros_like(tolerance)
                row = compare_entries(got[i], expected[i], tolerance, self.sqrt_u)
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


def _untrusted(got: Any, ours: Any, expected: Any, sqrt_u: float) -> Any:
    """Where the rule's own bound must not count: at its kinks, where the bound would cover whatever it returns.

    There, and where it is not finite, the rule is granted no more than the error of the reference.
    """
    expected = np.asarray(expected).astype(np.float64)
    size = np.max(np.abs(expected), where=np.isfinite(expected), initial=0.0)
    return (ours > sqrt_u * size) | ~np.isfinite(np.asarray(got).astype(np.float64))


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
    worst = [float(array[index]) for array in (error, tolerance, ratio)]
    return dataclasses.replace(row, error=worst[0], tolerance=worst[1], ratio=worst[2], index=index)
