"""Formats of results: what each is, byte for byte, as it grows and when it is complete.

A format writes the results of a shard after those of the shard before; what stands in front of them, or takes another
form, is written at the end.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from .atomic import STANDARD_STREAM
from .errors import InputError

VECTOR = "embedding"
TENSOR = "embeddings"
Result = Mapping[str, Any]
"""One result: values of JSON by name; a vector is a (dim,) float32 array."""
Fields = Mapping[str, Any]
"""Types of a result's values by name: str, int, float, [type] of a list, a dict of further fields, or np.ndarray."""


class Format(Protocol):
    """A format of results.

    Attributes:
        reserved: bytes at the beginning that are written at the end.
        rewrites: True if the complete file is another than the one that grew.
    """

    reserved: int
    rewrites: bool

    def encode(self, results: Sequence[Result]) -> Iterable[bytes]:
        """The bytes of results, to be added at the end. Raises an InputError for what the format can't hold."""

    def complete(self, grown: BinaryIO, records: int, size: int, target: BinaryIO) -> None:
        """Make the complete file of `size` bytes that hold `records` results.

        Args:
            grown: what `encode` gave, behind `reserved` zeros.
            records: number of results, at least 1.
            size: bytes of `grown`.
            target: `grown` itself, or an empty file if the format rewrites.
        """


class JsonLines:
    """JSON Lines: one object a line, UTF-8. Nine digits of a float32 say exactly which it is."""

    reserved, rewrites = 0, False

    def encode(self, results: Sequence[Result]) -> Iterator[bytes]:
        for result in results:
            vector = result.get(VECTOR)
            if not isinstance(vector, np.ndarray):
                yield json.dumps(result, ensure_ascii=False).encode() + b"\n"
                continue
            numbers = ", ".join(["%.8e"] * len(vector)) % tuple(vector.tolist())
            others = {name: value for name, value in result.items() if name != VECTOR}
            start = json.dumps(others, ensure_ascii=False)[:-1] + (", " if others else "")
            yield f'{start}"{VECTOR}": [{numbers}]}}\n'.encode()

    def complete(self, grown: BinaryIO, records: int, size: int, target: BinaryIO) -> None:
        pass


class _Rows:
    """Rows of float32 behind a header of a size that does not depend on their number."""

    rewrites = False
    reserved = 0

    def encode(self, results: Sequence[Result]) -> Iterator[bytes]:
        for result in results:
            yield np.ascontiguousarray(result[VECTOR], dtype="<f4").tobytes()

    def complete(self, grown: BinaryIO, records: int, size: int, target: BinaryIO) -> None:
        header = self.header(records, (size - self.reserved) // (4 * records))
        if len(header) != self.reserved:
            raise AssertionError(f"a header of {len(header)} bytes in the place of {self.reserved}")
        target.seek(0)
        target.write(header)

    def header(self, records: int, dim: int) -> bytes:
        """The first `reserved` bytes of a file of (records, dim) float32."""
        raise NotImplementedError


class Npy(_Rows):
    """NumPy's format: float32 (records, dim)."""

    reserved = 128

    def header(self, records: int, dim: int) -> bytes:
        buffer = BytesIO()
        fields = {"descr": "<f4", "fortran_order": False, "shape": (records, dim)}
        np.lib.format.write_array_header_1_0(buffer, fields)
        return buffer.getvalue()


class Safetensors(_Rows):
    """Hugging Face's format: the tensor "embeddings", float32 (records, dim)."""

    reserved = 256

    def header(self, records: int, dim: int) -> bytes:
        fields = {TENSOR: {"dtype": "F32", "shape": [records, dim], "data_offsets": [0, 4 * records * dim]}}
        length = self.reserved - 8
        return length.to_bytes(8, "little") + json.dumps(fields).encode().ljust(length)


class Parquet:
    """Parquet, a row group a shard. It grows as Arrow streams, each behind its length in 8 bytes.

    Args:
        fields: names and types of the values.
        out: name of the file in messages.
    """

    reserved, rewrites = 0, True

    def __init__(self, fields: Fields, out: str) -> None:
        try:
            import pyarrow
        except ImportError as error:
            raise InputError(
                f"--out {out!r}: Parquet needs the package pyarrow, which is not installed; "
                f"expected `pip install 'erniem_fast[files]'`, or another ending"
            ) from error
        self._arrow, self._fields, self._out = pyarrow, fields, out

    def encode(self, results: Sequence[Result]) -> Iterator[bytes]:
        arrow = self._arrow
        columns = {}
        for name, kind in self._fields.items():
            values = [result.get(name) for result in results]
            try:
                if kind is np.ndarray:
                    rows = np.stack(values).astype(np.float32, copy=False)  # type: ignore[arg-type]
                    columns[name] = arrow.FixedSizeListArray.from_arrays(rows.reshape(-1), rows.shape[1])
                else:
                    columns[name] = arrow.array(values, self._type(kind))
            except (arrow.ArrowException, TypeError, OverflowError) as error:
                raise InputError(
                    f"--out {self._out!r}: {name!r} does not fit into one column of type {self._type(kind)} ({error}); "
                    f"expected values of one type, or an output that ends in .jsonl"
                ) from error
        batch = arrow.record_batch(columns)
        sink = arrow.BufferOutputStream()
        with arrow.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        payload = sink.getvalue()
        yield payload.size.to_bytes(8, "little")
        yield payload.to_pybytes()

    def complete(self, grown: BinaryIO, records: int, size: int, target: BinaryIO) -> None:
        from pyarrow import parquet

        writer = None
        grown.seek(0)
        while grown.tell() < size:
            length = int.from_bytes(grown.read(8), "little")
            table = self._arrow.ipc.open_stream(grown.read(length)).read_all()
            writer = writer or parquet.ParquetWriter(target, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()

    def _type(self, kind: Any) -> Any:
        """The Arrow type of a field's type."""
        if isinstance(kind, list):
            return self._arrow.list_(self._type(kind[0]))
        if isinstance(kind, Mapping):
            return self._arrow.struct([(name, self._type(inner)) for name, inner in kind.items()])
        types = {str: self._arrow.string, int: self._arrow.int64, float: self._arrow.float64}
        return types[kind]() if kind in types else self._arrow.list_(self._arrow.float32())


VECTOR_FORMATS: Mapping[str, Callable[[Fields, str], Format]] = {
    ".npy": lambda fields, out: Npy(),
    ".safetensors": lambda fields, out: Safetensors(),
    ".jsonl": lambda fields, out: JsonLines(),
    ".parquet": Parquet,
}
"""Formats of vectors by their endings; the first also has no ending, and goes to stdout."""
RECORD_FORMATS = {ending: VECTOR_FORMATS[ending] for ending in (".jsonl", ".parquet")}
"""Likewise, of everything else."""


def check_ending(out: str, formats: Iterable[str]) -> str:
    """The ending that an output is written as: its own, or the first of the formats' if it has none.

    Args:
        out: path of a file, or "-" for stdout.
        formats: the endings that are written.

    Raises:
        InputError: another ending.
    """
    endings = list(formats)
    ending = "" if out == STANDARD_STREAM else Path(out).suffix
    if ending and ending.lower() not in endings:
        raise InputError(
            f"--out {out!r}: the ending {ending} is not written; expected a file that ends in "
            f"{' or '.join(endings)}, no ending ({endings[0]}), or - for stdout ({endings[0]})"
        )
    return ending.lower() or endings[0]
