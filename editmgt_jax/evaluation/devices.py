"""A pipeline whose batches are split over the devices of this process.

Axes    as in `editmgt_jax.config`
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from editmgt_jax.pipeline import EditPipeline
from editmgt_jax.sampling.edit import TokenEdit
from editmgt_jax.sampling.request import Request
from editmgt_jax.weights.loading import LoadedModel

_SPLIT = ("reference", "start", "text", "negative", "text_weights", "keys")  # parts of a request with the axis B first


class SpreadPipeline(EditPipeline):
    """An `EditPipeline` on all devices of this process: parameters on each of them, batches split.

    Args:
      batch_size: pictures that are decoded at once, on all devices together; rounded up to a multiple of their number.
      devices: by default all of the process.
    """

    def __init__(self, model: LoadedModel, batch_size: int = 8, devices: list[jax.Device] | None = None):
        devices = jax.local_devices() if devices is None else devices
        self._count = len(devices)
        super().__init__(model, self._padded(batch_size))
        mesh = Mesh(np.array(devices), ("data",))
        self._split, self._whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
        self._mgt_variables, self._vq_params = jax.device_put((self._mgt_variables, self._vq_params), self._whole)

    def encode_image(self, pixels: Any) -> jax.Array:
        """See `EditPipeline.encode_image`."""
        return self._over(super().encode_image, jnp.asarray(pixels, jnp.float32))

    def decode_image(self, ids: Any) -> jax.Array:
        """See `EditPipeline.decode_image`."""
        return self._over(super().decode_image, jnp.asarray(ids, jnp.int32))

    def _padded(self, count: int) -> int:
        return -(-count // self._count) * self._count

    def _spread(self, array: jax.Array) -> jax.Array:
        """An array [B ...] over the devices; the last sample fills up what is missing."""
        missing = self._padded(len(array)) - len(array)
        if missing:
            array = jnp.concatenate([array, jnp.repeat(array[-1:], missing, axis=0)])
        return jax.device_put(array, self._split)

    def _over(self, function: Callable, array: jax.Array) -> jax.Array:
        return function(self._spread(array))[: len(array)]

    def _run(self, request: Request, static: Any, progress: Callable[[str], None]) -> TokenEdit:
        count = len(request.start)
        parts = {
            name: jax.tree.map(self._spread if name in _SPLIT else lambda x: jax.device_put(x, self._whole), part)
            for name, part in request._asdict().items()
        }
        found = super()._run(Request(**parts), static, progress)
        steps = {
            name: None if getattr(found, name) is None else getattr(found, name)[:, :count]
            for name in ("step_tokens", "step_relevance")
        }
        others = {name: value[:count] for name, value in found._asdict().items() if name not in steps}
        return TokenEdit(**others, **steps)
