"""What is built can be installed and imported from anywhere, holds what it should, and does no work when imported."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPTIONAL = ("flint", "matplotlib", "safetensors", "flax", "equinox", "lineax", "pytest", "scipy")


def run(*command, cwd, **environment):
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, check=True, text=True, stdout=subprocess.PIPE
    ).stdout.strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, built here without a network."""
    into = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", str(into), cwd=ROOT)
    (wheel,), (sdist,) = into.glob("*.whl"), into.glob("*.tar.gz")
    return wheel, sdist


def test_wheel_holds_the_package_alone(built):
    names = zipfile.ZipFile(built[0]).namelist()
    assert {"ffn_jax/py.typed", "ffn_jax/__init__.py", "ffn_jax/verify/symbolic/_prove.py"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ffn_jax"}


def test_sdist_holds_what_is_needed_to_test_it(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    expected = ["README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "tests/conftest.py", "docs/errors.md"]
    assert set(expected) <= names
    for kind, pattern in (("tests", "test_*.py"), ("notebooks", "*.ipynb"), (".ci", "*")):
        files = {str(path.relative_to(ROOT)) for path in (ROOT / kind).glob(pattern)}
        assert files
        assert files <= names


def test_installed_wheel_works_from_another_directory(built, tmp_path):
    site = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site))
    run(*pip, str(built[0]), cwd=tmp_path, PIP_DISABLE_PIP_VERSION_CHECK="1")
    program = (
        "import ffn_jax as fj, jax.numpy as jnp; A = fj.Dense(jnp.eye(2));"
        "print(fj.ffn_residual(jnp.ones(2), A, None, A, None, activation=fj.relu).tolist(), fj.__file__)"
    )
    said = run(sys.executable, "-W", "error", "-c", program, cwd=tmp_path, PYTHONPATH=str(site))
    assert said == f"[2.0, 2.0] {site / 'ffn_jax' / '__init__.py'}"
    (entry_points,) = site.glob("ffn_jax-*.dist-info/entry_points.txt")
    assert "pytest11" in entry_points.read_text()


def test_import_does_no_work():
    """No backend is made (here there is none to be had), and nothing optional is imported."""
    program = """
import sys
import jax, jax.numpy as jnp
before = set(sys.modules)
import ffn_jax
after_package = set(sys.modules)
import ffn_jax.verify
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
print("ffn_jax.verify" in after_package)
try:
    jnp.ones(2)
except RuntimeError:
    print("no backend")
"""
    modules, verify_too, backend = run(sys.executable, "-c", program, cwd=ROOT, JAX_PLATFORMS="nowhere").splitlines()
    assert not set(modules.split()) & set(OPTIONAL)
    assert verify_too == "False"
    assert backend == "no backend"
