"""The page of a folder on this machine only, at an address that other pages cannot guess."""

from __future__ import annotations

import secrets
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class _Handler(SimpleHTTPRequestHandler):
    """Files below /TOKEN/; nothing else is there."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".js": "text/javascript", ".flac": "audio/flac"}

    def __init__(self, *given: Any, token: str, **named: Any) -> None:
        self.token = token
        super().__init__(*given, **named)

    def send_head(self) -> Any:
        """As the library's, for paths below the token."""
        first, _, rest = self.path.lstrip("/").partition("/")
        if not secrets.compare_digest(first.encode(), self.token.encode()):
            self.send_error(404)
            return None
        self.path = f"/{rest}"
        return super().send_head()

    def list_directory(self, path: Any) -> None:
        """No listings."""
        self.send_error(404)

    def end_headers(self) -> None:
        """With HEADERS."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def page_server(folder: Path) -> tuple[ThreadingHTTPServer, str]:
    """A server of the folder on a free port of 127.0.0.1, and its address, which holds a token; the caller runs
    `serve_forever` and closes it.

    Ours: a page of another origin can send requests to any port of this machine; without the token it gets 404.
    """
    token = secrets.token_urlsafe(16)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder), token=token))
    server.daemon_threads = True
    return server, f"http://127.0.0.1:{server.server_port}/{token}/"
