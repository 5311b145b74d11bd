"""Tables for a reader, JSON for the README and its tests, plots for both."""

import json
import os
import platform
import statistics
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from benchmarks._peers import AGAIN


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    flags = ""
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        cpu, flags = fields.get("model name", cpu), fields.get("flags", "")
    versions = {}
    for name in ("jax", "jaxlib", "flax", "equinox", "dm-haiku", "torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": cpu,
        "avx512": "avx512f" in flags.split(),
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        "versions": versions,
    }


def print_table(table: dict[str, Any]) -> None:
    """One table: ratios to plain jnp first, for they are what can be quoted."""
    rows = table["rows"]
    width = max(len(row["name"]) for row in rows)
    print(f"\n{table['title']} ({table['rounds']} rounds)")
    print(f"  {'':<{width}}  ratio  spread        ms   least ms  temporary MiB  peak MiB  compile s")
    for row in rows:
        least, memory, peak, compiled = (
            "" if row.get(key) is None else f"{row[key]:.{digits}f}"
            for key, digits in (("least_ms", 2), ("temporary_mib", 1), ("peak_mib", 1), ("compile_s", 2))
        )
        print(
            f"  {row['name']:<{width}}  {row['ratio']:5.2f}  {100 * row['spread']:4.0f} %  {row['ms']:9.2f}  "
            f"{least:>9}  {memory:>13}  {peak:>8}  {compiled:>9}"
            + "".join(f"  {key.replace('_', ' ')} {row[key]:.1e}" for key in row if key.endswith("error")),
            flush=True,
        )


def write(path: Path, tables: list[dict[str, Any]]) -> None:
    """The tables as JSON, with the machine's description."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "tables": tables}, indent=1) + "\n")


def measured_here(path: Path) -> list[dict[str, Any]]:
    """The tables that the file holds, if they were measured on this machine with these versions."""
    data = json.loads(path.read_text()) if path.exists() else {}
    return data["tables"] if data.get("machine") == machine() else []


def is_peer(name: str) -> bool:
    """Whether a row is another way to write the same in JAX: not ours, torch's, a limit, or a control."""
    return not name.startswith(("ffn_jax", "bare", "torch")) and name != AGAIN


def against_best_peer(table: dict[str, Any]) -> float:
    """The default's time relative to the fastest way to write the same in JAX."""
    ms = {row["name"]: row["ms"] for row in table["rows"]}
    return ms["ffn_jax"] / min(t for name, t in ms.items() if is_peer(name))


def print_summary(tables: list[dict[str, Any]]) -> None:
    """How the default does against the best peer of each table, and where it is behind by more than 3 %."""
    ratios = [against_best_peer(table) for table in tables]
    behind = [(ratio, table["title"]) for ratio, table in zip(ratios, tables, strict=True) if ratio > 1.03]
    print(
        f"\n{len(ratios)} tables: ffn_jax takes {min(ratios):.2f} to {max(ratios):.2f} of the best peer's time, "
        f"median {statistics.median(ratios):.2f}; more than 1.03 in {len(behind)}"
    )
    for ratio, title in sorted(behind, reverse=True):
        print(f"  {ratio:.2f}  {title}")


def plot_bars(path: Path, tables: list[dict[str, Any]]) -> None:
    """Time relative to plain jnp, a group of bars per table."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(tables), 1, figsize=(8, 0.6 + 2.4 * len(tables)), squeeze=False)
    for axis, table in zip(axes[:, 0], tables, strict=True):
        rows = [row for row in table["rows"] if row["name"] != "torch eager"]
        colours = ["#d55e00" if row["name"].startswith("ffn_jax") else "#7f7f7f" for row in rows]
        axis.barh([row["name"] for row in rows], [row["ratio"] for row in rows], color=colours)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.set_title(table["title"], fontsize=8, loc="left")
        axis.tick_params(labelsize=7)
    axes[-1, 0].set_xlabel("time, relative to plain jnp", fontsize=8)
    _save(figure, path)


def plot_growth(path: Path, tables: list[dict[str, Any]]) -> None:
    """Time and temporary memory against tokens, both axes logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    tokens = [table["tokens"] for table in tables]
    for name in [row["name"] for row in tables[0]["rows"]]:
        rows = [next(row for row in table["rows"] if row["name"] == name) for table in tables]
        axes[0].loglog(tokens, [row["ms"] for row in rows], marker="o", label=name)
        axes[1].loglog(tokens, [row["temporary_mib"] for row in rows], marker="o", label=name)
    for axis, label in zip(axes, ("ms, forward + backward", "temporary memory, MiB"), strict=True):
        axis.set_xlabel("tokens")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    _save(figure, path)


def plot_grid(path: Path, tables: list[dict[str, Any]]) -> None:
    """The default against the best peer of each table, over tokens; a panel per dtype, a colour per activation."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    dtypes = sorted({table["dtype"] for table in tables}, reverse=True)
    figure, axes = plt.subplots(1, len(dtypes), figsize=(4.5 * len(dtypes), 3.6), squeeze=False, sharey=True)
    marks = dict(zip(sorted({table["d_model"] for table in tables}), "ov^sD", strict=False))
    colours = {"tanh": "#0072b2", "erf": "#d55e00", "swiglu": "#009e73"}
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        for kind, colour in colours.items():
            for d, mark in marks.items():
                case = {"dtype": dtype, "activation": kind, "d_model": d}
                mine = [table for table in tables if case.items() <= table.items()]
                ratios = [against_best_peer(table) for table in mine]
                tokens = [table["tokens"] for table in mine]
                axis.semilogx(tokens, ratios, mark, color=colour, label=f"{kind}, d {d}", markersize=4)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_title(dtype, fontsize=9)
        axis.set_xlabel("tokens")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("time / best JAX peer")
    axes[0, -1].legend(fontsize=6, ncols=3)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=130, facecolor="white")
    print(f"wrote {path.name}")
