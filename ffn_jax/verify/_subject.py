"""A function to be checked and its reference, as programs of flat arrays.

`Subject` knows the arguments' leaves by name, which of them are differentiated, and the two programs

    rule(leaves, seeds)   = fun(leaves),        vjp(fun, leaves)(seeds)
    oracle(leaves, seeds) = reference(leaves),  linear_transpose(jvp(reference, leaves))(seeds)

where the reference has lost its custom rules.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ffn_jax.verify._compare import Quantity
from ffn_jax.verify._draws import Leaf, shape_dtype
from ffn_jax.verify._purity import require_pure
from ffn_jax.verify._strip import custom_rules, strip_custom_rules


class Subject:
    """What `check_vjp` was asked to check, validated."""

    def __init__(self, fun: Callable[..., Any], reference: Callable[..., Any] | None, args: Sequence[Any]) -> None:
        self.fun, self.reference = fun, fun if reference is None else reference
        paths, self._tree = jax.tree_util.tree_flatten_with_path(tuple(args))
        names = _parameter_names(fun, len(args))
        self.leaves = [_leaf(names, path, value) for path, value in paths]
        self.inexact = [i for i, leaf in enumerate(self.leaves) if leaf.inexact]
        if not self.inexact:
            given = ", ".join(f"{leaf.label}: {leaf.dtype}" for leaf in self.leaves) or "no arrays"
            raise ValueError(f"check_vjp: no argument has a float dtype, so nothing to differentiate (got {given})")
        like = self.like(None)
        require_pure("check_vjp", "fun", self._flat(self.fun), like)
        require_pure("check_vjp", "reference", self._flat(self.reference), like)
        ours, theirs = (jax.eval_shape(f, *self._args(like)) for f in (self.fun, self.reference))
        _require_same_outputs(ours, theirs)
        outputs, _ = jax.tree_util.tree_flatten_with_path(ours)
        self._outputs = [_path("", path) for path, _ in outputs]
        self.differentiable = [i for i, (_, out) in enumerate(outputs) if jnp.issubdtype(out.dtype, jnp.floating)]
        if not self.differentiable:
            got = ", ".join(str(out.dtype) for _, out in outputs) or "no arrays"
            raise ValueError(f"check_vjp: no output of fun has a float dtype (got {got})")
        self.notes = self._notes(like)

    @property
    def quantities(self) -> list[Quantity]:
        """What the flat results of both programs are."""
        values = [Quantity("value", label) for label in self._outputs]
        return values + [Quantity("cotangent", self.leaves[i].label, seeded=True) for i in self.inexact]

    def like(self, dtype: Any) -> list[Any]:
        """The leaves' shapes and dtypes, floats at `dtype` (None: at their own)."""
        return [
            shape_dtype(leaf.shape, dtype if dtype is not None and leaf.inexact else leaf.dtype) for leaf in self.leaves
        ]

    def seeds_like(self, like: Sequence[Any]) -> list[Any]:
        """The shapes and dtypes of the cotangents of the float outputs."""
        outs = jax.tree.leaves(jax.eval_shape(self.fun, *self._args(like)))
        return [shape_dtype(outs[i].shape, outs[i].dtype) for i in self.differentiable]

    def rule(self, leaves: Sequence[Any], seeds: Sequence[Any]) -> list[Any]:
        """The values of `fun` and the cotangents that its VJP gives."""
        primals = [leaves[i] for i in self.inexact]
        outs, pullback = jax.vjp(self._of_inexact(leaves, self.fun), *primals)
        full: list[Any] = [np.zeros(out.shape, jax.dtypes.float0) for out in outs]
        for i, seed in zip(self.differentiable, seeds, strict=True):
            full[i] = seed
        return [*outs, *pullback(full)]

    def oracle(self, leaves: Sequence[Any], seeds: Sequence[Any]) -> list[Any]:
        """The values of the stripped reference and the cotangents by transposing its derivative."""
        function = self._of_inexact(leaves, strip_custom_rules(self.reference))
        primals = [leaves[i] for i in self.inexact]

        def derivative(*tangents: Any) -> list[Any]:
            _, out_tangents = jax.jvp(function, primals, list(tangents))
            return [out_tangents[i] for i in self.differentiable]

        return [*function(*primals), *jax.linear_transpose(derivative, *primals)(list(seeds))]

    def _args(self, leaves: Sequence[Any]) -> Any:
        return jax.tree.unflatten(self._tree, leaves)

    def _flat(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *leaves: function(*self._args(leaves))

    def _of_inexact(self, leaves: Sequence[Any], function: Callable[..., Any]) -> Callable[..., list[Any]]:
        """`function` of the float leaves alone, the others fixed, with flat results."""

        def of_inexact(*values: Any) -> list[Any]:
            full = list(leaves)
            for i, value in zip(self.inexact, values, strict=True):
                full[i] = value
            return jax.tree.leaves(function(*self._args(full)))

        return of_inexact

    def _notes(self, like: Sequence[Any]) -> list[str]:
        notes = []
        rules, stripped = (custom_rules(self._flat(f), *like) for f in (self.fun, self.reference))
        if stripped:
            whose = "fun, which is its own reference" if self.reference is self.fun else "the reference"
            notes.append(f"custom rules were stripped from {whose}: {', '.join(stripped)}")
        if not rules:
            notes.append("fun meets no custom derivative rule: this compares JAX's reverse mode with its forward")
        for leaf in self.leaves:
            if leaf.given is not None and leaf.inexact:
                bad = int(np.sum(~np.isfinite(np.asarray(leaf.given, np.float64))))
                if bad:
                    notes.append(f"{leaf.label} was given with {bad} entries that are not finite")
        return notes


def function_name(function: Any) -> str:
    """A name for the reader."""
    name = getattr(function, "__name__", None) or getattr(getattr(function, "func", None), "__name__", None)
    return name or type(function).__name__


def _parameter_names(fun: Callable[..., Any], count: int) -> list[str]:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(fun).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # type: ignore[assignment]
    names = [parameter.name for parameter in parameters if parameter.kind in positional][:count]
    return names + [f"args[{i}]" for i in range(len(names), count)]


def _leaf(names: Sequence[str], path: Sequence[Any], value: Any) -> Leaf:
    label = _path(names[path[0].idx], path[1:])
    if isinstance(value, jax.ShapeDtypeStruct):
        return Leaf(label, value.shape, value.dtype)
    if jnp.issubdtype(getattr(value, "dtype", np.int32), jax.dtypes.prng_key):
        return Leaf(label, value.shape, value.dtype, value)
    try:
        array = jnp.asarray(None if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError):
        raise TypeError(
            f"check_vjp: expected {label} to be an array, got {type(value).__name__}; "
            "pass other things through a closure"
        ) from None
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"check_vjp: expected {label} of a real dtype, got {array.dtype}")
    return Leaf(label, array.shape, array.dtype, np.asarray(array))


def _path(name: str, path: Sequence[Any]) -> str:
    text = jax.tree_util.keystr(tuple(path))
    return (name + text) or "output"


def _require_same_outputs(ours: Any, theirs: Any) -> None:
    trees: list[Any] = [jax.tree.structure(each) for each in (ours, theirs)]
    if trees[0] != trees[1]:
        raise ValueError(f"check_vjp: fun and reference return different structures: got {trees[0]} and {trees[1]}")
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(ours)[0], jax.tree.leaves(theirs), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(
                f"check_vjp: fun and reference disagree about {_path('output', path)}: "
                f"got {a.dtype}{list(a.shape)} from fun and {b.dtype}{list(b.shape)} from reference"
            )
