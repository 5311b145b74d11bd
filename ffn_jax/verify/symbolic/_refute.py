"""A concrete input at which the rule is provably wrong; and the two tests that every proof has to pass.

Both sides are evaluated at small sizes and small dyadic inputs: in balls, where a disjoint pair refutes the
theorem, and in a prime field, where a difference forbids a proof.  Side conditions are thereby tried out too:
a theorem that holds only where nothing is defined finds no point to agree at.
"""

import random
from dataclasses import dataclass
from typing import Any

from ffn_jax.verify.symbolic._balls import Balls, first_disjoint, is_sharp
from ffn_jax.verify.symbolic._evaluate import Array, Domain, NotEvaluable, evaluate, random_input
from ffn_jax.verify.symbolic._field import Mode, PrimeField, differs
from ffn_jax.verify.symbolic._specs import Labels, Traced


@dataclass(frozen=True)
class Sides:
    """Both sides of every equation at one point, and the point."""

    equations: list[tuple[str, Array, Array]]
    point: dict[str, Array]


@dataclass(frozen=True)
class Counterexample:
    """An input at which two sides provably differ.

    Attributes:
        equation: the equation that fails.
        index: the entry at which it fails.
        ours, theirs: enclosures of the two exact values.
        sizes: the sizes chosen.
        point: the arguments and seeds, by name, as nested lists of text.
    """

    equation: str
    index: tuple[int, ...]
    ours: str
    theirs: str
    sizes: dict[str, int]
    point: dict[str, Any]


def sides(traced: Traced, labels: Labels, domain: Domain, rng: random.Random, rule: Any = None) -> Sides:
    """Evaluate both sides of every equation at a random point."""
    args = [random_input(a, domain, rng) for a in traced.args]
    seeds = [random_input(s, domain, rng) for s in traced.seeds]
    outs = evaluate(traced.rule if rule is None else rule, domain, [*args, *seeds])
    values, cotangents = outs[: len(seeds)], outs[len(seeds) :]
    expected = evaluate(traced.primal, domain, args)
    called = evaluate(traced.call, domain, args)
    theirs = evaluate(traced.oracle, domain, [*args, *seeds])
    equations = [(f"cotangent of {n}", a, b) for n, a, b in zip(labels.own, cotangents, theirs, strict=True)]
    for name, a, b, c in zip(labels.seeds, values, called, expected, strict=True):
        equations += [(f"value of vjp(fun) under {name}", a, c), (f"value of fun under {name}", b, c)]
    return Sides(equations, dict(zip([*labels.args, *labels.seeds], [*args, *seeds], strict=True)))


def in_balls(
    traced: Traced, labels: Labels, sizes: dict[str, int], tries: int = 6, rule: Any = None
) -> tuple[Counterexample | None, bool]:
    """(a counterexample or None, whether both sides agreed sharply at two points).

    Points of either sign come first, then positive ones and ones between 0 and 1, for roots and logarithms.

    Raises:
        FlintMissing: without python-flint.
    """
    agreed = 0
    for attempt in range(tries):
        try:
            domain = Balls(("signed", "positive", "unit")[attempt % 3])
            at = sides(traced, labels, domain, random.Random(attempt), rule)
        except (NotEvaluable, ZeroDivisionError):
            continue
        for equation, a, b in at.equations:
            i = first_disjoint(a, b)
            if i is not None:
                point = {name: _texts(x) for name, x in at.point.items()}
                ours, theirs = a[i].str(12), b[i].str(12)
                return Counterexample(equation, i, ours, theirs, sizes, point), False
        agreed += all(is_sharp(x) for _, a, b in at.equations for x in (a, b))
        if agreed == 2:
            break
    return None, agreed == 2


def _texts(x: Array) -> Any:
    def text(v: Any) -> Any:
        if isinstance(v, list):
            return [text(w) for w in v]
        return v if isinstance(v, bool | int) else v.str(12, radius=False)

    return text(x.tolist())


def in_field(traced: Traced, labels: Labels, mode: Mode, seed: int = 0, rule: Any = None) -> str:
    """One random point of a random prime field: "equal", "different", or "not evaluable: ..."."""
    reason = "no point found"
    for attempt in range(60):
        try:
            field = PrimeField(seed + 1000 * attempt, mode)
            at = sides(traced, labels, field, random.Random(seed + attempt), rule)
        except ZeroDivisionError:
            continue
        except NotEvaluable as e:
            reason = str(e)
            if "root" in reason:
                continue
            return f"not evaluable: {reason}"
        return "different" if any(differs(a, b) for _, a, b in at.equations) else "equal"
    return f"not evaluable: {reason}"
