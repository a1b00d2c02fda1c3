"""Jobs that are killed at every call that changes a file, and then gone on with.

`python crashes.py FOLDER ENDING MOST` prints how many calls there are, and at how many of them, drawn at random, a job
was killed. It fails where a result was lost, came twice, or was not the same. It imports no torch.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
SHARDS, RECORDS = 4, 3


def import_files() -> Any:
    """Import the package's files without the package itself, which imports torch."""
    package = ModuleType("erniem_fast")
    package.__path__ = [str(ROOT / "erniem_fast")]
    sys.modules["erniem_fast"] = package
    from erniem_fast.files import formats, output, partial

    return formats, output, partial


FORMATS, OUTPUT, PARTIAL = import_files()


class Killer:
    """Kills this process at the call of a number."""

    def __init__(self, at: int | None) -> None:
        self.at, self.calls = at, 0

    def point(self) -> None:
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1

    def watch(self, place: Any, name: str) -> None:
        # What a killed process has written is there without fsync, which takes most of the time.
        function = getattr(place, name) if name != "fsync" else lambda descriptor: None

        def watched(*arguments: Any, **options: Any) -> Any:
            self.point()
            return function(*arguments, **options)

        setattr(place, name, watched)


def shard(number: int) -> list[dict[str, Any]]:
    import numpy as np

    vectors = np.random.default_rng(number).standard_normal((RECORDS, 4), dtype=np.float32)
    return [{"id": number * RECORDS + place, "embedding": vector} for place, vector in enumerate(vectors)]


def work(out: Path, at: int | None, tell: Callable[[int], object]) -> int:
    """Do the job, or what is left of it; the number of calls that it took."""
    killer = Killer(at)
    for name in ("fsync", "replace", "unlink", "rmdir", "mkdir", "open"):
        killer.watch(os, name)
    killer.watch(PARTIAL.json, "dump")
    form = FORMATS.VECTOR_FORMATS[out.suffix]({"id": int, "embedding": FORMATS.np.ndarray}, str(out))
    encode = form.encode

    def slowly(results: Sequence[Any]) -> Iterator[bytes]:
        for piece in encode(results):
            killer.point()
            yield piece[: len(piece) // 2]
            killer.point()
            yield piece[len(piece) // 2 :]

    form.encode = slowly
    OUTPUT.SECONDS_UNKEPT = 0
    with OUTPUT.open_output(str(out), form, {"INPUT": "numbers"}, False, lambda line: None) as output:
        if not output.placed:
            tell(output.records)
            output.begin({"dtype": "float32"})
            for number in range(output.shards, SHARDS):
                output.add(shard(number))
                tell(output.records)
    return killer.calls


def fork(out: Path, at: int | None) -> tuple[list[int], int | None]:
    """What a process told of its records, and its number of calls if it was not killed."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        status = 1
        try:
            os.close(reading)
            calls = work(out, at, lambda records: os.write(writing, f"{records} ".encode()))
            os.write(writing, f"calls {calls}".encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as file:
        told = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"a run that was killed at {at} ended with {status}")
    records, _, calls = told.partition("calls ")
    return [int(number) for number in records.split()], int(calls) if calls else None


def check(condition: object, message: str) -> None:
    if not condition:
        raise SystemExit(message)


def main(folder: Path, ending: str, most: int) -> None:
    if ending == ".parquet":
        import pyarrow.parquet  # noqa: F401  (once, and not in every process)
    out = folder / f"v{ending}"
    _, calls = fork(out, None)
    expected = out.read_bytes()
    assert calls is not None
    draw = random.Random()
    chosen = draw.sample(range(calls), min(most, calls))
    for at in chosen:
        out.unlink(missing_ok=True)
        kept = 0
        for next_at in (at, draw.randrange(calls), None):
            told, _ = fork(out, next_at)
            if told and not out.exists():
                check(told[0] >= kept, f"killed at {at}: {kept} records were kept, {told[0]} were found")
            kept = max([kept, *told])
            check(not out.exists() or out.read_bytes() == expected, f"killed at {at}, {next_at}: another result")
        check(out.exists(), f"killed at {at}: no result")
        check(os.listdir(folder) == [out.name], f"killed at {at}: {os.listdir(folder)} is left")
    print(json.dumps({"calls": calls, "kills": len(chosen)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
