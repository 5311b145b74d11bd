"""Run the benchmarks: `python -m benchmarks [sublayer] [forward] [stack] [growth] [exact_gelu] [grid]`.

Without arguments all but the grid. Each prints its tables as it goes and writes JSON and a plot to a folder, by default
`benchmarks/results/`. `pip install '.[bench]'` brings the plots and the peers; whichever peers are installed are
measured, torch too.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _report, _tables

SIZES = ((512, 256, 1024), (2048, 768, 3072), (8192, 1024, 4096))
GRID_TOKENS = (1, 8, 128, 256, 512, 2048, 8192, 16384)


def sublayer(seconds: float) -> Iterator[dict[str, Any]]:
    """Forward and backward at three sizes."""
    for size in SIZES:
        for kind in ("tanh", "erf"):
            yield _tables.sublayer(*size, kind, "float32", False, seconds, policies=True)


def forward(seconds: float) -> Iterator[dict[str, Any]]:
    """Forward only."""
    for size in SIZES:
        for kind in ("tanh", "erf"):
            yield _tables.sublayer(*size, kind, "float32", True, seconds)


def stack(seconds: float) -> Iterator[dict[str, Any]]:
    """Twelve layers in a scan."""
    for kind, dtype in (("tanh", "float32"), ("erf", "float32"), ("tanh", "bfloat16"), ("erf", "bfloat16")):
        yield _tables.stack(12, 1024, 768, 3072, kind, dtype, seconds)


def growth(seconds: float) -> Iterator[dict[str, Any]]:
    """From 1,024 to 65,536 tokens."""
    yield from _tables.growth((1024, 4096, 16384, 65536), 256, 1024, seconds)


def exact_gelu(seconds: float) -> Iterator[dict[str, Any]]:
    """The exact GELU in two forms."""
    yield _tables.exact_gelu(2**22, seconds)


def grid(seconds: float, done: Sequence[dict[str, Any]] = ()) -> Iterator[dict[str, Any]]:
    """Every size, activation and dtype, forward and backward; hours, and continued where it was interrupted."""
    known = {table["title"]: table for table in done}
    for dtype in ("float32", "bfloat16"):
        for tokens in GRID_TOKENS:
            for d in (256, 768, 1024):
                for kind in ("tanh", "erf", "swiglu"):
                    title = _tables.title(tokens, d, 4 * d, kind, dtype, False)
                    yield known.get(title) or _tables.sublayer(tokens, d, 4 * d, kind, dtype, False, seconds)


BENCHMARKS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "sublayer": sublayer,
    "forward": forward,
    "stack": stack,
    "growth": growth,
    "exact_gelu": exact_gelu,
    "grid": grid,
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("which", nargs="*", metavar="|".join(BENCHMARKS), help="by default all but the grid")
    parser.add_argument("--seconds", type=float, default=20.0, help="per table, at least; more where few rounds fit")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="a folder")
    options = parser.parse_args()
    unknown = [name for name in options.which if name not in BENCHMARKS]
    if unknown:
        parser.error(f"expected benchmarks out of {', '.join(BENCHMARKS)}, got {unknown[0]!r}")
    for name in options.which or tuple(name for name in BENCHMARKS if name != "grid"):
        tables = []
        file = options.out / f"{name}.json"
        rest = {"done": _report.measured_here(file)} if name == "grid" else {}
        for table in BENCHMARKS[name](options.seconds, **rest):
            _report.print_table(table)
            tables.append(table)
            _report.write(file, tables)  # after each table: a long run may be interrupted
        if name == "grid":
            _report.print_summary(tables)
        try:
            plots = {"growth": _report.plot_growth, "grid": _report.plot_grid}
            plots.get(name, _report.plot_bars)(options.out / f"{name}.png", tables)
        except ImportError:
            print("matplotlib is not installed: no plot")


if __name__ == "__main__":
    main()
