"""The normal form is faithful: its value is JAX's value, on chosen identities and on random programs."""

import math
import random
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ffn_jax.verify import Refutation, Undecided, prove_vjp
from ffn_jax.verify.symbolic._atoms import At, Base, Constant, Delta, Dimension, Entry, Function, Step, Sum
from ffn_jax.verify.symbolic._interpret import interpret
from ffn_jax.verify.symbolic._literals import read_literal
from ffn_jax.verify.symbolic._tensors import variable
from ffn_jax.verify.symbolic._workspace import Unsupported, fresh_workspace

FUNCTIONS = {
    "exp": math.exp,
    "tanh": math.tanh,
    "erf": math.erf,
    "log": math.log,
    "sin": math.sin,
    "cos": math.cos,
}


def value(p, arrays, at):
    """A polynomial in floating point, by definition."""
    return sum(float(c) * math.prod(_atom(a, arrays, at) ** float(e) for a, e in m) for m, c in p.terms.items())


def _atom(atom, arrays, at):
    if isinstance(atom, Entry):
        place = tuple(_position(axis, at) for axis in atom.axes)
        return float(place[0]) if atom.name.startswith("iota:") else arrays[atom.name][place]
    if isinstance(atom, Function):
        return FUNCTIONS[atom.name](value(atom.argument, arrays, at))
    if isinstance(atom, Base):
        return value(atom.poly, arrays, at)
    if isinstance(atom, Step):
        return float(value(atom.poly, arrays, at) > 0)
    if isinstance(atom, Constant):
        return math.pi if atom.name == "pi" else float(atom.name)
    if isinstance(atom, Delta):
        return float(at[atom.left] == (0 if atom.right is None else at[atom.right]) + atom.offset)
    assert isinstance(atom, Sum), Dimension
    total = 0.0
    for place in np.ndindex(*(b.size for b in atom.bound)):
        inner = {**at, **dict(zip(atom.bound, place, strict=True))}
        total += math.prod(_atom(a, arrays, inner) ** float(e) for a, e in atom.body)
    return total


def _position(axis, at):
    place = 0
    for digit in axis:
        if isinstance(digit, At):
            place = place * digit.size + (0 if digit.index is None else at[digit.index]) + digit.offset
        else:
            place = place * digit.size + at[digit]
    return place


SHAPES = [(2, 3), (3, 2), (6,), (2,), (3,), (2, 2), (3, 3)]


def random_program(rng, length):
    """A random function of five arrays, its choices made anew but equally at every call."""
    seed = rng.random()

    def program(*args):
        r = random.Random(seed)
        pool = list(args)

        def pick(shape=None):
            fitting = [t for t in pool if shape is None or t.shape == shape]
            return r.choice(fitting) if fitting else None

        for _ in range(length):
            a = pick()
            b = pick(a.shape)
            op = r.choice(OPERATIONS)
            out = op(r, a, b, pick)
            if out is not None:
                pool.append(out)
        return pool[-1]

    return program


def _matmul(r, a, b, pick):
    if a.ndim != 2:
        return None
    other = pick((a.shape[1], r.choice([2, 3])))
    return None if other is None else a @ other


def _cut(r, a, b, pick):
    axis = r.randrange(a.ndim)
    if a.shape[axis] < 2:
        return None
    k = r.randrange(1, a.shape[axis])
    low, high = jnp.split(a, [k], axis=axis)
    return jnp.concatenate([jnp.tanh(high), low], axis=axis)


def _scanned(r, a, b, pick):
    if a.ndim != 2:
        return None
    total, ys = lax.scan(lambda c, x: (c + x * x, x * c.dtype.type(2.0)), jnp.zeros(a.shape[1:]), a)
    return ys * jnp.broadcast_to(total, ys.shape) if r.random() < 0.5 else total


def _running(r, a, b, pick):
    if a.ndim != 2:
        return None
    _, ys = lax.scan(lambda c, x: (c * 0.5 + x, c * x), jnp.ones(a.shape[1:]), a)
    return ys


def _updated(r, a, b, pick):
    if a.ndim != 2:
        return None
    return lax.dynamic_update_slice(a, 2.0 * b[:1], (r.randrange(a.shape[0]), 0))


OPERATIONS = [
    lambda r, a, b, pick: a + b,
    lambda r, a, b, pick: a - 0.3 * b,
    lambda r, a, b, pick: a * b,
    lambda r, a, b, pick: a / (2.0 + b * b),
    lambda r, a, b, pick: jnp.tanh(a),
    lambda r, a, b, pick: jnp.exp(-0.25 * a * a),
    lambda r, a, b, pick: lax.logistic(a) * jnp.exp(-0.5 * a),
    lambda r, a, b, pick: lax.erfc(a),
    lambda r, a, b, pick: lax.rsqrt(1.0 + a * a),
    lambda r, a, b, pick: jnp.sqrt(0.5 + a * a) * jnp.log1p(b * b),
    lambda r, a, b, pick: jnp.sin(a) * jnp.cos(b),
    lambda r, a, b, pick: jnp.maximum(a, b),
    lambda r, a, b, pick: jnp.where(a <= 0.1, b, a),
    lambda r, a, b, pick: jnp.abs(a) - jnp.sign(b),
    lambda r, a, b, pick: a.T,
    lambda r, a, b, pick: (
        a.reshape(-1) if a.ndim == 2 else a.reshape(r.choice([(2, 3), (3, 2)])) if a.size == 6 else None
    ),
    lambda r, a, b, pick: a.sum(axis=r.randrange(a.ndim), keepdims=True) + a,
    lambda r, a, b, pick: jnp.stack([a, b], axis=r.randrange(2)) if a.ndim == 1 and a.size < 4 else None,
    lambda r, a, b, pick: jnp.broadcast_to(a, (2, *a.shape)) if a.ndim == 1 and a.size < 4 else None,
    lambda r, a, b, pick: a * lax.broadcasted_iota(a.dtype, a.shape, a.ndim - 1),
    lambda r, a, b, pick: jnp.where(lax.broadcasted_iota(int, a.shape, 0) >= 1, a, 0.5),
    _matmul,
    _cut,
    _scanned,
    _running,
    _updated,
]


@pytest.mark.parametrize("batch", range(10))
def test_value_of_the_normal_form_is_jaxs_value_on_100_random_programs(batch):
    rng = random.Random(batch)
    numbers = np.random.default_rng(batch)
    shapes = SHAPES[:5]
    names = [f"a{k}" for k in range(len(shapes))]
    compared = tried = 0
    while compared < 100:
        tried += 1
        assert tried < 200
        arrays = [numbers.uniform(-1.5, 1.5, s) for s in shapes]
        program = random_program(rng, rng.randrange(2, 7))
        jaxpr = jax.make_jaxpr(program)(*arrays)
        with fresh_workspace() as workspace:
            workspace.deadline = float("inf")
            try:
                (found,) = interpret(jaxpr, [variable(n, s) for n, s in zip(names, shapes, strict=True)])
            except Unsupported:
                continue
            if len(found.entry.terms) > 400:
                continue
            expected = np.asarray(jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *arrays)[0])
            indices = found.indices
            places = list(np.ndindex(*(i.size for i in indices)))
            for place in rng.sample(places, min(2, len(places))):
                got = value(found.entry, dict(zip(names, arrays, strict=True)), dict(zip(indices, place, strict=True)))
                flat = int(np.ravel_multi_index(place, [i.size for i in indices])) if indices else 0
                want = expected.reshape(-1)[flat]
                assert got == pytest.approx(want, rel=1e-8, abs=1e-8), jaxpr
            compared += 1


def test_jax_differentiates_random_programs_as_the_normal_form_does():
    """Routes A and C agree where no rule is written by hand, or the answer is UNDECIDED; never REFUTED."""
    rng = random.Random(5)
    proved = 0
    for _ in range(25):
        program = random_program(rng, 4)
        verdict = prove_vjp(program, program, *(f"f64[{','.join(map(str, s))}]" for s in SHAPES[:5]), max_seconds=3)
        assert not isinstance(verdict, Refutation), str(verdict)
        proved += verdict.proved
    assert proved >= 12


@pytest.mark.parametrize(
    ("value_in", "expected"),
    [
        (0.5, "1/2"),
        (0.044715, "8943/200000"),
        (0.7978845608028654, "sqrt(2) * 1/sqrt(pi)"),
        (0.7978845608, "997355701/1250000000 (no closed form found; its shortest decimal)"),
        (0.1 + 0.2, "3/10"),
        (1 / 3, "1/3"),
        (-1.1283791670955126, "-2 * 1/sqrt(pi)"),
        (0.134145, "26829/200000"),
        (0.1341, "1341/10000"),
    ],
)
def test_literals_are_read_as_documented(value_in, expected):
    reading = read_literal(value_in, 2.0**-52, repr(value_in))
    assert str(reading) == expected
    if reading.root == reading.half_pi == 0:
        assert abs(Fraction(value_in) - reading.q) <= abs(Fraction(value_in)) * Fraction(1, 2**50)


EQUAL = {
    "logistic and tanh": (lambda x: lax.logistic(x), lambda x: 0.5 + 0.5 * jnp.tanh(0.5 * x)),
    "erfc and erf": (lambda x: lax.erfc(-x), lambda x: 1.0 + lax.erf(x)),
    "exp of a sum": (lambda x: jnp.exp(x + 1.0), lambda x: jnp.exp(x) * jnp.exp(jnp.ones_like(x))),
    "logistic by exp": (lambda x: 1 / (1 + jnp.exp(-x)), lambda x: jnp.exp(x) / (1 + jnp.exp(x))),
    "slope of the logistic": (
        lambda x: jnp.exp(-x) / jnp.square(1 + jnp.exp(-x)),
        lambda x: lax.logistic(x) * (1 - lax.logistic(x)),
    ),
    "P / P": (lambda x: (2 + x * x) / (2 + x * x), jnp.ones_like),
    "common denominator": (
        lambda x: 1 / (1 + x * x) - 1 / (2 + x * x),
        lambda x: 1 / ((1 + x * x) * (2 + x * x)),
    ),
    "roots": (lambda x: jnp.sqrt(2 * (1 + x * x)) ** 2, lambda x: 2 + 2 * x * x),
    "halves put together": (
        lambda x: jnp.concatenate([x[:2], x[2:]]),
        lambda x: x,
    ),
    "basic indexing": (
        lambda x: x[1:3] * jnp.stack([x[0], x[3]]),
        lambda x: jnp.stack([x[1] * x[0], x[2] * x[3]]),
    ),
    "relu in two ways": (lambda x: jnp.where(x <= 0, 0.0, x), lambda x: x * (x > 0).astype(x.dtype)),
}


@pytest.mark.parametrize("name", EQUAL)
def test_identity_is_proved(name):
    f, g = EQUAL[name]
    verdict = prove_vjp(f, g, "f64[4]")
    assert verdict.proved, str(verdict)


def test_nothing_is_proved_under_conditions_that_no_input_meets():
    def nowhere(x):
        return x + 0.0 / (jnp.sin(x) ** 2 + jnp.cos(x) ** 2 - 1.0)

    verdict = prove_vjp(nowhere, nowhere, "f64[4]")
    assert isinstance(verdict, Undecided), str(verdict)


UNEQUAL = {
    "root of a square": (lambda x: jnp.sqrt(x * x), lambda x: x),
    "comparison of integers at equality": (
        lambda x: jnp.where(jnp.arange(4) >= 2, x, 0.0),
        lambda x: jnp.where(jnp.arange(4) > 2, x, 0.0),
    ),
    "halves exchanged": (lambda x: jnp.concatenate([x[2:], x[:2]]), lambda x: x),
    "another sum": (lambda x: x * jnp.sum(x), lambda x: jnp.broadcast_to(jnp.sum(x * x), x.shape)),
    "even, not odd": (lambda x: jnp.tanh(-x), lambda x: jnp.tanh(x)),
    "sizes": (lambda x: jnp.sum(jnp.broadcast_to(x, (3, 4)), axis=0), lambda x: 4.0 * x),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_inequality_is_not_proved(name):
    f, g = UNEQUAL[name]
    verdict = prove_vjp(f, g, "f64[4]")
    assert isinstance(verdict, Refutation), str(verdict)
