"""Frozen dataclasses as pytrees: arrays are leaves, sizes and layouts are static.

`jax.tree_util.register_dataclass` rebuilds an object through its constructor, also with tracers, `None`
and plain `object()` in place of the arrays; validation in `__post_init__` would then reject what JAX itself
made. Here unflattening bypasses the constructor, so that `__post_init__` sees only what a user wrote.
"""

import dataclasses
from collections.abc import Hashable, Iterable
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """A dataclass field that belongs to the tree's structure: it must hash and compare cheaply."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field, static))
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Makes `cls` a frozen dataclass, compared by identity, and registers it as a pytree.

    >>> @pytree_dataclass
    ... class Affine:
    ...     weight: jax.Array
    ...     name: str = static(default="A")
    >>> jax.tree.map(lambda w: 2 * w, Affine(3.0)).weight
    6.0
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    meta = tuple(f.name for f in fields if f.metadata.get("static"))
    data = tuple(f.name for f in fields if not f.metadata.get("static"))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in data)

    def flatten(obj: T) -> tuple[tuple[Any, ...], tuple[Hashable, ...]]:
        return tuple(getattr(obj, n) for n in data), tuple(getattr(obj, n) for n in meta)

    def flatten_with_keys(obj: T) -> tuple[tuple[tuple[Any, Any], ...], tuple[Hashable, ...]]:
        children, aux = flatten(obj)
        return tuple(zip(keys, children, strict=True)), aux

    def unflatten(aux: tuple[Hashable, ...], children: Iterable[Any]) -> T:
        obj = object.__new__(cls)
        for name, value in (*zip(data, children, strict=True), *zip(meta, aux, strict=True)):
            object.__setattr__(obj, name, value)
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
