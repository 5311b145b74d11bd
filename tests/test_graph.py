"""Graphs: backprop is the adjoint of jvp, whatever the shape of the graph; certificates say what is proved."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sublayer_cases import Sublayer, adjoint

import ffn_jax as fj
from ffn_jax.graph import _nodes
from ffn_jax.verify import prove_vjp

G = fj.graph
RNG = np.random.default_rng(0)


def array(*shape):
    return jnp.asarray(RNG.standard_normal(shape))


def cube(_, v):
    return v**3


def cube_vjp(_, values, ybar):
    return (), (3 * values[0] ** 2 * ybar,)


def scaled_sine(theta, v):
    return theta["c"] * jnp.sin(v)


CUBE = G.node(cube, vjp=cube_vjp)
M, N, D, F = 4, 5, 3, 6
W, BIAS, SCALE, SHIFT = array(D, F), array(F), array(D), array(D)


def attention():
    """Every ready node, two inputs, values read more than once, a node by hand and one by JAX."""
    return (
        G.Graph("x", "y")
        .add("normed", G.norm(fj.LayerNorm(SCALE, SHIFT)), "x")
        .add("scores", G.matmul(transpose=True), "normed", "y")
        .add("weights", G.softmax(), "scores")
        .add("mixed", G.matmul(), "weights", "y")
        .add("sum", G.add(), "x", "mixed")
        .add("rms", G.norm(fj.RMSNorm(SCALE)), "sum")
        .add("gated", G.mul(), "rms", "rms")
        .add("hidden", G.affine(fj.Dense(W), BIAS), "gated")
        .add("act", G.elementwise(fj.gelu), "hidden")
        .add("tanh", G.elementwise(jnp.tanh), "act")
        .add("cube", CUBE, "tanh")
        .add("sine", G.node(scaled_sine, params={"c": jnp.asarray(0.7)}), "cube")
    )


def plain(inputs, params):
    """The same in plain jnp."""
    x, y = inputs["x"], inputs["y"]
    scale, shift = (jnp.broadcast_to(s, x.shape) for s in (params["normed"].scale, params["normed"].bias))
    t = {**inputs}
    t["normed"] = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + shift
    t["scores"] = t["normed"] @ y.T
    t["weights"] = jax.nn.softmax(t["scores"])
    t["mixed"] = t["weights"] @ y
    t["sum"] = s = x + t["mixed"]
    t["rms"] = s / jnp.sqrt((s**2).mean(-1, keepdims=True) + 1e-6) * jnp.broadcast_to(params["rms"].scale, x.shape)
    t["gated"] = t["rms"] ** 2
    t["hidden"] = t["gated"] @ params["hidden"].A.weight + params["hidden"].b[None]
    t["act"] = jax.nn.gelu(t["hidden"])
    t["tanh"] = jnp.tanh(t["act"])
    t["cube"] = t["tanh"] ** 3
    t["sine"] = params["sine"]["c"] * jnp.sin(t["cube"])
    return t


GRAPH, INPUTS = attention(), {"x": array(M, D), "y": array(N, D)}
SEEDS = {name: array(*v.shape) for name, v in GRAPH.evaluate(INPUTS).items()}
close = lambda a, b, tol=1e-10: chex.assert_trees_all_close(a, b, rtol=tol, atol=tol)


class TestEveryNode:
    def test_evaluate_returns_inputs_and_all_values_in_order(self):
        tape = GRAPH.evaluate(INPUTS)
        assert tuple(tape) == GRAPH.names
        close(tape, plain(INPUTS, GRAPH.params))

    def test_jvp(self):
        tangents, params_tangents = jax.tree.map(jnp.cos, (INPUTS, GRAPH.params))
        got = GRAPH.jvp(INPUTS, tangents, params_tangents)
        close(got, jax.jvp(plain, (INPUTS, GRAPH.params), (tangents, params_tangents)))
        only_x = GRAPH.jvp(INPUTS, {"x": tangents["x"]})[1]
        zeros = jax.tree.map(jnp.zeros_like, ({"y": INPUTS["y"]}, GRAPH.params))
        expected = jax.jvp(plain, (INPUTS, GRAPH.params), ({"x": tangents["x"], **zeros[0]}, zeros[1]))[1]
        close(only_x, expected)

    def test_backprop_is_the_adjoint_with_seeds_on_everything(self):
        close(tuple(GRAPH.backprop(INPUTS, SEEDS)), adjoint(plain, INPUTS, GRAPH.params)(SEEDS))

    @pytest.mark.parametrize("name", ["x", "weights", "gated", "sine"])
    def test_one_seed(self, name):
        zeros = jax.tree.map(jnp.zeros_like, SEEDS)
        expected = adjoint(plain, INPUTS, GRAPH.params)(zeros | {name: SEEDS[name]})
        close(tuple(GRAPH.backprop(INPUTS, {name: SEEDS[name]})), expected)

    def test_jit_grad_and_vmap(self):
        def loss(f):
            return lambda graph, inputs: sum(jnp.sum(jnp.sin(v)) for v in f(graph, inputs).values())

        ours = jax.jit(jax.grad(loss(lambda graph, inputs: graph.evaluate(inputs)), argnums=(0, 1)))
        theirs = jax.grad(loss(lambda params, inputs: plain(inputs, params)), argnums=(0, 1))
        (graph_bar, inputs_bar), (params_bar, expected) = ours(GRAPH, INPUTS), theirs(GRAPH.params, INPUTS)
        close(inputs_bar, expected)
        close(graph_bar.params, params_bar)
        many = jax.tree.map(lambda v: jnp.stack([v, 0.5 * v]), (INPUTS, SEEDS))
        mapped = jax.jit(jax.vmap(GRAPH.backprop))(*many)
        close(jax.tree.map(lambda v: v[0], mapped), GRAPH.backprop(INPUTS, SEEDS))


def test_the_composition_itself_is_proved_on_a_graph_with_fan_out():
    """backprop, accumulation included, as the rule of evaluate: the prover sees through all of it."""

    def fun(x, y):
        graph = G.Graph("x", "y").add("p", G.mul(), "x", "y").add("c", CUBE, "p").add("s", G.add(), "c", "x")

        @jax.custom_vjp
        def run(inputs):
            return graph.evaluate(inputs)

        run.defvjp(
            lambda inputs: (graph.evaluate(inputs), inputs),
            lambda inputs, seeds: (graph.backprop(inputs, seeds).inputs,),
        )
        return run({"x": x, "y": y})

    def reference(x, y):
        return {"x": x, "y": y, "p": x * y, "c": (x * y) ** 3, "s": (x * y) ** 3 + x}

    verdict = prove_vjp(fun, reference, "f64[n]", "f64[n]")
    assert verdict.proved, verdict


class TestMakingGraphs:
    first = G.Graph("x").add("a", CUBE, "x")
    second = G.Graph("a", "x").add("b", G.mul(), "a", "x")

    def test_add_and_append_return_new_graphs(self):
        both = self.first.append(self.second)
        assert (self.first.names, both.names) == (("x", "a"), ("x", "a", "b"))
        x = array(3)
        np.testing.assert_allclose(both.evaluate({"x": x})["b"], x**4)
        close(both.backprop({"x": x}, {"b": jnp.ones(3)}).inputs["x"], 4 * x**3)
        with pytest.raises(AttributeError, match="immutable"):
            both.inputs = ()

    def test_weaken_carries_inputs_with_zero_cotangents(self):
        x, extra = array(3), array(2, 2)
        graph = self.first.weaken(["mask"])
        bars = graph.backprop({"x": x, "mask": extra}, {"a": x}).inputs
        close(bars, {"x": 3 * x**3, "mask": jnp.zeros((2, 2))})
        seeded = graph.backprop({"x": x, "mask": extra}, {"a": x, "mask": extra}).inputs
        close(seeded["mask"], extra)
        assert G.Graph("a", "x", "z").append(self.second).names == ("a", "x", "z", "b")

    def test_integer_inputs_have_no_cotangent(self):
        graph = G.Graph("table", "ids").add("rows", G.node(lambda _, table, ids: table[ids]), "table", "ids")
        inputs = {"table": array(4, 2), "ids": jnp.array([1, 1, 3])}
        bars = graph.backprop(inputs, {"rows": jnp.ones((3, 2))}).inputs
        assert bars["ids"].dtype == jax.dtypes.float0
        assert bars["table"].tolist() == [[0, 0], [2, 2], [0, 0], [1, 1]]

    def test_equal_graphs_are_traced_once(self):
        traces = []
        run = jax.jit(lambda graph, inputs: traces.append(1) or graph.evaluate(inputs))
        run(attention(), INPUTS)
        run(attention(), INPUTS)
        assert len(traces) == 1

    def test_half_types_keep_their_dtypes(self):
        graph, inputs, seeds = jax.tree.map(lambda v: v.astype("bfloat16"), (GRAPH, INPUTS, SEEDS))
        bars = graph.backprop(inputs, seeds)
        chex.assert_trees_all_equal_shapes_and_dtypes(tuple(bars), (inputs, graph.params))
        exact = GRAPH.backprop(INPUTS, SEEDS)
        for got, want in zip(jax.tree.leaves(bars), jax.tree.leaves(exact), strict=True):
            assert np.linalg.norm(got.astype("float64") - want) <= 0.1 * (1 + np.linalg.norm(want))


# ------------------------------------------------------------------------------------- the seed's graph


SUBLAYERS = {
    "token": Sublayer("dense", "gelu", ()),
    "sequence": Sublayer("dense", "gelu_exact", (4,), "full"),
    "spanning maps": Sublayer("time_distributed", "gelu", (), "full"),
    "gated": Sublayer("dense", "swiglu", (4,)),
}


@pytest.mark.parametrize("name", SUBLAYERS)
def test_sublayer_is_its_graph(name):
    """Values and all cotangents, with a seed on the input and on every saved tensor."""
    case = SUBLAYERS[name]

    def tape(x, A1, b1, A2, b2):
        t = fj.ffn_residual_tape(x, A1, b1, A2, b2, activation=case.activation)
        return {"x": x, **t._asdict()}

    graph = G.ffn_residual_graph(*case.args[1:], activation=case.activation)
    values, pullback = jax.vjp(tape, *case.args)
    close(graph.evaluate({"x": case.x}), values, 1e-12)
    seeds = jax.tree.map(jnp.cos, values)
    (x_bar, A1_bar, b1_bar, A2_bar, b2_bar), bars = pullback(seeds), graph.backprop({"x": case.x}, seeds)
    close(bars.inputs["x"], x_bar, 1e-12)
    close(tuple(bars.params["hidden_pre"]), (A1_bar, b1_bar), 1e-12)
    close(tuple(bars.params["projected"]), (A2_bar, b2_bar), 1e-12)

    y, pullback = jax.vjp(lambda *args: fj.ffn_residual(*args, activation=case.activation), *case.args)
    bars = graph.backprop({"x": case.x}, {"output": case.ybar})
    close(graph.evaluate({"x": case.x})["output"], y, 1e-12)
    expected = bars.inputs["x"], *bars.params["hidden_pre"], *bars.params["projected"]
    close(pullback(case.ybar), expected, 1e-12)


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
def test_sublayer_with_a_norm_is_its_graph_and_proved(norm_first):
    case, norm = SUBLAYERS["sequence"], fj.LayerNorm(array(3), array(3))
    options = {"norm_first": norm_first, "activation": fj.silu}
    graph = G.ffn_residual_graph(*case.args[1:], norm=norm, **options)
    y, pullback = jax.vjp(lambda x, norm: fj.ffn_residual(x, *case.args[1:], norm=norm, **options), case.x, norm)
    bars = graph.backprop({"x": case.x}, {"output": case.ybar})
    close(graph.evaluate({"x": case.x})["output"], y, 1e-12)
    node = "normed" if norm_first else "output"
    close((bars.inputs["x"], bars.params[node]), pullback(case.ybar), 1e-12)
    assert graph.certify({"x": case.x}).proved


# ----------------------------------------------------------------------------------------- certificates


class TestCertificate:
    def test_of_the_seeds_graph(self):
        graph = G.ffn_residual_graph(fj.Dense(array(3, 6)), array(6), fj.Dense(array(6, 3)), array(3))
        certificate = graph.certify({"x": jax.ShapeDtypeStruct((4, 3), "float64")})
        assert certificate.proved
        assert {node.sizes for node in certificate.nodes} == {"all sizes"}
        assert certificate.nodes[2].same_as == "hidden_pre"  # an affine node at all sizes: proved once
        text = str(certificate)
        for part in ("PROVED", "graph.backprop is the\n    adjoint", "elementwise[gelu](hidden_pre)", "as hidden_pre"):
            assert part in text
        data = json.loads(certificate.to_json())
        assert (data["verdict"], sorted(data["proofs"])) == ("PROVED", ["hidden_act", "hidden_pre", "output"])

    def test_of_every_node(self):
        certificate = GRAPH.certify(INPUTS)
        assert certificate.proved, certificate
        assert "normed: assumes" in str(certificate)

    def test_does_not_depend_on_the_dtype_of_the_graph(self):
        """The constants of the tanh GELU cannot be recognised once they are rounded to float32."""
        for dtype in ("float32", "bfloat16"):
            (node,) = G.Graph("x").add("h", G.elementwise(fj.gelu), "x").certify({"x": array(2).astype(dtype)}).nodes
            assert (node.verdict, node.sizes) == ("PROVED", "all sizes")

    def test_names_what_is_not_proved(self):
        graph = G.Graph("x").add("c", CUBE, "x").add("largest", G.node(lambda _, v: jnp.max(v)), "c")
        certificate = graph.certify({"x": array(3)})
        assert (certificate.verdict, certificate.unproved) == ("UNDECIDED", ("largest",))
        assert "reduce_max" in str(certificate)
        assert "not proved is that" in str(certificate)

    def test_refutes_a_wrong_rule_by_hand(self):
        wrong = G.node(cube, vjp=lambda _, values, ybar: ((), (2 * values[0] ** 2 * ybar,)))
        certificate = G.Graph("x").add("c", CUBE, "x").add("w", wrong, "c").certify({"x": array(3)})
        assert (certificate.verdict, certificate.unproved) == ("REFUTED", ("w",))

    def test_sizes_that_are_tied_are_proved_as_they_are(self):
        graph = G.Graph("x").add("blocks", G.affine(fj.BlockDiagonal(fj.Dense(array(2, 3, 4)))), "x")
        (node,) = graph.certify({"x": array(5, 6)}).nodes
        assert (node.verdict, node.sizes) == ("PROVED", "these sizes")


def _swapped(f):
    return lambda *args: (f(*args)[0], f(*args)[1][::-1])


MUTANTS = {
    "softmax: no sum": ("_softmax_pullback", lambda y, ybar: y * ybar),
    "matmul: cotangents swapped": ("_matmul_vjp", _swapped(_nodes._matmul_vjp)),
    "mul: cotangents swapped": ("_mul_vjp", _swapped(_nodes._mul_vjp)),
    "add: one cotangent": ("_add_vjp", lambda _, values, ybar: ((), (ybar, 0 * ybar))),
    "affine: bias not summed": (
        "_affine_vjp",
        lambda p, values, ybar: (
            _nodes.AffineParams(p.A.params_vjp(values[0], ybar), ybar[0]),
            (p.A.transpose_call(ybar),),
        ),
    ),
    "elementwise: no derivative": ("_activate_vjp", lambda activation, _, values, hbar: ((), (hbar,))),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught_and_refuted(name, monkeypatch):
    attribute, wrong = MUTANTS[name]
    monkeypatch.setattr(_nodes, attribute, wrong)
    kind = name.split(":")[0]
    x, square = array(3, 3), array(3, 3)
    node, reads = {
        "softmax": (G.softmax, ("x",)),
        "matmul": (G.matmul, ("x", "y")),
        "mul": (G.mul, ("x", "y")),
        "add": (G.add, ("x", "y")),
        "affine": (lambda: G.affine(fj.Dense(square), array(3)), ("x",)),
        "elementwise": (lambda: G.elementwise(fj.silu), ("x",)),
    }[kind]
    graph, inputs = G.Graph("x", "y").add("v", node(), *reads), {"x": x, "y": square}
    seeds = {"v": array(3, 3)}
    expected = jax.linear_transpose(lambda t: graph.jvp(inputs, t)[1]["v"], inputs)(seeds["v"])[0]
    bars = graph.backprop(inputs, seeds)
    got, right = (bars.params["v"].b, seeds["v"].sum(0)) if kind == "affine" else (bars.inputs, expected)
    with pytest.raises(AssertionError):
        close(got, right)
    assert graph.certify(inputs).verdict == "REFUTED"


# -------------------------------------------------------------------------------------------- bad input

x = array(3)
ONE = G.Graph("x").add("c", CUBE, "x")
DENSE = fj.Dense(array(3, 4))
BAD = {
    "input named twice": (lambda: G.Graph("x", "x"), ValueError, ["Graph", "'x'", "taken"]),
    "input without a name": (lambda: G.Graph(""), TypeError, ["Graph", "non-empty string"]),
    "name taken": (lambda: ONE.add("c", CUBE, "x"), ValueError, ["graph.add", "'c'", "taken"]),
    "unknown value": (lambda: ONE.add("d", CUBE, "z"), ValueError, ["'d'", "'z'", "'x', 'c'"]),
    "no node": (lambda: ONE.add("d", jnp.tanh, "x"), TypeError, ["graph.add", "'d'", "affine(A, b)"]),
    "too few values": (lambda: ONE.add("d", G.mul(), "x"), ValueError, ["'d'", "mul", "2 value(s)", "got 1"]),
    "input missing": (lambda: ONE.evaluate({}), ValueError, ["graph.evaluate", "'x'"]),
    "input unknown": (lambda: ONE.evaluate({"x": x, "y": x}), ValueError, ["graph.evaluate", "'x'", "'y'"]),
    "inputs no mapping": (lambda: ONE.evaluate(x), TypeError, ["graph.evaluate", "mapping"]),
    "input a list": (lambda: ONE.evaluate({"x": [1.0]}), TypeError, ["graph.evaluate", "'x'", "list"]),
    "no seed": (lambda: ONE.backprop({"x": x}, {}), ValueError, ["graph.backprop", "seed", "'x', 'c'"]),
    "seed unknown": (lambda: ONE.backprop({"x": x}, {"y": x}), ValueError, ["graph.backprop", "seeds", "'y'"]),
    "seed of another shape": (
        lambda: ONE.backprop({"x": x}, {"c": x[:2]}),
        ValueError,
        ["seed of 'c'", "(3,)", "(2,)"],
    ),
    "seed of another dtype": (
        lambda: ONE.backprop({"x": x}, {"c": x.astype("float32")}),
        ValueError,
        ["seed of 'c'", "float64", "float32"],
    ),
    "seed a number": (lambda: ONE.backprop({"x": x}, {"c": 1.0}), TypeError, ["seed of 'c'", "float"]),
    "tangent of another shape": (lambda: ONE.jvp({"x": x}, {"x": x[:2]}), ValueError, ["tangent of 'x'", "(2,)"]),
    "tangent unknown": (lambda: ONE.jvp({"x": x}, {"c": x}), ValueError, ["graph.jvp", "tangents", "'c'"]),
    "parameters unknown": (lambda: ONE.jvp({"x": x}, {}, {"x": x}), ValueError, ["params_tangents", "'x'"]),
    "append of no graph": (lambda: ONE.append(CUBE), TypeError, ["graph.append", "Graph", "cube"]),
    "append without its input": (
        lambda: ONE.append(G.Graph("x", "mask")),
        ValueError,
        ["graph.append", "'mask'", "weaken"],
    ),
    "append of a taken name": (lambda: ONE.append(ONE), ValueError, ["graph.append", "'c'", "taken"]),
    "weaken by a taken name": (lambda: ONE.weaken(["c"]), ValueError, ["graph.weaken", "'c'", "taken"]),
    "wrong shape in a node": (
        lambda: ONE.add("z", G.affine(DENSE), "c").evaluate({"x": x[:2]}),
        ValueError,
        ["node 'z'", "affine of c (2,)", "(..., 3)"],
    ),
    "bias of another shape": (
        lambda: G.Graph("x").add("z", G.affine(DENSE, x), "x").evaluate({"x": x}),
        ValueError,
        ["node 'z'", "b to broadcast", "(4,)", "(3,)"],
    ),
    "bias of integers": (lambda: G.affine(DENSE, jnp.arange(4)), TypeError, ["graph.affine", "b", "int64"]),
    "affine of a callable": (lambda: G.affine(lambda x: x), TypeError, ["graph.affine", "LinearMap", "fj.linear_map"]),
    "elementwise of a name": (lambda: G.elementwise("gelu"), TypeError, ["graph.elementwise", "'gelu'"]),
    "norm of a function": (lambda: G.norm(fj.layer_norm), TypeError, ["graph.norm", "LayerNorm"]),
    "node of no function": (lambda: G.node(3), TypeError, ["graph.node", "forward", "3"]),
    "vjp of no function": (lambda: G.node(cube, vjp=3), TypeError, ["graph.node", "vjp", "3"]),
    "sum of two shapes": (
        lambda: G.Graph("x", "y").add("s", G.add(), "x", "y").evaluate({"x": x, "y": x[:2]}),
        ValueError,
        ["node 's'", "one shape", "(3,)", "(2,)"],
    ),
    "product that does not fit": (
        lambda: G.Graph("x").add("s", G.matmul(), "x", "x").evaluate({"x": array(2, 3)}),
        ValueError,
        ["node 's'", "(*batch, k, n)", "(2, 3)"],
    ),
    "node of two results": (
        lambda: G.Graph("x").add("s", G.node(lambda _, v: (v, v)), "x").evaluate({"x": x}),
        TypeError,
        ["node 's'", "one floating array", "tuple"],
    ),
    "vjp of another structure": (
        lambda: G.Graph("x").add("s", G.node(cube, vjp=lambda _, v, y: y), "x").backprop({"x": x}, {"s": x}),
        TypeError,
        ["vjp of node 's'", "(params_bar, values_bar)"],
    ),
    "vjp of another shape": (
        lambda: (
            G.Graph("x").add("s", G.node(cube, vjp=lambda _, v, y: ((), (y[:2],))), "x").backprop({"x": x}, {"s": x})
        ),
        ValueError,
        ["vjp of node 's'", "(3,)", "(2,)"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, texts = BAD[name]
    with pytest.raises(error) as caught:
        call()
    missing = [text for text in texts if text not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"
