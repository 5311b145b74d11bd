"""`prove_vjp`: trace, normalise at symbolic sizes and sizes 1, cross-check; else refute; else say why not."""

import itertools
import platform
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import jax

from ffn_jax.verify.symbolic._balls import FlintMissing
from ffn_jax.verify.symbolic._normalise import Difference, Normalised, normalise
from ffn_jax.verify.symbolic._printing import Writer, side_conditions
from ffn_jax.verify.symbolic._refute import Counterexample, in_balls, in_field
from ffn_jax.verify.symbolic._specs import Problem, Traced, spec_text
from ffn_jax.verify.symbolic._verdict import Certificate, Refutation, Statement, Undecided, Verdict
from ffn_jax.verify.symbolic._workspace import Unsupported, fresh_workspace, workspace

PRIMES = (2, 3, 5, 7, 11, 13)


def prove_vjp(
    fun: Callable[..., Any], reference: Callable[..., Any], *arg_specs: Any, max_seconds: float = 60.0
) -> Verdict:
    """Prove that the reverse rule of `fun` is the adjoint of the derivative of `reference`.

    `jax.vjp(fun)` is traced as a user would call it; every `custom_vjp` and `custom_jvp` rule in `reference`
    is forgotten (it may be `fun` itself).  Both are brought to a normal form in exact real arithmetic and
    compared for all inputs, all seeds and all sizes.  If they are not equal there, a counterexample is sought
    in rigorous ball arithmetic.

    Args:
        fun: the function with the hand-written rule.
        reference: the function that it should be; same arguments, same outputs.
        *arg_specs: one for each argument: a pytree whose leaves are strings such as "f64[n,d]" or
            `jax.ShapeDtypeStruct`, with integers or dimensions of one `jax.export.symbolic_shape` scope.
            Integer arrays ("i32[n]") are inputs without a cotangent.
        max_seconds: the time to spend before answering UNDECIDED.

    Returns:
        A `Certificate` (PROVED), a `Refutation` (REFUTED, with a concrete input) or `Undecided` (with the
        reason).

    Raises:
        TypeError: if a specification is not one, or the outputs of the two functions differ in structure.
        ValueError: if a specification string cannot be read.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> @jax.custom_vjp
        ... def scaled(x, w):
        ...     return jnp.tanh(x) * w
        >>> scaled.defvjp(
        ...     lambda x, w: (scaled(x, w), (jnp.tanh(x), w)),
        ...     lambda saved, ybar: (ybar * saved[1] * (1 - saved[0] ** 2), ybar * saved[0]),
        ... )
        >>> prove_vjp(scaled, scaled, "f64[n]", "f64[n]").verdict
        'PROVED'

    Source: TorchLean, `seqFfnResidual_backpropVec_eq_adjoint_fderiv`, is the theorem in Lean for one such
        rule.
    """
    with fresh_workspace(), jax.enable_x64(True):  # specifications are in float64, whatever the process runs in
        return _Attempt(fun, reference, arg_specs, max_seconds).run()


class _Attempt:
    """One call of `prove_vjp`."""

    def __init__(self, fun: Callable[..., Any], reference: Callable[..., Any], arg_specs: Any, seconds: float) -> None:
        self.started = time.monotonic()
        self.seconds = seconds
        self.problem = Problem(fun, reference, arg_specs)
        self.again = lambda: prove_vjp(fun, reference, *arg_specs, max_seconds=seconds)
        self.statement = _statement(self.problem, fun, reference)
        self.literals: dict[str, tuple[str, float]] = {}
        self.conditions: dict[str, None] = {}
        self.general_conditions = 0

    def spent(self) -> float:
        return time.monotonic() - self.started

    def run(self) -> Verdict:
        shown: list[str] = []
        general: tuple[list[tuple[str, str]], list[tuple[str, str]]] | None = None
        for fixed in _instances(self.problem.sizes):
            try:
                found = normalise(self._trace(fixed), self.problem.labels, self.seconds - self.spent())
            except (Unsupported, RecursionError) as e:
                return self._not_proved(f"{_where(fixed)}: {e}", [])
            except Exception as e:  # no proof, whatever went wrong
                reason = f"{_where(fixed)}: the prover failed with {type(e).__name__}: {e}"
                return self._not_proved(reason, [])
            if found.differences:
                residues = [_residue(d) for d in found.differences]
                return self._not_proved(f"{_where(fixed)}: the normal forms differ", residues)
            if general is None:
                general = _written(found, False), _written(found, True)
            self.literals.update(workspace.literals)
            self._keep_conditions(fixed)
            shown.append(_where(fixed))
        assert general is not None
        return self._cross_checked(shown, *general)

    def _keep_conditions(self, fixed: dict[str, int]) -> None:
        """Those of the general instance, and of special ones where they are more than its special cases."""
        lines, count = side_conditions(), len(workspace.conditions)
        if not fixed:
            self.general_conditions = count
        elif count > self.general_conditions:
            lines = [f"at {_where(fixed)}: {line}" for line in lines]
        else:
            return
        self.conditions.update(dict.fromkeys(lines))

    def _trace(self, fixed: dict[str, int]) -> Traced:
        try:
            return self.problem.traced(fixed)
        except Exception as e:
            first = str(e).strip().splitlines()
            raise Unsupported(f"tracing failed with {type(e).__name__}: {first[0] if first else ''}") from e

    def _cross_checked(self, shown: list[str], rule: list[tuple[str, str]], rule_tex: list[tuple[str, str]]) -> Verdict:
        """The certificate, unless an evaluation that shares no code with the normal form objects."""
        sizes = _primes(self.problem.sizes)
        traced = self._trace(sizes)
        checks = []
        said = {mode: in_field(traced, self.problem.labels, mode) for mode in ("oracle", "group")}
        if all(s == "different" for s in said.values()):
            return self._not_proved("the normal forms agree, but the prime field does not", [])
        checks += [f"prime field, {mode}: {s}" for mode, s in said.items()]
        agreed = "equal" in said.values()
        try:
            counterexample, sharp = in_balls(traced, self.problem.labels, sizes)
            if counterexample is not None:
                return self._refutation(counterexample, [])
            checks.append("balls: " + ("overlap sharply" if sharp else "not evaluable"))
            agreed = sharp
        except FlintMissing as e:
            checks.append(f"balls: {e}")
        if not agreed:
            return self._undecided(
                f"the normal forms agree, but no point was found to try them at ({'; '.join(checks)})"
            )
        return Certificate(
            self.statement,
            tuple(rule),
            tuple(rule_tex),
            self.literals,
            tuple(self.conditions),
            tuple(shown),
            tuple(f"{c} ({_where(sizes)})" for c in checks),
            self.spent(),
            self.again,
        )

    def _not_proved(self, reason: str, residues: list[str]) -> Verdict:
        for sizes in _small(self.problem.sizes):
            if self.spent() > 2 * self.seconds:
                break
            try:
                counterexample, _ = in_balls(self._trace(sizes), self.problem.labels, sizes)
            except FlintMissing as e:
                return self._undecided(f"{reason}; no counterexample was sought: {e}", residues)
            except Unsupported:
                continue
            if counterexample is not None:
                return self._refutation(counterexample, residues)
        return self._undecided(reason, residues)

    def _refutation(self, counterexample: Counterexample, residues: list[str]) -> Refutation:
        return Refutation(self.statement, counterexample, tuple(residues), self.spent(), self.again)

    def _undecided(self, reason: str, residues: list[str] | None = None) -> Undecided:
        return Undecided(self.statement, reason, tuple(residues or ()), self.spent(), self.again)


def _instances(names: list[str]) -> Iterator[dict[str, int]]:
    """All symbolic; sizes 1, which JAX traces differently, in every combination if they are few; primes."""
    yield {}
    if not names:
        return
    ones = range(1, len(names) + 1) if len(names) <= 3 else (1, len(names))
    for count in ones:
        for chosen in itertools.combinations(names, count):
            yield dict.fromkeys(chosen, 1)
    yield _primes(names)


def _primes(names: list[str]) -> dict[str, int]:
    return {n: PRIMES[k % len(PRIMES)] for k, n in enumerate(names)}


def _small(names: list[str]) -> list[dict[str, int]]:
    """Sizes at which to look for counterexamples, smallest first."""
    if not names:
        return [{}]
    mixed = {n: 1 + k % 2 for k, n in enumerate(names)}
    return [dict.fromkeys(names, 1), mixed, dict.fromkeys(names, 2), _primes(names)]


def _where(fixed: dict[str, int]) -> str:
    return ", ".join(f"{n} = {v}" for n, v in fixed.items()) or "the sizes as stated"


def _written(found: Normalised, tex: bool) -> list[tuple[str, str]]:
    writer = Writer(tex)
    lines = [writer.equation(f"{name}_bar", t) for name, t in found.cotangents.items()]
    return lines + writer.definitions()


def _residue(d: Difference) -> str:
    writer = Writer()
    text = writer.poly(d.residue.entry)
    where = "; ".join(f"{left} = {right}" for left, right in writer.definitions())
    return f"{d.equation} = {text}" + (f"   where {where}" if where else "")


def _statement(problem: Problem, fun: Callable[..., Any], reference: Callable[..., Any]) -> Statement:
    def name(f: Callable[..., Any]) -> str:
        return getattr(f, "__name__", None) or type(f).__name__

    same = fun is reference
    outs = jax.tree.leaves(jax.eval_shape(problem.reference, *jax.tree.unflatten(problem.tree, problem.specs)))
    try:
        own = metadata.version("ffn_jax")
    except metadata.PackageNotFoundError:
        own = "(not installed)"
    return Statement(
        fun=name(fun),
        reference=f"{name(reference)} without its custom rules" if same else name(reference),
        sizes=tuple(problem.sizes),
        args=tuple(f"{n}: {spec_text(s)}" for n, s in zip(problem.labels.args, problem.specs, strict=True)),
        seeds=tuple(f"{n}: {spec_text(s)}" for n, s in zip(problem.labels.seeds, outs, strict=True)),
        versions=f"JAX {jax.__version__}, Python {platform.python_version()}, ffn_jax {own}",
    )
