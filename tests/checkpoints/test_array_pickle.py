"""Files of arrays are read as they are, and pickles of anything else are refused before they do anything."""

import builtins
import codecs
import collections
import copyreg
import functools
import importlib
import operator
import os
import pickle
import struct
import subprocess
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.paddle_folders import in_chunks, pickled
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_fast.array_pickle import read


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng()
    return {
        "float": random.normal(size=(3, 5)).astype(np.float32),
        "half": random.normal(size=7).astype(np.float16),
        "double": random.normal(size=(2, 1, 4)),
        "bfloat16": random.integers(0, 2**16, (4, 3)).astype(np.uint16),
        "columns": np.asfortranarray(random.normal(size=(3, 5)).astype(np.float32)),
        "big endian": random.normal(size=(3, 5)).astype(">f4"),
        "ids": random.integers(-(2**60), 2**60, (2, 6)),
        "scalar": np.array(random.normal(), dtype=np.float32),
        "ünicode": np.zeros(1, np.int8),
    }


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
        assert found[key].shape == array.shape
        assert (found[key] == array).all(), key


@pytest.mark.parametrize("numpy_1", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_are_read(tmp_path, protocol, numpy_1):
    path = tmp_path / "x.pdparams"
    expected = arrays()
    path.write_bytes(pickled(expected, protocol, numpy_1))
    found = read(path)
    assert_same(found, expected)
    assert not any(array.flags.writeable for array in found.values() if array.size)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_other_containers_of_paddle(tmp_path, protocol):
    """Ordered dicts, and tensors as tuples of name and values."""
    expected = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(3)}

    class Tensor:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __reduce__(self) -> Any:
            return tuple, (("linear_0.w_0", self.array),)

    content = collections.OrderedDict(a=Tensor(expected["a"]), b=expected["b"])
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol))
    assert_same(read(tmp_path / "x"), expected)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("most", [1, 4, 7])
def test_chunks_are_joined(tmp_path, protocol, most):
    expected = arrays()
    (tmp_path / "x").write_bytes(pickled(in_chunks(expected, most), protocol))
    expected["columns"] = np.ascontiguousarray(expected["columns"])
    assert_same(read(tmp_path / "x"), expected)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda chunks: chunks["float"]["slices"].append("missing"),
        lambda chunks: chunks["float"]["slices"].append("float@@.0"),
        lambda chunks: chunks["float"]["slices"].pop(),
        lambda chunks: chunks["float"].pop("OriginShape"),
        lambda chunks: chunks["float"].update(OriginShape=(2**40, 2**40)),
        lambda chunks: chunks["float"].update(slices=[["float@@.0"]]),
        lambda chunks: chunks.update(half={"OriginShape": (7,), "slices": ["float@@.0"]}),
        lambda chunks: chunks.update(double=3),
    ],
)
def test_wrong_chunks_raise(tmp_path, spoil):
    content = in_chunks(arrays(), 7)
    spoil(content["UnpackBigParamInfor@@"])
    (tmp_path / "x").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="no file of parameters"):
        read(tmp_path / "x")


def test_an_array_is_no_two_chunks(tmp_path):
    """A reference of a few bytes would make any number of copies."""
    array = np.zeros(1000, np.float32)
    names = [f"x{i}" for i in range(100)]
    chunks = {"w": {"OriginShape": (100_000,), "slices": names}}
    (tmp_path / "x").write_bytes(pickled(dict.fromkeys(names, array) | {"UnpackBigParamInfor@@": chunks}))
    with pytest.raises(ValueError, match="it makes 'w' of one array several times"):
        read(tmp_path / "x")


def test_bytes_are_counted(tmp_path):
    content = pickled(arrays())
    (tmp_path / "x").write_bytes(content)
    counts: list[int] = []
    read(tmp_path / "x", counts.append)
    assert sum(counts) == len(content)


# --- pickles that would do something

TOUCHED: list[object] = []


def touch(*arguments: object) -> list[object]:
    TOUCHED.append(arguments)
    return TOUCHED


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def dumps(content: Any, protocol: int = 2) -> bytes:
    return pickle.dumps(content, protocol)


def call(module: str, name: str, arguments: bytes = b")") -> bytes:
    """Pickle of protocol 2 of a dict with the result of a call: arguments are those of the instruction."""
    return b"\x80\x02}X\x01\x00\x00\x00ac" + f"{module}\n{name}\n".encode() + arguments + b"Rs."


class Instance:
    def __init__(self) -> None:
        self.a = 1


class Plain(dict):
    """Protocol 2 and later make it by __newobj__."""


class Recipient(dict):
    def __setstate__(self, state: object) -> None:
        touch(state)


def command(path: str) -> list[tuple[str, Any]]:
    shell = f"touch {path}"
    return [
        ("os.system", Call(os.system, shell)),
        ("subprocess", Call(subprocess.Popen, ["touch", path])),
        ("eval", Call(eval, f"open({path!r}, 'w')")),
        ("exec", Call(exec, f"open({path!r}, 'w')")),
        ("open", Call(open, path, "w")),
        ("compile", Call(compile, "1", "x", "eval")),
        ("import", Call(builtins.__import__, "this")),
        ("import_module", Call(importlib.import_module, "this")),
        ("getattr", Call(getattr, Call(builtins.__import__, "os"), "system")),
        ("attrgetter", Call(operator.attrgetter("system"), shell)),
        ("methodcaller", Call(operator.methodcaller("touch"), Path(path))),
        ("partial", Call(functools.partial(touch, 1))),
        ("path", Path(path)),
        ("numpy.save", Call(np.save, path, 1)),
        ("numpy.load", Call(np.load, path)),
        ("numpy.fromfile", Call(np.fromfile, path)),
        ("numpy.memmap", Call(np.memmap, path, "f4", "w+")),
        ("numpy.frombuffer", Call(np.frombuffer, b"1234")),
        ("numpy.ndarray", Call(np.ndarray, (2**20,))),
        ("numpy scalar", np.float32(1)),
        ("objects", np.array([Call(os.system, shell), 1], dtype=object)),
        ("strings", np.array(["a", "b"])),
        ("dates", np.array(["2024-01-01"], dtype="datetime64[D]")),
        ("fields", np.zeros(3, dtype=[("a", "f4"), ("b", "O")])),
        ("complex", np.zeros(3, dtype=complex)),
        ("masked array", np.ma.zeros(3)),
        ("record array", np.rec.array([(1, 2.0)])),
        ("matrix", np.zeros((2, 2)).view(np.matrix)),
        ("copyreg", Instance()),
        ("newobj", Plain(a=1)),
        ("setstate", Recipient(a=1)),
        ("exception", ValueError("a")),
        ("class", Instance),
        ("function", touch),
        ("builtin", print),
        ("codec", Call(codecs.encode, "abc", "rot13")),
        ("another codec", Call(codecs.encode, b"abc", "zlib")),
        ("decode", Call(codecs.decode, b"abc", "latin1")),
        ("set", {1, 2}),
        ("frozenset", frozenset({1})),
        ("bytearray", bytearray(b"12")),
        ("complex number", 1j),
        ("counter", collections.Counter("aab")),
        ("defaultdict", collections.defaultdict(list)),
        ("state of a function", Call(codecs.encode, "abc", "latin1", state={"a": 1})),
        ("state of an ordered dict", Call(collections.OrderedDict, state={"a": 1})),
    ]


NAMES = [name for name, _ in command("")]
PLACES = {
    "alone": lambda evil: evil,
    "as a value": lambda evil: {"a": evil},
    "in a tuple": lambda evil: {"a": ("name", evil)},
    "under the names": lambda evil: {"a": np.zeros(2), "StructuredToParameterName@@": {"x": [evil]}},
    "in chunks": lambda evil: {"a": np.zeros(2), "UnpackBigParamInfor@@": {"a": evil}},
}


def refused(path: Path, content: bytes) -> str:
    """The error of a file that must be refused in little memory and without side effects."""
    path.write_bytes(content)
    TOUCHED.clear()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"no file of parameters as paddle\.save writes it: .") as info:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20 + 10 * len(content)
    finally:
        tracemalloc.stop()
    assert not TOUCHED
    assert not path.with_name("touched").exists()
    return str(info.value)


@pytest.mark.parametrize("name", NAMES)
def test_pickles_of_anything_else_are_refused(tmp_path, name):
    evil = dict(command(str(tmp_path / "touched")))[name]
    for protocol in (2, 4):
        refused(tmp_path / "x", pickle.dumps({"a": evil}, protocol))


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_anything_else_are_refused_anywhere(tmp_path, place, protocol):
    for _, evil in command(str(tmp_path / "touched")):
        refused(tmp_path / "x", pickle.dumps(PLACES[place](evil), protocol))


def test_the_error_names_the_function(tmp_path):
    message = refused(tmp_path / "x", dumps({"a": Call(os.system, "true")}))
    assert "posix.system" in message or "nt.system" in message
    assert str(tmp_path / "x") in message


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "ndarray.tofile"),
        ("numpy", "dtype.newbyteorder"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy.core", "multiarray._reconstruct.__self__"),
        ("_codecs", "encode.__self__"),
        ("_codecs", "lookup"),
        ("collections.OrderedDict", "update"),
        ("collections", "OrderedDict.__class__"),
        ("builtins", "tuple.__subclasses__"),
        ("builtins", "type"),
        ("erniem_fast.array_pickle", "read"),
        ("erniem_fast.array_pickle", "os"),
        ("", ""),
        ("numpy", "NDARRAY"),
    ],
)
def test_names_are_taken_to_the_letter(tmp_path, module, name):
    refused(tmp_path / "x", call(module, name))
    parts = [bytes([0x8C, len(part)]) + part.encode() for part in (module, name)]
    refused(tmp_path / "x", b"\x80\x04}\x8c\x01a" + b"".join(parts) + b"\x93)Rs.")


ENCODE = b"c_codecs\nencode\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
DTYPE = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R(K\x03X\x01\x00\x00\x00<NNN"
DTYPE += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def array_of(shape: bytes, data: bytes = b"C\x041234") -> bytes:
    """Dict with one array, in protocol 3."""
    return b"\x80\x03}X\x01\x00\x00\x00a" + RECONSTRUCT + b"(K\x01" + shape + DTYPE + b"\x89" + data + b"tbs."


def test_the_instructions_that_are_spoilt_below_are_right(tmp_path):
    (tmp_path / "x").write_bytes(array_of(b"K\x01\x85"))
    assert read(tmp_path / "x")["a"].tobytes() == b"1234"


LONG = b"\x8a\x09" + b"\xff" * 8 + b"\x00"  # 2**64 - 1


A = b"\x80\x02}X\x01\x00\x00\x00a"  # a dict, and its first key
LATIN = b"X\x06\x00\x00\x00latin1"


@pytest.mark.parametrize(
    "content",
    {
        "huge shape": array_of(b"J\xff\xff\xff\x7f\x85"),
        "overflowing shape": array_of(LONG + LONG + b"\x86"),
        "overflowing product": array_of(b"\x8a\x05" + b"\x00" * 4 + b"\x01" + b"J\x00\x00\x00\x40\x86"),
        "negative shape": array_of(b"J\xff\xff\xff\xff\x85"),
        "two negatives": array_of(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"),
        "bool shape": array_of(b"\x88\x85"),
        "text shape": array_of(b"X\x01\x00\x00\x001"),
        "many dimensions": array_of(b"(" + b"K\x01" * 70 + b"t"),
        "huge zero": array_of(b"K\x00" + LONG + b"\x86", b"C\x00"),
        "too little": array_of(b"K\x02\x85"),
        "too much": array_of(b"K\x01\x85", b"C\x0512345"),
        "list as data": array_of(b"K\x01\x85", b"]"),
        "no state": b"\x80\x03}X\x01\x00\x00\x00a" + RECONSTRUCT + b"s.",
        "state of one": b"\x80\x03}X\x01\x00\x00\x00a" + RECONSTRUCT + b"K\x01\x85bs.",
        "array of another class": array_of(b"K\x01\x85").replace(b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"),
        "objects": array_of(b"K\x01\x85").replace(b"f4", b"O8"),
        "fields": array_of(b"K\x01\x85").replace(b"<NNN", b"<N]N"),
        "byte order": array_of(b"K\x01\x85").replace(b"<NNN", b"xNNN"),
        "memo": b"\x80\x02}r\xff\xff\xff\xffX\x01\x00\x00\x00b\x8f.",
        "bytes of 2**40": b"\x80\x04}\x8c\x01a\x8e" + struct.pack("<Q", 2**40) + b"abcs.",
        "bytes of 2**63": b"\x80\x04}\x8c\x01a\x8e" + struct.pack("<Q", 2**63) + b"abcs.",
        "text of 2**31": b"\x80\x02}X\x01\x00\x00\x00aX\xff\xff\xff\x7fabcs.",
        "number of 2**31 bytes": b"\x80\x02}X\x01\x00\x00\x00a\x8b\xff\xff\xff\x7fabcs.",
        "string of -1": b"\x80\x02}X\x01\x00\x00\x00aT\xff\xff\xff\xffabcs.",
        "frame of 2**50": b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"}.",
        "bytearray of 2**40": b"\x80\x05}\x8c\x01a\x96" + struct.pack("<Q", 2**40) + b"abcs.",
        "persistent id": b"\x80\x02}X\x01\x00\x00\x00aX\x01\x00\x00\x00bQs.",
        "persistent id in text": b"}X\x01\x00\x00\x00aPabc\ns.",
        "extension 1": b"\x80\x02}X\x01\x00\x00\x00a\x82\xf0)Rs.",
        "extension 2": b"\x80\x02}X\x01\x00\x00\x00a\x83\xf0\x00)Rs.",
        "extension 4": b"\x80\x02}X\x01\x00\x00\x00a\x84\xf0\x00\x00\x00)Rs.",
        "inst": b"}X\x01\x00\x00\x00a(ios\nsystem\ns.",
        "obj": b"}X\x01\x00\x00\x00a(cos\nsystem\nX\x04\x00\x00\x00trueos.",
        "newobj": b"\x80\x02}X\x01\x00\x00\x00acnumpy\nndarray\nK\x03\x85\x85\x81s.",
        "newobj with keywords": b"\x80\x04}\x8c\x01acnumpy\nndarray\n)}\x92s.",
        "buffers": b"\x80\x05}\x8c\x01a\x97s.",
        "call of an array": b"\x80\x02}X\x01\x00\x00\x00a" + RECONSTRUCT.replace(b"C\x01b", b"K\x00") + b")Rs.",
        "call of the class": b"\x80\x02}X\x01\x00\x00\x00acnumpy\nndarray\nK\x03\x85Rs.",
        "call of a text": b"\x80\x02}X\x01\x00\x00\x00aX\x01\x00\x00\x00b)Rs.",
        "state of a stand-in": A + ENCODE + b"N}X\x0c\x00\x00\x00__defaults__)s\x86bs.",
        "state of the dict": b"\x80\x02}X\x01\x00\x00\x00b}bs.",
        "encoded otherwise": A + ENCODE + b"X\x01\x00\x00\x00bX\x05\x00\x00\x00utf-8\x86Rs.",
        "not to be encoded": A + ENCODE + b"X\x02\x00\x00\x00\xc4\x80" + LATIN + b"\x86Rs.",
        "numbers as keys": b"\x80\x02}K\x01K\x02s.",
        "a number": b"\x80\x02K\x01.",
        "a list": b"\x80\x02].",
        "a dict in a dict": b"\x80\x02}X\x01\x00\x00\x00a}s.",
        "itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
        "no stop": b"\x80\x02}",
        "no stack": b"\x80\x02.",
        "no mark": b"\x80\x02}u.",
        "another protocol": b"\x80\xff}.",
        "empty": b"",
        "text": b"hello\n",
        "zip": b"PK\x03\x04" + bytes(100),
        "zeros": bytes(1000),
    }.items(),
    ids=lambda case: case[0],
)  # fmt: skip
def test_spoilt_pickles_are_refused(tmp_path, content):
    refused(tmp_path / "x", content[1])


@pytest.mark.parametrize(
    "name", ["numpy\ndtype", "_codecs\nencode", "numpy.core.multiarray\n_reconstruct", "numpy\nndarray"]
)
@pytest.mark.parametrize("attribute", ["CODES", "__defaults__", "__setstate__", "__init__"])
def test_no_file_changes_how_the_next_is_read(tmp_path, name, attribute):
    state = b"N}X" + struct.pack("<I", len(attribute)) + attribute.encode() + b")s\x86b"
    refused(tmp_path / "x", A + b"c" + name.encode() + b"\n" + state + b"s.")
    (tmp_path / "x").write_bytes(array_of(b"K\x01\x85"))
    assert read(tmp_path / "x")["a"].tobytes() == b"1234"


def test_a_code_that_is_registered_is_refused(tmp_path):
    copyreg.add_extension(__name__, "touch", 240)
    try:
        refused(tmp_path / "x", b"\x80\x02}X\x01\x00\x00\x00a\x82\xf0)Rs.")
    finally:
        copyreg.remove_extension(__name__, "touch", 240)


def references(times: int) -> bytes:
    """Instructions of a tuple that is 2**times long when written out: each level holds the one below twice."""
    levels = b"".join(b"h" + bytes([level]) + b"\x86q" + bytes([level + 1]) for level in range(times))
    return b"X\x01\x00\x00\x00bq\x00" + levels


@pytest.mark.parametrize(
    "content",
    {
        "as a key": b"\x80\x02}" + references(100) + b"K\x01s.",
        "as a value": b"\x80\x02}X\x01\x00\x00\x00a" + references(100) + b"s.",
        "as a function": b"\x80\x02}X\x01\x00\x00\x00a" + references(100) + b")Rs.",
        "as a shape": array_of(references(100)),
        "as data": array_of(b"K\x01\x85", references(100)),
        "as a dtype": array_of(b"K\x01\x85").replace(b"X\x02\x00\x00\x00f4", references(100)),
        "as a class": array_of(b"K\x01\x85").replace(b"cnumpy\nndarray\n", references(100)),
        "as fields": array_of(b"K\x01\x85").replace(b"<NNN", b"<N" + references(100) + b"N"),
        "as an encoding": A + ENCODE + b"X\x01\x00\x00\x00c" + references(100) + b"\x86Rs.",
        "as a slice": b"\x80\x02}X\x15\x00\x00\x00UnpackBigParamInfor@@"
        b"}X\x01\x00\x00\x00a}(X\x0b\x00\x00\x00OriginShape)X\x06\x00\x00\x00slices" + references(100) + b"usss.",
    }.items(),
    ids=lambda case: case[0],
)  # fmt: skip
def test_references_to_references_are_not_written_out(tmp_path, content):
    refused(tmp_path / "x", content[1])


def test_copies_of_copies_are_refused(tmp_path):
    """A call of a few bytes must not copy a long text again and again."""
    size = 2**16
    text = b"X" + struct.pack("<I", size) + b"a" * size + b"q\x00"
    encode = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    assert "more of its bytes" in refused(tmp_path / "x", b"\x80\x02]" + text + encode * 100 + b".")
    items = b"]q\x00(" + b"K\x01" * size + b"e"
    copy = b"cbuiltins\ntuple\nh\x00\x85R"
    assert "more of its bytes" in refused(tmp_path / "x", b"\x80\x02" + items + copy * 100 + b".")
    data = b"B" + struct.pack("<I", size) + bytes(size) + b"q\x00"
    array = RECONSTRUCT + b"(K\x01J" + struct.pack("<i", size // 4) + b"\x85" + DTYPE + b"\x89h\x00tb"
    assert "more of its bytes" in refused(tmp_path / "x", b"\x80\x03]" + data + array * 10 + b".")


@pytest.mark.parametrize("protocol", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path, protocol):
    content = pickled({"a": np.arange(3.0)}, protocol)
    for length in range(len(content)):
        (tmp_path / "x").write_bytes(content[:length])
        with pytest.raises(ValueError, match="no file of parameters"):
            read(tmp_path / "x")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "x")


@given(st.data())
@settings(max_examples=60)
def test_changed_bytes_give_arrays_or_a_clear_error(tmp_path_factory, data):
    content = bytearray(
        pickled({"a": np.arange(3.0), "b": np.arange(2, dtype=np.float32)}, data.draw(st.sampled_from([2, 4])))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / "x"
    path.write_bytes(content)
    with suppress(ValueError):  # any other error fails
        assert all(isinstance(key, str) and type(array) is np.ndarray for key, array in read(path).items())


@pytest.mark.slow
@given(st.data())
@settings(max_examples=3000)
def test_changed_bytes_at_length(tmp_path_factory, data):
    test_changed_bytes_give_arrays_or_a_clear_error.hypothesis.inner_test(tmp_path_factory, data)


@pytest.mark.slow
@given(st.binary(max_size=200))
@settings(max_examples=2000)
def test_any_bytes_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "x"
    path.write_bytes(b"\x80\x02" + content)
    with suppress(ValueError):
        assert not read(path)
