"""The three answers of `prove_vjp`, and what each of them says when printed."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Union

from ffn_jax.verify.symbolic._refute import Counterexample

MEANING = (
    "for the jaxprs that this version of JAX traces, in exact real arithmetic (casts are the identity, "
    "integers do not overflow, literals are read as listed), under the side conditions, by a normal-form "
    "checker without a proof kernel; nothing is said of floating point, NaN or compiled code"
)


@dataclass(frozen=True)
class Statement:
    """What was to be shown.

    Attributes:
        fun, reference: names of the two functions.
        sizes: the symbolic sizes, each any integer >= 1.
        args: the arguments with their shapes.
        seeds: the seeds of the outputs with their shapes.
        versions: of Python, JAX and this package.
    """

    fun: str
    reference: str
    sizes: tuple[str, ...]
    args: tuple[str, ...]
    seeds: tuple[str, ...]
    versions: str

    def __str__(self) -> str:
        over = f"for all sizes {', '.join(self.sizes)} >= 1, " if self.sizes else ""
        return (
            f"{over}for all {', '.join(self.args)} and all seeds {', '.join(self.seeds)}:\n"
            f"    {self.fun} = {self.reference}, and the cotangents of jax.vjp({self.fun}) are\n"
            f"    the adjoint of the derivative of {self.reference}, at these seeds"
        )


Again = Callable[[], "Verdict"]


@dataclass(frozen=True)
class Certificate:
    """PROVED: the rule is the adjoint of the derivative, for all inputs, seeds and sizes.

    Attributes:
        statement: the theorem.
        rule: the rule in index notation, (left, right) of each equation, intermediate values last.
        rule_tex: the same in LaTeX.
        literals: how each non-trivial float literal was read: text -> (reading, relative gap).
        side_conditions: what was assumed of the inputs.
        instances: the sizes at which the theorem was shown; a size not named there is symbolic.
        cross_checks: what balls and prime fields said.
        seconds: time taken.
    """

    statement: Statement
    rule: tuple[tuple[str, str], ...]
    rule_tex: tuple[tuple[str, str], ...]
    literals: dict[str, tuple[str, float]]
    side_conditions: tuple[str, ...]
    instances: tuple[str, ...]
    cross_checks: tuple[str, ...]
    seconds: float
    again: Again = field(repr=False, compare=False)

    verdict = "PROVED"
    proved = True

    def recheck(self) -> "Verdict":
        """Trace both functions and prove again."""
        return self.again()

    def latex(self) -> str:
        """The derived rule as a LaTeX `aligned` environment."""
        rows = " \\\\\n".join(f"{left} &= {right}" for left, right in self.rule_tex)
        return "\\begin{aligned}\n" + rows + "\n\\end{aligned}"

    def _repr_latex_(self) -> str:
        return f"$${self.latex()}$$"

    def to_json(self) -> str:
        """Everything that is printed, as JSON."""
        return _to_json(self)

    def __str__(self) -> str:
        lines = [f"PROVED in {self.seconds:.2f} s: {self.statement}", "The rule:"]
        lines += [f"    {left} = {right}" for left, right in self.rule]
        if self.literals:
            lines.append("Literals read as:")
            lines += [f"    {t} -> {r}  (gap {gap:.1e})" for t, (r, gap) in self.literals.items()]
        if self.side_conditions:
            lines.append("Side conditions:")
            lines += [f"    {c}" for c in self.side_conditions]
        lines.append(f"Shown with: {'; '.join(self.instances)}")
        lines.append(f"Cross-checks: {'; '.join(self.cross_checks)}")
        lines.append(f"Meaning: {MEANING}")
        lines.append(self.statement.versions)
        return "\n".join(lines)


@dataclass(frozen=True)
class Refutation:
    """REFUTED: at the given input the two sides provably differ.

    Attributes:
        statement: what is false.
        counterexample: sizes, input, and both values as enclosures.
        residues: what the normal form has left of each failing equation, in index notation.
        seconds: time taken.
    """

    statement: Statement
    counterexample: Counterexample
    residues: tuple[str, ...]
    seconds: float
    again: Again = field(repr=False, compare=False)

    verdict = "REFUTED"
    proved = False

    def recheck(self) -> "Verdict":
        """Trace both functions and look again."""
        return self.again()

    def to_json(self) -> str:
        """Everything that is printed, as JSON."""
        return _to_json(self)

    def __str__(self) -> str:
        c = self.counterexample
        at = f"[{', '.join(map(str, c.index))}]" if c.index else ""
        lines = [f"REFUTED in {self.seconds:.2f} s: {self.statement}"]
        sizes = ", ".join(f"{n} = {v}" for n, v in c.sizes.items()) or "the sizes as stated"
        lines.append(f"At {sizes}, the {c.equation}{at} is {c.ours}, but it has to be {c.theirs}, for")
        lines += [f"    {name} = {value}".replace("'", "") for name, value in c.point.items()]  # numbers, kept as text
        if self.residues:
            lines.append("Left over, in index notation:")
            lines += [f"    {r}" for r in self.residues]
        lines.append(self.statement.versions)
        return "\n".join(lines)


@dataclass(frozen=True)
class Undecided:
    """UNDECIDED: neither a proof nor a counterexample was found.

    Attributes:
        statement: what is open.
        reason: what stopped the proof, naming the primitive where it was one.
        residues: what the normal form has left of each open equation, in index notation.
        seconds: time taken.
    """

    statement: Statement
    reason: str
    residues: tuple[str, ...]
    seconds: float
    again: Again = field(repr=False, compare=False)

    verdict = "UNDECIDED"
    proved = False

    def recheck(self) -> "Verdict":
        """Trace both functions and try again."""
        return self.again()

    def to_json(self) -> str:
        """Everything that is printed, as JSON."""
        return _to_json(self)

    def __str__(self) -> str:
        lines = [f"UNDECIDED after {self.seconds:.2f} s ({self.reason}): {self.statement}"]
        if self.residues:
            lines.append("Left over, in index notation:")
            lines += [f"    {r}" for r in self.residues]
        lines.append(self.statement.versions)
        return "\n".join(lines)


Verdict = Union[Certificate, Refutation, Undecided]  # noqa: UP007  (named in annotations above before it exists)


def _to_json(verdict: Any) -> str:
    def plain(value: Any) -> Any:
        if hasattr(value, "__dataclass_fields__"):
            return {k: plain(getattr(value, k)) for k in value.__dataclass_fields__ if k != "again"}
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return value

    return json.dumps({"verdict": verdict.verdict, **plain(verdict)}, indent=2)
