"""The README is true: its code runs, its numbers are those of committed results, its files exist."""

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks._peers import AGAIN
from benchmarks._report import against_best_peer, is_peer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_code_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    subprocess.run([sys.executable, "-W", "error", "-c", "\n".join(blocks)], check=True, cwd=ROOT)


def test_saved_bytes_are_those_of_the_committed_job():
    job = json.loads((ROOT / "benchmarks" / "results" / "minilm_job.json").read_text())
    (saved,) = {tuple(row["saved_bytes_per_token"].values()) for row in job["layers"]}
    table = re.findall(r"^\| (?:`save=|plain autodiff).*\| ([\d,]+) \|$", README, re.MULTILINE)
    assert [int(n.replace(",", "")) for n in table] == list(saved)


def benchmark_rows():
    """The README's benchmark table, from the committed results."""
    for name in ("sublayer", "forward", "stack", "growth"):
        for table in json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["tables"]:
            rows = {row["name"]: row for row in table["rows"]}
            own, plain = rows["ffn_jax"], rows["plain jnp"]
            peers = [r["ratio"] for r in rows.values() if is_peer(r["name"])]
            memory, peak = (
                " / ".join(f"{row[key]:.0f}" for row in (own, rows["ffn_jax, save=()"], plain))
                for key in ("temporary_mib", "peak_mib")
            )
            products = f"{rows['bare products']['ratio']:.2f}" if "bare products" in rows else ""
            title = table["title"].replace(", float32", "").replace("growth: ", "forward + backward, ")
            yield f"| {title} | {own['ratio']:.2f} | {min(peers):.2f} | {products} | {memory} | {peak} |"


def test_benchmark_table_is_that_of_the_committed_results():
    assert [row for row in benchmark_rows() if row not in README] == []


def grid_numbers():
    """What the README says of the grid, from the committed results: against the best JAX peer of each table."""
    tables = json.loads((ROOT / "benchmarks" / "results" / "grid.json").read_text())["tables"]
    yield f"{len(tables)} tables"
    for dtype in ("float32", "bfloat16"):
        for low, high in ((1, 8), (128, 512), (2048, 2048), (8192, 16384)):
            some = [against_best_peer(t) for t in tables if t["dtype"] == dtype and low <= t["tokens"] <= high]
            tokens = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            yield f"| {dtype}, {tokens} tokens | {min(some):.2f} | {statistics.median(some):.2f} | {max(some):.2f} |"
    yield f"In {sum(against_best_peer(t) > 1.03 for t in tables)} of them"
    twice = [abs(row["ratio"] - 1) for table in tables for row in table["rows"] if row["name"] == AGAIN]
    yield f"by {statistics.median(twice):.0%} in the median and {max(twice):.0%} at most"


def test_grid_numbers_are_those_of_the_committed_results():
    assert [number for number in grid_numbers() if number not in README] == []


def test_files_of_the_architecture_exist():
    listing = README.split("## How it is made")[1]
    names = re.findall(r"^      (\S+)  ", listing, re.MULTILINE)
    assert len(names) >= 8
    assert all((ROOT / "ffn_jax" / name).exists() for name in names), names


def test_the_test_command_is_what_ci_runs():
    assert "bash .ci/test" in README
    assert "bash .ci/test" in (ROOT / ".ci" / "run").read_text()
