"""How tests compile: they do so far more than they compute, and programs that are compiled quickly take up to half off their time. Imports no jax."""

from importlib.metadata import version

QUICK = {"--xla_backend_optimization_level": "0", "--xla_cpu_parallel_codegen_split_count": "1"}
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # jaxlib 0.12 has no such flag
    QUICK["--xla_cpu_use_fusion_emitters"] = "false"


def added(flags: str, **others) -> str:
    """The flags, and those of tests that they do not state; `others`: more defaults."""
    found = {f"--{name}": value for name, value in others.items()} | QUICK
    return " ".join([flags, *(f"{name}={value}" for name, value in found.items() if name not in flags)]).strip()
