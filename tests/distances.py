"""How far results are apart."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def largest_errors(found: Sequence[jax.Array], exact: Sequence[jax.Array]) -> np.ndarray:
    """The largest absolute difference of each array from its float32 value. -> [number of arrays]"""
    pairs = zip(found, exact, strict=True)
    return np.array([float(jnp.abs(one.astype(jnp.float32) - other).max()) for one, other in pairs])
