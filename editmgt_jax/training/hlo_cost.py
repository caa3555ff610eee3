"""What a compiled TPU program costs by the compiler's own static numbers, read off its text: an estimate, not a timing.

The compiler writes the cycles that it expects beside most instructions. A loop's body counts as often as it runs, a conditional
as its dearest branch times a given share. Kernels (Pallas) are counted by name; the caller knows what a call of them costs.
Collectives are counted with the bytes of their results, and are not in the cycles.
"""

import collections
import dataclasses
import re

_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_ARRAY = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_KERNEL = "tpu_custom_call"
_BEGINS = 'custom_call_target="AsyncCollectiveStart"'
_NONSENSE = 10**11  # cycles; the compiler writes such numbers where it does not know


@dataclasses.dataclass
class Cost:
    """Sums over one run of a program on one device.

    Attributes:
      cycles: of instructions other than kernels; by_operation: {(kind, operation, result, source line): cycles}. What the
        compiler adds to a loop's body goes by the loop's operation.
      kernels: {kernel's name: calls}; kernel_bytes: {name: bytes of arguments and results, or what it declares if
        that is less: of a stack a kernel may move a part}; collectives: {kind: calls}; collective_bytes: {kind: bytes of results}.
      moved: {(kind, operation, result): bytes} of the collectives.
      unknown: loops whose number of turns is not in the text; they count once.
    """

    cycles: float = 0
    by_operation: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    kernels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    kernel_bytes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    collectives: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    collective_bytes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    moved: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unknown: list[str] = dataclasses.field(default_factory=list)

    def top(self, count: int) -> list[tuple[tuple[str, str, str, str], float]]:
        """The dearest operations."""
        return self.by_operation.most_common(count)

    def of(self, pattern: str) -> float:
        """Cycles of instructions in whose operation a regular expression is found."""
        return sum(
            cycles for (_, operation, _, _), cycles in self.by_operation.items() if re.search(pattern, operation)
        )


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """A line of the text."""

    result: str
    opcode: str
    line: str

    def find(self, pattern: str, default: str = "") -> str:
        found = re.search(pattern, self.line)
        return found.group(1) if found else default

    @property
    def cycles(self) -> int:
        cycles = int(self.find(r'"estimated_cycles":"?(\d+)', "0"))
        return cycles if cycles < _NONSENSE else 0

    @property
    def operation(self) -> str:
        return re.sub(r"jit\([\w<>]+\)/", "", self.find(r'op_name="([^"]*)"', "?"))

    @property
    def shape(self) -> str:
        return re.sub(r"\{[^}]*\}", "", self.result)

    @property
    def bytes(self) -> int:
        return sum(size_of(dtype, dimensions) for dtype, dimensions in _ARRAY.findall(self.result))


def size_of(dtype: str, dimensions: str) -> int:
    """Bytes of an array, as 'bf16' and '4,128'."""
    size = _BYTES[dtype]
    for side in filter(None, dimensions.split(",")):
        size *= int(side)
    return size


def computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The computations of a program by name, and the name of the one that runs."""
    found, current, entry = {}, None, ""
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w\.\-<>]+) \(.*\) -> .*\{$", line)
        if head:
            current = found.setdefault(head.group(2), [])
            entry = head.group(2) if head.group(1) else entry
        elif line.rstrip() == "}":  # not any line that starts so: metadata may span lines
            current = None
        elif current is not None:
            parts = re.search(r"= (.*?) ([\w\-]+)\(", line)
            if parts:
                current.append(_Instruction(parts.group(1), parts.group(2), line))
    return found, entry


def read(text: str, branch_share: float = 1.0) -> Cost:
    """The cost of a program from its text.

    Args:
      branch_share: how often the dearest branch of a conditional runs, 0 to 1.
    """
    found, entry = computations(text)
    cost = Cost()
    _Walk(found, branch_share, cost).run(entry, 1.0)
    return cost


class _Walk:
    def __init__(self, found, branch_share, cost):
        self.found, self.branch_share, self.cost = found, branch_share, cost
        self.alone = {}  # cycles of a computation, for the choice of a branch
        self.sizes = {}  # bytes of the results of a computation's instructions

    def run(self, name, times, loop=""):
        for one in self.found.get(name, ()):
            self._count(one, times, name, loop)
            within = one.operation if one.opcode == "while" else loop
            for inner, share in self._inner(one):
                self.run(inner, times * share, within)

    def _inner(self, one):
        """(computation, how often it runs for each run of the instruction)"""
        if one.opcode == "while":
            return [(one.find(r"body=%?([\w\.\-]+)"), self._turns(one))]
        if one.opcode == "call":
            return [(one.find(r"to_apply=%?([\w\.\-]+)"), 1)]
        if one.opcode == "async-start" and not one.cycles:
            return [(one.find(r"calls=%?([\w\.\-]+)"), 1)]
        if one.opcode == "conditional":
            branches = re.findall(r"(?:true|false)_computation=%?([\w\.\-]+)", one.line)
            branches = branches or re.findall(r"%?([\w\.\-]+)", one.find(r"branch_computations=\{([^}]*)\}"))
            return [(max(branches, key=self._cycles), self.branch_share)]
        return []

    def _cycles(self, name):
        if name not in self.alone:
            inside = _Walk(self.found, 1.0, Cost())
            inside.run(name, 1.0)
            self.alone[name] = inside.cost.cycles + 1e6 * sum(inside.cost.kernels.values())
        return self.alone[name]

    def _turns(self, one):
        known = one.find(r"known_trip_count[^\d]*(\d+)")
        if known:
            return int(known)
        condition = one.find(r"condition=%?([\w\.\-]+)")
        limits = [int(x) for inner in self.found[condition]
                  for x in re.findall(r"= [su]32\[\]\S* constant\((\d+)\)", inner.line)]  # fmt: skip
        if len(limits) == 1:
            return limits[0]
        self.cost.unknown.append(condition)
        return limits[0] if limits else 1

    def _count(self, one, times, computation, loop):
        kind, cost = one.opcode.removesuffix("-start"), self.cost
        operation, result = one.operation, one.shape
        if loop and "/" not in operation:
            operation = f"{loop}/{operation}"
        if kind in COLLECTIVES:
            self._count_collective(one, times)
        elif one.opcode == "fusion":  # one that begins a transfer, which others then go on with
            inner = self.found.get(one.find(r"calls=%?([\w\.\-]+)"), ())
            if any(_BEGINS in each.line for each in inner):
                for each in inner:
                    if each.opcode in COLLECTIVES:
                        self._count_collective(each, times)
        kernel, inside = self._kernel(one, computation)
        if kernel is not None:
            name = kernel.find(r"([\w\-]+?)(?:\.\d+)* =") or "?"
            cost.kernels[name] += times
            moved = kernel.bytes + self._argument_bytes(kernel, inside)
            declared = kernel.find(r'"bytes_accessed":"?(\d+)')
            cost.kernel_bytes[name] += times * min(moved, int(declared or moved))
        elif one.cycles:
            source = one.find(r'source_file="[^"]*?([\w]+\.py)" source_line=\d+')
            line = one.find(r"source_line=(\d+)")
            place = f"{source}:{line}" if source else ""
            cost.cycles += one.cycles * times
            cost.by_operation[self._kind(one), operation, result, place] += one.cycles * times

    def _count_collective(self, one, times):
        kind = one.opcode.removesuffix("-start")
        self.cost.collectives[kind] += times
        self.cost.collective_bytes[kind] += one.bytes * times
        self.cost.moved[kind, one.operation, one.shape] += one.bytes * times

    def _kernel(self, one, computation):
        """-> the kernel that an instruction runs, alone or with what was fused into its reading, and the computation it is in"""
        inside = [one]
        if one.opcode == "fusion":
            computation = one.find(r"calls=%?([\w\.\-]+)")
            inside = self.found.get(computation, ())
        kernels = (each for each in inside if each.find(r'custom_call_target="([^"]+)"') == _KERNEL)
        return next(kernels, None), computation

    def _argument_bytes(self, one, computation):
        if computation not in self.sizes:
            self.sizes[computation] = {
                each.find(r"%?([\w\.\-]+) ="): each.bytes for each in self.found.get(computation, ())
            }
        names = re.findall(r"%([\w\.\-]+)", one.find(r"custom-call\((.*?)\)"))
        return sum(self.sizes[computation].get(name, 0) for name in names)

    def _kind(self, one):
        """Of a fusion also what it does."""
        if one.opcode != "fusion":
            return one.opcode
        inside = self._opcodes(one.find(r"calls=%?([\w\.\-]+)"))
        for name, opcodes in {
            "product": {"convolution", "dot"}, "scatter": {"scatter"}, "gather": {"gather"}, "reduction": {"reduce"},
        }.items():  # fmt: skip
            if inside & opcodes:
                return f"fusion, {name}"
        return "fusion, copy" if inside <= {"parameter", "copy", "bitcast", "transpose", "reshape"} else "fusion"

    def _opcodes(self, name):
        inside = {one.opcode for one in self.found.get(name, ())}
        for one in self.found.get(name, ()):
            for inner in re.findall(r"calls=%?([\w\.\-]+)", one.line):
                inside |= self._opcodes(inner)
        return inside
