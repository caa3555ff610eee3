"""A convolution whose weight gradient is fast on CPUs.

XLA computes that gradient on CPUs as one convolution with a kernel as large as the picture, up to 4 times slower than
one matrix product a tap (`benchmarks/convolution.py` prints the ratio). Other backends keep XLA's own.

Axes    B batch, Y X pixels, I O channels
"""

from functools import partial

import jax
import jax.numpy as jnp


def _valid(x, kernel, stride):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _valid_on_cpu(x, kernel, stride):
    return _valid(x, kernel, stride)


def _forward(x, kernel, stride):
    return _valid(x, kernel, stride), (x, kernel)


def _backward(stride, residuals, dy):
    x, kernel = residuals
    dx = jax.vjp(lambda x: _valid(x, kernel, stride), x)[1](dy)[0]
    return dx, _kernel_gradient(x, dy, kernel.shape, stride)


def _kernel_gradient(x, dy, shape, stride):
    """[B Y' X' I] padded, [B Y X O] -> [3 3 I O]: a product a tap, summed over samples by a scan that stays in cache."""
    rows, columns = (stride * n for n in dy.shape[1:3])

    def add(total, sample):
        x, dy = sample
        dy = dy.reshape(-1, dy.shape[-1])
        taps = [
            x[i : i + rows : stride, j : j + columns : stride].reshape(-1, x.shape[-1]).T @ dy
            for i in range(shape[0])
            for j in range(shape[1])
        ]
        return total + jnp.stack(taps).reshape(shape), None

    return jax.lax.scan(add, jnp.zeros(shape, dy.dtype), (x, dy))[0]


_valid_on_cpu.defvjp(_forward, _backward)


def convolve(x, kernel, strides, padding, **_layout):
    """[B Y X I], [y x I O] -> [B Y X O]; to be passed to `flax.linen.Conv(padding=((top, bottom), (left, right)))`."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    return (_valid_on_cpu if jax.default_backend() == "cpu" else _valid)(x, kernel, strides[0])
