"""Short names of weights, that tell two models apart."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from editmgt_jax.config.json_config import JSONConfig
from editmgt_jax.weights.files import WeightFiles


def weights_identity(directory: str | Path, config: JSONConfig) -> str:
    """A hash of a component's tensors in float32 and of its config, whatever files and types they are stored in.

    Errors: FileNotFoundError, WeightsError.
    """
    files, found = WeightFiles(directory), hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for key in sorted(files.tensors):
        value = np.ascontiguousarray(files.read(key), np.float32)
        found.update(json.dumps([key, value.shape]).encode() + value.tobytes())
    return found.hexdigest()


def fingerprint(variables: Any) -> str:
    """16 letters that tell two sets of weights apart."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        found.update(json.dumps([jax.tree_util.keystr(path), np.shape(leaf)]).encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]
