"""The same checks from a shell.

    python -m ffn_jax check mypackage.kernels:gelu --reference mypackage.plain:gelu --like "f32[4,8]"
    python -m ffn_jax check mypackage.maps:projection --linear-map --in-shape 64

Exit status: 0 when the check passes, 1 when it fails, 2 when it cannot be run.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ffn_jax.verify._check_linear_map import check_linear_map
from ffn_jax.verify._check_vjp import check_vjp
from ffn_jax.verify._draws import shape_dtype
from ffn_jax.verify._dtypes import DTYPES


def parse_array(text: str) -> Any:
    """A template for an array from text such as `f32[4,8]`.

    Raises:
        ValueError: the text is not of that form.

    >>> parse_array("bf16[4,8]")
    ShapeDtypeStruct(shape=(4, 8), dtype=bfloat16)
    """
    match = re.fullmatch(r"\s*([a-z]+\d*)\s*\[([\d,\s]*)\]\s*", text)
    if match is None:
        raise ValueError(f"got {text!r}, expected a dtype and a shape such as f32[4,8]")
    name = DTYPES.get(match[1], match[1])
    try:
        dtype = jnp.dtype(name)
    except TypeError:
        raise ValueError(f"got dtype {match[1]!r}, expected one of {', '.join(DTYPES)}") from None
    return shape_dtype([int(size) for size in match[2].replace(" ", "").split(",") if size], dtype)


def load_object(text: str) -> Any:
    """The object that `module:name` names; the current directory is searched too.

    Raises:
        ValueError: not of that form, or no such object.
    """
    module_name, _, path = text.partition(":")
    if not module_name or not path:
        raise ValueError(f"got {text!r}, expected module:function")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{text}: {error}") from error
    return found


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    command = argparse.ArgumentParser(prog="python -m ffn_jax check", description="Check a derivative rule.")
    command.add_argument("fun", help="module:function with a hand-written rule, or module:map")
    command.add_argument("--reference", help="module:function without one (default: fun with its rules stripped)")
    command.add_argument(
        "--like", nargs="+", default=[], metavar="f32[4,8]", help="the dtype and shape of each argument"
    )
    command.add_argument("--linear-map", action="store_true", help="check that the object is a linear map")
    command.add_argument("--in-shape", metavar="64", help="the shape that a bare linear callable takes, as 4,64")
    command.add_argument("--dtypes", nargs="+", help="float dtypes to run in beside float64")
    command.add_argument("--key", type=int, default=0, help="seed of the draws (default 0)")
    command.add_argument("--json", action="store_true", help="print the report as JSON")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check that the arguments ask for, print its report, return the exit status."""
    options = parser().parse_args(argv)
    try:
        fun = load_object(options.fun)
        if options.linear_map:
            shape = [int(size) for size in options.in_shape.split(",")] if options.in_shape else None
            report: Any = check_linear_map(fun, key=options.key, in_shape=shape, dtypes=options.dtypes, raises=False)
        else:
            if not options.like:
                raise ValueError("--like is needed: the dtype and shape of each argument, such as f32[4,8]")
            reference = load_object(options.reference) if options.reference else None
            like = [parse_array(text) for text in options.like]
            report = check_vjp(fun, reference, *like, key=options.key, dtypes=options.dtypes, raises=False)
    except (TypeError, ValueError, NotImplementedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.to_json(indent=2) if options.json else report)
    return 0 if report.ok else 1
