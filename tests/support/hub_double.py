"""A local double of the Hugging Face Hub's HTTP API for datasets, with faults on demand.

It answers the calls that ``huggingface_hub`` and ``datasets`` make to create, upload, verify,
commit, list and download a dataset, and keeps everything in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.hub_refs import References
from tests.support.hub_state import Commit, Fault, File, Hub, Repo

__all__ = ["TOKEN", "Fault", "File", "Hub", "hub_double"]

TOKEN = "hf_" + "doubletoken"  # not a secret: the double takes no other
LFS_ENDINGS = (".parquet", ".png", ".arrow", ".ids")


class Handler(References, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_HEAD(self) -> None:
        self._handle("HEAD")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_DELETE(self) -> None:
        self._handle("DELETE")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def _handle(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        path = re.sub(r"^(/api)?/spaces/", r"\1/datasets/spaces.", path)
        self.hub.calls.append(f"{method} {path}")
        fault = self.hub.fault(method, path)
        length = int(self.headers.get("Content-Length", 0))
        if fault and fault.kind == "reset":
            self.rfile.read(length // 2)
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True
            return
        if fault and fault.kind == "hang":
            self.hub.blocked.set()
            self.hub.block.wait(60)
            self.close_connection = True
            return
        body = self._body(length)
        self.hub.received += len(body)
        if fault and fault.kind.isdigit():
            self._send(int(fault.kind), {"error": "asked for by a test"}, headers=fault.headers)
            return
        if fault and fault.kind == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        if not self._allowed(method, path):
            self._send(401, {"error": "Invalid username or password."})
            return
        with self.hub.lock:
            self._route(method, path, body)

    def _body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _allowed(self, method: str, path: str) -> bool:
        basic = "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()
        wanted = basic if path.endswith("git-receive-pack") else f"Bearer {TOKEN}"
        return path.startswith("/blob/") or self.headers.get("Authorization") == wanted

    def _route(self, method: str, path: str, body: bytes) -> None:
        for pattern, name in ROUTES:
            match = re.fullmatch(pattern, f"{method} {path}")
            if match:
                getattr(self, name)(body, **match.groupdict())
                return
        self._missing("EntryNotFound")

    # --- repositories

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        space = "spaces." * (wanted.get("type") == "space")
        repo_id = f"{space}{wanted.get('organization') or 'me'}/{wanted['name']}"
        if repo_id in self.hub.repos:
            self._send(409, {"error": "You already created this dataset repo", "url": repo_id})
            return
        self.hub.repos[repo_id] = Repo(
            wanted.get("private") or wanted.get("visibility") == "private", wanted.get("sdk")
        )
        self._send(200, {"url": f"{self.hub.url}/datasets/{repo_id}", "name": repo_id})

    def whoami(self, body: bytes) -> None:
        self._send(200, {"name": "me", "type": "user", "orgs": [], "auth": {}})

    def valid_yaml(self, body: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        found = self._commit_at(repo, revision)
        if found:
            siblings = [{"rfilename": name} for name in found.files]
            private = self.hub.repos[repo].private
            oid = self.hub.repos[repo].at(revision)
            about = {"id": repo, "sha": oid, "private": private, "tags": []}
            self._send(200, {**about, "siblings": siblings, "downloads": 0, "likes": 0})

    # --- uploading

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        commit = self._commit_at(repo, revision)
        if commit is None:
            return
        held = commit.files
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular",
                "shouldIgnore": False,
                "oid": held[file["path"]].oid if file["path"] in held else None,
            }
            for file in json.loads(body)["files"]
        ]
        self._send(200, {"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            found: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                href = f"{self.hub.url}/blob/{wanted['oid']}"
                verify = f"{self.hub.url}/datasets/{repo}/verify"
                found["actions"] = {"upload": {"href": href}, "verify": {"href": verify}}
            objects.append(found)
        mime = "application/vnd.git-lfs+json"
        self._send(200, {"transfer": "basic", "objects": objects}, mime=mime)

    def store(self, body: bytes, oid: str) -> None:
        self.hub.store(oid, body)
        self._send(200, {})

    def verify(self, body: bytes, repo: str) -> None:
        wanted = json.loads(body)
        blob = self.hub.blobs.get(wanted["oid"], b"")
        if hashlib.sha256(blob).hexdigest() == wanted["oid"] and len(blob) == wanted["size"]:
            self._send(200, {})
            return
        self.hub.blobs.pop(wanted["oid"], None)
        self._send(422, {"error": "the checksum does not match"})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        base = self._commit_at(repo, revision)
        if base is None:
            return
        files, title = dict(base.files), ""
        found = self.hub.repos[repo]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit", found.at(revision)) != found.at(revision):
                    self._send(412, {"error": "A commit has happened since"})
                    return
            elif entry["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    self._send(400, {"error": f"LFS pointer to a missing object {value['oid']}"})
                    return
                files[value["path"]] = File(self.hub.blobs[value["oid"]], lfs=True)
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        oid = found.put(files, revision, title)
        url = f"{self.hub.url}/datasets/{repo}/commit/{oid}"
        self._send(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    # --- reading

    def tree(self, body: bytes, repo: str, revision: str, under: str | None) -> None:
        under = under or ""
        commit = self._commit_at(repo, revision)
        if commit is None:
            return
        inside = {n: f for n, f in commit.files.items() if n.startswith(f"{under}/"[1:])}
        if under and not inside:
            self._missing("EntryNotFound")
            return
        recursive = "recursive=true" in self.path.lower() or "recursive=1" in self.path.lower()
        prefix = f"{under[1:]}/" if under else ""
        entries: dict[str, Any] = {}
        for name, file in inside.items():
            rest = name[len(prefix) :]
            for depth in range(rest.count("/")) if recursive else range(min(1, rest.count("/"))):
                folder = prefix + "/".join(rest.split("/")[: depth + 1])
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or "/" not in rest:
                entries[name] = self._described(name, file)
        self._send(200, list(entries.values()))

    def paths_info(self, body: bytes, repo: str, revision: str) -> None:
        commit = self._commit_at(repo, revision)
        files = commit.files if commit else {}
        paths = parse_qs(body.decode()).get("paths", [])
        if commit:
            self._send(200, [self._described(name, files[name]) for name in paths if name in files])

    def _described(self, name: str, file: File) -> dict[str, Any]:
        sha256 = "0" * 64 if name in self.hub.rotten else file.sha256
        found = {"type": "file", "path": name, "oid": file.git, "size": len(file.data)}
        if file.lfs:
            found["lfs"] = {"oid": sha256, "size": len(file.data), "pointerSize": 130}
        return found

    def resolve(self, body: bytes, repo: str, revision: str, name: str) -> None:
        commit = self._commit_at(repo, revision)
        if commit is None:
            return
        file = commit.files.get(name)
        oid = self.hub.repos[repo].at(revision) or ""
        if file is None:
            self._missing("EntryNotFound", oid)
            return
        etag = file.oid
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(file.data))}
        data, status = file.data, 200
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if ranged and self.command == "GET":
            start, end = int(ranged[1]), min(len(data), int(ranged[2] or len(data)) + 1)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            data, status = data[start:end], 206
        self.hub.served += len(data) if self.command == "GET" else 0
        self._send(status, data, mime="application/octet-stream", headers=headers)

    # --- answers

    def _repo(self, repo: str) -> Repo | None:
        found = self.hub.repos.get(repo)
        if found is None:
            self._missing("RepoNotFound")
        return found

    def _commit_at(self, repo: str, revision: str) -> Commit | None:
        found = self._repo(repo)
        if found is None:
            return None
        oid = found.at(revision)
        if oid is None:
            self._missing("RevisionNotFound")
            return None
        return found.commits[oid]

    def _missing(self, code: str, commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        self._send(
            404, {"error": code}, headers=headers | ({"X-Repo-Commit": commit} if commit else {})
        )

    def _send(
        self,
        status: int,
        body: Any,
        *,
        mime: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": mime,
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = (
    (r"POST /api/repos/create", "create"),
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/validate-yaml", "valid_yaml"),
    (rf"POST /api/datasets/{REPO}/branch/(?P<name>.+)", "branch"),
    (rf"DELETE /api/datasets/{REPO}/branch/(?P<name>.+)", "delete_branch"),
    (rf"POST /api/datasets/{REPO}/tag/(?P<revision>.+)", "tag"),
    (rf"DELETE /api/datasets/{REPO}/tag/(?P<name>.+)", "delete_tag"),
    (rf"GET /api/datasets/{REPO}/refs", "refs"),
    (rf"GET /api/datasets/{REPO}/commits/(?P<revision>[^/]+)", "commits"),
    (rf"POST /api/datasets/{REPO}/super-squash/(?P<branch>.+)", "squash"),
    (rf"GET /api/datasets/{REPO}/lfs-files", "lfs_files"),
    (rf"POST /api/datasets/{REPO}/lfs-files/batch", "delete_lfs"),
    (rf"GET /api/datasets/{REPO}", "info"),
    (rf"GET /api/datasets/{REPO}/revision/(?P<revision>[^/]+)", "info"),
    (rf"POST /api/datasets/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    (rf"POST /datasets/{REPO}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /blob/(?P<oid>[0-9a-f]{64})", "store"),
    (rf"POST /datasets/{REPO}/verify", "verify"),
    (rf"POST /datasets/{REPO}\.git/git-receive-pack", "push"),
    (rf"POST /api/datasets/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
    (rf"GET /api/datasets/{REPO}/tree/(?P<revision>[^/]+)(?P<under>/.*)?", "tree"),
    (rf"POST /api/datasets/{REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    (rf"(?:GET|HEAD) /datasets/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", "resolve"),
)


@contextmanager
def hub_double() -> Iterator[Hub]:
    """A running double; its address is ``hub.url``."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield hub
        hub.block.set()
        server.shutdown()
