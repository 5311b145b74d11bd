"""Reading jaxprs: the few facts about their layout that the verifier relies on.

A jaxpr is a list of equations `outvars = primitive[params] invars`. Some primitives carry further jaxprs in
their parameters. For the verifier these fall in three groups:

* calls, whose inner jaxpr runs once on the same operands (`jit`, `remat`, the body of a custom rule, ...);
* control flow (`scan`, `while`, `cond`), whose inner jaxprs run many times or in part;
* anything else, of whose inner jaxprs nothing is assumed.
"""

from collections.abc import Iterator
from typing import Any

from ffn_jax._compat import lax_helper, open_jaxpr

CUSTOM_RULES = {
    "custom_jvp_call": "custom_jvp",
    "custom_vjp_call": "custom_vjp",
    "custom_vjp_call_jaxpr": "custom_vjp",
    "linear_call": "linear_call",
}

_CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"})


def rule_kind(eqn: Any) -> str | None:
    """Which kind of custom rule an equation is; None for others, and for what `jax.lax` itself is made of."""
    return None if lax_helper(eqn) else CUSTOM_RULES.get(eqn.primitive.name)


def called_jaxpr(eqn: Any) -> tuple[Any, list[Any]] | None:
    """The jaxpr that a call-like equation runs on its operands; None for any other equation."""
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return open_jaxpr(params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"])
    if name in CUSTOM_RULES:
        key = next(key for key in ("call_jaxpr", "fun_jaxpr", "callee") if key in params)
        return open_jaxpr(params[key])
    return None


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """Every bare jaxpr among the parameters of an equation."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield open_jaxpr(item)[0]


def all_equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a bare jaxpr and of the jaxprs inside it, depth first."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from all_equations(inner)


def rule_names(jaxpr: Any) -> list[str]:
    """The custom rules in a jaxpr as `name (kind)`, each once, in order of appearance."""
    names: dict[str, None] = {}
    for eqn in all_equations(jaxpr):
        kind = rule_kind(eqn)
        called = called_jaxpr(eqn) if kind else None
        if kind and called:
            debug = getattr(called[0], "debug_info", None)
            source = getattr(debug, "func_src_info", None) or kind
            names[f"{str(source).split(' at ')[0]} ({kind})"] = None
    return list(names)
