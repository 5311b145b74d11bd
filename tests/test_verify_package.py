"""The package's own rules under check_vjp, and right cases without a false alarm.

CI draws 96 right cases; `FFN_JAX_RIGHT_CASES=1000` runs the full number.
"""

import itertools
import os

import jax.numpy as jnp
import numpy as np
import pytest
from map_cases import CASES
from sublayer_cases import ACTIVATIONS, GATED, gates

import ffn_jax as fj
from ffn_jax.verify import check_vjp
from ffn_jax.verify._check_vjp import VJPChecker
from ffn_jax.verify._draws import KINDS

SAVES = (("hidden_pre",), ("hidden_pre", "hidden_act"), ())


def sublayer(case, activation, tokens, dtype, save, chunk, seed=0):
    """The rule, its reference and arguments: two maps, an activation and biases."""
    rng = np.random.default_rng([seed, tokens])
    A1 = case.make(case.params(seed, dtype))
    A2 = case.make(case.params(seed + 1, dtype)).T
    hidden = A1.out_shape
    if activation in GATED:
        A1 = gates(A1)
    b1, x, b2 = (
        jnp.asarray(rng.standard_normal(shape), dtype) for shape in (hidden, (tokens, *A1.in_shape), A2.out_shape)
    )
    options = {"activation": ACTIVATIONS[activation][0]}

    def rule(x, A1, b1, A2, b2):
        return fj.ffn_residual(x, A1, b1, A2, b2, save=save, chunk_size=chunk, **options)

    def reference(x, A1, b1, A2, b2):
        return fj.ffn_residual_reference(x, A1, b1, A2, b2, **options)

    return rule, reference, (x, A1, b1, A2, b2)


def combinations():
    """Every map and every activation, with each way of saving and chunking along the way."""
    cycles = itertools.cycle(ACTIVATIONS), itertools.cycle(SAVES), itertools.cycle((None, 2))
    for case in CASES:
        yield case, *(next(cycle) for cycle in cycles)


@pytest.mark.parametrize(
    ("case", "activation", "save", "chunk"), list(combinations()), ids=lambda v: getattr(v, "name", str(v))
)
def test_every_map_and_activation(case, activation, save, chunk):
    rule, reference, args = sublayer(case, activation, 3, "float64", save, chunk)
    check_vjp(rule, reference, *args, draws=("given", "normal", "tails", "zeros"))


RANDOM = np.random.default_rng(5)
RIGHT = [
    (
        CASES[int(RANDOM.integers(len(CASES)))],
        list(ACTIVATIONS)[int(RANDOM.integers(len(ACTIVATIONS)))],
        int(RANDOM.integers(1, 9)),
        dtype,
        SAVES[int(RANDOM.integers(3))],
        (None, 2, 3)[int(RANDOM.integers(3))],
    )
    for dtype in ("float64", "float32", "bfloat16", "float16") * 2
]


@pytest.mark.parametrize("number", range(len(RIGHT)))
def test_no_false_alarm(number):
    rule, reference, args = sublayer(*RIGHT[number])
    checker = VJPChecker(rule, reference, *args)
    cases = int(os.environ.get("FFN_JAX_RIGHT_CASES", "96")) // len(RIGHT)
    for seed in range(cases):
        report = checker.run(seed, draws=(KINDS[1 + seed % 4],), seeds=1)
        report.raise_if_failed()


def test_tape_with_a_seed_on_every_entry():
    """Without a reference: the tape against itself with its rule stripped."""
    rng = np.random.default_rng(0)
    x, W1, b1, W2, b2 = (jnp.asarray(rng.standard_normal(s)) for s in ((4, 3), (3, 5), (5,), (5, 3), (3,)))
    args = (x, fj.Dense(W1), b1, fj.Dense(W2), b2)
    check_vjp(lambda *args: (args[0], fj.ffn_residual_tape(*args)), None, *args, dtypes=())
