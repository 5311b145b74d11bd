"""check_vjp: right rules pass, wrong rules fail, and everything else is a clear message."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from verify_cases import chunked_sublayer, gelu_slope, plain_sublayer, sublayer, sublayer_args

from ffn_jax.verify import VerificationError, check_vjp

X = jnp.linspace(-2.0, 2.0, 6, dtype="float32")


def with_rule(value, slope):
    @jax.custom_vjp
    def f(x):
        return value(x)

    f.defvjp(lambda x: (value(x), x), lambda x, ybar: (slope(x) * ybar,))
    return f


class TestRightRules:
    @pytest.mark.parametrize("activation", ["gelu", "gelu_exact", "silu"])
    def test_sublayer(self, activation):
        report = check_vjp(sublayer(activation), plain_sublayer(activation), *sublayer_args())
        assert {row.gate for row in report.rows} == {"float64 deterministic", "float32 six-sigma"}
        assert {row.where for row in report.rows} == {"output", "x", "w1", "b1", "w2", "b2"}

    def test_chunks_in_a_scan(self):
        check_vjp(chunked_sublayer(), None, *sublayer_args(), dtypes=())

    def test_half_types(self):
        report = check_vjp(sublayer(), None, *sublayer_args(), dtypes=("bfloat16", "float16"))
        assert {"bfloat16 six-sigma", "float16 six-sigma"} < {row.gate for row in report.rows}

    def test_pytrees_none_and_integer_leaves(self):
        def pick(tree, index, scale):
            return {"a": tree["w"][index] * scale[0], "b": (jnp.sum(tree["w"]), index + 1)}

        report = check_vjp(pick, None, {"w": X, "n": None}, jnp.array([1, 3]), (jnp.float32(2.0),), dtypes=())
        assert {row.where for row in report.rows} >= {"tree['w']", "scale[0]"}

    def test_control_flow(self):
        def program(x):
            y = jax.lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) * 1.1, x)
            total, ys = jax.lax.scan(lambda c, a: (c + a * a, c * a), jnp.zeros((), x.dtype), y)
            return jax.lax.cond(total > 0, lambda v: v * total, lambda v: v, ys), jnp.cumsum(y)

        check_vjp(program, None, X, dtypes=())

    def test_gather_and_scatter(self):
        index = jnp.array([0, 2, 2, 5])

        def program(x):
            return x.at[index].add(x[index] ** 2), jnp.sort(x)[1:3], jnp.max(x), jnp.pad(x, 1)

        check_vjp(program, None, X)

    def test_process_without_64_bit_types(self):
        with jax.enable_x64(False):
            report = check_vjp(sublayer(), None, *sublayer_args(), raises=False)
        assert report.ok
        assert report.rows[0].gate == "float64 deterministic"


class TestWrongRules:
    def test_tenth_digit_of_the_gelu_constant(self):
        wrong = sublayer(slope=lambda z: gelu_slope(z, constant=0.1341450001))
        with pytest.raises(VerificationError, match=r"cotangent (x|w1|b1) at .* .float64 deterministic"):
            check_vjp(wrong, plain_sublayer(), *sublayer_args(), dtypes=())

    def test_rule_of_another_function(self):
        erf_like = with_rule(jnp.tanh, lambda x: 1 - jnp.tanh(x * 1.0000001) ** 2)
        assert not check_vjp(erf_like, None, X, raises=False, dtypes=()).ok

    def test_value_of_another_function(self):
        report = check_vjp(lambda x: x * 1.0000001, lambda x: x, X, raises=False)
        assert {row.what for row in report.failures} >= {"value"}

    def test_nan_of_the_rule_alone(self):
        rule = with_rule(lambda x: x * x, lambda x: jnp.where(x == 0, jnp.nan, 2 * x))
        report = check_vjp(rule, None, X, raises=False, dtypes=())
        assert [row.draw for row in report.failures if row.gate == "float64 deterministic"] == ["zeros"]

    def test_rule_of_a_reference_is_never_used(self):
        wrong = with_rule(jnp.sin, jnp.sin)
        report = check_vjp(wrong, wrong, X, raises=False, dtypes=())
        assert not report.ok
        assert "stripped from fun" in report.notes[0]

    def test_rules_inside_loops_are_stripped(self):
        wrong = with_rule(jnp.sin, jnp.sin)
        loop = lambda x: jax.lax.scan(lambda c, _: (jax.jit(jax.checkpoint(wrong))(c), None), x, None, length=2)[0]
        assert not check_vjp(loop, None, X, raises=False, dtypes=()).ok


class TestReport:
    def test_json_table_and_failure(self):
        report = check_vjp(with_rule(jnp.sin, jnp.sin), jnp.sin, X, raises=False, dtypes=())
        plain = json.loads(report.to_json())
        assert plain["ok"] is False
        assert plain["rows"][1]["where"] == "x"
        assert re.search(r"cotangent x at \[\d\] differs by \d\.\d+e.\d+, the tolerance is", str(report))
        with pytest.raises(VerificationError) as caught:
            report.raise_if_failed()
        assert caught.value.report is report

    def test_same_key_same_report(self):
        one, two = (check_vjp(jnp.sin, None, X, key=jax.random.key(3), dtypes=()).rows for _ in range(2))
        assert one == two

    def test_kinks_are_counted_not_failed(self):
        report = check_vjp(jax.nn.relu, None, X, dtypes=())
        assert sum(row.loose for row in report.rows if row.what == "cotangent") > 0

    @pytest.mark.parametrize(("slope", "right"), [(0.0, True), (0.5, True), (1.0, True), (7.0, False), (-3.0, False)])
    def test_rule_does_not_widen_its_own_tolerance_at_a_kink(self, slope, right):
        positive = lambda x: jnp.maximum(x, 0.0)
        rule = with_rule(positive, lambda x: jnp.where(x == 0, slope, jnp.where(x > 0, 1.0, 0.0)).astype(x.dtype))
        assert check_vjp(rule, positive, X, raises=False, dtypes=()).ok == right

    def test_given_infinities_are_reported(self):
        report = check_vjp(jnp.tanh, None, X.at[0].set(jnp.inf), dtypes=())
        assert any("1 entries that are not finite" in note for note in report.notes)

    def test_function_without_float64(self):
        locked = with_rule(lambda x: jax.lax.mul(x, np.float32(3.0)), lambda x: jnp.full_like(x, 3.0))
        report = check_vjp(locked, None, X)
        assert any("no float64 gate" in note for note in report.notes)
        assert {row.gate for row in report.rows} == {"float32 six-sigma"}

    def test_cotangent_of_another_dtype(self):
        f = jax.custom_vjp(lambda x: x)
        f.defvjp(lambda x: (x, None), lambda _, ybar: (ybar.astype("float32"),))
        try:
            report = check_vjp(f, None, X.astype("bfloat16"), raises=False)
        except (TypeError, ValueError):
            return  # JAX itself refuses
        assert any("got dtype float32" in row.problem for row in report.failures)


def prints(x):
    jax.debug.print("{}", x)
    return x


def draws_a_key(x):
    return x + jax.random.normal(jax.random.key(0), x.shape, x.dtype)


def draws_in_python(x):
    return x * np.random.default_rng().standard_normal()


BAD = {
    "no arguments": (lambda: check_vjp(jnp.sin, None), ValueError, ["no argument has a float dtype"]),
    "integers": (lambda: check_vjp(lambda n: n + 1, None, jnp.arange(3)), ValueError, ["no argument", "n: int"]),
    "integer output": (lambda: check_vjp(jnp.argmax, None, X), ValueError, ["no output of fun has a float dtype"]),
    "trees": (lambda: check_vjp(lambda x: (x, x), lambda x: x, X), ValueError, ["different structures"]),
    "shapes": (lambda: check_vjp(lambda x: x[1:], lambda x: x, X), ValueError, ["float32[5] from fun and float32[6]"]),
    "dtypes": (
        lambda: check_vjp(lambda x: x.astype("float64"), lambda x: x, X),
        ValueError,
        ["got float64[6] from fun"],
    ),
    "side effects": (lambda: check_vjp(prints, None, X), ValueError, ["has side effects"]),
    "random key": (lambda: check_vjp(draws_a_key, None, X), ValueError, ["makes a random key inside"]),
    "random Python": (lambda: check_vjp(draws_in_python, None, X), ValueError, ["not a pure function"]),
    "text": (lambda: check_vjp(lambda x, s: x, None, X, "a"), TypeError, ["expected s to be an array, got str"]),
    "complex": (
        lambda: check_vjp(jnp.abs, None, X.astype("complex64")),
        TypeError,
        ["expected x of a real dtype, got complex64"],
    ),
    "draws": (
        lambda: check_vjp(jnp.sin, None, X, draws=("nice",)),
        ValueError,
        ["draws: expected some of", "got 'nice'"],
    ),
    "primitive": (
        lambda: check_vjp(lambda x: jnp.linalg.inv(x), None, jnp.eye(2)),
        NotImplementedError,
        ["no error bound is known"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_with_a_clear_message(name):
    call, error, texts = BAD[name]
    with pytest.raises(error) as caught:
        call()
    missing = [text for text in texts if text not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"
