"""Seeing from its jaxpr whether a callable is linear in x, affine, or neither.

`jax.linear_transpose` drops the constant of an affine function without a word and fails on a non-linear one
only when called. Here every intermediate value of the traced function is one of

    ZERO        identically 0                       CONST      independent of x
    LINEAR      linear in x                         AFFINE     linear plus a constant
    NONLINEAR   a non-linear function of x          UNKNOWN    reached through a primitive with no rule here

by the rules LINEAR + CONST = AFFINE, CONST · LINEAR = LINEAR, LINEAR · LINEAR = NONLINEAR and so on. Only what
is visible is rejected, AFFINE and NONLINEAR; an opaque kernel stays UNKNOWN and is taken at its word.
"""

import enum
from collections.abc import Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ffn_jax._compat import open_jaxpr, scan_counts


class Kind(enum.Enum):
    """How a value depends on x."""

    ZERO = "zero"
    CONST = "constant"
    LINEAR = "linear"
    AFFINE = "affine"
    NONLINEAR = "non-linear"
    UNKNOWN = "unknown"


ZERO, CONST, LINEAR, AFFINE, NONLINEAR, UNKNOWN = Kind
_FREE = (ZERO, CONST)  # does not depend on x

_LINEAR_IN_EVERY_OPERAND = frozenset(
    "neg reshape transpose broadcast_in_dim squeeze expand_dims slice rev reduce_sum cumsum copy copy_p real imag "
    "conj complex reduce_precision sharding_constraint device_put name fft split psum psum2 psum_invariant "
    "all_gather all_to_all ppermute reduce_scatter pvary pcast optimization_barrier add add_any sub concatenate "
    "pad reduce_window_sum mesh_cast".split()
)
_LINEAR_IN_FIRST = frozenset("gather dynamic_slice div".split())
_LINEAR_UPDATES = frozenset(("dynamic_update_slice", "scatter-add", "scatter", "scatter_add"))
_BILINEAR = frozenset("mul dot_general conv_general_dilated ragged_dot ragged_dot_general".split())
_NONLINEAR = frozenset(
    "exp exp2 log log1p expm1 tanh sin cos tan asin acos atan sinh cosh asinh acosh atanh atan2 erf erfc erf_inv "
    "logistic sqrt rsqrt cbrt abs sign max min pow integer_pow square floor ceil round clamp rem reduce_max "
    "reduce_min reduce_prod cumprod cummax cummin cumlogsumexp argmax argmin eq ne lt le gt ge is_finite not "
    "and or xor nextafter lgamma digamma".split()
)


def join(a: Kind, b: Kind) -> Kind:
    """The kind of a + b, and of a value that may be either."""
    if a is b or b is ZERO:
        return a
    if a is ZERO:
        return b
    if UNKNOWN in (a, b):
        return UNKNOWN
    if NONLINEAR in (a, b):
        return NONLINEAR
    return AFFINE


def classify(closed: Any, inputs: Sequence[Kind]) -> list[Kind]:
    """The kinds of a closed jaxpr's outputs, given those of its inputs."""
    jaxpr, consts = open_jaxpr(closed)
    return _classify(jaxpr, [_of_constant(c) for c in consts], inputs)


def _of_constant(value: Any) -> Kind:
    """ZERO where that is cheap to see: a small array at hand, not a weight, a tracer or a random key."""
    if isinstance(value, jax.core.Tracer) or np.size(value) > 1024 or not jnp.issubdtype(value.dtype, np.number):
        return CONST
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return CONST
    return CONST if np.any(np.asarray(value)) else ZERO


def _classify(jaxpr: Any, consts: Sequence[Kind], inputs: Sequence[Kind]) -> list[Kind]:
    env: dict[Any, Kind] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Kind:
        return _of_constant(np.asarray(atom.val)) if isinstance(atom, jex.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _equation(eqn, [read(a) for a in eqn.invars]), strict=True))
    return [read(a) for a in jaxpr.outvars]


def _equation(eqn: Any, ins: list[Kind]) -> list[Kind]:
    name, params = eqn.primitive.name, eqn.params
    n_out = len(eqn.outvars)
    if name == "scan":
        return _scan(eqn, ins)
    if name == "cond":
        if ins[0] not in _FREE:
            return [NONLINEAR] * n_out
        branches = [classify(branch, ins[1:]) for branch in params["branches"]]
        return [reduce(join, kinds) for kinds in zip(*branches, strict=True)]
    inner = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
    if name not in ("while", "pallas_call") and inner is not None and len(open_jaxpr(inner)[0].invars) == len(ins):
        return classify(inner, ins)
    return [_primitive(name, params, ins)] * n_out


def _primitive(name: str, params: dict[str, Any], ins: list[Kind]) -> Kind:
    if name == "optimization_barrier" or name in _LINEAR_IN_EVERY_OPERAND:
        return reduce(join, ins)
    if name == "integer_pow" and params["y"] == 1:
        return ins[0]
    if name == "convert_element_type":
        keeps = ins[0] in _FREE or jnp.issubdtype(params["new_dtype"], jnp.inexact)
        return ins[0] if keeps else NONLINEAR
    if name in _BILINEAR:
        a, b = ins[:2]
        if ZERO in (a, b):
            return ZERO
        return b if a in _FREE else a if b in _FREE else UNKNOWN if UNKNOWN in (a, b) else NONLINEAR
    if name in _LINEAR_IN_FIRST and all(kind in _FREE for kind in ins[1:]):
        return ins[0]
    if name == "select_n":
        return reduce(join, ins[1:]) if ins[0] in _FREE else NONLINEAR
    if name in _LINEAR_UPDATES:
        update = 1 if name == "dynamic_update_slice" else 2
        indices = [kind for k, kind in enumerate(ins) if k not in (0, update)]
        return join(ins[0], ins[update]) if all(kind in _FREE for kind in indices) else NONLINEAR
    if all(kind in _FREE for kind in ins):
        return CONST
    if UNKNOWN not in ins and (name in _NONLINEAR or name in _LINEAR_IN_FIRST):
        return NONLINEAR
    return UNKNOWN


def _scan(eqn: Any, ins: list[Kind]) -> list[Kind]:
    n_consts, n_carry = scan_counts(eqn)
    consts, carry, xs = ins[:n_consts], ins[n_consts : n_consts + n_carry], ins[n_consts + n_carry :]
    while True:  # kinds only grow, so this ends after a few rounds
        outs = classify(eqn.params["jaxpr"], [*consts, *carry, *xs])
        grown = [join(a, b) for a, b in zip(carry, outs[:n_carry], strict=True)]
        if grown == carry:
            return [*carry, *outs[n_carry:]]
        carry = grown
