"""What `prove_vjp` accepts, what its answers say, and that it says UNDECIDED when it has to."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from sublayer_for_proofs import ACTIVATIONS, specs, sublayer

from ffn_jax.verify import (
    Certificate,
    Refutation,
    Undecided,
    opaque_linear_map,
    prove_vjp,
    strip_custom_rules,
)
from ffn_jax.verify._theorems import Theorem
from ffn_jax.verify.symbolic import _balls
from ffn_jax.verify.symbolic._cli import main


@jax.custom_vjp
def scaled_tanh(x, w):
    return jnp.tanh(x) * w


scaled_tanh.defvjp(
    lambda x, w: (scaled_tanh(x, w), (jnp.tanh(x), w)),
    lambda saved, ybar: (ybar * saved[1] * (1 - saved[0] ** 2), ybar * saved[0]),
)


@jax.custom_vjp
def wrong_tanh(x, w):
    return jnp.tanh(x) * w


wrong_tanh.defvjp(
    lambda x, w: (wrong_tanh(x, w), (jnp.tanh(x), w)),
    lambda saved, ybar: (ybar * saved[1] * (1 - saved[0]), ybar * saved[0]),
)


def test_certificate_states_the_theorem_the_rule_and_its_meaning():
    fun = sublayer(ACTIVATIONS["gelu_exact"])
    text = str(prove_vjp(fun, fun, *specs("n,")))
    for part in (
        "PROVED",
        "for all sizes d, f, n >= 1",
        "x: f64[n, d]",
        "x̄[n,d] = ȳ[n,d] + ",
        "u0[n,f] = b1[f] + (sum_d x[n,d] W1[d,f])",
        "-0.7071067811865476 -> -1/2 * sqrt(2)",
        "exact real arithmetic",
        f"JAX {jax.__version__}",
        "nothing is said of floating point",
    ):
        assert part in text


def test_certificate_as_latex_and_as_json():
    certificate = prove_vjp(scaled_tanh, scaled_tanh, "f64[n]", "f64[n]")
    assert isinstance(certificate, Certificate)
    latex = certificate.latex()
    assert latex.startswith(r"\begin{aligned}")
    assert r"\bar{x}_{n} &= " in latex
    assert latex.count("{") == latex.count("}")
    data = json.loads(certificate.to_json())
    assert data["verdict"] == "PROVED"
    assert data["statement"]["args"] == ["x: f64[n]", "w: f64[n]"]


def test_recheck_traces_again():
    factor = [1.0]

    @jax.custom_vjp
    def double(x):
        return 2.0 * x

    double.defvjp(lambda x: (double(x), None), lambda _, ybar: (2.0 * factor[0] * ybar,))
    certificate = prove_vjp(double, double, "f64[n]")
    assert isinstance(certificate, Certificate)
    assert isinstance(certificate.recheck(), Certificate)
    factor[0] = 1.5
    jax.clear_caches()
    assert isinstance(certificate.recheck(), Refutation)


def test_refutation_shows_input_values_and_residue():
    verdict = prove_vjp(wrong_tanh, wrong_tanh, "f64[n]", "f64[n]")
    assert isinstance(verdict, Refutation)
    text = str(verdict)
    assert "REFUTED" in text
    assert "cotangent of x[0]" in text
    assert "+/-" in text
    assert "x: rule - linear_transpose(jvp) = " in text
    assert json.loads(verdict.to_json())["counterexample"]["sizes"] == {"n": 1}


@pytest.mark.parametrize(
    ("primitive", "fun"),
    [
        ("sort", jnp.sort),
        ("cumsum", jnp.cumsum),
        ("while", lambda x: lax.while_loop(lambda c: c[0] < 3.0, jnp.sin, x)),
    ],
)
def test_undecided_names_the_primitive(primitive, fun):
    verdict = prove_vjp(fun, fun, "f64[3]") if primitive != "while" else prove_vjp(lambda x: x, fun, "f64[3]")
    assert isinstance(verdict, Undecided)
    assert primitive in verdict.reason or "while" in str(verdict)


def test_time_limit_is_undecided():
    fun = sublayer(ACTIVATIONS["geglu"])
    verdict = prove_vjp(fun, fun, *specs("n,", gated=True), max_seconds=0.05)
    assert isinstance(verdict, Undecided)
    assert "time" in verdict.reason


def test_without_flint_a_wrong_rule_is_undecided_and_a_right_one_proved(monkeypatch):
    def missing():
        raise _balls.FlintMissing("python-flint is not installed")

    monkeypatch.setattr(_balls, "_flint", missing)
    verdict = prove_vjp(wrong_tanh, wrong_tanh, "f64[n]", "f64[n]")
    assert isinstance(verdict, Undecided)
    assert "python-flint is not installed" in verdict.reason
    assert isinstance(prove_vjp(scaled_tanh, scaled_tanh, "f64[n]", "f64[n]"), Certificate)


def test_integer_inputs_have_no_cotangent():
    @jax.custom_vjp
    def masked(x, lengths):
        return jnp.where(lengths > 2, x, 0.0)

    masked.defvjp(
        lambda x, lengths: (masked(x, lengths), lengths),
        lambda lengths, ybar: (jnp.where(lengths > 2, ybar, 0.0), None),
    )
    certificate = prove_vjp(masked, masked, "f64[n]", "i32[n]")
    assert isinstance(certificate, Certificate), str(certificate)
    assert [left for left, _ in certificate.rule] == ["x̄[n]"]


def test_pytrees_of_strings_and_structs_share_their_sizes():
    n, d = jax.export.symbolic_shape("n, d")

    def linear(x, params):
        return x @ params["w"] + jnp.broadcast_to(params["b"], (x.shape[0], params["b"].shape[0]))

    params = {"w": jax.ShapeDtypeStruct((d, d), "float64"), "b": "f64[d]"}
    certificate = prove_vjp(linear, linear, jax.ShapeDtypeStruct((n, d), "float64"), params)
    assert isinstance(certificate, Certificate), str(certificate)
    assert certificate.statement.args[1:] == ("params.b: f64[d]", "params.w: f64[d, d]")


def test_float32_is_read_as_reals():
    fun = sublayer(ACTIVATIONS["silu"])
    verdict = prove_vjp(fun, fun, *(s.replace("f64", "f32") for s in specs("n,")))
    assert isinstance(verdict, Certificate), str(verdict)


BAD = {
    "unreadable specification": (
        lambda: prove_vjp(scaled_tanh, scaled_tanh, "f64(n)", "f64[n]"),
        ValueError,
        ["prove_vjp", "f64[n,d]", "'f64(n)'"],
    ),
    "specification of an unknown dtype": (
        lambda: prove_vjp(scaled_tanh, scaled_tanh, "q8[n]", "f64[n]"),
        ValueError,
        ["prove_vjp", "'q8[n]'"],
    ),
    "specification of another type": (
        lambda: prove_vjp(scaled_tanh, scaled_tanh, 3, "f64[n]"),
        TypeError,
        ["prove_vjp", "or a string such as", "int"],
    ),
    "opaque map of another shape": (
        lambda: jax.eval_shape(opaque_linear_map("A", (3,), (5,)), jax.ShapeDtypeStruct((4,), "float64")),
        ValueError,
        ["opaque map A", "(3,)", "(4,)"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, texts = BAD[name]
    with pytest.raises(error) as caught:
        call()
    assert all(text in str(caught.value) for text in texts), caught.value


def test_outputs_of_another_structure_are_an_error_or_undecided():
    verdict = prove_vjp(lambda x: (x, x), lambda x: x, "f64[n]")
    assert isinstance(verdict, Undecided)
    assert "the reference returns" in verdict.reason


def test_transpose_of_an_opaque_map_is_not_the_map():
    n = jax.export.symbolic_shape("n")[0]
    A = opaque_linear_map("A", (n,), (n,))

    @jax.custom_vjp
    def apply(x):
        return A(x)

    apply.defvjp(lambda x: (A(x), None), lambda _, ybar: (A(ybar),))
    x = jax.ShapeDtypeStruct((n,), "float64")
    assert isinstance(prove_vjp(apply, apply, x), Refutation)


def test_two_opaque_maps_commute_only_if_they_are_equal():
    n = jax.export.symbolic_shape("n")[0]
    A, B = opaque_linear_map("A", (n,), (n,)), opaque_linear_map("B", (n,), (n,))
    x = jax.ShapeDtypeStruct((n,), "float64")
    assert isinstance(prove_vjp(lambda x: A(B(x)), lambda x: B(A(x)), x), Refutation)
    assert isinstance(prove_vjp(lambda x: A(x + A(x)), lambda x: A(x) + A(A(x)), x), Certificate)


def test_basic_indexing_is_proved_at_symbolic_sizes():
    """JAX traces it as a gather there."""

    @jax.custom_vjp
    def gate(z):
        return z[..., 0, :] * z[..., 1, :]

    gate.defvjp(
        lambda z: (gate(z), z),
        lambda z, ybar: (jnp.stack([ybar * z[..., 1, :], ybar * z[..., 0, :]], axis=-2),),
    )
    assert isinstance(prove_vjp(gate, gate, "f64[n,2,f]"), Certificate)

    def moved(z):
        return jnp.concatenate([z[4:], z[:4]])

    assert isinstance(prove_vjp(moved, moved, "f64[n+4,f]"), Certificate)
    assert isinstance(prove_vjp(moved, lambda z: jnp.concatenate([z[3:], z[:3]]), "f64[n+4,f]"), Refutation)


def test_loop_that_writes_blocks_is_proved():
    """A dynamic slice and a dynamic update at a loop-affine place."""

    def by_blocks(x):
        def step(k, out):
            block = lax.dynamic_slice(x, (4 * k,), (4,))
            return lax.dynamic_update_slice(out, block * block, (4 * k,))

        return lax.fori_loop(0, 5, step, jnp.zeros_like(x))

    verdict = prove_vjp(lambda x: x * x, by_blocks, "f64[20]")
    assert isinstance(verdict, Certificate), str(verdict)
    assert not verdict.side_conditions
    assert isinstance(prove_vjp(lambda x: x * x * x, by_blocks, "f64[20]"), Refutation)


def test_strip_reaches_into_loops_and_branches():
    wrong = jax.custom_jvp(jnp.sin)
    wrong.defjvps(lambda t, y, x: 7.0 * t)

    def fun(x):
        y, _ = lax.scan(lambda c, _: (jax.jit(wrong)(c), None), x, None, length=2)
        y = lax.cond(y > -2.0, jax.checkpoint(wrong), lambda y: y, y)
        return lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, wrong(c[1])), (0, y))[1]

    plain = strip_custom_rules(fun)
    _, got = jax.jvp(plain, (0.3,), (1.0,))
    _, expected = jax.jvp(lambda x: jnp.sin(jnp.sin(jnp.sin(jnp.sin(x)))), (0.3,), (1.0,))
    assert float(got) == pytest.approx(float(expected), rel=1e-12)
    assert float(plain(0.3)) == pytest.approx(float(fun(0.3)), rel=1e-12)


THEOREMS = [
    Theorem("scaled tanh", scaled_tanh, scaled_tanh, ("f64[n]", "f64[n]")),
    Theorem("wrong tanh", wrong_tanh, wrong_tanh, ("f64[n]", "f64[n]")),
]


def test_command_prints_a_table(capsys):
    assert main(["scaled"], THEOREMS) == 0
    assert "1 of 1 proved" in capsys.readouterr().out
    assert main([], THEOREMS) == 1
    out, err = capsys.readouterr()
    assert "[2/2] wrong tanh" in out
    assert "REFUTED" in out
    assert "cotangent of x" in err


def test_command_proves_a_users_rule(capsys):
    here = __name__
    assert main([f"{here}:scaled_tanh", "--spec", "f64[n]", "--spec", "f64[n]"]) == 0
    assert "PROVED" in capsys.readouterr().out
    wrong = [
        f"{here}:wrong_tanh",
        "--reference",
        f"{here}:scaled_tanh",
        "--spec",
        "f64[n]",
        "--spec",
        "f64[n]",
    ]
    assert main([*wrong, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "REFUTED"


def test_command_explains_a_wrong_name(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["nowhere:f", "--spec", "f64[n]"])
    assert stopped.value.code == 2
    assert "nowhere" in capsys.readouterr().err


def test_importing_verify_does_not_import_flint():
    code = "import sys, ffn_jax.verify; sys.exit('flint' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
