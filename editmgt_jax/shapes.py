"""Types of arrays with their axes, for annotations: `Int[Array, "B L"]`.

The letters are those of `editmgt_jax.config`; a size that appears twice in a call must be the same. Tests check every call
(`tests/conftest.py`); a program that runs without the check only pays for an import.
"""

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Key, Shaped, UInt8, UInt32

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Scalar", "Shaped", "UInt8", "UInt32"]

Array = jax.Array | np.ndarray  # of the device, traced, or of the host
Scalar = float | np.floating | Float[Array, ""]  # a number, or a traced one
