"""An engine in a process of its own: texts become tokens here, results come from there.

Python runs one thread of a process at a time, and between the operations of a model any other may go first. Where
this process does much besides, such as answering requests, the model there loses no time to it.

if __name__ == "__main__":  # the other process imports this file
    with EncoderProcess("DIR") as encoder:
        vectors = encoder.encode(["Guten Tag!", "你好，世界"])
"""

import atexit
import functools
import gc
import io
import multiprocessing
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars  # type: ignore[attr-defined]
from torch import Tensor, nn
from tqdm import tqdm
from transformers.utils import logging

from .engine import Encoder
from .task import AnyTask

META = torch.device("meta")
MANY_TASKS = 64
"""Tasks that are kept, there and in a server: one for each combination of options that is asked for."""
SECONDS_TO_END = 5.0
SAMPLE = ["Wo ist der Bahnhof? 火车站在市中心。"] * 8
"""Texts on which numbers of threads are compared."""
WORTH = 1.25
"""So many times as fast must all threads be as half of them, or the half is left to other processes."""
ROUNDS = 7
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""What a terminal or a service manager sends to all processes of a group; the one here decides what follows."""


class ProcessEndedError(RuntimeError):
    """The process of the model is no more.

    Args:
        exit_code: of the process; -n where signal n ended it.
    """

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"the process of the model ended with exit code {exit_code}")


class EncoderProcess:
    """An `Encoder` that computes in another process. Has its attributes, but for the weights, its methods and tasks.

    Several threads may use its tasks at once; their calls of the model wait in line.

    Args:
        name: a folder, or the id of a checkpoint on the Hugging Face Hub.
        options: of `Encoder.from_pretrained`.

    Raises:
        What `Encoder.from_pretrained` raises.
        ProcessEndedError: the process ended while it loaded the checkpoint.
    """

    def __init__(self, name: str, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would have none of torch's threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, options, _said()), name="model", daemon=True)
        self._calls = threading.Lock()
        with theirs, _ignored_signals():
            self._process.start()
        atexit.register(self._connection.close)  # before multiprocessing waits for its processes
        try:
            self._encoder: Encoder = self._answer()
        except BaseException:
            self._kill()
            raise
        self._encoder.runner.device = META  # of what tasks make beside the model
        self._encoder.task = self.task  # type: ignore[method-assign]  # its methods compute there, too

    def __getattr__(self, name: str) -> Any:
        if name == "_encoder":
            raise AttributeError(name)
        return getattr(self._encoder, name)

    def __enter__(self) -> "EncoderProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def exit_code(self) -> int | None:
        """Of the process, -n where signal n ended it; None while it runs."""
        return self._process.exitcode

    def task(self, name: str, **options: Any) -> AnyTask:
        """The task of a name; see `Encoder.task`."""
        pickled = pickle.dumps((name, options))  # before an iterator among them is used up
        return _RemoteTask(self, Encoder.task(self._encoder, name, **options), pickled)

    def close(self) -> None:
        """End the process, after the call that it is in if that takes no more than 5 s."""
        if self._calls.acquire(timeout=SECONDS_TO_END):  # else closed under the thread that reads from it
            self._connection.close()
            self._process.join(SECONDS_TO_END)
            self._calls.release()
        self._kill()

    def compute(self, task: bytes, tokens: Sequence[Any]) -> Any:
        """Results of a task, given as the pickle of its name and options; calls of several threads wait in line.

        Raises:
            RuntimeError: what the task raised there, in words; its traceback is a note.
            ProcessEndedError: the process has ended.
        """
        asked = pickle.dumps((task, tokens), pickle.HIGHEST_PROTOCOL)
        with self._calls:
            return self._answer(asked)

    def _answer(self, asked: bytes = b"") -> Any:
        try:
            if asked:
                self._connection.send_bytes(asked)
            error, result = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as gone:
            raise self._ended() from gone
        except BaseException:  # Ctrl-C: the next call would be given this one's results
            self._kill()
            raise
        if error is not None:
            raise error
        return result

    def _ended(self) -> ProcessEndedError:
        until = time.monotonic() + SECONDS_TO_END
        while self.exit_code is None and time.monotonic() < until:  # another thread that asks may be told in our place
            time.sleep(0.01)
        return ProcessEndedError(self.exit_code)

    def _kill(self) -> None:
        atexit.unregister(self._connection.close)
        self._process.kill()
        self._process.join()


class _RemoteTask:
    """A task whose results come from the process.

    Args:
        process: of the model.
        local: the same task on the model without weights; it tokenizes, and has the attributes.
        pickled: its name and options.
    """

    def __init__(self, process: EncoderProcess, local: AnyTask, pickled: bytes) -> None:
        self._process, self._local, self._pickled = process, local, pickled
        self.tokenize, self.size = local.tokenize, local.size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._local, name)

    def compute(self, tokens: Sequence[Any]) -> Any:
        return self._process.compute(self._pickled, tokens)


class _Weightless(pickle.Pickler):
    """Writes objects with the shapes of their tensors alone."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            return _parameter, (value.shape, value.dtype)
        if isinstance(value, Tensor):
            return functools.partial(torch.empty, dtype=value.dtype, device=META), (value.shape,), None
        if isinstance(value, torch.ScriptObject):  # packed weights in int8
            return bool, ()
        return NotImplemented


def _parameter(shape: torch.Size, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=META), requires_grad=False)


def _said() -> tuple[int, bool, bool]:
    """How much libraries say here while they load a checkpoint: verbosity, progress bars, those of downloads."""
    return logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled()


def _say(verbosity: int, bars: bool, downloads: bool) -> None:
    logging.set_verbosity(verbosity)
    if not bars:
        logging.disable_progress_bar()
        if downloads:
            enable_progress_bars()  # which the line above disables, too


def _serve(connection: Connection, name: str, options: dict[str, Any], said: tuple[int, bool, bool]) -> None:
    """Load a checkpoint and compute what is asked for, until the other end is closed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, of which Python says that it leaked if this is killed
    _say(*said)
    with suppress(EOFError, OSError):  # the other process is gone
        try:
            encoder = Encoder.from_pretrained(name, **options)
        except Exception as error:
            connection.send((error, None))
            return
        if encoder.device.type == "cpu":
            with suppress(Exception):  # a model that can't compute says so when it is asked to
                _leave_threads(encoder.task("encode"))
        written = io.BytesIO()
        _Weightless(written, pickle.HIGHEST_PROTOCOL).dump((None, encoder))
        connection.send_bytes(written.getvalue())
        gc.freeze()  # else each search for garbage goes through every object that stays, and stalls all calls

        @functools.lru_cache(MANY_TASKS)
        def task_of(pickled: bytes) -> AnyTask:
            name, options = pickle.loads(pickled)
            return encoder.task(name, **options)

        while True:
            pickled, tokens = connection.recv()
            failure, result = None, None
            try:
                result = task_of(pickled).compute(tokens)
            except Exception as error:
                failure = RuntimeError(str(error) or type(error).__name__)
                failure.add_note(traceback.format_exc())
            connection.send((failure, result))


def _leave_threads(task: AnyTask) -> None:
    """Let torch use as few threads as are about as fast as all: those of a small model wait for each other."""
    tokens = task.tokenize(SAMPLE)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        times = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            task.compute(tokens)
            times.append(time.perf_counter() - begun)
        return min(times)

    threads = torch.get_num_threads()
    longest = WORTH * seconds(threads)
    while threads > 1 and seconds(threads // 2) <= longest:
        threads //= 2
    torch.set_num_threads(threads)


@contextmanager
def _ignored_signals() -> Iterator[None]:
    """A process that is started here ignores signals from its first moment on."""
    before = {}
    with suppress(ValueError):  # only the main thread may
        for number in SIGNALS:
            before[number] = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
