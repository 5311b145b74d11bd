"""`Graph`: evaluation, forward mode and backpropagation over named values; the equations stand in the package's top."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffn_jax._checks import is_array, is_inexact, shown
from ffn_jax._pytree import pytree_dataclass, static
from ffn_jax.graph._nodes import Node, Op
from ffn_jax.maps._base import cast_like

if TYPE_CHECKING:
    from jax import Array

    from ffn_jax.graph._certificate import GraphCertificate

Tape = dict[str, "Array"]


class Cotangents(NamedTuple):
    """What `backprop` returns.

    Attributes:
      inputs: the cotangent of each input, by its name.
      params: the cotangents of each node's parameters, by the node's name, in their structure.
    """

    inputs: Tape
    params: dict[str, Any]


@pytree_dataclass
class Entry:
    """A node in its place: the value that it adds, and the values that it reads."""

    node: Node
    name: str = static(default="")
    reads: tuple[str, ...] = static(default=())

    def __repr__(self) -> str:
        return f"{self.name} = {self.node}({', '.join(self.reads)})"


@jax.tree_util.register_pytree_node_class
class Graph:
    """An immutable graph on named inputs; a pytree whose leaves are the parameters of its nodes.

    Args:
      *inputs: the names of the inputs.

    Raises:
      TypeError, ValueError: a name is no string, empty, or given twice.

    >>> import jax, jax.numpy as jnp, ffn_jax as fj
    >>> from ffn_jax import graph as G
    >>> graph = (
    ...     G.Graph("x")
    ...     .add("z", G.affine(fj.Dense(2.0 * jnp.eye(2))), "x")
    ...     .add("h", G.elementwise(fj.relu), "z")
    ...     .add("y", G.mul(), "x", "h")
    ... )
    >>> inputs = {"x": jnp.ones(2)}
    >>> graph.evaluate(inputs)["y"].tolist()
    [2.0, 2.0]
    >>> graph.backprop(inputs, {"y": jnp.ones(2), "z": jnp.ones(2)}).inputs["x"].tolist()
    [6.0, 6.0]
    """

    inputs: tuple[str, ...]
    entries: tuple[Entry, ...]

    def __init__(self, *inputs: str) -> None:
        object.__setattr__(self, "inputs", _distinct(inputs, (), "Graph"))
        object.__setattr__(self, "entries", ())

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Graph is immutable: cannot set {name!r}; add and append return a new graph")

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """Its entries, and its inputs' names."""
        return (self.entries,), self.inputs

    @classmethod
    def tree_unflatten(cls, inputs: tuple[str, ...], children: tuple[Any, ...]) -> "Graph":
        """The inverse of `tree_flatten`."""
        return cls._of(inputs, children[0])

    @classmethod
    def _of(cls, inputs: tuple[str, ...], entries: tuple[Entry, ...]) -> "Graph":
        graph = object.__new__(cls)
        object.__setattr__(graph, "inputs", inputs)
        object.__setattr__(graph, "entries", entries)
        return graph

    @property
    def names(self) -> tuple[str, ...]:
        """All values in order: the inputs, then one per node."""
        return (*self.inputs, *(entry.name for entry in self.entries))

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of each node, by its name."""
        return {entry.name: entry.node.params for entry in self.entries}

    def __repr__(self) -> str:
        return "\n".join([f"Graph({', '.join(self.inputs)})", *(f"  {entry}" for entry in self.entries)])

    # --------------------------------------------------------------------------------- making graphs

    def add(self, name: str, node: Node, *reads: str) -> "Graph":
        """This graph with one more node, which adds the value `name` from the values `reads`.

        Raises:
          TypeError, ValueError: the name is taken, a value read is not there, or their number is not the node's.
        """
        _distinct((name,), self.names, "graph.add")
        if not isinstance(node, Node):
            raise TypeError(f"graph.add: expected node {name!r} to be a node such as affine(A, b), got {shown(node)}")
        for read in reads:
            if read not in self.names:
                raise ValueError(
                    f"graph.add: node {name!r} reads {read!r}, expected an earlier value: {_list(self.names)}"
                )
        if node.op.arity not in (None, len(reads)):
            raise ValueError(
                f"graph.add: expected node {name!r} ({node}) to read {node.op.arity} value(s), got {len(reads)}"
            )
        return self._of(self.inputs, (*self.entries, Entry(node, name, tuple(reads))))

    def append(self, other: "Graph") -> "Graph":
        """This graph followed by the nodes of another, whose inputs are values of this one, by their names.

        Raises:
          TypeError, ValueError: an input of `other` is no value of this graph, or a name of its nodes is taken.
        """
        if not isinstance(other, Graph):
            raise TypeError(f"graph.append: expected a Graph, got {shown(other)}")
        missing = [name for name in other.inputs if name not in self.names]
        if missing:
            raise ValueError(
                f"graph.append: expected the inputs of the appended graph to be values of this one "
                f"({_list(self.names)}), got {_list(missing)}; weaken(...) adds inputs"
            )
        _distinct((entry.name for entry in other.entries), self.names, "graph.append")
        return self._of(self.inputs, (*self.entries, *other.entries))

    def weaken(self, extra_inputs: Iterable[str]) -> "Graph":
        """The same nodes on a larger context: the extra inputs are carried along, with zero cotangents unless seeded.

        Raises:
          TypeError, ValueError: a name is no string, or taken.
        """
        extra = (extra_inputs,) if isinstance(extra_inputs, str) else tuple(extra_inputs)
        return self._of((*self.inputs, *_distinct(extra, self.names, "graph.weaken")), self.entries)

    # --------------------------------------------------------------------------------- running them

    def evaluate(self, inputs: "Mapping[str, Array]") -> Tape:
        """All values by their names, inputs first, nodes in order.

        `jax.grad` and `jax.vjp` of it go through the nodes' rules; for forward mode use `jvp`.

        Raises:
          TypeError, ValueError: an input is missing, unknown or no array, or a node does not take its values.
        """
        tape = self._context(inputs, "evaluate")
        for entry in self.entries:
            tape[entry.name] = _forward(entry, entry.node.params, [tape[read] for read in entry.reads])
        return tape

    def jvp(
        self,
        inputs: "Mapping[str, Array]",
        tangents: "Mapping[str, Array]",
        params_tangents: Mapping[str, Any] | None = None,
    ) -> tuple[Tape, Tape]:
        """All values, and their derivatives along `tangents` of the inputs and of the nodes' parameters.

        A tangent left out is zero.

        Raises:
          TypeError, ValueError: as `evaluate`; a tangent has an unknown name or not its value's shape and dtype.
        """
        tape = self._context(inputs, "jvp")
        _known(tangents, self.inputs, "graph.jvp", "tangents", "inputs")
        params_tangents = {} if params_tangents is None else params_tangents
        _known(params_tangents, self.params, "graph.jvp", "params_tangents", "nodes")
        for name, tangent in tangents.items():
            _fits(tangent, tape[name], f"graph.jvp: expected the tangent of {name!r}")
        dots = {name: tangents.get(name, _zeros(tape[name])) for name in self.inputs}
        for entry in self.entries:
            params, values = entry.node.params, [tape[read] for read in entry.reads]
            theta_dot = params_tangents.get(entry.name, jax.tree.map(_zeros, params))
            value_dots = [dots[read] for read in entry.reads]
            f = partial(_forward, entry, undecorated=True)
            tape[entry.name], dots[entry.name] = jax.jvp(f, (params, values), (theta_dot, value_dots))
        return tape, dots

    def backprop(self, inputs: "Mapping[str, Array]", seeds: "Mapping[str, Array]") -> Cotangents:
        """The cotangents of inputs and parameters for seeds on any values, inputs and intermediate ones included.

        A seed left out is zero.

        Raises:
          TypeError, ValueError: as `evaluate`; there is no seed, or one has an unknown name or not its value's shape
            and dtype.
        """
        tape = self.evaluate(inputs)
        _known(seeds, self.names, "graph.backprop", "seeds", "values")
        if not seeds:
            raise ValueError(f"graph.backprop: expected a seed on at least one of {_list(self.names)}, got none")
        for name, seed in seeds.items():
            _fits(seed, tape[name], f"graph.backprop: expected the seed of {name!r}")
        bars: dict[str, Any] = dict(seeds)
        params_bars = {}
        for entry in reversed(self.entries):
            params, values = entry.node.params, tuple(tape[read] for read in entry.reads)
            if entry.name not in bars:
                params_bars[entry.name] = jax.tree.map(_zeros, params)
                continue
            params_bars[entry.name], value_bars = pull_back(entry, params, values, bars.pop(entry.name))
            for read, value, bar in zip(entry.reads, values, value_bars, strict=True):
                if is_inexact(value):
                    bars[read] = bars[read] + bar if read in bars else bar
        input_bars = {name: bars.get(name, _zeros(tape[name])) for name in self.inputs}
        return Cotangents(input_bars, {entry.name: params_bars[entry.name] for entry in self.entries})

    def certify(self, inputs: Mapping[str, Any], *, max_seconds: float = 60.0) -> "GraphCertificate":
        """Proves the rule of each node, equal nodes once, and composes the proofs into one theorem about the graph.

        Args:
          inputs: arrays or `jax.ShapeDtypeStruct`s; only shapes and dtypes matter. Each node is proved for all sizes
            where it can be: every size in its shapes is replaced by a symbol, equal sizes by the same.
          max_seconds: the time to spend on one node.

        Returns:
          A certificate that prints as a table. An unproved node is named there, and then the graph is not proved.
        """
        from ffn_jax.graph._certificate import certify

        return certify(self, inputs, max_seconds)

    def _context(self, inputs: "Mapping[str, Array]", where: str) -> Tape:
        _known(inputs, self.inputs, f"graph.{where}", "inputs", "inputs")
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            raise ValueError(
                f"graph.{where}: expected a value for each input ({_list(self.inputs)}), got none for {_list(missing)}"
            )
        for name, value in inputs.items():
            if not is_array(value):
                raise TypeError(f"graph.{where}: expected input {name!r} to be an array, got {type(value).__name__}")
        return {
            name: jnp.asarray(inputs[name]) if isinstance(inputs[name], (np.ndarray, np.generic)) else inputs[name]
            for name in self.inputs
        }


# ------------------------------------------------------------------------------------------ one node


def _forward(entry: Entry, params: Any, values: Any, undecorated: bool = False) -> "Array":
    """The node's value, with an error that says where."""
    op = entry.node.op
    try:
        if undecorated:
            y = (op.reference or op.forward)(*op.options, params, *values)
        else:
            y = ruled(op, params, tuple(values)) if op.vjp else op.forward(*op.options, params, *values)
    except (TypeError, ValueError) as error:
        shapes = ", ".join(f"{r} {tuple(v.shape)}" for r, v in zip(entry.reads, values, strict=True))
        raise type(error)(f"graph: node {entry.name!r} ({entry.node} of {shapes}): {error}") from error
    if not is_array(y) or not is_inexact(y):
        got = y.dtype if is_array(y) else type(y).__name__
        raise TypeError(f"graph: expected node {entry.name!r} ({entry.node}) to return one floating array, got {got}")
    return y


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def ruled(op: Op, params: Any, values: "tuple[Array, ...]") -> "Array":
    """A node's value, whose VJP is the one by hand."""
    return op.forward(*op.options, params, *values)


ruled.defvjp(
    lambda op, params, values: (ruled(op, params, values), (params, values)),
    lambda op, saved, ybar: _by_hand(op, op.name, saved[0], saved[1], ybar),
)


def pull_back(entry: Entry, params: Any, values: "tuple[Array, ...]", ybar: "Array") -> Any:
    """(θ̄, (v̄, ...)) of one node, in their primals' dtypes; integers get float0 zeros."""
    op = entry.node.op
    if op.vjp is not None:
        return _by_hand(op, entry.name, params, values, ybar)
    _, pullback = jax.vjp(lambda params, values: op.forward(*op.options, params, *values), params, values)
    return pullback(ybar)


def _by_hand(op: Op, name: str, params: Any, values: "tuple[Array, ...]", ybar: "Array") -> Any:
    assert op.vjp is not None
    primals = (params, values)
    bars = op.vjp(*op.options, params, values, ybar)
    got, expected = jax.tree.structure(bars), jax.tree.structure(primals)
    if str(got) != str(expected):
        raise TypeError(
            f"graph: expected the vjp of node {name!r} to return (params_bar, values_bar) of the structure {expected}, "
            f"got {got}"
        )
    for primal, bar in zip(jax.tree.leaves(primals), jax.tree.leaves(bars), strict=True):
        if is_inexact(primal) and jnp.shape(bar) != jnp.shape(primal):
            raise ValueError(
                f"graph: expected the vjp of node {name!r} to return a cotangent of shape {jnp.shape(primal)}, "
                f"got {jnp.shape(bar)}"
            )
    return cast_like(primals, bars)


# ------------------------------------------------------------------------------------------ names and shapes


def _zeros(value: Any) -> Any:
    if is_inexact(value):
        return jnp.zeros(jnp.shape(value), jnp.result_type(value))
    return np.zeros(jnp.shape(value), jax.dtypes.float0)


def _distinct(names: Iterable[Any], taken: Iterable[str], where: str) -> tuple[str, ...]:
    seen = tuple(taken)
    result: list[str] = []
    for name in names:
        if not isinstance(name, str) or not name:
            raise TypeError(f"{where}: expected a name (a non-empty string), got {name!r}")
        if name in (*seen, *result):
            raise ValueError(f"{where}: expected a new name, got {name!r}, which is taken")
        result.append(name)
    return tuple(result)


def _known(given: Mapping[str, Any], names: Iterable[str], where: str, what: str, of: str) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{where}: expected {what} to be a mapping from names to arrays, got {shown(given)}")
    names = tuple(names)
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(f"{where}: expected {what} for {of} among {_list(names)}, got {_list(unknown)}")


def _fits(given: Any, value: "Array", what: str) -> None:
    if not is_array(given):
        raise TypeError(f"{what} to be an array, got {type(given).__name__}")
    if given.shape != value.shape or (given.dtype != value.dtype and is_inexact(value)):
        raise ValueError(
            f"{what} of shape {tuple(value.shape)} and dtype {value.dtype}, got {tuple(given.shape)} and {given.dtype}"
        )


def _list(names: Iterable[Any]) -> str:
    return ", ".join(map(repr, names)) or "(none)"
