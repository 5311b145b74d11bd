"""Rules for the verifier to look at that owe nothing to the library: dense sublayers with rules written by hand."""

import jax
import jax.numpy as jnp
import numpy as np

C = float(np.sqrt(2 / np.pi))


def gelu(z):
    return 0.5 * z * (1 + jnp.tanh(C * (z + 0.044715 * z**3)))


def gelu_slope(z, constant=0.134145):
    t = jnp.tanh(C * (z + 0.044715 * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * C * (1 + constant * z * z)


def gelu_exact(z):
    return 0.5 * z * (1 + jax.lax.erf(z * float(np.sqrt(0.5))))


def gelu_exact_slope(z):
    density = jnp.exp(-0.5 * z * z) * float(np.sqrt(0.5 / np.pi))
    return 0.5 * (1 + jax.lax.erf(z * float(np.sqrt(0.5)))) + z * density


def silu(z):
    return z * jax.lax.logistic(z)


def silu_slope(z):
    s = jax.lax.logistic(z)
    return s * (1 + z * (1 - s))


ACTIVATIONS = {"gelu": (gelu, gelu_slope), "gelu_exact": (gelu_exact, gelu_exact_slope), "silu": (silu, silu_slope)}


def plain_sublayer(activation="gelu"):
    value, _ = ACTIVATIONS[activation]

    def plain(x, w1, b1, w2, b2):
        z = jnp.dot(x, w1) + jnp.broadcast_to(b1, (x.shape[0], b1.size))
        return x + jnp.dot(value(z), w2) + jnp.broadcast_to(b2, x.shape)

    return plain


def sublayer(activation="gelu", slope=None):
    """The dense residual sublayer with a rule that saves (x, z)."""
    value, derivative = ACTIVATIONS[activation]
    derivative = slope or derivative
    plain = plain_sublayer(activation)

    @jax.custom_vjp
    def ffn(x, w1, b1, w2, b2):
        return plain(x, w1, b1, w2, b2)

    def forward(x, w1, b1, w2, b2):
        z = jnp.dot(x, w1) + jnp.broadcast_to(b1, (x.shape[0], b1.size))
        return x + jnp.dot(value(z), w2) + jnp.broadcast_to(b2, x.shape), (x, z, w1, w2)

    def backward(saved, ybar):
        x, z, w1, w2 = saved
        zbar = derivative(z) * jnp.dot(ybar, w2.T)
        sums = [jnp.sum(bar, axis=0, dtype=bar.dtype) for bar in (zbar, ybar)]
        return ybar + jnp.dot(zbar, w1.T), jnp.dot(x.T, zbar), sums[0], jnp.dot(value(z).T, ybar), sums[1]

    ffn.defvjp(forward, backward)
    return ffn


def chunked_sublayer(chunk=2):
    """The same in token chunks: a scan whose carry accumulates the weight cotangents."""
    plain = plain_sublayer()

    @jax.custom_vjp
    def ffn(x, w1, b1, w2, b2):
        return plain(x, w1, b1, w2, b2)

    def backward(saved, ybar):
        x, *params = saved

        def step(total, pieces):
            piece, bar = pieces
            _, pullback = jax.vjp(sublayer(), piece, *params)
            xbar, *bars = pullback(bar)
            return [t + b for t, b in zip(total, bars, strict=True)], xbar

        zeros = [jnp.zeros_like(p) for p in params]
        split = lambda a: a.reshape(-1, chunk, a.shape[-1])
        bars, xbar = jax.lax.scan(step, zeros, (split(x), split(ybar)))
        return xbar.reshape(x.shape), *bars

    ffn.defvjp(lambda *args: (plain(*args), args), backward)
    return ffn


def sublayer_args(n=4, d=3, f=5, dtype="float32", seed=0):
    rng = np.random.default_rng([seed, n, d, f])
    shapes = (n, d), (d, f), (f,), (f, d), (d,)
    scales = 1, d**-0.5, 1, f**-0.5, 1
    return [jnp.asarray(s * rng.standard_normal(h), dtype) for s, h in zip(scales, shapes, strict=True)]
