"""`lax.scan` of any length: what one step does, for a symbolic step t.

The inputs are read at t, the outputs are stacked over t.  A carry h is understood when one step takes it to

    h                       an invariant
    h + g(t)                an accumulator:  init + sum_t g(t)
    h + c,  c constant      a counter:       init + c t at step t, usable by the other carries
    h (1 - [q = t]) + w(t)  a buffer written block by block:  init (1 - sum_t [q = t]) + sum_t w(t)

where g and w read no carry but invariants and counters.  Other scans are unrolled if they are at most 8 steps
long.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ffn_jax._compat import scan_counts
from ffn_jax.verify.symbolic._atoms import Delta, Entry, Index
from ffn_jax.verify.symbolic._cuts import tensor_names
from ffn_jax.verify.symbolic._polynomials import ONE, Poly, as_poly, entry, of_atom
from ffn_jax.verify.symbolic._ranges import part, placed
from ffn_jax.verify.symbolic._sizes import is_one
from ffn_jax.verify.symbolic._sums import substitute, sum_over
from ffn_jax.verify.symbolic._tensors import Tensor, elementwise, renamed, scalar, variable
from ffn_jax.verify.symbolic._workspace import OutOfTime, Unsupported, workspace

Run = Callable[[Any, Sequence[Tensor]], list[Tensor]]
MAX_UNROLL = 8


def scan(eqn: Any, ins: Sequence[Tensor], run: Run) -> list[Tensor]:
    """The outputs of a scan equation; `run` interprets the body."""
    p = eqn.params
    (n_consts, n_carry), length = scan_counts(eqn), p["length"]
    consts, init, xs = ins[:n_consts], ins[n_consts : n_consts + n_carry], ins[n_consts + n_carry :]
    try:
        return _by_steps(p["jaxpr"], consts, init, xs, length, p["reverse"], run)
    except OutOfTime:
        raise
    except Unsupported:
        if isinstance(length, int) and length <= MAX_UNROLL:
            return _unrolled(p["jaxpr"], consts, init, xs, length, p["reverse"], run)
        raise


def _at_step(x: Tensor, t: Index) -> Tensor:
    """x[t], for a leading axis of one digit."""
    if is_one(t.size):
        return Tensor(x.axes[1:], x.entry)
    x = renamed(x)
    if len(x.axes[0]) != 1 or x.axes[0][0].size != t.size:
        raise Unsupported("a scan over an axis that is split into digits")
    return Tensor(x.axes[1:], substitute(x.entry, {x.axes[0][0]: (t,)}))


def _by_steps(
    body: Any, consts: Any, init: Sequence[Tensor], xs: Any, length: Any, reverse: bool, run: Run
) -> list[Tensor]:
    t = Index(length)
    steps = [_at_step(x, t) for x in xs]
    avals = body.jaxpr.invars[len(consts) : len(consts) + len(init)]
    names = [f"carry:{t.uid}:{k}" for k in range(len(init))]
    holes = [variable(name, v.aval.shape) for name, v in zip(names, avals, strict=True)]
    inside = list(holes)  # what the body sees of each carry
    before = dict(workspace.conditions)
    for _ in range(len(init) + 1):
        workspace.conditions = dict(before)  # what was assumed of carries that are known by now is of no interest
        outs = run(body, [*consts, *inside, *steps])
        known = _resolved(names, holes, inside, outs, init, t, reverse)
        if all(a is b for a, b in zip(known, inside, strict=True)):
            break
        inside = known
    carried, ys = outs[: len(init)], outs[len(init) :]
    pending = {n for n, hole, seen in zip(names, holes, inside, strict=True) if seen is hole}
    finals = [
        init[k]
        if _same(carried[k], inside[k]) and inside[k] is init[k]
        else _final(names[k], holes[k], inside[k], carried[k], init[k], t, pending)
        for k in range(len(init))
    ]
    if any(tensor_names(y.entry) & pending for y in ys):
        raise Unsupported("a scan whose outputs read an accumulator")
    lead = () if is_one(length) else (t,)
    return finals + [Tensor([lead, *y.axes], y.entry) for y in ys]


def _difference(a: Tensor, b: Tensor) -> Tensor:
    return elementwise(lambda p, q: p - q, a, b)


def _same(a: Tensor, b: Tensor) -> bool:
    return _difference(a, b).entry.is_zero


def _resolved(
    names: list[str],
    holes: list[Tensor],
    inside: list[Tensor],
    outs: list[Tensor],
    init: Any,
    t: Index,
    reverse: bool,
) -> list[Tensor]:
    """What the body sees of each carry, after finding further invariants and counters."""
    known = []
    for hole, seen, out, start in zip(holes, inside, outs, init, strict=False):
        if seen is hole:
            change = _difference(out, hole).entry
            if change.is_zero:
                seen = start
            elif change.constant is not None and not hole.axes:
                position = entry(f"iota:{t.size}", [(t,)]) if not is_one(t.size) else as_poly(0)
                passed = as_poly(0)
                if reverse and not isinstance(t.size, int):
                    raise Unsupported("a counter in a reversed scan")
                passed = (as_poly(t.size - 1) - position) if reverse else position
                seen = scalar(start.entry + passed * change.constant)
        known.append(seen)
    return known


def _final(name: str, hole: Tensor, seen: Tensor, out: Tensor, init: Tensor, t: Index, pending: set[str]) -> Tensor:
    change = _difference(out, hole if seen is hole else seen)
    reads = tensor_names(change.entry) & pending
    if not reads:
        return elementwise(lambda p, q: p + q, init, Tensor(change.axes, _over_steps(change.entry, t)))
    if reads == {name}:
        written = _written(name, hole, change, t)
        if written is not None:
            untouched, new = written
            kept = elementwise(lambda p, q: p * q, init, Tensor(change.axes, ONE - _over_steps(untouched, t)))
            return elementwise(lambda p, q: p + q, kept, Tensor(change.axes, _over_steps(new, t)))
    raise Unsupported("a scan with a carry that is neither an invariant, an accumulator nor a buffer")


def _over_steps(p: Poly, t: Index) -> Poly:
    return p if is_one(t.size) else sum_over([t], p)


def _written(name: str, hole: Tensor, change: Tensor, t: Index) -> tuple[Poly, Poly] | None:
    """([q = t], w) where change = [q = t] (-h) + w and every term of w has the factor [q = t]; else None."""
    reading = Poly({m: c for m, c in change.entry.terms.items() if tensor_names(Poly({m: c})) & {name}})
    if len(reading.terms) != 1:
        return None
    ((m, _),) = reading.terms.items()
    mask = next((a for a, _ in m if isinstance(a, Delta) and t in a.free), None)
    own = next((a for a, _ in m if isinstance(a, Entry) and a.name == name), None)
    if mask is None or own is None or own.axes != change.axes:
        return None
    if not (reading + of_atom(mask) * of_atom(own)).is_zero:
        return None
    new = change.entry - reading
    if any(mask not in {a for a, _ in term} for term in new.terms):
        return None
    return of_atom(mask), new


def _unrolled(
    body: Any, consts: Any, init: Sequence[Tensor], xs: Any, length: int, reverse: bool, run: Run
) -> list[Tensor]:
    carry = list(init)
    stacked: dict[int, Tensor] = {}
    for step in range(length)[:: -1 if reverse else 1]:
        now = [part(x, 0, step, step + 1, length) for x in xs]
        outs = run(body, [*consts, *carry, *(Tensor(x.axes[1:], x.entry) for x in now)])
        carry = outs[: len(init)]
        for k, y in enumerate(outs[len(init) :]):
            piece = placed(Tensor([(), *y.axes], y.entry), 0, step, 1, length)
            stacked[k] = piece if k not in stacked else elementwise(lambda p, q: p + q, stacked[k], piece)
    return [*carry, *(stacked[k] for k in sorted(stacked))]
