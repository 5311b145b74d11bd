"""The tables: one sublayer beside its peers, a stack of layers in a scan, and growth with the number of tokens."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import ffn_jax as fj
from benchmarks import _peers
from benchmarks._peak import peak_mib
from benchmarks._timing import interleaved

MIB = 2.0**20
COMPILES = 3
Row = dict[str, Any]


def arguments(tokens: int, d: int, d_ff: int, kind: str, dtype: str, layers: tuple[int, ...] = ()) -> tuple[Any, ...]:
    """x, W1, b1, W2, b2 and a seed for y."""
    keys = jax.random.split(jax.random.key(0), 6)
    gate = (2,) if kind == "swiglu" else ()

    def normal(k: int, *shape: int, scale: float = 1.0) -> Any:
        return (scale * jax.random.normal(keys[k], shape, "float32")).astype(dtype)

    return (
        normal(0, tokens, d),
        normal(1, *layers, d, *gate, d_ff, scale=d**-0.5),
        normal(2, *layers, *gate, d_ff, scale=0.1),
        normal(3, *layers, d_ff, d, scale=d_ff**-0.5),
        normal(4, *layers, d, scale=0.1),
        normal(5, tokens, d),
    )


def step(apply: Callable[[Any, Any], Any], forward_only: bool) -> Any:
    """The jitted forward pass, or value and VJP in every argument."""
    if forward_only:
        return jax.jit(lambda x, params, ybar: apply(x, params))

    def both(x: Any, params: Any, ybar: Any) -> Any:
        y, pullback = jax.vjp(apply, x, params)
        return y, pullback(ybar)

    return jax.jit(both)


def sublayer(
    tokens: int, d: int, d_ff: int, kind: str, dtype: str, forward_only: bool, seconds: float, policies: bool = False
) -> Row:
    """One sublayer: every installed peer, and the bare matrix products, in one run."""
    args = arguments(tokens, d, d_ff, kind, dtype)
    x, params, ybar = args[0], args[1:5], args[5]
    calls, memory, compile_s = {}, {}, {}
    for peer in _peers.sublayer_peers(kind, params, policies):
        run, memory[peer.name], compile_s[peer.name] = _compiled(step(peer.apply, forward_only), x, peer.params, ybar)
        calls[peer.name] = run
    calls["bare products"] = _products(args, forward_only)
    torch_step = _peers.torch_step(kind, args, forward_only)
    if torch_step is not None:
        calls["torch eager"] = torch_step
    what = "forward" if forward_only else "forward + backward"
    work = {"tokens": tokens, "d_model": d, "d_ff": d_ff, "activation": kind, "dtype": dtype, "pass": what}
    named = title(tokens, d, d_ff, kind, dtype, forward_only)
    return _table(named, work, calls, memory, compile_s, seconds, min_rounds=5 if tokens < 8192 else 3)


def title(tokens: int, d: int, d_ff: int, kind: str, dtype: str, forward_only: bool) -> str:
    """What `sublayer` calls its table."""
    what = "forward" if forward_only else "forward + backward"
    return f"{what}, {tokens} tokens, d_model {d}, d_ff {d_ff}, {kind}, {dtype}"


def stack(layers: int, tokens: int, d: int, d_ff: int, kind: str, dtype: str, seconds: float) -> Row:
    """Layers in `lax.scan`: plain, each checkpoint policy, and this library by what it keeps."""
    args = arguments(tokens, d, d_ff, kind, dtype, (layers,))
    x, params, ybar = args[0], args[1:5], args[5]
    plain = _peers.plain(kind)
    variants = {"plain jnp": plain, _peers.AGAIN: plain}
    for name, policy in _peers.POLICIES.items():
        variants[name] = jax.checkpoint(plain, policy=policy)
    variants["ffn_jax"] = _peers.ours(kind)
    variants["ffn_jax, save=()"] = _peers.ours(kind, save=())
    variants["ffn_jax, save=(), chunks of 256"] = _peers.ours(kind, save=(), chunk_size=256)

    def scanned(apply: Any, x: Any, params: Any) -> Any:
        return lax.scan(lambda x, layer: (apply(x, layer), None), x, params)[0]

    calls, memory, compile_s = {}, {}, {}
    for name, apply in variants.items():
        run = _compiled(step(functools.partial(scanned, apply), False), x, params, ybar)
        calls[name], memory[name], compile_s[name] = run
    named = f"{layers} layers in lax.scan, {title(tokens, d, d_ff, kind, dtype, False)}"
    work = {"layers": layers, "tokens": tokens, "d_model": d, "d_ff": d_ff, "activation": kind, "dtype": dtype}
    return _table(named, work, calls, memory, compile_s, seconds)


def growth(tokens: tuple[int, ...], d: int, d_ff: int, seconds: float) -> Iterator[Row]:
    """Time and temporary memory against tokens: plain, the default, and x alone."""
    for count in tokens:
        args = arguments(count, d, d_ff, "tanh", "float32")
        x, params, ybar = args[0], args[1:5], args[5]
        calls, memory, compile_s = {}, {}, {}
        for name, apply in {
            "plain jnp": _peers.plain("tanh"),
            "ffn_jax": _peers.ours("tanh"),
            "ffn_jax, save=()": _peers.ours("tanh", save=()),
        }.items():
            calls[name], memory[name], compile_s[name] = _compiled(step(apply, False), x, params, ybar)
        work = {"tokens": count, "d_model": d, "d_ff": d_ff, "activation": "tanh", "dtype": "float32"}
        named = f"growth: {count} tokens, d_model {d}, d_ff {d_ff}, tanh"
        yield _table(named, work, calls, memory, compile_s, seconds, min_rounds=3)


def _compiled(fun: Any, *args: Any) -> tuple[Callable[[], Any], float, float]:
    """A call that waits for its result, temporary MiB, and the seconds that tracing and compiling take, a median."""
    took = []
    for _ in range(COMPILES):
        jax.clear_caches()
        start = time.perf_counter()
        compiled = fun.lower(*args).compile()
        took.append(time.perf_counter() - start)
    analysis = compiled.memory_analysis()
    return lambda: jax.block_until_ready(compiled(*args)), analysis.temp_size_in_bytes / MIB, statistics.median(took)


def _products(args: tuple[Any, ...], forward_only: bool) -> Callable[[], Any]:
    """The sublayer's matrix products and nothing else, each in its fast form: hardly to be beaten."""
    x, W1, _, W2, _, ybar = args
    W1 = W1.reshape(W1.shape[0], -1)
    z = jnp.ones((x.shape[0], W1.shape[1]), x.dtype)
    h = jnp.ones((x.shape[0], W2.shape[0]), x.dtype)
    keep = lax.optimization_barrier

    def forward(x: Any, W1: Any, W2: Any, z: Any, h: Any, ybar: Any) -> Any:
        return x @ W1, h @ W2

    def both(x: Any, W1: Any, W2: Any, z: Any, h: Any, ybar: Any) -> Any:
        return x @ W1, h @ W2, ybar @ W2.T, z @ W1.T, keep(x.T) @ z, keep(keep(ybar.T) @ h).T

    return _compiled(jax.jit(forward if forward_only else both), x, W1, W2, z, h, ybar)[0]


def _table(named: str, work: Row, calls: Any, memory: Any, compile_s: Any, seconds: float, min_rounds: int = 5) -> Row:
    for call in calls.values():
        call()
    peaks = {name: peak_mib(call) for name, call in calls.items()}
    times = interleaved(calls, seconds, named, min_rounds=min_rounds)
    base = times["plain jnp"].seconds
    rows = [
        {
            "name": name,
            "ratio": round(timing.seconds / base, 3),
            "ms": round(1e3 * timing.seconds, 3),
            "spread": round(timing.spread, 3),
            "least_ms": round(1e3 * timing.least, 3),
            "temporary_mib": round(memory[name], 2) if name in memory else None,
            "peak_mib": None if peaks[name] is None else round(peaks[name], 1),
            "compile_s": round(compile_s[name], 3) if name in compile_s else None,
        }
        for name, timing in times.items()
    ]
    return {"title": named, **work, "rounds": times["plain jnp"].rounds, "rows": rows}


def exact_gelu(elements: int, seconds: float) -> Row:
    """The exact GELU by erfc, as the library has it, and by erf: what accuracy in the negative tail costs."""
    z = jax.random.normal(jax.random.key(0), (elements,))
    density = (2 * math.pi) ** -0.5

    def by_erf(z: Any) -> Any:
        return z * (0.5 + 0.5 * lax.erf(math.sqrt(0.5) * z))

    def erf_pair(z: Any) -> Any:
        phi = 0.5 + 0.5 * lax.erf(math.sqrt(0.5) * z)
        return z * phi, phi + z * (density * jnp.exp(-0.5 * (z * z)))

    forms = {
        "plain jnp": lambda z: jax.nn.gelu(z, approximate=False),
        "by erfc (fj.gelu_exact)": fj.gelu_exact.value,
        "by erf": by_erf,
        "by erfc, with derivative": fj.gelu_exact.value_and_derivative,
        "by erf, with derivative": erf_pair,
    }
    calls = {name: _compiled(jax.jit(form), z)[0] for name, form in forms.items()}
    table = _table(f"exact GELU of {elements:,} numbers, float32", {"elements": elements}, calls, {}, {}, seconds)
    points = np.linspace(-6.0, 6.0, 24001, dtype="float32")
    truth = np.array([z * 0.5 * math.erfc(-z * math.sqrt(0.5)) for z in points.astype("float64")])
    for row in table["rows"]:
        value = jax.jit(forms[row["name"]])(jnp.asarray(points))
        error = np.abs(np.asarray(value[0] if isinstance(value, tuple) else value, "float64") - truth)
        row["largest_error"] = float(f"{error.max():.2e}")
        row["largest_relative_error"] = float(f"{np.max(error[truth != 0] / np.abs(truth[truth != 0])):.2e}")
    return table
