"""Index notation for people: polynomials as text or LaTeX, with letters for indices and names for cut values.

An index takes the letter of its size where that is one letter (n, n', n''), else i, i', ...; bound indices
are named anew in every term.
"""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

from ffn_jax.verify.symbolic._atoms import (
    Atom,
    Axis,
    Base,
    Constant,
    Delta,
    Digit,
    Dimension,
    Entry,
    Function,
    Index,
    Monomial,
    Rational,
    Step,
    Sum,
)
from ffn_jax.verify.symbolic._polynomials import Poly
from ffn_jax.verify.symbolic._tensors import Tensor
from ffn_jax.verify.symbolic._workspace import workspace

MAX_TERMS = 60


class Letters:
    """Names for indices; a copy names further indices without touching the original."""

    def __init__(self, names: dict[Index, str] | None = None) -> None:
        self.names = dict(names or {})

    def copy(self) -> "Letters":
        """Letters that start from these."""
        return Letters(self.names)

    def __call__(self, index: Index) -> str:
        if index not in self.names:
            size = str(index.size)
            letter = size if re.fullmatch(r"[a-z]", size) else "i"
            while letter in self.names.values():
                letter += "'"
            self.names[index] = letter
        return self.names[index]


def _tensor_name(name: str, tex: bool) -> str:
    if name.startswith("const:"):
        return r"\mathrm{const}" if tex else f"const{name[6:12]}"
    if name.startswith("iota:"):
        return r"\mathrm{pos}" if tex else "position"
    shown = re.sub(r"^@(\d+)$", r"u\1", name.removeprefix("op:"))
    if not tex:
        barred = re.sub(r"^(\w+)_bar$|^(y)bar$", lambda m: (m[1] or m[2]) + "\u0304", shown)
        return unicodedata.normalize("NFC", barred)
    if (m := re.fullmatch(r"d\((.*)\)", shown)) is not None:
        return r"\dot{" + _tensor_name(m[1], tex) + "}"
    if (m := re.fullmatch(r"(?:(\w+)_bar|(y)bar)", shown)) is not None:
        return r"\bar{" + _tensor_name(m[1] or m[2], tex) + "}"
    if (m := re.fullmatch(r"([A-Za-z])(\d+)", shown)) is not None:
        return f"{m[1]}_{{{m[2]}}}"
    return shown if len(shown) == 1 else r"\mathrm{" + shown.replace("_", r"\_") + "}"


class Writer:
    """Writes polynomials; `tex` chooses LaTeX."""

    def __init__(self, tex: bool = False) -> None:
        self.tex = tex
        self.cuts_seen: list[str] = []
        self.functions: dict[str, tuple[str, Tensor]] = {}

    def poly(self, p: Poly, letters: Letters | None = None) -> str:
        """A polynomial, its shortest terms first."""
        letters = letters or Letters()
        if p.is_zero:
            return "0"
        for i in sorted(p.free, key=lambda i: i.uid):
            letters(i)
        order = sorted(p.terms.items(), key=lambda t: (len(t[0]), sum(len(a.key) for a, _ in t[0])))
        parts = [self._term(m, c, letters.copy()) for m, c in order[:MAX_TERMS]]
        if len(order) > MAX_TERMS:
            parts.append(f"... ({len(order) - MAX_TERMS} more terms)")
        return " + ".join(parts).replace("+ -", "- ")

    def equation(self, name: str, t: Tensor) -> tuple[str, str]:
        """(left, right) of `name[indices] = entry`."""
        letters = Letters()
        left = self._entry(name, t.axes, letters)
        return left, self.poly(t.entry, letters)

    def definitions(self) -> list[tuple[str, str]]:
        """The equations of the intermediates that were written so far, and of those that these mention."""
        out: list[tuple[str, str]] = []
        done: set[str] = set()
        while todo := [(n, t) for n, t in self._intermediates() if n not in done]:
            for name, tensor in todo:
                done.add(name)
                letters = Letters()
                left = self._entry(name, tensor.axes, letters)
                ((m, _),) = tensor.entry.terms.items() if name.startswith("t") else (((), 1),)
                right = self._function(m[0][0], letters) if m else self.poly(tensor.entry, letters)
                out.append((left, right))
        return out

    def _intermediates(self) -> list[tuple[str, Tensor]]:
        return [*self.functions.values(), *((name, Tensor(*workspace.cuts[name])) for name in self.cuts_seen)]

    def _named(self, atom: Function, letters: Letters) -> str:
        """A function of a sum, as an intermediate t0, t1, ... in its free indices."""
        free = sorted(atom.free, key=lambda i: (str(i.size), i.uid))
        key = str([str(i.size) for i in free]) + atom.text_under({i: f"%{q}" for q, i in enumerate(free)}, 0)
        if key not in self.functions:
            name = f"t{len(self.functions)}"
            self.functions[key] = name, Tensor([(i,) for i in free], Poly({((atom, 1),): 1}))
        return self._entry(self.functions[key][0], [(i,) for i in free], letters)

    def _function(self, atom: Atom, letters: Letters) -> str:
        assert isinstance(atom, Function)
        head = atom.name if not self.tex else rf"\{atom.name}" if atom.name != "erf" else r"\operatorname{erf}"
        return f"{head}({self.poly(atom.argument, letters)})"

    def _term(self, m: Monomial, c: Rational, letters: Letters) -> str:
        numbers = [self._power(a, e, letters) for a, e in m if isinstance(a, Constant | Dimension)]
        others = [self._power(a, e, letters) for a, e in m if not isinstance(a, Constant | Dimension)]
        body = " ".join(numbers + others)
        if not body:
            return str(c)
        c = Fraction(c)
        if abs(c) == 1:
            return body if c > 0 else f"-{body}"
        if c.denominator == 1:
            return f"{c} {body}"
        if self.tex:
            return rf"{'-' if c < 0 else ''}\tfrac{{{abs(c.numerator)}}}{{{c.denominator}}} {body}"
        return f"{'-' if c < 0 else ''}({abs(c)}) {body}"

    def _power(self, atom: Atom, e: Rational, letters: Letters) -> str:
        if isinstance(atom, Function) and atom.name == "exp":
            return (r"\exp" if self.tex else "exp") + f"({self.poly(atom.argument * e, letters)})"
        base = self._atom(atom, letters)
        if e == 1:
            return base
        if self.tex:
            shown = base if isinstance(atom, Constant | Dimension | Sum) else f"{{{base}}}"
            return f"{shown}^{{{e}}}"
        return f"{base}^{e}" if e.denominator == 1 and e > 0 else f"{base}^({e})"

    def _atom(self, atom: Atom, letters: Letters) -> str:
        tex = self.tex
        if isinstance(atom, Entry):
            return self._entry(atom.name, atom.axes, letters)
        if isinstance(atom, Constant):
            return {"pi": r"\pi" if tex else "pi"}.get(str(atom.name), str(atom.name))
        if isinstance(atom, Dimension):
            return atom.name
        if isinstance(atom, Function):
            if atom.name != "log" and len(atom.argument.terms) > 1:
                return self._named(atom, letters)
            return self._function(atom, letters)
        if isinstance(atom, Base):
            return f"({self.poly(atom.poly, letters)})"
        if isinstance(atom, Step):
            return f"[{self.poly(atom.poly, letters)} > 0]"
        if isinstance(atom, Sum):
            inner = letters.copy()
            bound = ("" if tex else ",").join(inner(b) for b in atom.bound)
            body = " ".join(self._power(a, e, inner) for a, e in atom.body)
            return rf"\left(\sum_{{{bound}}} {body}\right)" if tex else f"(sum_{bound} {body})"
        if isinstance(atom, Delta):
            right = self._position(atom.right, atom.offset, letters)
            return f"[{letters(atom.left)} = {right}]"
        raise AssertionError(atom.key)

    def _position(self, index: Index | None, offset: object, letters: Letters) -> str:
        if index is None:
            return str(offset)
        return letters(index) if str(offset) == "0" else f"{letters(index)}+{offset}"

    def _digit(self, digit: Digit, letters: Letters) -> str:
        if isinstance(digit, Index):
            return letters(digit)
        return self._position(digit.index, digit.offset, letters)

    def _entry(self, name: str, axes: Sequence[Axis], letters: Letters) -> str:
        if name in workspace.cuts and name not in self.cuts_seen:
            self.cuts_seen.append(name)
        places = []
        for axis in axes:
            text = ",".join(self._digit(d, letters) for d in axis) or "0"
            places.append(f"({text})" if len(axis) > 1 else text)
        shown = _tensor_name(name, self.tex)
        if not places:
            return shown
        if self.tex and re.fullmatch(r"\w_\{\d+\}", shown):  # a name with a subscript of its own
            return rf"{shown[:-1]},\,{' '.join(places)}}}"
        return f"{shown}_{{{' '.join(places)}}}" if self.tex else f"{shown}[{','.join(places)}]"


def side_conditions() -> list[str]:
    """The side conditions in the workspace, as text."""
    said = {"nonzero": "{} != 0", "positive": "{} > 0", "off the kink": "off the kink {} = 0"}
    writer = Writer()
    lines = [said[what].format(writer.poly(p)) for what, p in workspace.conditions.values()]
    where = "; ".join(f"{left} = {right}" for left, right in writer.definitions())
    return sorted(set(lines)) + ([f"where {where}"] if where else [])
