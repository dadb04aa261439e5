"""Sets behind URLs, of fsspec's memory and of a web server: packed, read, stopped on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

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


@contextmanager
def served(folder: Path, user: str) -> Iterator[str]:
    """The URL, with user and password, of a web server of a folder, which asks for neither and gives no ranges."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://{user}@127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Keeps off the screen."""
