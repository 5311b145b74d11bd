"""A function with every hand-written derivative rule forgotten.

`jax.linear_transpose(jax.jvp(f))` of a function under `jax.custom_vjp` or `jax.custom_jvp` calls the
hand-written rule, so a rule compared with that is compared with itself. Here `f` is traced and its jaxpr
evaluated again, with the *body* of each custom rule in place of the call, in nested `jit`, `remat`, `scan`,
`cond` and `while` too. What is left is differentiated by JAX's own rules for its primitives.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core as jex

from ffn_jax._compat import open_jaxpr, scan_counts
from ffn_jax.verify._jaxprs import all_equations, called_jaxpr, rule_kind, rule_names


def custom_rules(fun: Callable[..., Any], *args: Any) -> list[str]:
    """The custom derivative rules that `fun(*args)` meets, as `name (kind)`; empty when there are none."""
    return rule_names(jax.make_jaxpr(fun)(*args).jaxpr)


def has_custom_rules(fun: Callable[..., Any], *args: Any) -> bool:
    """Whether `fun(*args)` meets a `custom_vjp`, `custom_jvp` or `linear_call`, at any depth.

    >>> import jax
    >>> has_custom_rules(jax.nn.relu, 1.0), has_custom_rules(jax.numpy.tanh, 1.0)
    (True, False)
    """
    return bool(custom_rules(fun, *args))


def strip_custom_rules(fun: Callable[..., Any]) -> Callable[..., Any]:
    """The same function without its hand-written derivative rules.

    Args:
        fun: a function of pytrees of arrays, with any number of custom rules at any depth.

    Returns:
        A function with the same values, whose derivatives are those of JAX's own primitives.

    Raises:
        ValueError: a custom rule sits inside a primitive that cannot be opened (a `shard_map`, a kernel).

    >>> import jax
    >>> @jax.custom_jvp
    ... def double(x):
    ...     return 2.0 * x
    >>> @double.defjvp
    ... def wrong_rule(primals, tangents):
    ...     return double(*primals), 3.0 * tangents[0]
    >>> float(jax.grad(double)(1.0)), float(jax.grad(strip_custom_rules(double))(1.0))
    (3.0, 2.0)
    """

    def stripped(*args: Any) -> Any:
        closed, out_shape = jax.make_jaxpr(fun, return_shape=True)(*args)
        flat = evaluate_stripped(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out_shape), flat)

    return stripped


def evaluate_stripped(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a bare jaxpr with the body of each custom rule in place of the rule."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        outs = _equation(eqn, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: Any, operands: list[Any]) -> list[Any]:
    if not any(rule_kind(inner) for inner in _equations_within(eqn)):
        return bind(eqn, operands)
    called = called_jaxpr(eqn)
    if called is not None:
        return evaluate_stripped(*called, operands)
    control_flow = {"scan": _scan, "while": _while, "cond": _cond}.get(eqn.primitive.name)
    if control_flow is None:
        raise ValueError(
            f"strip_custom_rules: a custom derivative rule sits inside the primitive "
            f"'{eqn.primitive.name}', which cannot be opened; pass an undecorated reference instead"
        )
    return control_flow(eqn, operands)


def _equations_within(eqn: Any) -> list[Any]:
    called = called_jaxpr(eqn)
    if called is not None:
        return [eqn, *all_equations(called[0])]
    return list(all_equations(_OneEquation(eqn)))


class _OneEquation:
    """Just enough of a jaxpr to walk one equation."""

    def __init__(self, eqn: Any) -> None:
        self.eqns = [eqn]


def bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Run one equation as it stands."""
    subfuns_and_params = eqn.primitive.get_bind_params(eqn.params)
    if isinstance(subfuns_and_params, tuple):  # before JAX 0.12: (functions, params)
        subfuns, params = subfuns_and_params
    else:
        subfuns, params = (), subfuns_and_params
    outs = eqn.primitive.bind(*subfuns, *operands, **params)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def _stripped_function(jaxpr: Any) -> Callable[..., list[Any]]:
    bare, consts = open_jaxpr(jaxpr)
    return lambda *args: evaluate_stripped(bare, consts, args)


def _scan(eqn: Any, operands: list[Any]) -> list[Any]:
    params = eqn.params
    n_consts, n_carry = scan_counts(eqn)
    consts, rest = operands[:n_consts], operands[n_consts:]
    carry, xs = rest[:n_carry], rest[n_carry:]
    inner = _stripped_function(params["jaxpr"])

    def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = inner(*consts, *carry, *x)
        return outs[:n_carry], outs[n_carry:]

    length = None if xs else params["length"]  # it may be a symbolic size, which only arrays may carry
    last, ys = lax.scan(body, carry, xs, length=length, reverse=params["reverse"], unroll=params["unroll"])
    return [*last, *ys]


def _while(eqn: Any, operands: list[Any]) -> list[Any]:
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts = operands[:n_cond], operands[n_cond : n_cond + n_body]
    keep_going, body = (_stripped_function(eqn.params[key]) for key in ("cond_jaxpr", "body_jaxpr"))
    return list(
        lax.while_loop(
            lambda carry: keep_going(*cond_consts, *carry)[0],
            lambda carry: body(*body_consts, *carry),
            operands[n_cond + n_body :],
        )
    )


def _cond(eqn: Any, operands: list[Any]) -> list[Any]:
    branches = [_stripped_function(branch) for branch in eqn.params["branches"]]
    return list(lax.switch(operands[0], branches, *operands[1:]))
