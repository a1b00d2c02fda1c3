"""Run an app under uvicorn until a signal, and finish what is in work."""

import gc
import os
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from .guard import Traffic

KEEP_ALIVE_SECONDS = 75
"""Longer than the minute for which proxies keep their connections, so that none writes into one that just closed."""
CLOSE_SECONDS = 2


def bind(host: str, port: int, write_seconds: float) -> socket.socket:
    """Take the address of a server, which answers there once it is ready.

    Args:
        host: a name or an address of this machine.
        port: 0 takes any that is free.
        write_seconds: longest time for which a connection may have data that its reader does not take.

    Raises:
        OSError: the address is taken, or not this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    # By its protocol asyncio knows to send each piece at once, without waiting for the client's word (TCP_NODELAY).
    found = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # on Windows it would share the address with another server
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections inherit it
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * write_seconds))
    return found


def run(
    app: FastAPI,
    listener: socket.socket,
    drain_seconds: float,
    on_ready: Callable[[], None],
    has_failed: Callable[[], bool] = lambda: False,
) -> int:
    """Serve until SIGTERM or SIGINT, then refuse new requests and finish those in work; a second signal stops that.

    Args:
        app: made by `create_app`.
        listener: made by `bind`.
        drain_seconds: longest time for the requests in work.
        on_ready: called once requests are taken.
        has_failed: asked every 0.1 s; True ends the server at once.

    Returns:
        The number of requests that were not finished.
    """
    traffic: Traffic = app.state.traffic
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, ws="none", timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )  # fmt: skip
    server = DrainingServer(config, traffic, drain_seconds, on_ready, has_failed)
    server.run(sockets=[listener])
    return server.unfinished


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which goes on until the requests in work are answered.

    Attributes:
        unfinished: requests in work when it stopped.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        traffic: Traffic,
        drain_seconds: float,
        on_ready: Callable[[], None],
        has_failed: Callable[[], bool],
    ) -> None:
        super().__init__(config)
        self.traffic, self.drain_seconds, self.on_ready, self.has_failed = traffic, drain_seconds, on_ready, has_failed
        self.unfinished = 0
        self._until = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests."""
        await super().startup(sockets)
        if self.started:
            gc.freeze()  # else each search for garbage goes through every object that stays, and stalls all requests
            self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop, or stop at once where that has begun."""
        if self.traffic.draining or not self.started:
            self.unfinished = self.traffic.in_work
            self.should_exit = self.force_exit = True
        self._until = time.monotonic() + self.drain_seconds
        self.traffic.draining = True

    async def on_tick(self, counter: int) -> bool:
        """True once the server shall stop; asked every 0.1 s."""
        is_drained = self.traffic.draining and not (self.traffic.in_work and time.monotonic() < self._until)
        if is_drained or self.has_failed():
            self.unfinished = self.traffic.in_work
            return True
        return await super().on_tick(counter)
