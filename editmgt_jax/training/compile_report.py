"""What `compile_ahead` found as estimates, tables and advice. No jax.

Every time here is an estimate: the compiler's static cycles over the chip's clock, and of kernels their bundles, or the time to
move their arguments and results where that is longer. Waits for other chips are not in it.
"""

import re

from editmgt_jax.training.topologies import CHIPS, Chip

GIB = 2**30
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "": 1}


def add_estimate(entry: dict, chip: Chip) -> dict:
    """An entry of `compile_ahead.compile_program`, with 'milliseconds': of instructions and of kernels, of the frozen encoders
    among them, the ideals without and of these, and the ratio of the rest to its ideal.

    Args:
      entry: with 'kernel_cycles', {kernel: cycles of a call}, of the kernels that it calls.
    """
    if "error" in entry:
        return entry
    kernels = 0.0
    for name, calls in entry["kernels"].items():
        moving = entry["kernel_bytes"].get(name, 0) / chip.bandwidth * chip.clock
        kernels += max(calls * entry["kernel_cycles"].get(name, 0), moving)
    xla, inside, frozen = (cycles / chip.clock * 1e3 for cycles in (entry["cycles"], kernels, entry["frozen_cycles"]))
    ideal, frozen_ideal = (entry[flops] / chip.rate * 1e3 for flops in ("flops", "frozen_flops"))
    times = {"instructions": xla, "kernels": inside, "total": xla + inside, "ideal": ideal}
    times |= {"frozen": frozen, "frozen_ideal": frozen_ideal}
    if ideal:
        times["ratio"] = (xla + inside - frozen) / ideal
    return entry | {"milliseconds": times, "fits": entry["memory"]["peak"] <= chip.memory}


def out_of_memory(text: str) -> int | None:
    """The bytes of device memory that a program needs, from the compiler's error; None if the error is another."""
    found = re.search(r"Used ([\d.]+)([KMG]?) of [\d.]+[KMG]? hbm", text)
    if found:
        return int(float(found.group(1)) * _UNITS[found.group(2)])
    return 0 if "RESOURCE_EXHAUSTED" in text or "Ran out of memory" in text else None


def advice(needed: int, arguments: int, chip: Chip, batch: int, share: int, remat: str, fsdp: int) -> list[str]:
    """What to change so that a train step fits.

    Args:
      needed, arguments: bytes, all and of the state; batch: samples of a step; share: the devices that a batch is spread over.
    """
    found, room = [], chip.memory - arguments
    if room <= 0:
        return [
            f"the state alone needs {arguments / GIB:.1f} GiB a device: spread it over more (mesh.fsdp, now {fsdp})"
        ]
    if remat in ("none", "dots", "products"):
        following = {"none": "products", "dots": "products", "products": "full"}[remat]
        found.append(f"keep less for the backward pass: model.remat={following!r}")
    times = -(-(needed - arguments) // room)
    if batch // share > 1:
        smaller = max(1, batch // share // times)
        found.append(f"batch_size={smaller * share}, {smaller} a device")
        found.append(f"or accumulate={times}, with the batch as it is")
    else:
        found.append("spread positions over chips: mesh.context=2 or more")
    return found


def _where(entry) -> str:
    return entry["topology"] + (f" x {entry['slices']}" if entry["slices"] > 1 else "")


def describe(entry: dict) -> str:
    """A program in a few lines."""
    name = f"{_where(entry)}, {entry['program']}"
    if "error" in entry:
        return "\n".join([f"{name}: {entry['error']}", *(f"  advice: {one}" for one in entry.get("advice", ()))])
    memory, times = entry["memory"], entry["milliseconds"]
    lines = [
        f"{name}: {entry['samples'] / entry['devices']:g} samples a device; {'fits' if entry['fits'] else 'DOES NOT FIT'}: "
        + ", ".join(f"{kind} {size / GIB:.2f} GiB" for kind, size in memory.items())
        + f"; compiled in {entry['seconds']['compile']:.0f} s",
        f"  estimate {times['total']:.1f} ms: instructions {times['instructions']:.1f}, kernels {times['kernels']:.1f}"
        + (f"; ideal {times['ideal']:.1f} ms, ratio {times['ratio']:.2f}" if times["ideal"] else "")
        + (
            f"; frozen encoders apart: {times['frozen']:.1f} of the estimate, ideal {times['frozen_ideal']:.1f} ms"
            if entry["frozen_flops"]
            else ""
        ),
    ]
    for kind, moved in sorted(entry["collectives"].items()):
        bound = entry["bound"].get(kind)
        lines.append(
            f"  {kind}: {moved['calls']:.0f} calls, {moved['bytes'] / GIB:.2f} GiB"
            + (f" (parameters and gradients alone: {bound / GIB:.2f})" if bound is not None else "")
        )
    lines.extend(
        f"  note: the turns of loop {loop} are not in the text; it counts once" for loop in entry["unknown_loops"]
    )
    clock = CHIPS[entry["topology"].partition(":")[0]].clock
    for kind, operation, result, place, cycles in entry["top"][:10]:
        lines.append(f"  {cycles / clock * 1e3:8.2f} ms  {kind}: {result[:48]} <- {operation[-70:]} {place}")
    return "\n".join(lines)


def markdown(entries: list[dict]) -> str:
    """A table of entries."""
    head = [
        "Topology",
        "Program",
        "Samples a device",
        "Arguments",
        "Peak",
        "Estimate",
        "Ideal",
        "Ratio",
        "Collectives",
        "Compile",
    ]
    rows = [head, ["---"] * len(head)]
    for entry in entries:
        name = _where(entry)
        if "error" in entry:
            rows.append([name, entry["program"], entry["error"].splitlines()[0], *[""] * 7])
            continue
        memory, times = entry["memory"], entry["milliseconds"]
        moved = sum(one["bytes"] for one in entry["collectives"].values())
        rows.append([
            name, entry["program"], f"{entry['samples'] / entry['devices']:g}", f"{memory['arguments'] / GIB:.2f} GiB",
            f"{memory['peak'] / GIB:.2f} GiB" + ("" if entry["fits"] else ", does not fit"), f"{times['total']:.1f} ms",
            f"{times['ideal']:.1f} ms" if times["ideal"] else "", f"{times['ratio']:.2f}" if times["ideal"] else "",
            f"{moved / GIB:.2f} GiB", f"{entry['seconds']['compile']:.0f} s",
        ])  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
