"""The benchmarks measure what they say: every peer computes the same sublayer, and every table holds every number."""

import sys

import jax
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import _peak, _peers, _report, _tables, _timing


@pytest.fixture(autouse=True)
def promotion_as_others_have_it(monkeypatch):
    monkeypatch.setattr(_tables, "COMPILES", 1)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # the other tests need them
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("kind", ["tanh", "erf", "swiglu"])
def test_every_peer_computes_the_same_sublayer(kind):
    args = _tables.arguments(6, 8, 16, kind, "float32")
    x, params, ybar = args[0], args[1:5], args[5]
    peers = list(_peers.sublayer_peers(kind, params, policies=True))
    results = {peer.name: _tables.step(peer.apply, False)(x, peer.params, ybar) for peer in peers}
    assert {"plain jnp", "plain jnp, again", "checkpoint, nothing saved", "ffn_jax", "ffn_jax, save=()"} <= set(results)
    assert kind == "swiglu" or {"flax linen", "flax nnx", "equinox"} <= set(results)
    y, (xbar, _) = results["plain jnp"]
    for name, (y_peer, (xbar_peer, params_bar)) in results.items():
        np.testing.assert_allclose(y_peer, y, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(xbar_peer, xbar, rtol=1e-5, atol=1e-5, err_msg=name)
        assert sum(leaf.size for leaf in jax.tree.leaves(params_bar)) == sum(p.size for p in params), name


@pytest.mark.parametrize("forward_only", [False, True])
def test_a_table_holds_every_number(forward_only, tmp_path, capsys):
    table = _tables.sublayer(6, 8, 16, "tanh", "bfloat16", forward_only, 0.0)
    rows = {row["name"]: row for row in table["rows"]}
    assert rows["plain jnp"]["ratio"] == 1.0
    assert {"jax.checkpoint", "ffn_jax, chunk_size='none'", "bare products"} <= set(rows)
    for name, row in rows.items():
        assert 0 < row["least_ms"] <= row["ms"]
        not_ours_to_analyse = name in ("bare products", "torch eager")
        assert (row["temporary_mib"] is None) == (row["compile_s"] is None) == not_ours_to_analyse
    file = tmp_path / "results" / "table.json"
    _report.write(file, [table])
    assert _report.measured_here(file) == [table]
    _report.print_table(table)
    assert table["title"] in capsys.readouterr().out


def test_a_stack_and_growth_have_the_same_rows(tmp_path):
    stack = _tables.stack(2, 6, 8, 16, "erf", "bfloat16", 0.0)
    assert {"plain jnp", *_peers.POLICIES, "ffn_jax", "ffn_jax, save=()"} <= {row["name"] for row in stack["rows"]}
    growth = list(_tables.growth((64, 128), 32, 128, 0.0))
    assert [table["tokens"] for table in growth] == [64, 128]
    for name, plot, tables in (("bars", _report.plot_bars, [stack]), ("growth", _report.plot_growth, growth)):
        plot(tmp_path / f"{name}.png", tables)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_peer_is_no_control_and_none_of_ours():
    ms = {"plain jnp": 4.0, "plain jnp, again": 1.0, "haiku": 2.0, "ffn_jax": 3.0, "ffn_jax, save=()": 1.0}
    ms |= {"bare products": 1.0, "torch eager": 1.0}
    assert _report.against_best_peer({"rows": [{"name": name, "ms": t} for name, t in ms.items()]}) == 1.5


def test_calls_take_turns():
    made = []
    calls = {name: lambda name=name: made.append(name) for name in "abc"}
    timings = _timing.interleaved(calls, 0.0, "title", min_rounds=5, max_rounds=7)
    assert {t.rounds for t in timings.values()} == {5}
    rounds = [made[k : k + 3] for k in range(0, len(made), 3)]
    assert len(rounds) == 6  # one to warm up
    assert {tuple(sorted(names)) for names in rounds} == {("a", "b", "c")}
    assert len({tuple(names) for names in rounds[1:]}) > 1  # and not always in one order


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process's peak")
def test_the_peak_counts_what_a_call_takes_and_nothing_from_before():
    def take(mib):
        return np.ones(mib * 2**20, "int8").sum()

    take(256)
    small, large = (_peak.peak_mib(lambda mib=mib: take(mib)) for mib in (16, 128))
    assert 12 < small < 64
    assert 120 < large < 176


def test_unknown_benchmarks_are_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit):
        command.main()
    assert "expected benchmarks out of sublayer, forward, stack, growth, exact_gelu, grid, got 'speed'" in (
        capsys.readouterr().err
    )
