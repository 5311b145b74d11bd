"""The directional derivative of a normal form, by the rules of calculus and nothing of JAX's.

d(prod a^e) = sum e a^(e-1) da prod(the others)          d sum = sum d
d tanh(P) = (1 - tanh(P)^2) dP                           d exp(P) = exp(P) dP
d erf(P) = 2/sqrt(pi) exp(-P^2) dP                       d log(P) = dP / P
d sin(P) = cos(P) dP,  d cos(P) = -sin(P) dP             d[P > 0] = 0 off the kink P = 0
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial

from ffn_jax.verify.symbolic._atoms import Atom, Axis, Base, Entry, Function, Index, Rational, Step, Sum
from ffn_jax.verify.symbolic._functions import function, power
from ffn_jax.verify.symbolic._polynomials import ONE, ZERO, Poly, irrational, of_atom, product
from ffn_jax.verify.symbolic._sums import delta, substitute, sum_over
from ffn_jax.verify.symbolic._workspace import Unsupported, workspace

Direction = Mapping[str, Callable[[tuple[Axis, ...]], Poly]]  # tensor -> how fast its entry at these digits moves


def along(tangents: Mapping[str, str]) -> Direction:
    """The direction in which the tensor `x` moves by the tensor `tangents[x]`."""
    return {x: partial(_tangent_entry, t) for x, t in tangents.items()}


def _tangent_entry(name: str, axes: tuple[Axis, ...]) -> Poly:
    return of_atom(Entry(name, axes))


def unit(name: str, place: tuple[tuple[Index, ...], ...]) -> Direction:
    """The direction in which the one entry of `name` at `place` moves."""

    def moves(axes: tuple[Axis, ...]) -> Poly:
        out = ONE
        for digits, own in zip(axes, place, strict=True):
            if len(digits) != len(own):
                raise Unsupported("the derivative by one entry of a tensor whose axes were split")
            for digit, index in zip(digits, own, strict=True):
                out = out * delta(digit, index)
        return out

    return {name: moves}


def derivative(p: Poly, direction: Direction) -> Poly:
    """The derivative of p in a direction; tensors that it does not name stay as they are."""
    out = ZERO
    for m, c in p.terms.items():
        workspace.tick()
        for q, (atom, e) in enumerate(m):
            inner = _atom_derivative(atom, direction)
            if not inner.is_zero:
                out = out + Poly({m[:q] + m[q + 1 :]: c * e}) * product([(atom, e - 1)]) * inner
    return out


def _atom_derivative(atom: Atom, direction: Direction) -> Poly:
    if isinstance(atom, Entry):
        if atom.name in direction:
            return direction[atom.name](atom.axes)
        if atom.name in workspace.cuts:
            axes, value = workspace.cuts[atom.name]
            return substitute(derivative(value, direction), _places(axes, atom.axes))
        return ZERO
    if isinstance(atom, Function):
        inner = derivative(atom.argument, direction)
        return inner if inner.is_zero else _slope(atom, atom.argument) * inner
    if isinstance(atom, Base):
        return derivative(atom.poly, direction)
    if isinstance(atom, Sum):
        inner = derivative(Poly({atom.body: 1}), direction)
        return inner if inner.is_zero else sum_over(atom.bound, inner)
    if isinstance(atom, Step):
        if not derivative(atom.poly, direction).is_zero:
            workspace.assume("off the kink", atom.poly)
        return ZERO
    return ZERO  # numbers, sizes, deltas


def _places(own: tuple[tuple[Index, ...], ...], axes: tuple[Axis, ...]) -> dict[Index, Axis]:
    """The digits at which a cut tensor, defined on the indices `own`, is read."""
    out: dict[Index, Axis] = {}
    for indices, digits in zip(own, axes, strict=True):
        if len(indices) == 1:
            out[indices[0]] = digits
        elif len(indices) == len(digits):
            out.update((i, (d,)) for i, d in zip(indices, digits, strict=True))
        else:
            raise Unsupported("a cut tensor whose axes were split after the cut")
    return out


def _slope(atom: Function, argument: Poly) -> Poly:
    own = product([(atom, 1)])
    minus_half: Rational = Fraction(-1, 2)
    match atom.name:
        case "exp":
            return own
        case "tanh":
            return ONE - own * own
        case "erf":
            return 2 * irrational("pi", minus_half) * function("exp", -(argument * argument))
        case "log":
            return power(argument, -1)
        case "sin":
            return function("cos", argument)
        case "cos":
            return -function("sin", argument)
    raise Unsupported(f"the derivative of {atom.name}")
