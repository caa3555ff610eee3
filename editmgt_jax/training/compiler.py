"""Options of the compiler as named presets, for each platform."""

from editmgt_jax.errors import UserError

# Products of a weight that is spread over devices are else cut into one small product for each device, in turn with a transfer:
# of the few tokens that a device has here, each such product is too small to use the chip.
_WHOLE_PRODUCTS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}

# Kernels read what a scan kept where it lies, if they fit into the fast memory of a fusion: four fifths of this limit, by default 16 MiB.
_FUSIONS = {"xla_tpu_scoped_vmem_limit_kib": "32768"}

# A preset is {platform: {option: value}}; platforms that it does not name get none.
PRESETS = {
    "none": {},
    "default": {"tpu": _WHOLE_PRODUCTS | _FUSIONS},
}


def options(preset: str, platform: str) -> dict[str, str]:
    """The compiler options of a preset. Errors: UserError for an unknown one."""
    if preset not in PRESETS:
        raise UserError(f"compiler must be one of {', '.join(sorted(PRESETS))}; got {preset!r}")
    return dict(PRESETS[preset].get(platform, {}))


def describe(preset: str, platform: str) -> str:
    """One line for the log; empty where nothing is set."""
    values = ", ".join(f"{name}={value}" for name, value in options(preset, platform).items())
    return f"compiler options of preset {preset!r} on {platform}: {values}" if values else ""
