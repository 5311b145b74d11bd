"""The command `python -m ffn_jax prove`: the package's theorems, or a rule of the user's own.

    python -m ffn_jax prove                     every shipped theorem, in a table with times
    python -m ffn_jax prove swiglu              those whose name contains "swiglu"
    python -m ffn_jax prove my_module:rule --reference my_module:plain --spec "f64[n,d]" --spec "f64[d]"

The exit status is 0 if everything was proved, 1 if something was refuted or left undecided, and 2 for a wrong
command.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from ffn_jax.verify.symbolic._prove import prove_vjp

if TYPE_CHECKING:
    from ffn_jax.verify._theorems import Theorem


def main(argv: Sequence[str] | None = None, shipped: "Sequence[Theorem] | None" = None) -> int:
    """Run the command.

    Args:
        argv: the arguments after `prove`; by default those of the process.
        shipped: what to prove when no function is named; by default all that the package claims.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m ffn_jax prove", description="Prove reverse-mode rules.")
    parser.add_argument("target", nargs="?", default="", help="module:function, or part of a theorem's name")
    parser.add_argument("--reference", help="module:function; by default the function without its custom rules")
    parser.add_argument("--spec", action="append", default=[], help='one per argument, such as "f64[n,d]"')
    parser.add_argument("--max-seconds", type=float, default=60.0, help="per theorem")
    parser.add_argument("--json", action="store_true", help="print a user's verdict as JSON")
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    if ":" in options.target:
        try:
            fun = _load(options.target)
            reference = _load(options.reference) if options.reference else fun
        except (ImportError, AttributeError) as e:
            parser.error(str(e))
        verdict = prove_vjp(fun, reference, *options.spec, max_seconds=options.max_seconds)
        print(verdict.to_json() if options.json else verdict)
        return 0 if verdict.proved else 1
    if shipped is None:
        from ffn_jax.verify._theorems import theorems

        shipped = list(theorems())
    chosen = [theorem for theorem in shipped if options.target in theorem.name]
    if not chosen:
        parser.error(f"no theorem's name contains {options.target!r}, and it is not module:function")
    return _table(chosen, options.max_seconds)


def _load(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    loaded: Callable[..., Any] = found
    return loaded


def _table(theorems: "Sequence[Theorem]", max_seconds: float) -> int:
    width = max(len(theorem.name) for theorem in theorems)
    started, proved, others = time.monotonic(), 0, []
    for number, (name, fun, reference, specs) in enumerate(theorems, 1):
        print(f"[{number:>{len(str(len(theorems)))}}/{len(theorems)}] {name:<{width}}  ", end="", flush=True)
        verdict = prove_vjp(fun, reference, *specs, max_seconds=max_seconds)
        print(f"{verdict.verdict:<9} {verdict.seconds:6.2f} s", flush=True)
        proved += verdict.proved
        if not verdict.proved:
            others.append((name, verdict))
    for name, verdict in others:
        print(f"\n{name}\n{verdict}", file=sys.stderr)
    print(f"{proved} of {len(theorems)} proved in {time.monotonic() - started:.1f} s")
    return 0 if proved == len(theorems) else 1
