"""A canonical text for a sum over bound indices, whatever they are called and however they are ordered.

Naming bound indices canonically is graph canonisation in small: indices are vertices, atoms are hyperedges.
Colour refinement (an index's colour is the multiset of atoms it occurs in, with the colours of the other
indices written in) separates most of them; where a colour class keeps several, each is tried in turn as the
first and the smallest text wins.  Two sums get equal texts exactly when one is a renaming of the other.
"""

from typing import TYPE_CHECKING

from ffn_jax.verify.symbolic._workspace import workspace

if TYPE_CHECKING:
    from ffn_jax.verify.symbolic._atoms import Index, Monomial, Names

Colours = dict["Index", int]


def canonical_sum(bound: "tuple[Index, ...]", body: "Monomial", names: "Names", depth: int) -> str:
    """The key of sum_{bound} body, with free indices written as in `names`."""
    factors = {b: [(atom, e) for atom, e in body if b in atom.free] for b in bound}

    def refined(colours: Colours) -> Colours:
        while True:
            painted = {**names, **{b: f"@{c}" for b, c in colours.items()}}
            signature = {}
            for b in bound:
                seen = {**painted, b: "@*"}
                uses = sorted(f"{a.text_under(seen, depth + 1)}^{e}" for a, e in factors[b])
                signature[b] = (colours[b], str(b.size), tuple(uses))
            rank = {s: r for r, s in enumerate(sorted(set(signature.values())))}
            finer = {b: rank[signature[b]] for b in bound}
            if len(set(finer.values())) == len(set(colours.values())):
                return finer
            colours = finer

    def written(order: "list[Index]") -> str:
        local = {b: f"${depth}.{r}" for r, b in enumerate(order)}
        text = "*".join(
            sorted(a.text_under({**names, **local}, depth + 1) + (f"^{e}" if e != 1 else "") for a, e in body)
        )
        return "S{" + ",".join(f"{local[b]}:{b.size}" for b in order) + "}(" + text + ")"

    def search(colours: Colours) -> str:
        workspace.tick()
        colours = refined(colours)
        classes: dict[int, list[Index]] = {}
        for b, c in colours.items():
            classes.setdefault(c, []).append(b)
        tied = next((classes[c] for c in sorted(classes) if len(classes[c]) > 1), None)
        if tied is None:
            return written(sorted(bound, key=colours.__getitem__))
        return min(search({**{x: 2 * c + 1 for x, c in colours.items()}, b: 2 * colours[b]}) for b in tied)

    return search(dict.fromkeys(bound, 0))
