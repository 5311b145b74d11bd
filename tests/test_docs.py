"""The reference has a place for every public name."""

import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import ffn_jax as fj
from ffn_jax import graph, sharding, verify

PAGES = "".join(path.read_text() for path in sorted((Path(__file__).parent.parent / "docs" / "api").glob("*.md")))
SHOWN = set(re.findall(r"^::: (\S+)$", PAGES, re.MULTILINE))


def public(module):
    return [name for name, value in vars(module).items() if not name.startswith("_") and not inspect.ismodule(value)]


@pytest.mark.parametrize("module", [fj, verify, graph, sharding], ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_reference(module):
    names = {f"{module.__name__}.{name}" for name in public(module)}
    assert len(names) > 8
    assert names - SHOWN == set()


def test_every_public_module_is_in_the_reference():
    # Their public names are those of ffn_jax.
    at_the_top = {"activations", "attention", "dropout", "encoder", "ffn", "maps", "norms"}
    modules = {
        path.stem for path in Path(fj.__file__).parent.iterdir() if not path.name.startswith(("_", "py", "demo"))
    }
    assert modules >= at_the_top
    assert modules - at_the_top <= {name.split(".")[1] for name in SHOWN}


def test_what_is_shown_exists():
    for path in SHOWN:
        assert inspect.getdoc(pkgutil.resolve_name(path)), path
