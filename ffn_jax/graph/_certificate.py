"""What a graph's certificate says: one proof per node, and the theorem that follows by composition.

A node's proof is about its own function alone: for all values and parameters, the rule is the adjoint of the derivative
(`verify.prove_vjp`). By induction over the nodes in order, the derivative of the graph is the composition of theirs, so
backpropagation, which composes the adjoints in reverse order and sums where a value is read more than once, is the
adjoint of the graph's derivative, for seeds on every value. TorchLean: `backpropVec_eq_adjoint_fderiv`.
"""

import inspect
import json
import string
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import export

from ffn_jax._checks import is_inexact
from ffn_jax.graph._graph import ruled
from ffn_jax.graph._nodes import Op

if TYPE_CHECKING:
    from ffn_jax.graph._graph import Graph
    from ffn_jax.verify.symbolic import Verdict

EVERY_SIZE, THESE_SIZES = "all sizes", "these sizes"


@dataclass(frozen=True)
class NodeVerdict:
    """What is known of one node.

    Attributes:
      name: the value that it adds.
      node: what it is and what it reads.
      verdict: "PROVED", "REFUTED" or "UNDECIDED".
      sizes: what the proof covers: "all sizes", or "these sizes" of this graph.
      same_as: the earlier node whose proof this is, for equal nodes are proved once; or None.
      proof: what `prove_vjp` answered.
    """

    name: str
    node: str
    verdict: str
    sizes: str
    same_as: str | None
    proof: "Verdict" = field(repr=False)


@dataclass(frozen=True)
class GraphCertificate:
    """The verdicts of all nodes and what they prove together; prints as a table.

    Attributes:
      graph: the graph as text.
      nodes: one verdict for each node, in order.
      seconds: time taken.
    """

    graph: str
    nodes: tuple[NodeVerdict, ...]
    seconds: float

    @property
    def verdict(self) -> str:
        """The worst of the nodes': "REFUTED" if a rule is wrong, else "UNDECIDED", else "PROVED"."""
        said = {node.verdict for node in self.nodes}
        return next((v for v in ("REFUTED", "UNDECIDED") if v in said), "PROVED")

    @property
    def proved(self) -> bool:
        """Whether every node is proved, and with it the graph."""
        return self.verdict == "PROVED"

    @property
    def unproved(self) -> tuple[str, ...]:
        """The names of the nodes that are not proved."""
        return tuple(node.name for node in self.nodes if node.verdict != "PROVED")

    @property
    def theorem(self) -> str:
        """The end-to-end statement."""
        return (
            "for all inputs, parameters, and seeds on every input and on every tape entry, graph.backprop is the\n"
            "    adjoint of the derivative of graph.evaluate, by composition of the nodes' proofs in order"
        )

    def to_json(self) -> str:
        """Everything that is printed, as JSON."""
        nodes = [{k: v for k, v in vars(node).items() if k != "proof"} for node in self.nodes]
        proofs = {node.name: json.loads(node.proof.to_json()) for node in self.nodes if node.same_as is None}
        data = {"verdict": self.verdict, **{k: v for k, v in vars(self).items() if k != "nodes"}}
        return json.dumps({**data, "theorem": self.theorem, "nodes": nodes, "proofs": proofs}, indent=2)

    def __str__(self) -> str:
        if self.proved:
            lines = [f"PROVED in {self.seconds:.2f} s: {self.theorem}"]
        else:
            lines = [
                f"{self.verdict} after {self.seconds:.2f} s: not proved is that {self.theorem};\n"
                f"    open: {', '.join(self.unproved)}"
            ]
        rows = [(n.name, n.node, n.verdict, n.sizes, f"as {n.same_as}" if n.same_as else "") for n in self.nodes]
        widths = [max((len(row[k]) for row in rows), default=0) for k in range(5)]
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        for node in self.nodes:
            if node.same_as is not None:
                continue
            lines += [f"  {node.name}: assumes {c}" for c in getattr(node.proof, "side_conditions", ())]
            if node.verdict != "PROVED":
                reason = getattr(node.proof, "reason", "") or str(node.proof).splitlines()[0]
                lines.append(f"  {node.name}: {node.verdict}: {reason}")
        return "\n".join(lines)


def certify(graph: "Graph", inputs: Mapping[str, Any], max_seconds: float) -> GraphCertificate:
    """See `Graph.certify`."""
    started = time.monotonic()
    tape = jax.eval_shape(graph.evaluate, {name: _shape(value) for name, value in inputs.items()})
    known: dict[Any, NodeVerdict] = {}
    verdicts = []
    for entry in graph.entries:
        # In float64: over the reals the dtype is all one, but literals are read as the reals that they stand for, and
        # those of a float32 program have been rounded too much to be recognised.
        arguments = jax.tree.map(_wide_shape, (entry.node.params, tuple(tape[read] for read in entry.reads)))
        general = _symbolic(arguments)
        text = f"{entry.node}({', '.join(entry.reads)})"
        theorems = [(entry.node.op, jax.tree.structure(a), str(jax.tree.leaves(a))) for a in (general, arguments)]
        earlier = next((known[theorem] for theorem in theorems if theorem in known), None)
        if earlier is not None:
            verdicts.append(NodeVerdict(entry.name, text, earlier.verdict, earlier.sizes, earlier.name, earlier.proof))
            continue
        proof, sizes = _attempt(entry.node.op, general, max_seconds), EVERY_SIZE
        if proof is None or not proof.proved:  # sizes may be tied to each other: try those of this graph
            proof, sizes = _attempt(entry.node.op, arguments, max_seconds), THESE_SIZES
        assert proof is not None
        verdicts.append(NodeVerdict(entry.name, text, proof.verdict, sizes, None, proof))
        known[theorems[0 if sizes == EVERY_SIZE else 1]] = verdicts[-1]
    return GraphCertificate(repr(graph), tuple(verdicts), time.monotonic() - started)


def _attempt(op: Op, arguments: Any, max_seconds: float) -> "Verdict | None":
    """The proof of one node; None where it does not take these symbolic shapes."""
    from ffn_jax.verify.symbolic import prove_vjp

    fun, reference, specs = _theorem(op, *arguments)
    try:
        return prove_vjp(fun, reference, *specs, max_seconds=max_seconds)
    except Exception:
        if any(not isinstance(n, int) for leaf in jax.tree.leaves(arguments) for n in leaf.shape):
            return None
        raise


def _theorem(op: Op, params: Any, values: tuple[Any, ...]) -> tuple[Any, Any, tuple[Any, ...]]:
    """The function with the node's rule, the same in plain JAX, and their arguments."""
    if op.lemma is not None:
        lemma: tuple[Any, Any, tuple[Any, ...]] = op.lemma(*op.options, params, values)
        return lemma

    def fun(params: Any, *values: Any) -> Any:
        return ruled(op, params, values) if op.vjp else op.forward(*op.options, params, *values)

    def reference(params: Any, *values: Any) -> Any:
        return (op.reference or op.forward)(*op.options, params, *values)

    _name(fun, op.name, len(values))
    _name(reference, f"{op.name} as plain JAX", len(values))
    return fun, reference, (params, *values)


def _shape(value: Any) -> Any:
    return jax.ShapeDtypeStruct(jnp.shape(value), jnp.result_type(value))


def _wide_shape(value: Any) -> Any:
    shape = _shape(value)
    return jax.ShapeDtypeStruct(shape.shape, jnp.dtype("float64")) if is_inexact(value) else shape


def _name(f: Any, name: str, values: int) -> None:
    """What the certificate calls a node's function and its arguments: θ and the values v, w, ..."""
    letters = ["theta", *("vwpqrst"[:values] if values <= 7 else (f"v{k}" for k in range(values)))]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    f.__name__, f.__signature__ = name, inspect.Signature([inspect.Parameter(letter, kind) for letter in letters])


def _symbolic(arguments: Any) -> Any:
    """The same shapes with a symbol for each size greater than 1, equal sizes by the same."""
    sizes = list(dict.fromkeys(n for leaf in jax.tree.leaves(arguments) for n in leaf.shape if n != 1))
    names = [string.ascii_lowercase[k] if k < 26 else f"n{k}" for k in range(len(sizes))]
    scope = export.SymbolicScope()
    symbols = dict(zip(sizes, export.symbolic_shape(",".join(names), scope=scope) if names else (), strict=True))

    def general(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(tuple(symbols.get(n, n) for n in leaf.shape), leaf.dtype)

    return jax.tree.map(general, arguments)
