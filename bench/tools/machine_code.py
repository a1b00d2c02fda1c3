"""Numbers of a compiled kernel's machine code.

registers        registers a thread (AMD: vector registers)
stack            bytes a thread (AMD: scratch)
spills           loads and stores of local memory (AMD: vector registers spilt)
looped_spills    those of them inside a loop (NVIDIA only)
scalar_spills    scalar registers spilt (AMD only)
instructions     all instructions
hgmma, mma       matrix products of four warps (sm_90); all matrix products on tensor cores
loads, wide      loads from global memory; those of at least 128 bits
shared, tensor_memory    bytes of shared memory, columns of tensor memory (sm_100); added by `compile_kernels`

`parts_of` splits sm_90's code into its hot loops and the rest, and `count` says what a warp takes of each.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import triton

TENSOR_CORE = {"HMMA", "HGMMA", "UTCHMMA"}
"""Products of 16-bit matrices: by a warp, by four warps (sm_90), by a block through tensor memory (sm_100)."""
LOCAL = ("LDL", "STL")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_.a-z]*)\s*([^;]*);")
_MUFU = {"MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO", "BREV"}
_FP32 = {"FFMA", "FADD", "FMUL", "HFMA2", "HADD2", "HMUL2"}
_IMAD = {"IMAD", "IDP"}
_MEMORY = re.compile(r"(LD|ST|RED|ATOM)")
_ISSUE_ONLY = re.compile(
    r"U[A-Z]|C?S2U?R|R2UR|LDC|BRA|EXIT|BAR|WARP|BSSY|BSYNC|BREAK|CALL|RET|DEPBAR|SYNCS|MEMBAR|ERRBAR|CCTL|FENCE|ELECT|"
    r"NANOSLEEP|VOTEU|YIELD|ACQBULK|PMTRIG|SHFL|HGMMA|HMMA"
)
"""Names of control, of the uniform data path and of units that are counted by what they move."""


class Instruction(NamedTuple):
    """An instruction, without its predicate."""

    address: int
    name: str
    operands: str

    @property
    def base(self) -> str:
        """Its name without modifiers."""
        return self.name.partition(".")[0]


def disassemble(cubin: bytes) -> str:
    """cuobjdump's text of a cubin: use of resources, and machine code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", "--dump-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instructions_of(text: str) -> list[Instruction]:
    """The instructions of a disassembled kernel."""
    found = (Instruction(int(at, 16), name, rest) for at, name, rest in _INSTRUCTION.findall(text))
    return [one for one in found if one.base != "NOP"]


def loops_of(code: Sequence[Instruction]) -> list[range]:
    """Addresses of all loops, nested ones too: from the target of a branch backward to the branch."""
    spans: dict[int, int] = {}
    for one in code:
        target = re.search(r"0x([0-9a-f]+)", one.operands) if one.base == "BRA" else None
        if target and int(target[1], 16) < one.address:
            spans[int(target[1], 16)] = one.address
    return [range(first, last + 1) for first, last in sorted(spans.items())]


def parts_of(code: Sequence[Instruction]) -> list[list[Instruction]]:
    """The hot innermost loops, which multiply matrices or read global memory, by address; then what is in no such loop.

    Other innermost loops wait, or write zeros past the last sequence: they are in no part.
    """
    spans = loops_of(code)
    inner = [one for one in spans if not any(other != one and other[0] in one and other[-1] in one for other in spans)]
    loops = [[one for one in code if one.address in span] for span in inner]
    hot = [loop for loop in loops if any(one.base in TENSOR_CORE or one.base in ("LDG", "LDGSTS") for one in loop)]
    return [*hot, [one for one in code if not any(one.address in span for span in inner)]]


def _shared_bytes(one: Instruction) -> int:
    """Bytes of shared memory that a warp moves, of a product by four warps its quarter times four."""
    if one.base == "HGMMA":  # 64 x N x 16: N columns of 32 bytes, and 64 rows unless they come from registers
        rows = 64 if re.match(r"R\d+,\s*gdesc", one.operands) else 0
        return 32 * (int(one.name.split("x")[1]) + rows)
    bits = next((width for width in (128, 64) if f".{width}" in one.name), 32)
    if one.base in ("LDSM", "STSM"):
        return 4 * 128 * int(one.name[-1] if one.name[-1].isdigit() else 1)
    return 4 * 4 * bits if one.base in ("LDS", "STS", "LDGSTS") else 4 * 128 if one.base == "SHFL" else 0


def count(part: Sequence[Instruction]) -> dict[str, int]:
    """What a warp of sm_90 takes of a part: cycles of its sub-partition by pipe, and instructions to watch.

    Cycles: issue 1 each; FP32 1, on two halves of which IMAD takes one for 2; ALU 2; MUFU and conversions that run
    there 8; HGMMA 64 x N x 16 N / 2, HMMA 4; shared memory 128 bytes for all four sub-partitions together.
    """
    names = Counter(one.base for one in part)
    fp32, imad, mufu = (sum(names[name] for name in kind) for kind in (_FP32, _IMAD, _MUFU))
    apart = sum(bool(_MEMORY.match(one.base) or _ISSUE_ONLY.match(one.base)) for one in part)
    hgmma = [int(one.name.split("x")[1]) for one in part if one.base == "HGMMA"]
    return {
        "issue": len(part),
        "fma": max(2 * imad, imad + fp32),
        "alu": 2 * (len(part) - fp32 - imad - mufu - apart),
        "mufu": 8 * mufu,
        "mma": sum(hgmma) // 2 + 4 * names["HMMA"],
        "shared": sum(map(_shared_bytes, part)) // 128,
        "local": sum(names[name] for name in LOCAL),
        "f2f": names["F2F"],
        "prmt": names["PRMT"],
        "bar": names["BAR"],
    }


def read_nvidia(text: str) -> dict[str, int]:
    """Read a disassembled cubin."""
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    code = instructions_of(text)
    if registers is None or stack is None or not code:
        raise ValueError(f"cuobjdump printed something else: {text[:500]}")
    names, loops = Counter(one.base for one in code), loops_of(code)
    loads = [one.name.split(".") for one in code if one.name.startswith("LDG")]
    return {
        "registers": int(registers[1]),
        "stack": int(stack[1]),
        "spills": sum(names[name] for name in LOCAL),
        "looped_spills": sum(one.base in LOCAL and any(one.address in loop for loop in loops) for one in code),
        "scalar_spills": 0,
        "instructions": len(code),
        "hgmma": names["HGMMA"],
        "mma": sum(names[name] for name in TENSOR_CORE),
        "loads": sum(load[0] in ("LDG", "LDGSTS") for load in loads),
        "wide": sum("128" in load or "256" in load for load in loads),
    }


def read_amd(text: str) -> dict[str, int]:
    """Read LLVM's assembly for AMD."""

    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        if found is None:
            raise ValueError(f"the assembly names no {name}")
        return int(found[1])

    instructions = re.findall(r"^\s+([a-z]+_\w+)", text, re.MULTILINE)
    loads = [name for name in instructions if re.match(r"(global|buffer)_load", name)]
    return {
        "registers": field("vgpr_count"),
        "stack": field("private_segment_fixed_size"),
        "spills": field("vgpr_spill_count"),
        "looped_spills": 0,
        "scalar_spills": field("sgpr_spill_count"),
        "instructions": len(instructions),
        "hgmma": 0,
        "mma": sum(name.startswith("v_mfma") for name in instructions),
        "loads": len(loads),
        "wide": sum(name.endswith("x4") for name in loads),
    }
