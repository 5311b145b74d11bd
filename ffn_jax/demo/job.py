"""The main job: real tokens through MiniLM's feed-forward sublayers, every gradient checked, everything measured.

For each sublayer, with the post-norm output of one feeding the next:

- `ffn_residual`'s gradient in every argument, for a random seed and every `save`, jitted, in float64 and in
  float32, is compared with `jax.linear_transpose` of `jax.jvp` of `ffn_residual_reference` in float64; the tolerance
  is `rounding`'s bound for the one plus that for the other, entry by entry;
- what the backward pass keeps is read off the residuals of `jax.vjp`: their bytes at 2 N tokens less those at N, over
  N, which leaves the parameters out;
- forward, and forward with backward, are timed in float32 with the default `save`.

Beside it stands what the sublayers are for: the whole encoder's similarity of each sentence to each.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ffn_jax as fj
from ffn_jax.demo import embed, rounding, terminal
from ffn_jax.models import minilm

if TYPE_CHECKING:
    from jax import Array

SENTENCES = (
    "The feed-forward sublayer acts on each token alone, with the same weights.",
    "Backpropagation computes the adjoint of the derivative.",
    "A quick brown fox jumps over the lazy dog near the river bank.",
    "Wie schnell lernt ein Netz, das sich an alles erinnert?",
)
SAVES = ((), ("hidden_pre",), ("hidden_pre", "hidden_act"))
DEFAULT_SAVE = ("hidden_pre",)
PRECISIONS = ("float64", "float32")
ARGUMENTS = rounding.ARGUMENTS


class GradientError(NamedTuple):
    """How far the rule's gradient in one argument is from the transpose of the jvp, at its worst over every `save`.

    Attributes:
      relative: the largest error of an entry, over the gradient's largest entry.
      of_tolerance: the largest error of an entry, over that entry's tolerance; at most 1 where all is well.
    """

    relative: float
    of_tolerance: float


class Row(NamedTuple):
    """What the job finds out about one sublayer.

    Attributes:
      layer: its number, from 0.
      output_norm: the Frobenius norm of y over all tokens, float32.
      errors: by precision, by argument.
      saved_bytes_per_token: by `save`, and of plain autodiff of the reference.
      forward_ms: one call of the jitted forward.
      forward_backward_ms: one call of the jitted forward and the gradient in every argument.
    """

    layer: int
    output_norm: float
    errors: dict[str, dict[str, GradientError]]
    saved_bytes_per_token: dict[str, int]
    forward_ms: float
    forward_backward_ms: float

    @property
    def ok(self) -> bool:
        """Whether every error is within its tolerance; NaN is not."""
        every = (error for by_argument in self.errors.values() for error in by_argument.values())
        return bool(np.isfinite(self.output_norm)) and all(error.of_tolerance <= 1 for error in every)

    def worst(self, precision: str) -> tuple[str, float, float]:
        """The argument with the largest relative error, that error, and the largest part of a tolerance used."""
        errors = self.errors[precision]
        name = max(errors, key=lambda argument: _nan_last(errors[argument].relative))
        return name, errors[name].relative, max((e.of_tolerance for e in errors.values()), key=_nan_last)


class Report(NamedTuple):
    """What is printed.

    Attributes:
      checkpoint: the model.
      sentences: the sentences.
      embeddings: one vector of length 1 each, by the whole encoder.
      tokens: how many tokens the sublayers were run on.
      rows: one of each sublayer.
    """

    checkpoint: minilm.Checkpoint
    sentences: Sequence[str]
    embeddings: np.ndarray
    tokens: int
    rows: list[Row]

    @property
    def ok(self) -> bool:
        """Whether every gradient is within its tolerance."""
        return all(row.ok for row in self.rows)


def main(argv: Sequence[str]) -> int:
    """Runs the job and prints its table, or JSON; returns 0, or 1 where a gradient is out of tolerance."""
    options = _parser().parse_args(argv)
    checkpoint = _checkpoint(options.synthetic)
    sentences = options.text or list(SENTENCES)
    try:
        x, embeddings = minilm.embed_tokens(checkpoint, sentences), np.asarray(minilm.embed(checkpoint, sentences))
    except ValueError as error:
        print(f"ffn_jax: {error}", file=sys.stderr)
        return 2
    if options.tokens:
        x = x[jnp.arange(options.tokens) % len(x)]
    report = Report(checkpoint, sentences, embeddings, len(x), run(minilm.sublayers(checkpoint), x))
    print(json.dumps(_as_json(report), indent=2, allow_nan=False) if options.json else _as_text(report))
    return 0 if report.ok else 1


def run(sublayers: Sequence[minilm.Sublayer], x: "Array") -> list[Row]:
    """Checks and measures the sublayers one after another on the tokens `x: (N, d_model)`, float32.

    Raises:
      ValueError: an activation is not `gelu_exact`, for which alone `rounding` has a bound.
    """
    for activation in (sublayer.ff.activation for sublayer in sublayers):
        if activation is not fj.gelu_exact:
            raise ValueError(f"run: expected sublayers with gelu_exact, got {activation}")
    kernels = _kernels(sublayers[0].ff.activation)
    rows = []
    with terminal.Progress(4 * len(sublayers)) as progress:
        for layer, (ff, norm) in enumerate(sublayers):

            def say(doing: str, layer: int = layer) -> None:
                progress(f"layer {layer + 1} of {len(sublayers)}: {doing}")

            with jax.enable_x64(False):
                say("forward")
                args = (x, *ff[:4])
                y = kernels.forward(*args)
                ybar = jax.random.normal(jax.random.key(layer), x.shape, "float32")
            errors = {precision: _errors(kernels, args, ybar, precision, say) for precision in PRECISIONS}
            with jax.enable_x64(False):
                say("bytes and times")
                row = Row(
                    layer,
                    float(np.linalg.norm(np.asarray(y, "float64"))),
                    errors,
                    {name: saved_bytes_per_token(f, args) for name, f in kernels.functions.items()},
                    _milliseconds(kernels.forward, *args),
                    _milliseconds(kernels.gradients[_name(DEFAULT_SAVE)], args, ybar),
                )
                rows.append(row)
                x = kernels.post_norm(norm, y)
    return rows


# ------------------------------------------------------------------------------------- what is computed


class _Kernels(NamedTuple):
    """The jitted functions, made once so that layers of equal shapes compile once."""

    functions: dict[str, Callable[..., Any]]  # the sublayer with each save, and its reference; not jitted
    gradients: dict[str, Callable[..., Any]]  # (args, ȳ) -> y and the rule's gradients, for each save
    transpose: Callable[..., Any]  # (args, ȳ) -> linear_transpose(jvp(reference))(ȳ)
    forward: Callable[..., Any]
    post_norm: Callable[..., Any]


def _name(save: Sequence[str]) -> str:
    return "+".join(save) or "x alone"


def _kernels(activation: fj.Activation) -> _Kernels:
    def sublayer(save: tuple[str, ...]) -> Callable[..., Any]:
        return lambda *args: fj.ffn_residual(*args, activation=activation, save=save)

    def reference(*args: Any) -> "Array":
        return fj.ffn_residual_reference(*args, activation=activation)

    def gradients(f: Callable[..., Any]) -> Callable[..., Any]:
        def y_and_bars(args: Any, ybar: "Array") -> Any:
            y, pullback = jax.vjp(f, *args)
            return y, pullback(ybar)

        return jax.jit(y_and_bars)

    def transpose(args: Any, ybar: "Array") -> Any:
        return jax.linear_transpose(lambda *tangents: jax.jvp(reference, args, tangents)[1], *args)(ybar)

    functions = {_name(save): sublayer(save) for save in SAVES}
    return _Kernels(
        functions={**functions, "autodiff": reference},
        gradients={name: gradients(f) for name, f in functions.items()},
        transpose=jax.jit(transpose),
        forward=jax.jit(functions[_name(DEFAULT_SAVE)]),
        post_norm=jax.jit(lambda norm, y: norm(y)),
    )


def _errors(
    kernels: _Kernels, args: Any, ybar: "Array", precision: str, say: Callable[[str], None]
) -> dict[str, GradientError]:
    """The rule in `precision` against the transpose of the jvp in float64, on the same numbers."""
    say(f"gradients in {precision}")
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), (args, ybar))
        expected = _by_argument(kernels.transpose(*exact))
        values = _by_argument(exact[0])
        double = precision == "float64"
        with jax.enable_x64(double):  # float32 as it is without x64, which is how users run it
            inputs = exact if double else (args, ybar)
            got = [_by_argument(gradient(*inputs)[1]) for gradient in kernels.gradients.values()]
    x, m1, b1, m2, b2 = (values[name] for name in ARGUMENTS)
    seed = np.asarray(ybar, "float64")
    bounds = [rounding.gradient_bounds(x, m1, b1, m2, b2, seed, of) for of in (precision, "float64")]
    return {
        name: _error([g[name] for g in got], expected[name], bounds[0][name] + bounds[1][name]) for name in ARGUMENTS
    }


def _by_argument(args: Any) -> dict[str, np.ndarray]:
    """Arrays by argument name, in float64; maps as their matrices `(out, in)`, which is how their weights lie."""
    x, A1, b1, A2, b2 = args
    arrays = (x, A1.as_matrix(), b1, A2.as_matrix(), b2)
    return {name: np.asarray(array, "float64") for name, array in zip(ARGUMENTS, arrays, strict=True)}


def _error(got: Sequence[np.ndarray], expected: np.ndarray, tolerance: np.ndarray) -> GradientError:
    worst = np.max([np.abs(g - expected) for g in got], 0)
    of_tolerance = np.divide(worst, tolerance, out=np.where(worst > 0, np.inf, worst), where=tolerance > 0)
    return GradientError(float(worst.max() / np.abs(expected).max()), float(of_tolerance.max()))


def saved_bytes_per_token(f: Callable[..., Any], args: Any) -> int:
    """What `jax.vjp(f, *args)` keeps for each token of args[0]: measured at N and 2 N tokens, parameters left out.

    >>> import jax.numpy as jnp
    >>> saved_bytes_per_token(lambda x: jnp.sin(x), (jnp.ones((3, 5), "float32"),))
    20
    """
    x, *parameters = args

    def kept(tokens: int) -> int:
        some = jax.ShapeDtypeStruct((tokens, *x.shape[1:]), x.dtype)
        residuals = jax.eval_shape(lambda *args: jax.vjp(f, *args)[1], some, *parameters)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))

    n = max(len(x), 1)
    return (kept(2 * n) - kept(n)) // n


def _milliseconds(f: Callable[..., Any], *args: Any, seconds: float = 0.15) -> float:
    """The median time of a call, over at least 5 calls and about `seconds`."""
    jax.block_until_ready(f(*args))
    times: list[float] = []
    while len(times) < 5 or (sum(times) < seconds and len(times) < 200):
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


# ------------------------------------------------------------------------------------- what is printed


def _as_text(report: Report) -> str:
    checkpoint, sentences, embeddings, tokens, rows = report
    d_model, d_ff = _sizes(checkpoint)
    groups = [("", 2), ("largest gradient error", 2), ("saved bytes per token", 4), ("milliseconds", 2), ("", 1)]
    head = ("layer", "output norm", *PRECISIONS, "x", "x, z", "x, z, h", "autodiff", "forward", "+ backward", "")
    body = [
        (
            str(row.layer),
            f"{row.output_norm:.2f}",
            *(_error_text(*row.worst(precision)) for precision in PRECISIONS),
            *(f"{count:,}" for count in row.saved_bytes_per_token.values()),
            f"{row.forward_ms:.2f}",
            f"{row.forward_backward_ms:.2f}",
            "OK" if row.ok else "FAIL",
        )
        for row in rows
    ]
    lines = [
        f"ffn_jax {fj.__version__} on jax {jax.__version__}, {jax.default_backend()}: {checkpoint.name}",
        f"{_count(len(rows), 'sublayer')} y = x + A2 gelu(A1 x + b1) + b2, d_model {d_model}, d_ff {d_ff}, exact GELU; "
        f"{_count(tokens, 'token')} of {_count(len(sentences), 'sentence')}",
        "",
        terminal.table([head, *body], left=(2, 3, 10), groups=groups),
        "",
        "error      the rule, jitted, in each precision against linear_transpose of jvp of the reference in float64:",
        "           the largest of an entry over the gradient's largest, in the argument named; in brackets, the",
        "           largest part of an entry's tolerance that is used, over x, A1, b1, A2, b2 and every save",
        "tolerance  both sides' a-priori rounding bounds, entry by entry (ffn_jax.demo.rounding):",
        f"           gamma_k = ku/(1 - ku) for sums of k <= {max(d_ff + 1, tokens)} terms, u = 2^-53 and 2^-24",
        "saved      by the residuals of jax.vjp in float32, parameters left out: x for save=(), x and z = hidden_pre",
        "           by default, h = hidden_act too if asked for; autodiff is jax.vjp of the reference",
        "",
        "cosine similarity of the sentences, by the whole encoder:",
        "",
        embed.matrix(sentences, embeddings),
        "",
        "OK: every gradient is within its tolerance" if report.ok else "FAIL: a gradient is out of its tolerance",
    ]
    return "\n".join(lines)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _error_text(name: str, relative: float, of_tolerance: float) -> str:
    return f"{relative:.1e} {name:<2} ({100 * of_tolerance:.1g}%)"


def _as_json(report: Report) -> dict[str, Any]:
    checkpoint, sentences, embeddings, tokens, rows = report
    d_model, d_ff = _sizes(checkpoint)
    return {
        "ffn_jax": fj.__version__,
        "jax": jax.__version__,
        "platform": jax.default_backend(),
        "model": checkpoint.name,
        "d_model": d_model,
        "d_ff": d_ff,
        "sentences": list(sentences),
        "similarity": [[_number(s) for s in row] for row in embed.similarity(embeddings).tolist()],
        "tokens": tokens,
        "ok": report.ok,
        "layers": [
            {
                "layer": row.layer,
                "ok": row.ok,
                "output_norm": _number(row.output_norm),
                "largest_error": {p: row.worst(p)[0] for p in PRECISIONS},
                "errors": {
                    precision: {
                        name: {"relative": _number(error.relative), "of_tolerance": _number(error.of_tolerance)}
                        for name, error in errors.items()
                    }
                    for precision, errors in row.errors.items()
                },
                "saved_bytes_per_token": row.saved_bytes_per_token,
                "forward_ms": row.forward_ms,
                "forward_backward_ms": row.forward_backward_ms,
            }
            for row in rows
        ],
    }


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if np.isfinite(value) else None


def _nan_last(value: float) -> float:
    return float("inf") if np.isnan(value) else value


def _sizes(checkpoint: minilm.Checkpoint) -> tuple[int, int]:
    d_ff, d_model = checkpoint.weights["encoder.layer.0.intermediate.dense.weight"].shape
    return d_model, d_ff


# ------------------------------------------------------------------------------------- what is asked for


def _checkpoint(synthetic: bool) -> minilm.Checkpoint:
    if not synthetic:
        try:
            return minilm.load()
        except ModuleNotFoundError as error:
            print(f"ffn_jax: {error}\nUntil then, a synthetic sublayer stands in.\n", file=sys.stderr)
    return minilm.synthetic()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ffn_jax",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run the feed-forward sublayers of the MiniLM encoder on real tokens, check every gradient\n"
        "against the transpose of the jvp, and measure what each choice of `save` keeps.\n"
        "Exit code 1: a check failed.",
        epilog=f"The real weights come with:\n    {minilm.HOW_TO_GET}",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON, for programs")
    parser.add_argument("--text", action="append", metavar="SENTENCE", help="a sentence of yours; may be repeated")
    parser.add_argument("--tokens", type=_positive, metavar="N", help="cut or repeat the sentences to N tokens")
    parser.add_argument("--synthetic", action="store_true", help="seeded random weights, even where MiniLM is there")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number of tokens, got {text!r}")
    return int(text)
