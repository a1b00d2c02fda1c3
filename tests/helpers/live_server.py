"""A server on a port of this machine, in a thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from erniem_fast.inference.server import ServerSettings, create_app
from erniem_fast.inference.server.run import bind, run
from helpers.processes import PATIENCE


@contextmanager
def live_server(encoder: Any, **settings: Any) -> Iterator[tuple[str, Any]]:
    """Serve an encoder: its address and the app; ends once the requests in work are answered."""
    made = ServerSettings(model_id="fake/model", **settings)
    app, ready = create_app(encoder, made), threading.Event()
    with bind("127.0.0.1", 0, made.write_seconds) as listener:
        server = threading.Thread(target=run, args=(app, listener, PATIENCE, ready.set))
        server.start()
        try:
            assert ready.wait(PATIENCE)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", app
        finally:
            app.state.traffic.draining = True
            server.join(PATIENCE)
