"""Evaluate a jaxpr at concrete sizes over any kind of number, on NumPy arrays of Python objects.

A `Domain` says what numbers are: rigorous real balls (`_balls`) or elements of a prime field (`_field`).
Nothing here is shared with the normal form but the reading of literals, so an error there would have to be
made twice to stay hidden.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.extend import core

from ffn_jax._compat import is_exp_of_minus_square, open_jaxpr, scan_counts
from ffn_jax.verify.symbolic._literals import Reading, read_literal

Array = np.ndarray[Any, Any]  # of dtype object


_finfo: Any = jax.numpy.finfo  # Any: it has no types


class NotEvaluable(Exception):  # noqa: N818
    """The domain cannot evaluate this, at least not at this point; the message says what."""


class Domain(Protocol):
    """A kind of number; the numbers themselves have + - * / and integer powers."""

    def integer(self, n: int) -> Any:
        """An integer."""

    def literal(self, value: float, reading: Reading) -> Any:
        """A float literal."""

    def function(self, name: str, x: Any) -> Any:
        """An elementary function; raises NotEvaluable where it is not defined."""

    def positive(self, x: Any) -> bool:
        """Whether x > 0; raises NotEvaluable where that is not known."""

    def sample(self, rng: random.Random) -> Any:
        """A random number."""


def filled(shape: Sequence[int], make: Callable[[], Any]) -> Array:
    """An array of objects, each made anew."""
    out = np.empty(tuple(shape), dtype=object)
    for i in np.ndindex(*out.shape):
        out[i] = make()
    return out


def random_input(aval: Any, domain: Domain, rng: random.Random) -> Array:
    """A random array: numbers of the domain, small Python integers, or booleans, by dtype."""
    if aval.dtype == np.bool_:
        return filled(aval.shape, lambda: rng.random() < 0.5)
    if jax.numpy.issubdtype(aval.dtype, np.integer):
        return filled(aval.shape, lambda: rng.randrange(3))
    return filled(aval.shape, lambda: domain.sample(rng))


def evaluate(jaxpr: Any, domain: Domain, args: Sequence[Array]) -> list[Array]:
    """The outputs of a closed jaxpr.

    Raises:
        NotEvaluable: naming the primitive, function or comparison that stopped it.
        ZeroDivisionError: at a pole.
    """
    return _Evaluator(domain).run(jaxpr, args)


def _map(f: Callable[..., Any], *arrays: Array) -> Array:
    spread = np.broadcast_arrays(*arrays)
    out = np.empty(spread[0].shape, dtype=object)
    for i in np.ndindex(*out.shape):
        out[i] = f(*(a[i] for a in spread))
    return out


_FUNCTIONS = frozenset(
    [
        "exp",
        "tanh",
        "erf",
        "erfc",
        "logistic",
        "log",
        "log1p",
        "expm1",
        "sin",
        "cos",
        "sqrt",
        "rsqrt",
        "cbrt",
        "exp2",
        "tan",
        "sinh",
        "cosh",
    ]
)
_SAME = frozenset(["copy", "copy_p", "name", "reduce_precision", "stop_gradient", "sharding_constraint", "pvary"])
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


class _Evaluator:
    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def run(self, jaxpr: Any, args: Sequence[Array]) -> list[Array]:
        body, consts = open_jaxpr(jaxpr)
        env: dict[Any, Array] = {}

        def read(v: Any) -> Array:
            return self.constant(v.val) if isinstance(v, core.Literal) else env[v]

        for v, c in zip(body.constvars, consts, strict=True):
            env[v] = self.constant(c)
        env.update(zip(body.invars, args, strict=True))
        for eqn in body.eqns:
            outs = self.step(eqn, [read(v) for v in eqn.invars])
            env.update(zip(eqn.outvars, (np.asarray(o, dtype=object) for o in outs), strict=True))
        return [read(v) for v in body.outvars]

    def constant(self, value: Any) -> Array:
        v = np.asarray(value)
        if v.dtype == np.bool_ or np.issubdtype(v.dtype, np.integer):
            return v.astype(object)
        eps = float(_finfo(v.dtype).eps)
        out = np.empty(v.shape, dtype=object)
        for i in np.ndindex(*v.shape):
            x = float(v[i])
            if np.isfinite(x):
                out[i] = self.domain.literal(x, read_literal(x, eps, str(v[i])))
            else:
                out[i] = None  # any use of it is an error
        return out

    def step(self, eqn: Any, ins: list[Array]) -> list[Array]:
        name = eqn.primitive.name
        if is_exp_of_minus_square(eqn):
            return [_map(lambda x: self.domain.function("exp", -(x * x)), ins[0])]
        if name in _CALLS:
            return self.run(eqn.params[_CALLS[name]], ins)
        if name in _FUNCTIONS:
            return [_map(lambda x: self.domain.function(name, x), ins[0])]
        if name in _SAME:
            return [ins[0]]
        method = getattr(self, f"_{name.replace('-', '_')}", None)
        if method is None:
            raise NotEvaluable(f"the primitive {name!r}")
        try:
            out: list[Array] = method(eqn, *ins)
        except (
            TypeError,
            ValueError,
            AttributeError,
            IndexError,
        ) as e:
            raise NotEvaluable(f"the primitive {name!r}: {e}") from None
        return out

    # Comparisons: of domain numbers by the domain, of integers by Python.

    def _greater(self, x: Any, y: Any) -> bool:
        if isinstance(x, int) and isinstance(y, int):
            return x > y
        return self.domain.positive(x - y)

    def _gt(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        return [_map(self._greater, a, b)]

    def _lt(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        return [_map(lambda x, y: self._greater(y, x), a, b)]

    def _ge(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        return [_map(lambda x, y: not self._greater(y, x), a, b)]

    def _le(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        return [_map(lambda x, y: not self._greater(x, y), a, b)]

    def _equal(self, x: Any, y: Any) -> bool:
        if isinstance(x, int) and isinstance(y, int):
            return x == y
        return not self._greater(x, y) and not self._greater(y, x)

    def _eq(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        return [_map(self._equal, a, b)]

    def _ne(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        return [_map(lambda x, y: not self._equal(x, y), a, b)]

    def _max(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        return [_map(lambda x, y: x if self._greater(x, y) else y, a, b)]

    def _min(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        return [_map(lambda x, y: y if self._greater(x, y) else x, a, b)]

    def _sign(self, eqn: Any, a: Array) -> list[Array]:
        one, zero = self.domain.integer(1), self.domain.integer(0)
        return [_map(lambda x: one if self._greater(x, zero) else -one, a)]

    def _abs(self, eqn: Any, a: Array) -> list[Array]:
        zero = self.domain.integer(0)
        return [_map(lambda x: x if self._greater(x, zero) else -x, a)]

    def _clamp(self, eqn: Any, low: Array, x: Array, high: Array) -> list[Array]:
        return self._min(eqn, self._max(eqn, x, low)[0], high)

    def _not(self, eqn: Any, a: Array) -> list[Array]:
        return [_map(lambda x: not _flag(x), a)]

    def _and(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        return [_map(lambda x, y: _flag(x) and _flag(y), a, b)]

    def _or(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        return [_map(lambda x, y: _flag(x) or _flag(y), a, b)]

    def _is_finite(self, eqn: Any, a: Array) -> list[Array]:
        return [_map(lambda x: True, a)]

    def _select_n(self, eqn: Any, which: Array, *cases: Array) -> list[Array]:
        return [_map(lambda c, *xs: xs[int(c)], which, *cases)]

    # Arithmetic.

    def _add(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        return [_map(lambda x, y: x + y, a, b)]

    _add_any = _add

    def _sub(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        return [_map(lambda x, y: x - y, a, b)]

    def _mul(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        return [_map(lambda x, y: x * y, a, b)]

    def _div(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        if not jax.numpy.issubdtype(eqn.outvars[0].aval.dtype, np.floating):
            raise NotEvaluable("integer division")
        return [_map(lambda x, y: x / y, a, b)]

    def _neg(self, eqn: Any, a: Array) -> list[Array]:
        return [_map(lambda x: -x, a)]

    def _square(self, eqn: Any, a: Array) -> list[Array]:
        return [_map(lambda x: x * x, a)]

    def _one_minus_square(self, eqn: Any, a: Array) -> list[Array]:
        return [_map(lambda x: self.domain.integer(1) - x * x, a)]

    def _integer_pow(self, eqn: Any, a: Array) -> list[Array]:
        y = eqn.params["y"]
        return [_map(lambda x: x**y if y >= 0 else self.domain.integer(1) / x**-y, a)]

    def _convert_element_type(self, eqn: Any, a: Array) -> list[Array]:
        old, new = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
        old_float, new_float = (bool(jax.numpy.issubdtype(t, np.floating)) for t in (old, new))
        if old_float == new_float:
            if old != np.bool_ and new == np.bool_:
                raise NotEvaluable("a conversion to bool")
            return [_map(int, a) if old == np.bool_ and new != np.bool_ else a]
        if old_float:
            raise NotEvaluable("a conversion from float to integer")
        return [_map(lambda x: self.domain.integer(int(x)), a)]

    def _dot_general(self, eqn: Any, a: Array, b: Array) -> list[Array]:
        (ca, cb), (ba, bb) = eqn.params["dimension_numbers"]
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        la, lb = [""] * a.ndim, [""] * b.ndim
        for x, y in (*zip(ca, cb, strict=True), *zip(ba, bb, strict=True)):
            la[x] = lb[y] = next(letters)
        la, lb = ([s or next(letters) for s in row] for row in (la, lb))
        out = [la[x] for x in ba]
        out += [s for k, s in enumerate(la) if k not in (*ca, *ba)]
        out += [s for k, s in enumerate(lb) if k not in (*cb, *bb)]
        return [np.einsum(f"{''.join(la)},{''.join(lb)}->{''.join(out)}", a, b)]

    def _reduce_sum(self, eqn: Any, a: Array) -> list[Array]:
        return [np.sum(a, axis=tuple(eqn.params["axes"]))]

    def _cumsum(self, eqn: Any, a: Array) -> list[Array]:
        axis = eqn.params["axis"]
        if eqn.params["reverse"]:
            return [np.flip(np.cumsum(np.flip(a, axis), axis=axis), axis)]
        return [np.cumsum(a, axis=axis)]

    # Structure.

    def _iota(self, eqn: Any, *_: Array) -> list[Array]:
        shape, k = eqn.params["shape"], eqn.params["dimension"]
        floats = jax.numpy.issubdtype(eqn.params["dtype"], np.floating)
        out = np.indices(shape)[k].astype(object)
        return [_map(self.domain.integer, out) if floats else out]

    def _broadcast_in_dim(self, eqn: Any, a: Array, *_: Array) -> list[Array]:
        shape = eqn.params["shape"]
        spread = [1] * len(shape)
        for axis, d in enumerate(eqn.params["broadcast_dimensions"]):
            spread[d] = a.shape[axis]
        return [np.broadcast_to(a.reshape(spread), shape)]

    def _reshape(self, eqn: Any, a: Array, *_: Array) -> list[Array]:
        return [a.reshape(eqn.params["new_sizes"])]

    def _squeeze(self, eqn: Any, a: Array) -> list[Array]:
        return [np.squeeze(a, axis=tuple(eqn.params["dimensions"]))]

    def _transpose(self, eqn: Any, a: Array) -> list[Array]:
        return [np.transpose(a, eqn.params["permutation"])]

    def _rev(self, eqn: Any, a: Array) -> list[Array]:
        return [np.flip(a, axis=tuple(eqn.params["dimensions"]))]

    def _concatenate(self, eqn: Any, *pieces: Array) -> list[Array]:
        return [np.concatenate(pieces, axis=eqn.params["dimension"])]

    def _stack(self, eqn: Any, *pieces: Array) -> list[Array]:
        return [np.stack(pieces, axis=eqn.params["axis"])]

    def _unstack(self, eqn: Any, a: Array) -> list[Array]:
        return list(np.moveaxis(a, eqn.params["axis"], 0))

    def _split(self, eqn: Any, a: Array) -> list[Array]:
        return list(np.split(a, np.cumsum(eqn.params["sizes"])[:-1], axis=eqn.params["axis"]))

    def _slice(self, eqn: Any, a: Array) -> list[Array]:
        p = eqn.params
        steps = p["strides"] or [1] * a.ndim
        runs = zip(p["start_indices"], p["limit_indices"], steps, strict=True)
        return [a[tuple(slice(*run) for run in runs)]]

    def _pad(self, eqn: Any, a: Array, value: Array) -> list[Array]:
        if any(low < 0 or high < 0 for low, high, _ in eqn.params["padding_config"]):
            raise NotEvaluable("padding by a negative amount")
        out = np.empty(eqn.outvars[0].aval.shape, dtype=object)
        out[...] = value.item()
        out[
            tuple(
                slice(low, low + (n - 1) * (inner + 1) + 1, inner + 1)
                for (low, _, inner), n in zip(eqn.params["padding_config"], a.shape, strict=True)
            )
        ] = a
        return [out]

    def _block(self, shape: Sequence[int], sizes: Sequence[int], starts: Sequence[Array]) -> tuple[slice, ...]:
        first = [min(max(int(s.item()), 0), n - m) for s, n, m in zip(starts, shape, sizes, strict=True)]
        return tuple(slice(s, s + m) for s, m in zip(first, sizes, strict=True))

    def _dynamic_slice(self, eqn: Any, a: Array, *starts: Array) -> list[Array]:
        return [a[self._block(a.shape, eqn.params["slice_sizes"], starts)]]

    def _dynamic_update_slice(self, eqn: Any, a: Array, update: Array, *starts: Array) -> list[Array]:
        out = a.copy()
        out[self._block(a.shape, update.shape, starts)] = update
        return [out]

    def _window(self, indices: Array, axes: Sequence[int], shape: Sequence[int], sizes: Sequence[int]) -> Any:
        if indices.ndim != 1:
            raise NotEvaluable("a gather of more than one window")
        starts = [np.asarray(0, dtype=object)] * len(shape)
        for k, axis in enumerate(axes):
            starts[axis] = np.asarray(indices[k], dtype=object)
        return self._block(shape, sizes, starts)

    def _gather(self, eqn: Any, a: Array, indices: Array) -> list[Array]:
        numbers = eqn.params["dimension_numbers"]
        window = a[self._window(indices, numbers.start_index_map, a.shape, eqn.params["slice_sizes"])]
        return [np.squeeze(window, axis=tuple(numbers.collapsed_slice_dims))]

    def _scatter_add(self, eqn: Any, a: Array, indices: Array, update: Array) -> list[Array]:
        numbers = eqn.params["dimension_numbers"]
        update = np.expand_dims(update, tuple(numbers.inserted_window_dims))
        out = a.copy()
        place = self._window(indices, numbers.scatter_dims_to_operand_dims, a.shape, update.shape)
        out[place] = _map(lambda x, y: x + y, out[place], update)
        return [out]

    def _optimization_barrier(self, eqn: Any, *ins: Array) -> list[Array]:
        return list(ins)

    # Control flow.

    def _cond(self, eqn: Any, which: Array, *args: Array) -> list[Array]:
        branches = eqn.params["branches"]
        return self.run(branches[min(max(int(which.item()), 0), len(branches) - 1)], args)

    def _scan(self, eqn: Any, *ins: Array) -> list[Array]:
        p = eqn.params
        (n_consts, n_carry), length = scan_counts(eqn), p["length"]
        consts, carry, xs = (
            ins[:n_consts],
            list(ins[n_consts : n_consts + n_carry]),
            ins[n_consts + n_carry :],
        )
        ys: dict[int, list[Array]] = {}
        for t in range(length)[:: -1 if p["reverse"] else 1]:
            now = [np.asarray(x[t], dtype=object) for x in xs]
            out = self.run(p["jaxpr"], [*consts, *carry, *now])
            carry, ys[t] = out[:n_carry], out[n_carry:]
        count = len(eqn.outvars) - n_carry
        return carry + [np.stack([ys[t][k] for t in range(length)]) for k in range(count)]

    def _opaque_linear(self, eqn: Any, x: Array) -> list[Array]:
        p = eqn.params
        rows, columns = int(np.prod(p["rows"])), int(np.prod(p["columns"]))
        rng = random.Random(f"{p['name']}{p['rows']}{p['columns']}")
        matrix = filled((rows, columns), lambda: self.domain.integer(rng.randrange(-3, 4)))
        flat = x.reshape(-1)
        y = matrix.T @ flat if p["transposed"] else matrix @ flat
        return [y.reshape(p["columns"] if p["transposed"] else p["rows"])]


def _flag(x: Any) -> bool:
    if not isinstance(x, bool):
        raise NotEvaluable("bitwise arithmetic of integers")
    return x
