"""`check_vjp`: is the VJP of a function the transpose of the derivative of its reference?

For fun : X → Y with a hand-written rule, and a reference equal to it over the reals, compare at drawn (x, ȳ)

    jax.vjp(fun, x)[1](ȳ)      with      jax.linear_transpose(t ↦ jax.jvp(reference, x, t)[1])(ȳ)

in every float leaf, and fun(x) with reference(x). All custom rules are stripped from the reference, so that
it is JAX's own derivative of JAX's own primitives. The hard gate runs in float64 with the
deterministic bound (`_bounds`); other dtypes have the statistical one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from ffn_jax.verify._compare import Comparison, Gate, Side
from ffn_jax.verify._draws import KINDS, draw_inputs, draw_seeds, generator
from ffn_jax.verify._progress import Progress
from ffn_jax.verify._report import Row, VJPReport
from ffn_jax.verify._subject import Subject, function_name

_BASIS_SIZE = 64
_WIDE = jnp.dtype("float64")


def check_vjp(
    fun: Callable[..., Any],
    reference: Callable[..., Any] | None,
    *args: Any,
    key: Any = None,
    dtypes: Sequence[Any] | None = None,
    draws: Sequence[str] = KINDS,
    seeds: int = 2,
    raises: bool = True,
    progress: bool | None = None,
) -> VJPReport:
    """Check the reverse rule of `fun` against the derivative of `reference`, with derived tolerances.

    Args:
        fun: a function of pytrees of arrays; `jax.vjp` of it is what is checked. Pass keyword arguments
            through a closure.
        reference: the same function without hand-written rules; custom rules found in it are stripped, and
            the report says so. `None` or `fun` itself: `fun` with its rules stripped.
        *args: arrays (or `jax.ShapeDtypeStruct`s) in any pytrees. Every float leaf is differentiated;
            integers, booleans and random keys are held fixed.
        key: a JAX key or an integer that the draws are made from.
        dtypes: float dtypes for statistical gates, beside the hard gate in float64; default: the dtypes of
            the arguments as they are. "float64" adds its statistical bound, which is sharper for large sums.
        draws: which kinds of inputs to draw: some of "given", "normal", "tails", "zeros", "subnormal".
        seeds: random cotangents for the draws "given" and "normal" (the others get one). With at most 64
            output entries these two draws are checked at every unit vector instead, so the whole Jacobian is
            compared.
        raises: raise if the check fails; otherwise return the report all the same.
        progress: show progress on standard error; default: on a terminal, after two seconds.

    Returns:
        A report with a row for each output and argument under each gate. `float64 deterministic` is the hard
        gate; rows named `six-sigma` are statistical.

    Raises:
        VerificationError: an entry differs by more than its tolerance.
        ValueError: the outputs of `fun` and `reference` differ in structure, shape or dtype; there is no
            float leaf; `fun` has side effects, makes a random key inside, or differs between two traces.
        UnsupportedPrimitiveError: the reference uses a primitive whose error cannot be bounded.

    >>> import jax, jax.numpy as jnp
    >>> from ffn_jax import verify
    >>> @jax.custom_vjp
    ... def cube(x):
    ...     return x**3
    >>> cube.defvjp(lambda x: (x**3, x), lambda x, ybar: (3 * x**2 * ybar,))
    >>> verify.check_vjp(cube, None, jnp.linspace(-1.0, 1.0, 5)).ok
    True
    """
    bar = Progress(f"check_vjp({function_name(fun)})", progress)
    try:
        report = VJPChecker(fun, reference, *args, dtypes=dtypes).run(key, draws=draws, seeds=seeds, bar=bar)
    finally:
        bar.close()
    if raises:
        report.raise_if_failed()
    return report


class VJPChecker:
    """A check that is traced and compiled once and can run with many keys."""

    def __init__(
        self,
        fun: Callable[..., Any],
        reference: Callable[..., Any] | None,
        *args: Any,
        dtypes: Sequence[Any] | None = None,
    ) -> None:
        self.subject = Subject(fun, reference, args)
        self._groups = self._gates(dtypes)
        self._compiled: dict[str, Comparison] = {}
        self._refused: dict[str, str] = {}

    def run(
        self, key: Any = None, *, draws: Sequence[str] = KINDS, seeds: int = 2, bar: Progress | None = None
    ) -> VJPReport:
        """Draw inputs from the key and compare; see `check_vjp`."""
        subject, bar = self.subject, bar or Progress("check_vjp", False)
        rows: dict[tuple[str, str, str], Row] = {}
        for gates in self._groups:
            bar(f"compiling for {gates[0].name}")
            comparison = self._comparison(gates)
            if comparison is None:
                continue
            for row in self._dtype_rows(gates[0], comparison):
                rows[row.gate, row.what + "dtype", row.where] = row
            for row in self._compare(comparison, generator(key), draws, seeds, bar):
                known = rows.get((row.gate, row.what, row.where))
                rows[row.gate, row.what, row.where] = row if known is None else known.merged(row)
        notes = list(subject.notes)
        notes += [f"the rule has no float64 gate: {reason}" for reason in self._refused.values()]
        for name, comparison in self._compiled.items():
            if comparison.borrowed:
                missing = ", ".join(comparison.borrowed)
                notes.append(f"{name}: {missing} of fun cannot be bounded; granted the error of the reference")
            if name == "float64" and comparison.sqrt_u > 2.0**-26:
                notes.append("fun or reference rounds to a narrower type inside; its float64 gate is wider for it")
        reference = "fun without its rules" if subject.reference is subject.fun else "the reference"
        return VJPReport(
            f"check_vjp({function_name(subject.fun)})",
            f"jax.vjp of fun against jax.linear_transpose of jax.jvp of {reference}",
            tuple(_with_silent_rows_failed(rows.values())),
            tuple(notes),
            bar.seconds,
        )

    def _gates(self, dtypes: Sequence[Any] | None) -> list[list[Gate]]:
        own = sorted({str(self.subject.leaves[i].dtype) for i in self.subject.inexact})
        wide = [Gate(_WIDE, False, "float64")]
        if dtypes is None:
            return [wide] if own == ["float64"] else [wide, [Gate(None, True, "/".join(own))]]
        names = [jnp.dtype(dtype).name for dtype in dtypes]
        if "float64" in names:
            wide.append(Gate(_WIDE, True, "float64"))
        return [wide, *([Gate(jnp.dtype(name), True, name)] for name in names if name != "float64")]

    def _comparison(self, gates: Sequence[Gate]) -> Comparison | None:
        """Both programs at the dtype of these gates; None where they do not run in float64."""
        gate = gates[0]
        if gate.name in self._refused:
            return None
        if gate.name not in self._compiled:
            subject = self.subject
            with gate.types():
                try:
                    like = subject.like(gate.dtype)
                    seeds = subject.seeds_like(like)
                    ours, oracle = Side(subject.rule, like, seeds), Side(subject.oracle, like, seeds)
                except Exception as error:
                    if gate.dtype != _WIDE or len(self._groups) == 1:
                        raise
                    self._refused[gate.name] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
                    return None
            self._compiled[gate.name] = Comparison(ours, oracle, subject.quantities, gates)
        return self._compiled[gate.name]

    def _dtype_rows(self, gate: Gate, comparison: Comparison) -> list[Row]:
        """JAX does not check the dtype of a cotangent."""
        n_values = len(comparison.quantities) - len(self.subject.inexact)
        leaves = self.subject.like(gate.dtype)
        rows = []
        for i, aval in zip(self.subject.inexact, comparison.ours.closed.out_avals[n_values:], strict=True):
            if aval.dtype != leaves[i].dtype:
                problem = f"got dtype {aval.dtype}, expected the argument's {leaves[i].dtype}"
                rows.append(Row(str(gate), "cotangent", self.subject.leaves[i].label, problem=problem))
        return rows

    def _compare(self, comparison: Comparison, rng: Any, kinds: Sequence[str], count: int, bar: Progress) -> list[Row]:
        gate, like = comparison.gates[0], comparison.seeds
        small = sum(math.prod(each.shape) for each in like) <= _BASIS_SIZE
        shapes, types = [each.shape for each in like], [each.dtype for each in like]
        rows = []
        for draw in draw_inputs(rng, self.subject.leaves, kinds, gate.dtype):
            thorough = draw.name in ("given", "normal")
            pairs = draw_seeds(rng, shapes, types, basis=small and thorough, count=count if thorough else 1)
            for name, seeds in pairs:
                bar(f"{gate.name}, draw {draw.name}, seed {name}")
                rows += comparison.rows((draw.arrays, seeds), draw.name, name)
        return rows


def _with_silent_rows_failed(rows: Any) -> list[Row]:
    """A row under the hard gate in which no entry could be compared has shown nothing: that is a failure."""
    return [row.silent() if row.gate == "float64 deterministic" else row for row in rows]
