"""Where arrays lie: a mesh of devices, and rules from the names of parameters and of activations' axes to the mesh's axes.

Mesh axes
    data      copies of the parameters; the batch is split over it. The slices of a multi-slice job lie along it
    fsdp      parameters, their average and the optimizer's state are split over it, and so is the batch
    tensor    attention heads and channels of the feed-forward part
    context   positions of the sequence

Axes    B batch, H W tokens; others as in `editmgt_jax.config`
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from editmgt_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")
BATCH = ("data", "fsdp")
ACTIVATIONS = (
    ("batch", BATCH), ("copy", "data"), ("length", "context"), ("heads", "tensor"), ("channels", "tensor"),
)  # fmt: skip

# Ends of parameter names -> mesh axes of their last dimensions; what lies before (the layers) is whole on each device.
# The first rule that fits counts. An optimizer's leaves are named as the parameters that they belong to.
MGT_RULES = (
    (r"(to_[qkv]|mlp_in|fc1|[qkv]_proj|gate_proj|up_proj)/kernel", ("fsdp", "tensor")),
    (r"(to_out|mlp_out|proj_out|fc2|o_proj|out_proj|down_proj)/kernel", ("tensor", "fsdp")),
    (r"(^|/)head_logits/kernel", ("fsdp", "tensor")),
    (r"/kernel", (None, "fsdp")),
    (r"/(bias|scale)", ("fsdp",)),
    (r"/embedding", (None, "fsdp")),
    (r"/lora_a", ("fsdp", None)),
    (r"/lora_b", (None, "fsdp")),
)
REPLICATED = ((r"", ()),)

Put = Callable[[str, Any], jax.Array]  # (name of a parameter, host array) -> array of the mesh


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and what lies where on it.

    Args:
      rules: (end of a name, mesh axes of the last dimensions), as `MGT_RULES`.
    """

    mesh: Mesh
    rules: tuple = REPLICATED

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device."""
        return NamedSharding(self.mesh, P())

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Programs that are traced inside spread their activations over the mesh."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(ACTIVATIONS):
            yield

    def of(self, tree: Any) -> Any:
        """The sharding of every leaf of a tree of arrays or shapes.

        Errors: those of `of_leaf`.
        """
        return jax.tree_util.tree_map_with_path(lambda path, leaf: self.of_leaf(path_name(path), leaf.shape), tree)

    def of_leaf(self, name: str, shape: Sequence[int]) -> NamedSharding:
        """The sharding of an array of this name.

        Errors: UserError for a dimension that its axes do not divide; ValueError for a name that no rule covers.
        """
        if not shape:
            return self.replicated
        found = [axes for pattern, axes in self.rules if re.search(f"(?:{pattern})$", name)]
        if not found:
            raise ValueError(f"a sharding rule must cover every parameter; none covers {name} {list(shape)}")
        axes = (None,) * (len(shape) - len(found[0])) + found[0]
        for dimension, (size, axis) in enumerate(zip(shape, axes, strict=True)):
            parts = 1 if axis is None else self.mesh.shape[axis]
            if size % parts:
                raise UserError(
                    f"dimension {dimension} of {name} {list(shape)} must be a multiple of the {parts} devices of mesh axis "
                    f"{axis!r}: choose another size for it in config.mesh"
                )
        return NamedSharding(self.mesh, P(*axes))

    def put_leaf(self, name: str, value: np.ndarray | jax.Array) -> jax.Array:
        """A host array, the same on every process, where the rules want what has this name; without one, on every device.

        Each process copies only what its devices hold.
        """
        value = np.asarray(value)
        sharding = self.of_leaf(name, value.shape) if name else self.replicated
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    # ---- batches

    def check_batch(self, batch_size: int, parts: int) -> None:
        """Errors: UserError unless a batch can be cut into `parts` and spread over the mesh."""
        share = parts * math.prod(self.mesh.shape[axis] for axis in BATCH)
        if batch_size % share:
            raise UserError(
                f"batch_size must be a multiple of {share} (mesh axes data x fsdp x accumulate); got {batch_size}"
            )

    def local_examples(self, batch_size: int) -> tuple[int, ...]:
        """Which examples of a global batch the devices of this process hold."""
        held = NamedSharding(self.mesh, P(BATCH)).addressable_devices_indices_map((batch_size,))
        return tuple(sorted({example for (part,) in held.values() for example in range(*part.indices(batch_size))}))

    def put_batch(self, batch: dict, batch_size: int) -> dict:
        """This process's examples (see `local_examples`) -> arrays of the global batch."""
        examples = np.array(self.local_examples(batch_size))
        return {name: self._put_examples(name, value, examples, batch_size) for name, value in batch.items()}

    def of_batch(self, name: str, ndim: int) -> NamedSharding:
        """Ids [B H W] are spread over rows of the grid, too."""
        along = ("context",) if name.endswith("_ids") and ndim == 3 else ()
        return NamedSharding(self.mesh, P(BATCH, *along))

    def _put_examples(self, name, value, examples, batch_size):
        def part(index):
            wanted = np.arange(batch_size)[index[0]]
            return value[(np.searchsorted(examples, wanted), *index[1:])]

        shape = (batch_size, *value.shape[1:])
        return jax.make_array_from_callback(shape, self.of_batch(name, value.ndim), part)


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `devices`, by default all.

    Args:
      sizes: of `AXES`; one may be -1: what is left. Slices of a multi-slice job are told by the devices, and the data axis
        must be a multiple of their number.
    Errors: UserError when the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: sizes[axis] for axis in AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    if list(sizes.values()).count(-1) > 1 or known < 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"sizes of mesh axes must be positive, or one of them -1 for what is left; got {sizes}")
    given, sizes = sizes, {axis: len(devices) // known if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise UserError(f"the sizes of the mesh axes must multiply to the {len(devices)} devices; got {given}")
    slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    if sizes["data"] % slices:
        raise UserError(f"mesh axis data must be a multiple of the {slices} slices; got {sizes}")
    inside = (sizes["data"] // slices, *(sizes[axis] for axis in AXES[1:]))
    if slices == 1:
        arrange = functools.partial(mesh_utils.create_device_mesh, inside, devices)
    else:
        arrange = functools.partial(mesh_utils.create_hybrid_device_mesh, inside, (slices, 1, 1, 1), devices)
    try:
        return Mesh(arrange(), AXES)
    except NotImplementedError:  # an axis of the mesh is no product of sides of the slice, as 16 of 8 x 8 chips
        return Mesh(arrange(allow_split_physical_axes=True), AXES)


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """The shapes of a tree, with where they lie."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)


def path_name(path: Sequence[Any]) -> str:
    """'params/mgt/to_q/kernel' of a path in a tree."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def replicated_share(tree: Any, shardings: Any) -> float:
    """The share of a tree's bytes that lie on every device."""
    sizes = [(math.prod(leaf.shape) * leaf.dtype.itemsize, sharding.is_fully_replicated)
             for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)]  # fmt: skip
    return sum(size for size, whole in sizes if whole) / max(1, sum(size for size, _ in sizes))
