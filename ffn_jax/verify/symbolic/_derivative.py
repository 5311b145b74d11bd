"""The directional derivative of a normal form, by the rules of calculus and nothing of JAX's.

d(prod a^e) = sum e a^(e-1) da prod(the others)          d sum = sum d
d tanh(P) = (1 - tanh(P)^2) dP                           d exp(P) = exp(P) dP
d erf(P) = 2/sqrt(pi) exp(-P^2) dP                       d log(P) = dP / P
d sin(P) = cos(P) dP,  d cos(P) = -sin(P) dP             d[P > 0] = 0 off the kink P = 0
"""

from collections.abc import Mapping
from fractions import Fraction

from ffn_jax.verify.symbolic._atoms import Atom, Axis, Base, Entry, Function, Index, Rational, Step, Sum
from ffn_jax.verify.symbolic._functions import function, power
from ffn_jax.verify.symbolic._polynomials import ONE, ZERO, Poly, irrational, of_atom, product
from ffn_jax.verify.symbolic._sums import substitute, sum_over
from ffn_jax.verify.symbolic._workspace import Unsupported, workspace


def derivative(p: Poly, tangents: Mapping[str, str]) -> Poly:
    """The derivative of p in the direction in which the tensor `x` moves by the tensor `tangents[x]`."""
    out = ZERO
    for m, c in p.terms.items():
        workspace.tick()
        for q, (atom, e) in enumerate(m):
            inner = _atom_derivative(atom, tangents)
            if not inner.is_zero:
                out = out + Poly({m[:q] + m[q + 1 :]: c * e}) * product([(atom, e - 1)]) * inner
    return out


def _atom_derivative(atom: Atom, tangents: Mapping[str, str]) -> Poly:
    if isinstance(atom, Entry):
        if atom.name in tangents:
            return of_atom(Entry(tangents[atom.name], atom.axes))
        if atom.name in workspace.cuts:
            axes, value = workspace.cuts[atom.name]
            return substitute(derivative(value, tangents), _places(axes, atom.axes))
        return ZERO
    if isinstance(atom, Function):
        inner = derivative(atom.argument, tangents)
        return inner if inner.is_zero else _slope(atom, atom.argument) * inner
    if isinstance(atom, Base):
        return derivative(atom.poly, tangents)
    if isinstance(atom, Sum):
        inner = derivative(Poly({atom.body: 1}), tangents)
        return inner if inner.is_zero else sum_over(atom.bound, inner)
    if isinstance(atom, Step):
        if not derivative(atom.poly, tangents).is_zero:
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
