"""One instance of the theorem by normal forms: which equations hold, and what is left of those that do not.

With f the reference, z its inputs, ȳ the seeds and r(z, ȳ) the cotangents of the rule:

    values      vjp(fun)(z) = f(z),  fun(z) = f(z)
    route A     r(z, ȳ) = linear_transpose(jvp(f, z))(ȳ)      entry by entry; JAX differentiates
    route C     <ȳ, Df(z) t> = <t, r(z, ȳ)>  for all t        the normal form differentiates, JAX does not
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ffn_jax.verify.symbolic._cuts import Cuts
from ffn_jax.verify.symbolic._derivative import along, derivative, unit
from ffn_jax.verify.symbolic._equality import vanishes
from ffn_jax.verify.symbolic._interpret import interpret
from ffn_jax.verify.symbolic._polynomials import ZERO, Poly
from ffn_jax.verify.symbolic._specs import Labels, Traced
from ffn_jax.verify.symbolic._sums import sum_over
from ffn_jax.verify.symbolic._tensors import Tensor, elementwise, new_axis, on_common_axes, variable
from ffn_jax.verify.symbolic._workspace import OutOfTime, Unsupported, workspace


@dataclass
class Difference:
    """An equation that did not come out as 0 = 0: its name, and left minus right."""

    equation: str
    residue: Tensor


@dataclass
class Normalised:
    """What the normal form says of one instance.

    Attributes:
        differences: the equations that are left; empty means proved.
        cotangents: the rule's cotangents, by argument.
        terms: number of terms of the cotangents, a measure of size.
        cuts: whether shared values were cut.
    """

    differences: list[Difference]
    cotangents: dict[str, Tensor] = field(default_factory=dict)
    terms: int = 0
    cuts: bool = True


def tangent_name(name: str) -> str:
    """The name of an argument's tangent; argument names are words, so it is new."""
    return f"d({name})"


class Oracle:
    """The reference's side of one instance, normalised once; rules are compared with it."""

    def __init__(self, traced: Traced, labels: Labels, cuts: bool, seconds: float) -> None:
        workspace.deadline = time.monotonic() + seconds
        self.traced, self.labels = traced, labels
        self.args = [variable(n, a.shape) for n, a in zip(labels.args, traced.args, strict=True)]
        self.seeds = [variable(n, a.shape) for n, a in zip(labels.seeds, traced.seeds, strict=True)]
        self.cuts = Cuts(labels.args) if cuts else None
        self.values = interpret(traced.primal, self.args, self.cuts)
        if self.cuts:
            self.cuts.collecting = False
        self.cotangents = interpret(traced.oracle, [*self.args, *self.seeds], self.cuts)
        own = labels.own
        self.tangents = [
            variable(tangent_name(n), traced.args[k].shape) for n, k in zip(own, labels.differentiable, strict=True)
        ]
        direction = along({n: tangent_name(n) for n in own})
        moved = [Tensor(v.axes, derivative(v.entry, direction)) for v in self.values]
        self.pairing = _inner_product(moved, self.seeds)

    def _is_adjoint(self, cotangents: Sequence[Tensor]) -> Poly:
        """Route C: zero, or what is left of the pairing.

        Where the pairing does not come out as 0 = 0, the derivative of <ȳ, f> by each entry of each argument
        is compared with the cotangent's entry, which is the same statement outside of all sums.
        """
        paired = self.pairing - _inner_product(cotangents, self.tangents)
        if vanishes(paired, ()):
            return ZERO
        total = _inner_product(self.values, self.seeds)
        try:
            for name, k, cotangent in zip(self.labels.own, self.labels.differentiable, cotangents, strict=True):
                place = [new_axis(s) for s in self.traced.args[k].shape]
                slope = Tensor(place, derivative(total, unit(name, tuple(place))))
                left = _minus(slope, cotangent)
                if not vanishes(left.entry, left.indices):
                    return paired
        except OutOfTime:
            raise
        except Unsupported:
            return paired
        return ZERO

    def equal(self, rule: object, seconds: float) -> bool:
        """Whether every equation for the jaxpr of a rule holds; stops at the first that does not."""
        workspace.deadline = time.monotonic() + seconds
        outs = interpret(rule, [*self.args, *self.seeds], self.cuts)
        differences = (_minus(a, b) for a, b in zip(outs, [*self.values, *self.cotangents], strict=True))
        if not all(vanishes(d.entry, d.indices) for d in differences):
            return False
        return self._is_adjoint(outs[len(self.values) :]).is_zero

    def compare(self, rule: object, call: object | None, seconds: float) -> Normalised:
        """The equations for the jaxpr of a rule (values and cotangents) and of a plain call.

        Raises:
            Unsupported: if the normal form does not reach one of the programs, or time is up.
        """
        workspace.deadline = time.monotonic() + seconds
        outs = interpret(rule, [*self.args, *self.seeds], self.cuts)
        values, cotangents = outs[: len(self.values)], outs[len(self.values) :]
        left: list[Difference] = []

        def require(equation: str, a: Tensor, b: Tensor) -> None:
            difference = _minus(a, b)
            if not vanishes(difference.entry, difference.indices):
                left.append(Difference(equation, difference))

        for name, value, expected in zip(self.labels.seeds, values, self.values, strict=True):
            require(f"value of vjp(fun) under {name}", value, expected)
        if call is not None:
            for name, value, expected in zip(
                self.labels.seeds, interpret(call, self.args, self.cuts), self.values, strict=True
            ):
                require(f"value of fun under {name}", value, expected)
        own = self.labels.own
        for name, ours, theirs in zip(own, cotangents, self.cotangents, strict=True):
            require(f"{name}: rule - linear_transpose(jvp)", ours, theirs)
        paired = self._is_adjoint(cotangents)
        if not paired.is_zero:
            left.append(Difference("pairing with the derivative of the normal form", Tensor((), paired)))
        terms = sum(len(t.entry.terms) for t in cotangents)
        return Normalised(left, dict(zip(own, cotangents, strict=True)), terms, self.cuts is not None)


def normalise(traced: Traced, labels: Labels, seconds: float) -> Normalised:
    """The instance, with cuts and then, if equations are left, without."""
    result: Normalised | None = None
    stopped: Unsupported | None = None
    for cuts in (True, False):
        saved = workspace.deadline
        workspace.clear()
        try:
            found = Oracle(traced, labels, cuts, seconds).compare(traced.rule, traced.call, seconds)
        except Unsupported as e:
            stopped = stopped or e
            continue
        finally:
            workspace.deadline = saved
        if not found.differences:
            return found
        result = result or found
    if result is None:
        assert stopped is not None
        raise stopped
    return result


def _minus(a: Tensor, b: Tensor) -> Tensor:
    if len(a.axes) != len(b.axes):
        raise Unsupported("results of different ranks")
    return elementwise(lambda p, q: p - q, a, b)


def _inner_product(ts: Sequence[Tensor], us: Sequence[Tensor]) -> Poly:
    total = ZERO
    for t, u in zip(ts, us, strict=True):
        axes, p, q = on_common_axes(t, u)
        total = total + sum_over([i for axis in axes for i in axis], p * q)
    return total
