"""The command line and the pytest plugin."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ffn_jax.verify._cli import load_object, main, parse_array

GOOD = ["jax.numpy:sin", "--like", "f32[3]", "--dtypes", "float64"]


def test_passing_check(capsys):
    assert main(GOOD) == 0
    assert "ok: check_vjp(sin)" in capsys.readouterr().out


def test_failing_check_as_json(capsys):
    assert main(["jax.numpy:sin", "--reference", "jax.numpy:cos", "--like", "f32[3]", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_linear_map(capsys):
    assert main(["jax.numpy:negative", "--linear-map", "--in-shape", "2,3"]) == 0
    assert "additivity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["jax.numpy:nothing", "--like", "f32[3]"], "has no attribute 'nothing'"),
        (["nowhere:f", "--like", "f32[3]"], "No module named 'nowhere'"),
        (["jax.numpy", "--like", "f32[3]"], "expected module:function"),
        (["jax.numpy:sin"], "--like is needed"),
        (["jax.numpy:sin", "--like", "f32(3)"], r"such as f32\[3\]|such as f32"),
        (["jax.numpy:sin", "--like", "f31[3]"], "got dtype 'f31'"),
        (["jax.numpy:sin", "--like", "i32[3]"], "no argument has a float dtype"),
    ],
)
def test_usage_errors(arguments, message, capsys):
    assert main(arguments) == 2
    assert message.split("|")[-1] in capsys.readouterr().err


def test_parsing():
    assert parse_array("i32[]").shape == ()
    assert parse_array("bfloat16[2, 3]").shape == (2, 3)
    assert load_object("pathlib:Path") is Path


def test_plugin(tmp_path):
    test = """
        import jax, jax.numpy as jnp, pytest

        wrong = jax.custom_vjp(jnp.sin)
        wrong.defvjp(lambda x: (jnp.sin(x), x), lambda x, ybar: (ybar,))

        def test_right(vjp_check):
            assert vjp_check(jnp.tanh, None, jnp.ones(3)).ok

        @pytest.mark.vjp_check(raises=False, dtypes=())
        def test_marker(vjp_check):
            assert not vjp_check(wrong, None, jnp.ones(3)).ok

        def test_wrong(vjp_check):
            vjp_check(wrong, None, jnp.ones(3))
    """
    (tmp_path / "test_user.py").write_text(textwrap.dedent(test))
    root = str(Path(__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "ffn_jax.verify._pytest", "--strict-markers", str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert "2 passed" in run.stdout, run.stdout + run.stderr
    assert "1 failed" in run.stdout
    assert "VerificationError" in run.stdout
