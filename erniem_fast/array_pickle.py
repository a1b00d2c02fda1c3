"""Reading of `.pdparams` files: pickles of arrays, of which arrays are built and nothing else.

A pickle can call any function, with any arguments. Here each of the few names that a file of arrays needs leads to a
stand-in, and of pickle's instructions only those are carried out that build plain data.
"""

import math
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

PARAMETER_NAMES = "StructuredToParameterName@@"
CHUNKS = "UnpackBigParamInfor@@"
"""Keys of `.pdparams` files that hold no parameter: Paddle's internal names, and which arrays were stored in chunks."""


def read(path: str | Path, advance: Callable[[int], object] = lambda count: None) -> dict[str, np.ndarray]:
    """Read the arrays of a `.pdparams` file, without running anything that it asks for.

    Chunks of large arrays are joined. bfloat16 comes as uint16, as Paddle stores it: see `paddle.to_tensor`.

    Args:
        path: the file.
        advance: called with the number of bytes read.

    Returns:
        Arrays by their names in Paddle, read-only.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no pickle, is cut, or asks for anything but arrays of numbers.
    """
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        try:
            content = _ArrayUnpickler(_BoundedFile(file, size, advance), size).load()
            return _join_chunks(_arrays(content))
        except OSError:
            raise
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"{str(path)!r} is no file of parameters as paddle.save writes it: {reason}") from error


class _BoundedFile:
    """A file that refuses lengths past its end before memory is taken for them."""

    def __init__(self, file: BinaryIO, size: int, advance: Callable[[int], object]) -> None:
        self.file, self.left, self.advance = file, size, advance

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self.left:
            raise EOFError(f"it is cut: {count} bytes are announced, and {self.left} are left")
        return self._took(self.file.read(count))

    def readline(self) -> bytes:
        return self._took(self.file.readline(1000))

    def _took(self, data: bytes) -> bytes:
        self.left -= len(data)
        self.advance(len(data))
        return data


MAX_DIMENSIONS = 8


def _say(value: object) -> str:
    """A short value as it is, of any other the type: references to references are longer than any memory."""
    return repr(value)[:100] if isinstance(value, str | int | None) else type(value).__name__


class _Dtype:
    """What a pickled numpy.dtype says, if it is a dtype of numbers."""

    CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        if code not in self.CODES:
            raise pickle.UnpicklingError(f"it holds an array of dtype {_say(code)}, not of numbers")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        order, subdtype, names, fields = state[1:5]
        if not isinstance(order, str) or order not in "<>=|" or (subdtype, names, fields) != (None, None, None):
            raise pickle.UnpicklingError("it holds a dtype with fields, or of no byte order")
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """What a pickled numpy.ndarray says, once its state is set."""

    array: np.ndarray | None = None

    def __init__(self, budget: "_Budget") -> None:
        self.budget = budget

    def set_state(self, state: Any) -> None:
        _, shape, dtype, fortran_order, data = state
        if isinstance(data, str):  # pickled by Python 2
            data = data.encode("latin1")
        if not (isinstance(shape, tuple) and isinstance(dtype, _Dtype) and isinstance(data, bytes)):
            raise pickle.UnpicklingError(f"it holds an array of shape {_say(shape)} and values {_say(data)}")
        if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and 0 <= size < 2**48 for size in shape):
            raise pickle.UnpicklingError("it holds an array of an impossible shape")
        if math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise pickle.UnpicklingError(f"it holds an array of shape {shape} with {len(data)} bytes of {dtype.dtype}")
        self.budget.spend(len(data))
        flat = np.frombuffer(data, dtype.dtype) if data else np.empty(0, dtype.dtype)
        self.array = flat.reshape(shape, order="F" if fortran_order else "C")


class _Budget:
    """Bytes that a file may still be made into. A reference of a few bytes could make any number of copies."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise pickle.UnpicklingError("it makes more of its bytes than there are")


class _ArrayUnpickler(pickle._Unpickler):
    """An unpickler of numbers, strings, tuples, lists, dicts and numpy arrays.

    There are no persistent ids, extension codes and instances. It is Python's unpickler in Python: that in C takes
    memory for whatever length or number of a memo a file announces.

    Args:
        file: an object with `read` and `readline`.
        size: bytes in it.
    """

    INSTRUCTIONS = (
        "PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
        "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
        "BINBYTES8", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
        "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT",
        "MEMOIZE",
    )  # fmt: skip
    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[..., Any]]] = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in INSTRUCTIONS
    }

    def __init__(self, file: Any, size: int) -> None:
        super().__init__(file, encoding="latin1")
        self.budget = _Budget(2 * size)  # protocol 2 makes bytes of a string, and an array of the bytes
        self.functions: dict[str, Callable[..., Any]] = {
            "numpy.core.multiarray._reconstruct": self._reconstruct,
            "numpy._core.multiarray._reconstruct": self._reconstruct,
            "numpy.dtype": _Dtype,
            "_codecs.encode": self._encode,
            "collections.OrderedDict": self._ordered_dict,
            "builtins.tuple": self._tuple,
            "__builtin__.tuple": self._tuple,
        }

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            raise pickle.UnpicklingError(f"it asks for pickle's instruction {error}, which builds no data") from error

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path == "numpy.ndarray":
            return np.ndarray  # only ever an argument of _reconstruct
        if path not in self.functions:
            raise pickle.UnpicklingError(f"it asks for {path}, which builds no array; nothing of it was run")
        return self.functions[path]

    def _load_reduce(self) -> None:
        arguments = self.stack.pop()
        if not any(self.stack[-1] is function for function in self.functions.values()):
            raise pickle.UnpicklingError(f"it calls {_say(self.stack[-1])}")
        self.stack[-1] = self.stack[-1](*arguments)

    def _load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _Dtype):
            raise pickle.UnpicklingError(f"it sets the state of {type(self.stack[-1]).__name__}")
        self.stack[-1].set_state(state)

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _load_setitems(self) -> None:
        self._set_items(self.pop_mark())  # type: ignore[attr-defined]

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        # Hashing tuples of references to tuples may take forever.
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in items[::2]):
            raise pickle.UnpicklingError("it holds a dict whose keys are no names")
        target.update(zip(items[::2], items[1::2], strict=True))

    dispatch[pickle.REDUCE[0]] = _load_reduce
    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.SETITEM[0]] = _load_setitem
    dispatch[pickle.SETITEMS[0]] = _load_setitems

    def _reconstruct(self, cls: object, shape: object, code: object) -> _Array:
        if cls is not np.ndarray:
            raise pickle.UnpicklingError(f"it builds an array of {_say(cls)}")
        return _Array(self.budget)

    def _encode(self, text: str, encoding: str) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"it encodes {type(text).__name__} as {_say(encoding)}")
        self.budget.spend(len(text))
        return text.encode("latin1")

    def _ordered_dict(self) -> dict[str, Any]:
        return {}  # Python 3 sets its items like those of any dict

    def _tuple(self, items: Iterable[object] = ()) -> tuple:
        content = tuple(items)
        self.budget.spend(len(content))
        return content


def _arrays(content: object) -> dict[str, Any]:
    """Arrays, and the description of the chunks, of what was pickled."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dict of parameters")
    arrays: dict[str, Any] = {}
    for key, value in content.items():  # keys are strings
        if key == PARAMETER_NAMES:
            continue
        if isinstance(value, tuple) and len(value) == 2:  # a tensor: its name and its values
            value = value[1]
        if isinstance(value, _Array):
            value = value.array
        if not isinstance(value, np.ndarray) and key != CHUNKS:
            raise ValueError(f"it holds {type(value).__name__} under {key!r:.100}, not an array")
        arrays[key] = value
    return arrays


def _join_chunks(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """Replace chunks by the arrays that they are of."""
    chunks = arrays.pop(CHUNKS, {})
    for key, description in chunks.items():
        shape, names = description["OriginShape"], description["slices"]
        if not all(isinstance(name, str) and isinstance(arrays.get(name), np.ndarray) for name in names):
            raise ValueError(f"it lacks chunks of {key!r:.100}")
        if key in arrays:
            raise ValueError(f"it holds {key!r:.100} both whole and in chunks")
        if len({id(arrays[name]) for name in names}) < len(names):  # more of it could be made than memory holds
            raise ValueError(f"it makes {key!r:.100} of one array several times")
        arrays[key] = np.concatenate([arrays.pop(name) for name in names]).reshape(shape)
    return arrays
