"""What a theorem is about: the arguments' shapes, and the programs to compare, traced at chosen sizes."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import export

from ffn_jax.verify._dtypes import DTYPES
from ffn_jax.verify._strip import strip_custom_rules
from ffn_jax.verify.symbolic._sizes import Size, names_of, sizes_set_to, substitute

Spec: Any = jax.ShapeDtypeStruct  # Any: its constructor has no types
_TEXT = re.compile(r"\s*(\w+)\s*\[(.*)\]\s*")


def read_specs(arg_specs: Sequence[Any]) -> list[Any]:
    """The argument specifications with every string such as "f64[n,d]" read, all in one scope of sizes.

    Raises:
        ValueError: if a string is not of this form.
        TypeError: if a leaf is neither a string nor has a shape and a dtype.
    """
    leaves, tree = jax.tree.flatten(list(arg_specs))
    scope = None
    for leaf in leaves:
        for size in getattr(leaf, "shape", ()):
            if not isinstance(size, int):
                scope = scope or size.scope
    scope = scope or export.SymbolicScope()

    def read(leaf: Any) -> Any:
        if isinstance(leaf, str):
            match = _TEXT.fullmatch(leaf)
            if match is None or match[1] not in DTYPES:
                raise ValueError(
                    'prove_vjp: expected a specification such as "f64[n,d]" '
                    f"(dtypes: {', '.join(DTYPES)}), got {leaf!r}"
                )
            return Spec(export.symbolic_shape(match[2], scope=scope), jax.numpy.dtype(DTYPES[match[1]]))
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"prove_vjp: expected jax.ShapeDtypeStruct or a string such as 'f64[n,d]', got {type(leaf).__name__}"
            )
        return Spec(leaf.shape, leaf.dtype)

    return list(jax.tree.unflatten(tree, [read(leaf) for leaf in leaves]))


def is_float(aval: Any) -> bool:
    """Whether the array has cotangents."""
    return bool(jax.numpy.issubdtype(aval.dtype, np.floating))


def spec_text(aval: Any) -> str:
    """A shape as it is written in a specification."""
    short = {v: k for k, v in DTYPES.items()}.get(str(aval.dtype), str(aval.dtype))
    return f"{short}[{', '.join(str(s) for s in aval.shape)}]"


@dataclass(frozen=True)
class Traced:
    """The jaxprs of one instance; all take the arguments' leaves, `rule` and `oracle` also the seeds.

    Attributes:
        args: shapes of the arguments' leaves.
        seeds: shapes of the outputs' leaves, and so of their seeds.
        rule: (values, cotangents) by `jax.vjp(fun)`.
        oracle: cotangents by `jax.linear_transpose` of `jax.jvp` of the reference.
        primal: values of the reference.
        call: values of `fun`, called plainly.
    """

    args: list[jax.ShapeDtypeStruct]
    seeds: list[jax.ShapeDtypeStruct]
    rule: Any
    oracle: Any
    primal: Any
    call: Any


@dataclass(frozen=True)
class Labels:
    """What tensors are called: argument leaves, seeds, and which leaves have cotangents."""

    args: Sequence[str]
    seeds: Sequence[str]
    differentiable: Sequence[int]

    @property
    def own(self) -> list[str]:
        """The arguments that have cotangents."""
        return [self.args[k] for k in self.differentiable]


class Problem:
    """`fun` against `reference` on arguments of the given specifications."""

    def __init__(self, fun: Callable[..., Any], reference: Callable[..., Any], arg_specs: Sequence[Any]) -> None:
        self.fun = fun
        self.reference = strip_custom_rules(reference)
        specs = read_specs(arg_specs)
        with_paths, self.tree = jax.tree_util.tree_flatten_with_path(specs)
        self.specs: list[jax.ShapeDtypeStruct] = [leaf for _, leaf in with_paths]
        self.sizes = sorted(set().union(*(names_of(s) for leaf in self.specs for s in leaf.shape)))
        names = _unique(_argument_names(fun, [path for path, _ in with_paths]))
        outputs, self.out_tree = jax.tree_util.tree_flatten_with_path(jax.eval_shape(self.reference, *specs))
        for path, leaf in outputs:
            if not is_float(leaf):
                raise TypeError(f"prove_vjp: expected float outputs, got {leaf.dtype} at {path}")
        labels = [_label(path) for path, _ in outputs]
        bars = ["ybar" if not label else f"{label}_bar" for label in labels]
        seeds = _unique([*names, *bars])[len(names) :]
        self.labels = Labels(names, seeds, [k for k, s in enumerate(self.specs) if is_float(s)])

    def statement_sizes(self) -> str:
        """The specifications as text, one per argument leaf."""
        return ", ".join(f"{n}: {spec_text(s)}" for n, s in zip(self.labels.args, self.specs, strict=True))

    def traced(self, fixed: Mapping[str, int]) -> Traced:
        """The instance with some sizes fixed and the others symbolic."""
        scope = export.SymbolicScope()
        values: dict[str, Size] = {
            n: fixed[n] if n in fixed else export.symbolic_shape(n, scope=scope)[0] for n in self.sizes
        }
        args = [Spec(tuple(substitute(s, values) for s in a.shape), a.dtype) for a in self.specs]
        with sizes_set_to(values):
            return self._traced(args)

    def _traced(self, args: list[jax.ShapeDtypeStruct]) -> Traced:
        def flat(f: Callable[..., Any], leaves: Sequence[Any]) -> list[Any]:
            out, tree = jax.tree.flatten(f(*jax.tree.unflatten(self.tree, leaves)))
            if str(tree) != str(self.out_tree):
                raise TypeError(f"prove_vjp: fun returns {tree}, but the reference returns {self.out_tree}")
            return out

        def of_floats(f: Callable[..., Any], leaves: Sequence[Any]) -> tuple[Callable[..., Any], list[Any]]:
            def partial(*floats: Any) -> list[Any]:
                full = list(leaves)
                for k, v in zip(self.labels.differentiable, floats, strict=True):
                    full[k] = v
                return flat(f, full)

            return partial, [leaves[k] for k in self.labels.differentiable]

        def rule(leaves: list[Any], seeds: list[Any]) -> list[Any]:
            f, floats = of_floats(self.fun, leaves)
            values, pullback = jax.vjp(f, *floats)
            return [*values, *pullback(seeds)]

        def oracle(leaves: list[Any], seeds: list[Any]) -> list[Any]:
            f, floats = of_floats(self.reference, leaves)
            transposed = jax.linear_transpose(lambda *t: jax.jvp(f, tuple(floats), t)[1], *floats)
            return list(transposed(seeds))

        seeds = [Spec(s.shape, s.dtype) for s in jax.eval_shape(lambda a: flat(self.reference, a), args)]
        return Traced(
            args=args,
            seeds=seeds,
            rule=jax.make_jaxpr(rule)(args, seeds),
            oracle=jax.make_jaxpr(oracle)(args, seeds),
            primal=jax.make_jaxpr(lambda a: flat(self.reference, a))(args),
            call=jax.make_jaxpr(lambda a: flat(self.fun, a))(args),
        )


def _label(path: Any) -> str:
    return re.sub(r"\W+", "_", jax.tree_util.keystr(path)).strip("_")


def _argument_names(fun: Callable[..., Any], paths: Sequence[Any]) -> list[str]:
    """Names of the arguments' leaves: the parameter's name, and the path inside it."""
    try:
        parameters = [
            p.name
            for p in inspect.signature(fun).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        parameters = []
    names = []
    for path in paths:
        k = path[0].idx
        head = parameters[k] if k < len(parameters) else f"arg{k}"
        rest = _label(path[1:])
        names.append(f"{head}.{rest}" if rest else head)
    return names


def _unique(names: Sequence[str]) -> list[str]:
    out: list[str] = []
    for name in names:
        while name in out:
            name += "_"
        out.append(name)
    return out
