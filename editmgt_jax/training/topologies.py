"""TPU chips, and topologies of them that are not there."""

import dataclasses
import math

from editmgt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs, and what one of its devices has: the chip, or half of it where it has two devices.

    Attributes:
      clock: Hz; rate: FLOP/s of bfloat16 products; memory: bytes; bandwidth: bytes/s of that memory; devices: of a chip.
    """

    name: str
    clock: float
    rate: float
    memory: int
    bandwidth: float
    devices: int = 1

    @staticmethod
    def of(topology: str) -> "Chip":
        """The chip of 'v5e:4x4'. Errors: UserError."""
        name = topology.partition(":")[0]
        if name not in CHIPS:
            raise UserError(
                f"a topology must read CHIP:SHAPE, such as v5e:4x4, CHIP one of {', '.join(CHIPS)}; got {topology!r}"
            )
        return CHIPS[name]


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 1.05e9, 275e12 / 2, 32 * 2**30 // 2, 1.2e12 / 2, devices=2),
        Chip("v5e", 1.5e9, 197e12, 16 * 2**30, 0.82e12),
        Chip("v5p", 1.75e9, 459e12, 95 * 2**30, 2.77e12),
        Chip("v6e", 1.75e9, 918e12, 32 * 2**30, 1.64e12),
        # The clock follows from the rate: 4 matrix units of 256 x 256 a device.
        Chip("tpu7x", 2.2e9, 2307e12 / 2, 192 * 2**30 // 2, 7.4e12 / 2, devices=2),
    )
}


def device_count(topology: str) -> int:
    """Devices of a slice, by the name of its topology alone."""
    sides = topology.partition(":")[2].split("x")
    return Chip.of(topology).devices * math.prod(int(side) for side in sides)


def devices_of(topology: str, slices: int = 1) -> list:
    """The devices of so many slices of a topology, for compiling alone.

    Errors: UserError where libtpu is not installed or knows no such topology.
    """
    from jax.experimental import topologies

    Chip.of(topology)
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **more).devices)
    except Exception as error:  # noqa: BLE001  (libtpu raises several kinds)
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"libtpu must be installed (pip install 'jax[tpu]') and know the topology; got {topology!r}: {first_line}"
        ) from error
