"""Numbers of a compiled kernel's machine code.

registers        registers a thread (AMD: vector registers)
stack            bytes a thread (AMD: scratch)
spills           loads and stores of local memory (AMD: vector registers spilt)
scalar_spills    scalar registers spilt (AMD only)
instructions     all instructions
hgmma, mma       matrix products of four warps (sm_90); all matrix products on tensor cores
loads, wide      loads from global memory; those of at least 128 bits
shared, tensor_memory    bytes of shared memory, columns of tensor memory (sm_100); added by `compile_kernels`
"""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton

TENSOR_CORE = {"HMMA", "HGMMA", "UTCHMMA"}
"""Products of 16-bit matrices: by a warp, by four warps (sm_90), by a block through tensor memory (sm_100)."""


def read_nvidia(cubin: bytes) -> dict[str, int]:
    """Read a cubin by cuobjdump."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    instructions = re.findall(r"/\*[0-9a-f]{4,6}\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_.]*)", text)
    if registers is None or stack is None or not instructions:
        raise ValueError(f"cuobjdump printed something else: {text[:500]}")
    names = Counter(name.partition(".")[0] for name in instructions)
    loads = [name.split(".") for name in instructions if name.startswith("LDG")]
    return {
        "registers": int(registers[1]),
        "stack": int(stack[1]),
        "spills": names["STL"] + names["LDL"],
        "scalar_spills": 0,
        "instructions": len(instructions) - names["NOP"],
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
        "scalar_spills": field("sgpr_spill_count"),
        "instructions": len(instructions),
        "hgmma": 0,
        "mma": sum(name.startswith("v_mfma") for name in instructions),
        "loads": len(loads),
        "wide": sum(name.endswith("x4") for name in loads),
    }
