"""The sublayer from scratch, in plain jnp over explicit matrices: what the library is compared with.

Nothing here calls the library but to make its maps. Activations are written out from their definitions.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from map_cases import BY_NAME, identity

import ffn_jax as fj


def _sigmoid(z):
    return 1 / (1 + jnp.exp(-z))


def _gelu(z):
    return 0.5 * z * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def _positive(z):
    return jnp.where(z > 0, z, jnp.zeros_like(z))


def _gated(base):
    return lambda z: base(z[..., 0, :]) * z[..., 1, :]


def _scaled_tanh(z):
    return jnp.tanh(z) * 2.0


def _feature_softmax(z):
    return jax.nn.softmax(z, axis=-1)


SINE = fj.activation(jnp.sin, lambda z: (jnp.sin(z), jnp.cos(z)), name="sine")

# The library's activation, and the same function from its definition.
ACTIVATIONS = {
    "gelu": (fj.gelu, _gelu),
    "gelu_exact": (fj.gelu_exact, lambda z: z * norm.cdf(z)),
    "silu": (fj.silu, lambda z: z * _sigmoid(z)),
    "quick_gelu": (fj.quick_gelu, lambda z: z * _sigmoid(1.702 * z)),
    "relu": (fj.relu, _positive),
    "relu_squared": (fj.relu_squared, lambda z: _positive(z) ** 2),
    "swiglu": (fj.swiglu, _gated(lambda z: z * _sigmoid(z))),
    "geglu": (fj.geglu, _gated(_gelu)),
    "own_pair": (SINE, jnp.sin),
    "own_function": (_scaled_tanh, _scaled_tanh),
    "own_softmax": (_feature_softmax, _feature_softmax),
}
GATED = ("swiglu", "geglu")


def _two_gates(_, z):
    return jnp.stack([z, jnp.flip(z, -1)], axis=-2)


def gates(A):
    """A map to a hidden of shape (..., 2, d_ff): A's output and its reverse."""
    return fj.linear_map(_two_gates, A.out_shape) @ A


class Sublayer:
    """Maps, biases, input and seed of one test case, and the reference on the same numbers."""

    def __init__(self, name, activation="gelu", lead=(5,), bias="feature", dtype="float64", seed=0):
        case = BY_NAME[name]
        p1, p2 = case.params(seed, dtype), case.params(seed + 1, dtype)
        base = case.make(p1)
        self.A1, self.A2 = base, case.make(p2).T
        self.gated = activation in GATED
        if self.gated:
            self.A1 = gates(base)
        self.M1, self.M2 = case.matrix(p1, identity), case.matrix(p2, identity).T
        self.hidden = base.out_shape
        self.activation, self.reference_activation = ACTIVATIONS[activation]
        rng = np.random.default_rng(seed)

        def array(*shape):
            return jnp.asarray(rng.standard_normal(shape)).astype(dtype)

        self.x = array(*lead, *base.in_shape)
        self.ybar = array(*self.x.shape)
        full1, full2 = (*lead, *self.A1.out_shape), self.x.shape
        shapes = {
            "feature": (self.A1.out_shape, self.A2.out_shape),
            "position": (full1[-len(self.A1.out_shape) - 1 :], full2[-len(self.A2.out_shape) - 1 :]),
            "full": (full1, full2),
            "column": ((*self.A1.out_shape[:-1], 1), ()),
            "none": (None, None),
        }[bias]
        self.b1, self.b2 = (None if s is None else array(*s) for s in shapes)
        self.args = (self.x, self.A1, self.b1, self.A2, self.b2)

    def tape(self, x, b1, b2, M1=None, M2=None, residual=True):
        """(z, h, u, y) in plain jnp, from the matrices."""
        M1, M2 = self.M1 if M1 is None else M1, self.M2 if M2 is None else M2
        n = M1.shape[1]
        lead = x.shape[: x.ndim - len(self.A2.out_shape)]
        z = (x.reshape(-1, n) @ M1.T).reshape(*lead, *self.hidden)
        if self.gated:
            z = jnp.stack([z, z[..., ::-1]], axis=-2)
        z = z if b1 is None else z + jnp.broadcast_to(b1, z.shape)
        h = self.reference_activation(z)
        u = (h.reshape(*lead, -1).reshape(-1, M2.shape[1]) @ M2.T).reshape(x.shape)
        u = u if b2 is None else u + jnp.broadcast_to(b2, u.shape)
        return fj.FFNTape(z, h, u, x + u if residual else u)

    def reference(self, x, b1, b2):
        """y from scratch."""
        return self.tape(x, b1, b2).output


def adjoint(f, *args):
    """ȳ -> `jax.linear_transpose` of `jax.jvp` of f at args: the reference for every rule."""

    def jvp(*tangents):
        return jax.jvp(f, args, tangents)[1]

    return jax.linear_transpose(jvp, *args)
