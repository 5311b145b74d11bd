"""When is a polynomial the zero function?  Three tests, each sound, none complete.

1. Its normal form has no terms.
2. It has none after multiplication by the bases of its negative powers: P Q^-1 + R = 0 if P + R Q = 0 and Q
!= 0.
3. It has none on every range of its free indices that a delta speaks of.
"""

from collections.abc import Sequence

from ffn_jax.verify.symbolic._atoms import Base, Index, Rational
from ffn_jax.verify.symbolic._polynomials import ZERO, Poly, natural_power, product
from ffn_jax.verify.symbolic._sums import ranges, restricted


def vanishes(p: Poly, free: Sequence[Index]) -> bool:
    """True only if p is zero for all values of its tensors and of the free indices."""
    if p.is_zero or _cleared(p).is_zero:
        return True
    for i in free:
        if i in p.free:
            parts = ranges(i, p.terms)
            if len(parts) > 1:
                rest = [j for j in free if j is not i]
                pieces = (restricted(p, i, start, stop) for start, stop in parts)
                return all(vanishes(q, rest if j is None else [*rest, j]) for q, j in pieces)
    return False


def _cleared(p: Poly) -> Poly:
    """P times natural powers of the bases that it has negative powers of."""
    while True:
        lowest: dict[Base, Rational] = {}
        for m in p.terms:
            for atom, e in m:
                if isinstance(atom, Base) and e < lowest.get(atom, 0):
                    lowest[atom] = e
        if not lowest:
            return p
        base = min(lowest, key=lambda a: a.serial)
        raised = -(lowest[base].numerator // lowest[base].denominator)
        out = ZERO
        for m, c in p.terms.items():
            e = dict(m).get(base, 0)
            whole = e.numerator // e.denominator
            rest = Poly({tuple((a, x) for a, x in m if a is not base): c}) * product([(base, e - whole)])
            out = out + rest * natural_power(base.poly, whole + raised)
        p = out
