"""Running error analysis: a jaxpr evaluated on bounds instead of numbers.

Each variable becomes a `Bound`: a float64 value and the error that computing it in its own dtype can have
made. Inputs are exact, but numbers too small for the hardware may be flushed to zero. A float literal stands
for some real number within four roundings of it, unless it is a short dyadic fraction such as 0.5, which
stands for itself; array constants stand for themselves.

If two programs are equal over the reals, then their float results differ by at most the sum of their bounds.
That sum is the tolerance of every comparison in `ffn_jax.verify`.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex

from ffn_jax._compat import lax_helper, open_jaxpr, scan_counts
from ffn_jax.verify._bounds import _elementwise, _structure, _sums  # noqa: F401  (these fill the table)
from ffn_jax.verify._bounds._elementwise import exact_or_unknown
from ffn_jax.verify._bounds._model import Bound, Error, Model, Precision, plus
from ffn_jax.verify._bounds._registry import (
    RULES,
    Context,
    UnsupportedPrimitiveError,
    is_float,
    unknown_where,
)
from ffn_jax.verify._jaxprs import all_equations, called_jaxpr

_LITERAL_UNITS = 4
_INTEGER_RULES = frozenset({"convert_element_type", "select_n", "argmax", "argmin", "sort"})
_SCALAR_SPREADERS = frozenset({"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose"})


def bounds_of(closed: Any, model: Model) -> Callable[..., list[tuple[Any, Any]]]:
    """A function of a closed jaxpr's inputs that returns `(value, error)` for each result, both float64.

    To be traced and run with 64-bit types on. For a result of a non-float dtype the error is 0 where it is
    certain.

    Raises:
        UnsupportedPrimitiveError: the jaxpr has a primitive without a rule.
    """
    jaxpr, consts = open_jaxpr(closed)

    def bounds(*args: Any) -> list[tuple[Any, Any]]:
        inputs = [_input(arg, var.aval.dtype) for arg, var in zip(args, jaxpr.invars, strict=True)]
        outs = interpret(jaxpr, [_constant(const) for const in consts], inputs, model)
        totals = [jnp.broadcast_to(error.total(), jnp.shape(value)) for value, error in outs]
        # NaN is an unknown error: it propagates by itself and is given its meaning here
        return [(value, jnp.where(jnp.isnan(e), jnp.inf, e)) for (value, _), e in zip(outs, totals, strict=True)]

    return bounds


def unsupported_primitives(jaxpr: Any) -> list[str]:
    """The names of the primitives in a jaxpr that `bounds_of` cannot bound."""
    known = RULES.keys() | _CONTROL_FLOW.keys()
    missing: dict[str, None] = {}
    for eqn in all_equations(jaxpr):
        avals: list[Any] = [atom.aval for atom in eqn.invars]  # made of exact operands, results are exact
        floats = any(jnp.issubdtype(aval.dtype, jnp.floating) for aval in avals)
        if floats and eqn.primitive.name not in known and called_jaxpr(eqn) is None:
            missing[eqn.primitive.name] = None
    return list(missing)


def interpret(jaxpr: Any, consts: Sequence[Bound], args: Sequence[Bound], model: Model) -> list[Bound]:
    """Evaluate a bare jaxpr on bounds."""
    env: dict[Any, Bound] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Bound:
        if isinstance(atom, jex.Literal):
            return _constant(atom.val, getattr(atom.aval, "dtype", None))
        return env[atom]

    for eqn in jaxpr.eqns:
        outs = _equation(eqn, [read(atom) for atom in eqn.invars], model)
        for var, out in zip(eqn.outvars, outs, strict=True):
            env[var] = _guarded(out, var.aval.dtype)
    return [read(atom) for atom in jaxpr.outvars]


def _input(array: Any, dtype: Any) -> Bound:
    if not jnp.issubdtype(dtype, jnp.floating):
        return Bound(array, Error())
    value = jnp.asarray(array, jnp.float64)
    flushed = (jnp.abs(value) < Precision.of(dtype).smallest) & (value != 0)
    return Bound(value, Error(jnp.where(flushed, jnp.abs(value), 0.0)))


def _constant(value: Any, dtype: Any = None) -> Bound:
    array = np.asarray(value) if not isinstance(value, jax.Array) else value
    dtype = array.dtype if dtype is None else dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        return Bound(jnp.asarray(array, dtype) if np.ndim(array) == 0 else array, Error())
    error = Error()
    if np.ndim(array) == 0 and not isinstance(array, jax.core.Tracer):
        number = float(array)
        if np.isfinite(number) and not _short_dyadic(number):
            error = Error(jnp.asarray(_LITERAL_UNITS * Precision.of(dtype).u * abs(number), jnp.float64))
    return Bound(jnp.asarray(array, jnp.float64), error)


def _short_dyadic(number: float) -> bool:
    exact = Fraction(number)
    return exact.denominator <= 4096 and abs(exact.numerator) < 2**24


def _guarded(bound: Bound, dtype: Any) -> Bound:
    """An unknown error where the dtype may have overflowed though float64 did not, or the bound is NaN."""
    value, error = bound
    limit = Precision.of(dtype).largest
    if error.exact or limit >= Precision.of(jnp.float64).largest:
        return bound
    known = (jnp.abs(value) + error.total() <= limit) | jnp.isinf(value)
    return Bound(value, error.each(lambda part: jnp.where(known, part, jnp.inf)))


def _equation(eqn: Any, operands: list[Bound], model: Model) -> list[Bound]:
    helper = lax_helper(eqn)
    if helper in RULES:
        return RULES[helper](Context(eqn, model), operands)
    called = called_jaxpr(eqn)
    if called is not None:
        jaxpr, consts = called
        return interpret(jaxpr, [_constant(const) for const in consts], operands, model)
    if eqn.primitive.name in _CONTROL_FLOW:
        return _CONTROL_FLOW[eqn.primitive.name](eqn, operands, model)
    ctx = Context(eqn, model)
    is_exact = all(operand.error.exact for operand in operands)
    if is_exact and not any(jnp.issubdtype(var.aval.dtype, jnp.floating) for var in eqn.outvars):
        return exact_or_unknown(ctx, operands)
    rule = RULES.get(eqn.primitive.name)
    if jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.integer) and eqn.primitive.name not in _INTEGER_RULES:
        return exact_or_unknown(ctx, operands)
    if rule is None:
        if any(is_float(bound.value) for bound in operands) or not is_exact:
            raise UnsupportedPrimitiveError(eqn.primitive.name)
        return exact_or_unknown(ctx, operands)  # floats made from exact integers: iota, random bits
    return rule(ctx, _spread_scalars(eqn, operands))


def _spread_scalars(eqn: Any, operands: list[Bound]) -> list[Bound]:
    """A scalar operand next to arrays has one error for all their entries."""
    if eqn.primitive.name in _SCALAR_SPREADERS or not eqn.outvars[0].aval.shape:
        return operands
    return [
        Bound(value, error.spread()) if not np.shape(value) and not error.exact else Bound(value, error)
        for value, error in operands
    ]


# --- control flow -------------------------------------------------------------------------------------------


def _instantiated(bound: Bound, model: Model) -> Bound:
    """With an array for each part of the error, so that a loop's carry keeps its structure."""
    value, error = bound
    shape = jnp.shape(value)
    shared, free = (jnp.zeros(shape) if part is None else jnp.broadcast_to(part, shape) for part in error)
    if not model.statistical:
        return Bound(value, Error(shared))
    return Bound(value, Error(shared, free))


def _body(jaxpr: Any, model: Model) -> Callable[[Sequence[Bound]], list[Bound]]:
    bare, consts = open_jaxpr(jaxpr)
    return lambda operands: interpret(bare, [_constant(const) for const in consts], operands, model)


def _scan(eqn: Any, operands: list[Bound], model: Model) -> list[Bound]:
    n_consts, n_carry = scan_counts(eqn)
    consts, rest = operands[:n_consts], operands[n_consts:]
    body = _body(eqn.params["jaxpr"], model)

    def step(carry: list[Bound], xs: list[Bound]) -> tuple[list[Bound], list[Bound]]:
        outs = [_instantiated(out, model) for out in body([*consts, *carry, *xs])]
        return outs[:n_carry], outs[n_carry:]

    carry, xs = [_instantiated(bound, model) for bound in rest[:n_carry]], list(rest[n_carry:])
    last, ys = lax.scan(step, carry, xs, length=eqn.params["length"], reverse=eqn.params["reverse"])
    return [*last, *ys]


def _while(eqn: Any, operands: list[Bound], model: Model) -> list[Bound]:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts = operands[:n_cond], operands[n_cond : n_cond + n_body]
    keep_going, body = _body(eqn.params["cond_jaxpr"], model), _body(eqn.params["body_jaxpr"], model)

    def undecided(carry: list[Bound]) -> Any:
        return jnp.asarray(keep_going([*cond_consts, *carry])[0].error.total()) > 0

    def step(state: tuple[list[Bound], Any]) -> tuple[list[Bound], Any]:
        carry, doubt = state
        outs = [_instantiated(out, model) for out in body([*body_consts, *carry])]
        return outs, doubt | undecided(outs)

    start = [_instantiated(bound, model) for bound in operands[n_cond + n_body :]]
    last, doubt = lax.while_loop(
        lambda state: keep_going([*cond_consts, *state[0]])[0].value, step, (start, undecided(start))
    )
    return [_doubted(bound, doubt) for bound in last]


def _cond(eqn: Any, operands: list[Bound], model: Model) -> list[Bound]:
    (which, error), *rest = operands
    branches = [_body(branch, model) for branch in eqn.params["branches"]]

    def instantiated(
        branch: Callable[[Sequence[Bound]], list[Bound]],
    ) -> Callable[[list[Bound]], list[Bound]]:
        return lambda operands: [_instantiated(out, model) for out in branch(operands)]

    outs = lax.switch(which, [instantiated(branch) for branch in branches], rest)
    return [_doubted(bound, error.total() > 0) if not error.exact else bound for bound in outs]


def _doubted(bound: Bound, doubt: Any) -> Bound:
    return Bound(bound.value, plus(bound.error, unknown_where(doubt, jnp.shape(bound.value))))


_CONTROL_FLOW = {"scan": _scan, "while": _while, "cond": _cond}
