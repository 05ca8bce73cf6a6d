"""Reads a compiled program's text (optimised HLO): what runs in a step, and what it costs.

A program is computations, lists of instructions. What runs is the entry computation and, through
loops, calls and branches, what it calls. A fusion is one instruction that runs at once: its inner
instructions tell what it does (`deep=True` looks into it), not when. Loops inside the step count
as often as is known for them to run, else once; of a branch every side counts.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# What takes no time of its own: names, views, and the second halves of asynchronous pairs.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "after-all", "opt-barrier", "partition-id", "replica-id", "add-dependency",
    "domain",
}  # fmt: skip


class Instruction(NamedTuple):
    """result: its type, as "f32[2,3]{1,0}" or a tuple of them. operands: their names; of a constant
    its value, of a parameter its number. attributes: the rest of its line."""

    name: str
    result: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def op_name(self) -> str:
        """The path of JAX's name scopes, as "jit(run)/while/body/ViT/blocks_0/attn/dot_general"."""
        return _first(r'op_name="([^"]*)"', self.attributes) or ""

    @property
    def cycles(self) -> int | None:
        """The TPU compiler's estimate; None where it has none, or says so by the largest number."""
        found = _first(r'"estimated_cycles":"(\d+)"', self.attributes)
        return None if found is None or int(found) == 2**63 - 1 else int(found)

    @property
    def called(self) -> list[str]:
        """The computations that run when this instruction does."""
        attributes = _LINKS.get(self.opcode, ())
        found = [_first(rf"\b{name}=%?([\w.-]+)", self.attributes) for name in attributes]
        branches = _first(r"branch_computations=\{([^}]*)\}", self.attributes) or ""
        return [name for name in found if name] + re.findall(r"[\w.-]+", branches)

    @property
    def is_free(self) -> bool:
        return self.opcode in FREE or self.opcode.endswith(("-done", "-update"))


_LINKS = {
    "while": ("condition", "body"),
    "call": ("to_apply",),
    "conditional": ("true_computation", "false_computation"),
    "async-start": ("calls",),
    "fusion": ("calls",),
}


class Program(NamedTuple):
    """computations: instructions by name. entry: what runs first. frames: for each stack frame id
    the calls that led to an instruction, outermost first, as "dnrt_jax/arr.py:update"."""

    computations: dict[str, list[Instruction]]
    entry: str
    frames: dict[int, list[str]]

    def running(
        self, computation: str, *, deep: bool = False, times: int = 1
    ) -> Iterator[tuple[Instruction, int]]:
        """Every instruction that runs when `computation` does, and how often.

        deep: fusions' inner instructions too, after the fusion itself.
        """
        for instruction in self.computations[computation]:
            yield instruction, times
            if instruction.opcode == "fusion" and not deep:
                continue
            inner = times * self._trips(instruction)
            for name in instruction.called:
                yield from self.running(name, deep=deep, times=inner)

    def _trips(self, instruction: Instruction) -> int:
        """How often a loop runs: as the compiler says, or by its condition if that compares a
        count, from 0, with a constant."""
        if told := _first(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.attributes):
            return int(told)
        if instruction.opcode != "while":
            return 1
        condition = {i.name: i for i in self.computations[instruction.called[0]]}
        *_, last = condition.values()
        bound = condition.get(last.operands[-1]) if last.opcode == "compare" else None
        is_count = bound and bound.opcode == "constant" and "direction=LT" in last.attributes
        return int(bound.operands[0]) if bound and is_count else 1

    def loop(self) -> str:
        """The body of the largest loop that the entry runs: the step of a dispatch of many.

        Raises:
          ValueError: without a loop.
        """
        bodies = [i.called[-1] for i, _ in self.running(self.entry) if i.opcode == "while"]
        if not bodies:
            raise ValueError("the program has no loop")
        return max(bodies, key=lambda body: sum(1 for _ in self.running(body)))

    def outside(self, body: str) -> Iterator[tuple[Instruction, int]]:
        """What runs once a dispatch: all but what `body` runs."""
        inside = {id(instruction) for instruction, _ in self.running(body)}
        return ((i, n) for i, n in self.running(self.entry) if id(i) not in inside)

    def origin(self, instruction: Instruction) -> list[str]:
        """The Python calls that made an instruction, outermost first; of a fusion its root's."""
        frame = _first(r"stack_frame_id=(\d+)", instruction.attributes)
        return self.frames.get(int(frame), []) if frame else []


def parse(text: str) -> Program:
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if (head := _HEAD.match(line)) and "=" not in line.split("(")[0]:
            current = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif line.startswith("  ") and (instruction := _instruction(line)):
            current.append(instruction)
    return Program(computations, entry, _frames(text))


_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)")


def _instruction(line: str) -> Instruction | None:
    if not (match := _LINE.match(re.sub(r"/\*.*?\*/", "", line))):
        return None
    name, rest = match.groups()
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 2
    names = re.findall(r"%([\w.-]+)", rest[:end])
    operands = (rest[:end],) if opcode in ("constant", "parameter") else tuple(names)
    return Instruction(name, result, opcode, operands, rest[end + 1 :])


def _closing(text: str) -> int:
    """Where the bracket that `text` begins with has closed."""
    depth = 0
    for bracket in re.finditer(r"[()]", text):
        depth += 1 if bracket[0] == "(" else -1
        if not depth:
            return bracket.end()
    raise ValueError(f"no end of {text[:50]!r}")


def _frames(text: str) -> dict[int, list[str]]:
    tables = {}
    for title in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
        found = _first(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE) or ""
        rows = (line.split(" ", 1) for line in found.splitlines())
        tables[title] = {int(number): row.strip('"') for number, row in rows}
    number = lambda field, row: int(_first(rf"{field}=(\d+)", row) or 0)
    calls: dict[int, list[str]] = {0: []}
    for frame, row in sorted(tables["StackFrames"].items()):
        place = tables["FileLocations"].get(number("file_location_id", row), "")
        file = tables["FileNames"].get(number("file_name_id", place), "")
        function = tables["FunctionNames"].get(number("function_name_id", place), "")
        # Parents are counted from one on: 1 says that there is none.
        parent = calls.get(number("parent_frame_id", row) - 1, [])
        calls[frame] = [*parent, f"{file}:{function}"]
    return calls


def size(result: str) -> int:
    """Bytes of a result, of a tuple all together."""
    return sum(_bytes(dtype, dims) for dtype, dims in _ARRAY.findall(result))


_ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")


def _bytes(dtype: str, dims: str) -> int:
    bits = int(_first(r"(\d+)", dtype) or 8)
    return math.ceil(bits * _product(dims) / 8)


def _product(dims: str) -> int:
    return math.prod(int(n) for n in dims.split(",") if n)


def collectives_of(text: str) -> dict[str, tuple[int, int]]:
    """`collectives` of all that a compiled program, by its text, runs."""
    program = parse(text)
    return collectives(program, program.entry)


def collectives(program: Program, computation: str) -> dict[str, tuple[int, int]]:
    """(number, bytes of their results on one device) by kind.

    A TPU spreads one over several fusions that repeat it: its channel counts once.
    """
    found: dict[str, tuple[int, int]] = {}
    seen = set()
    for i, times in program.running(computation, deep=True):
        kind, channel = i.opcode.removesuffix("-start"), _first(r"channel_id=(\d+)", i.attributes)
        if kind not in KINDS or channel in seen:
            continue
        seen |= {channel} - {None}
        arrays = [_bytes(*array) for array in _ARRAY.findall(i.result)]
        if kind != i.opcode and kind in ("all-gather", "collective-permute") and len(arrays) > 1:
            arrays = arrays[1:2]  # what went in, what comes out, what keeps watch
        count, before = found.get(kind, (0, 0))
        found[kind] = count + times, before + times * sum(arrays)
    return found


def on_the_ring(kind: str, size: int, devices: int) -> float:
    """Bytes that a device sends in a ring, for a result of `size` bytes."""
    hops = (devices - 1) / devices
    return size * {"all-reduce": 2 * hops, "reduce-scatter": devices - 1}.get(kind, hops)


def scalar_moves(program: Program, computation: str) -> Counter[str]:
    """Number of "gather" and "scatter" instructions that move one element an index, inside and
    outside of fusions: on TPU each takes an element at a time."""
    found: Counter[str] = Counter()
    for i, _ in program.running(computation, deep=True):
        if i.opcode == "gather":
            sizes = _first(r"slice_sizes=\{([\d,]*)\}", i.attributes) or ""
            found["gather"] += _product(sizes) == 1
        if i.opcode == "scatter":
            found["scatter"] += "update_window_dims={}" in i.attributes
    return found


def copies(program: Program, dtype: str, elements: int) -> int:
    """Instructions outside of fusions that make an array of `dtype` of `elements` or more."""
    made = [i for i, _ in program.running(program.entry) if not i.is_free]
    large = lambda i: any(
        kind == dtype and _product(dims) >= elements for kind, dims in _ARRAY.findall(i.result)
    )
    return sum(map(large, made))


def traffic(program: Program, computation: str) -> tuple[int, int]:
    """(kernels, bytes) of a computation: operands and results of all that is not free, whole but
    for operands of which only slices or gathered rows are read."""
    kernels = moved = 0
    sizes = {i.name: size(i.result) for rows in program.computations.values() for i in rows}
    for i, times in program.running(computation):
        if i.is_free or i.opcode == "async-start":
            continue
        kernels += times
        inner = program.computations[i.called[0]] if i.opcode == "fusion" else [i]
        names = {int(p.operands[0]): p.name for p in inner if p.opcode == "parameter"}
        read = (
            _read(inner, names.get(number, name), sizes.get(name, 0))
            for number, name in enumerate(i.operands)
        )
        moved += times * (size(i.result) + sum(read))
    return kernels, moved


def _read(instructions: list[Instruction], name: str, whole: int) -> int:
    """Bytes that instructions read of an operand of `whole` bytes."""
    users = [i for i in instructions if name in i.operands]
    if any(i.opcode not in PARTIAL or i.operands[0] != name for i in users):
        return whole
    return min(whole, sum(size(i.result) for i in users))


PARTIAL = ("slice", "dynamic-slice", "gather")  # read as much as they give of their first operand


def _first(pattern: str, text: str, flags: int = 0) -> str | None:
    found = re.search(pattern, text, flags)
    return found[1] if found else None
