"""A server for a checkpoint: `create_app` makes it, `erniem-fast serve` runs it. Needs the extra `serve`."""

from .app import create_app
from .settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]
