"""Sets behind URLs, of fsspec's memory and of a web server: packed, read, stopped on the way."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from unfused_fast.errors import Interrupted
from unfused_fast.shards.packing.finish import PackResult
from unfused_fast.shards.packing.pack import pack
from unfused_fast.shards.sources.row import SourceRow

URL = "memory://bucket/set"


def pack_remote(rows: list[SourceRow], out: str = URL, **options: Any) -> PackResult:
    """The rows packed to a URL in this process, 10 clips a shard."""
    return pack(rows, out, **{"workers": 0, "clips_per_shard": 10, **options})


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Name -> content of the files in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def remote_bytes(system: Any, path: str = "/bucket/set") -> dict[str, bytes]:
    """Name -> content of the files of a file system below a path."""
    return {name.rpartition("/")[2]: system.cat_file(name) for name in sorted(system.find(path))}


def stop_at(
    system: Any, patch: pytest.MonkeyPatch, method: str, name: str, error: BaseException, times: int = 1000
) -> list[str]:
    """From now on the method of the file system raises for files of this name; gives the files it was called for."""
    original, calls = getattr(type(system), method), list[str]()

    def stopped(self: Any, *paths: str, **options: Any) -> Any:
        path = next(path for path in reversed(paths) if isinstance(path, str) and "bucket/set" in path)
        calls.append(path.rpartition("/")[2])
        if name in path and sum(name in call for call in calls) <= times:
            raise error
        return original(self, *paths, **options)

    patch.setattr(type(system), method, stopped)
    return calls


def stopped_remote(memory: Any, rows: list[SourceRow], method: str, name: str, **options: Any) -> list[str]:
    """Packs until the method of the file system is called for the file; gives the files it was called for."""
    with pytest.MonkeyPatch.context() as patch:
        calls = stop_at(memory, patch, method, name, KeyboardInterrupt())
        with pytest.raises(Interrupted, match=r"stopped; run the same command again.* to continue"):
            pack_remote(rows, **options)
    return calls


class Server(ThreadingHTTPServer):
    """A web server of a folder."""

    ranges = True
    failures = 0
    """Requests still to be answered by 503."""
    spared = 0
    """Requests to be answered before those."""
    forbidden = ""
    """Name of a file that is answered by 403."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            super().do_GET()
            return
        if path.name == self.server.forbidden:
            self.send_error(403)
            return
        if self.server.failures > 0:
            self.server.spared -= 1
            if self.server.spared < 0:
                self.server.failures -= 1
                self.send_error(503)
                return
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            first, last = int(wanted[1]), min(int(wanted[2] or last), last)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(last + 1 - first))
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(data[first : last + 1])
        self.server.sent += last + 1 - first

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps off the screen."""


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """A web server of a folder, which asks for no password."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
