"""A small stand-in of the Hugging Face Hub: what `huggingface_hub` calls to make a repository, to upload, to download.

Paths and fields as the library sends and reads them. Files that end in .safetensors go by Git LFS, others in commits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    """Its commits, and the branches that name them."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        before = self.commits[self.branches[branch]] if branch in self.branches else {}
        every = {**before, **files}
        told = json.dumps(
            [len(self.commits), sorted((name, hashlib.sha1(data).hexdigest()) for name, data in every.items())]
        )
        oid = hashlib.sha1(told.encode()).hexdigest()
        self.commits[oid], self.branches[branch] = every, oid
        return oid


@dataclass
class Hub:
    """What the server holds, and the requests that it answered, as `METHOD /path`."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *given: Any) -> None:
        """Nothing."""

    def _answer(self, status: int, body: bytes | dict[str, Any] | list[Any] = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content_length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _answer_missing(self, code: str, status: int = 404) -> None:
        self._answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def _may(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _repository(self, name: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        return found if found is not None and (self._may() or not found.private) else None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        of_api = re.fullmatch(r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)(?:/(revision|tree)/([^/]+)/?(.*))?", path)
        of_file = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = of_api or of_file
        repository = None if found is None else self._repository(found[1])
        if found is None or repository is None:
            self._answer_missing("RepoNotFound", 404 if self._may() else 401)
            return
        revision = (found[3] if of_api else found[2]) or "main"
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._answer_missing("RevisionNotFound")
            return
        files = repository.commits[commit]
        if of_file:
            data = files.get(found[3])
            if data is None:
                self._answer_missing("EntryNotFound")
                return
            oid = hashlib.sha256(data).hexdigest()
            self._answer(200, data, ETag=f'"{oid}"', X_Repo_Commit=commit, Accept_Ranges="bytes")
        elif found[2] == "tree":
            recursive = "recursive=true" in self.path.lower()
            self._answer(200, _tree(files, found[4], recursive))
        else:
            self._answer(200, {"id": found[1], "sha": commit, "siblings": [{"rfilename": name} for name in files]})

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._read()
        self.hub.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":  # of a model card
            yaml.safe_load(json.loads(body)["content"].split("---")[1])
            self._answer(200, {"errors": [], "warnings": []})
        elif not self._may():
            self._answer(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'me'}/{given['name']}"
            known = name in self.hub.repositories
            private = given.get("private") is True or given.get("visibility") == "private"
            self.hub.repositories.setdefault(name, Repository(private)).branches or self.hub.repositories[name].commit(
                "main", {".gitattributes": b"*.safetensors filter=lfs\n"}
            )
            self._answer(409 if known else 200, {"url": f"{self.hub.address}/{name}", "name": name})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            upload = f"{self.hub.address}/lfs/"
            objects = [
                {**one, "actions": {"upload": {"href": upload + one["oid"], "header": {}}}}
                for one in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if _is_large(one["path"]) else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            repository = self.hub.repositories[found[1]]
            known = found[2] in repository.branches
            repository.branches.setdefault(found[2], repository.branches["main"])
            self._answer(409 if known else 201, {})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            sent = [json.loads(line) for line in body.splitlines()]
            files = {
                one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in sent if one["key"] == "file"
            }
            large = {
                one["value"]["path"]: self.hub.objects[one["value"]["oid"]] for one in sent if one["key"] == "lfsFile"
            }
            oid = self.hub.repositories[found[1]].commit(found[2], {**files, **large})
            self._answer(
                200, {"commitUrl": f"{self.hub.address}/{found[1]}/commit/{oid}", "commitOid": oid, "hookOutput": ""}
            )
        else:
            self._answer(404, {"error": path})

    def do_PUT(self) -> None:
        data, oid = self._read(), self.path.rpartition("/")[2]
        self.hub.asked.append(f"PUT {self.path}")
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.objects[oid] = data
        self._answer(200)


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The files below a folder, or, not `recursive`, what is in it, folders too."""
    below = {name: data for name, data in files.items() if not folder or name.startswith(f"{folder}/")}
    depth = len(folder.split("/")) + 1 if folder else 1
    here = {name: data for name, data in below.items() if recursive or len(name.split("/")) == depth}
    folders = {"/".join(name.split("/")[:depth]) for name in below if len(name.split("/")) > depth}
    listed = [{"type": "file", "path": name, **_stored(name, data)} for name, data in here.items()]
    return [*listed, *({"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders))]


def _stored(name: str, data: bytes) -> dict[str, Any]:
    """Size and id of a file, as the tree lists it."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return {"size": len(data), "oid": blob, **({"lfs": lfs} if _is_large(name) else {})}


@contextmanager
def hub_server() -> Iterator[Hub]:
    """The server runs on 127.0.0.1 while the block does."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
