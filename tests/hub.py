"""A small Hugging Face Hub on the loopback address: it answers the real client as the Hub does.

It knows the list of a repository, its branches and tags, HEAD and GET of files with ranges, and
refusals. It can be cut in the middle of a file, and can be out of order.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

Files = Mapping[str, bytes]


@dataclass
class Repository:
    """Revisions are branches or tags: name -> files. gated: named, but nobody may read it."""

    revisions: dict[str, Files]
    gated: bool = False

    def commit(self, revision: str) -> str:
        """40 hex digits that depend on the content, as git's."""
        text = repr(sorted(self.revisions[revision].items()))
        return hashlib.sha1(text.encode()).hexdigest()

    def find(self, revision: str) -> str | None:
        """The name of a revision that is given by name or by commit."""
        return next((n for n in self.revisions if revision in (n, self.commit(n))), None)


@dataclass
class SmallHub:
    """models, datasets: owner/name -> repository.

    asked: every request, e.g. "GET /some/policy/resolve/main/config.json". whole: the files that
    were sent to the end. out_of_order: every request is answered with status
    521, as by a proxy whose server is down (the client does not wait and try again). cut_after:
    this many bytes of files are sent, then the connection breaks and the Hub is out of order.
    """

    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    out_of_order: bool = False
    cut_after: int | None = None
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


def folder_files(folder: Path) -> dict[str, bytes]:
    """The content of a repository that was uploaded from this folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@contextmanager
def serving(hub: SmallHub) -> Iterator[SmallHub]:
    """Starts the Hub; its address is `hub.url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use(hub: SmallHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had been started with HF_ENDPOINT at this Hub and HF_LEROBOT_HOME at
    `home`. huggingface_hub reads its variables once, when it is imported.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_LEROBOT_HOME", str(home))


def use_in_lerobot(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same folder for LeRobot, which reads the variable when it is imported."""
    from lerobot.datasets import dataset_metadata, lerobot_dataset

    monkeypatch.setattr(dataset_metadata, "HF_LEROBOT_HOME", home)
    for module in (dataset_metadata, lerobot_dataset):
        monkeypatch.setattr(module, "HF_LEROBOT_HUB_CACHE", home / "hub")


class _Answers(BaseHTTPRequestHandler):
    hub: SmallHub

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.asked.append(f"{self.command} {path}")
        api = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(\w+)(?:/(.+))?)?", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if self.hub.out_of_order:
            self._send(521, b"")
        elif api:
            self._about(*api.groups())
        elif file:
            kind = "datasets" if file[1] else "models"
            self._file(kind, file[2], file[3], file[4])
        else:
            self._refuse(404, "RepoNotFound")

    do_HEAD = do_GET  # noqa: N815 (http.server's name)

    def _about(self, kind: str, repo_id: str, what: str | None, named: str | None) -> None:
        repository = getattr(self.hub, kind).get(repo_id)
        if repository is None:
            return self._refuse(401, "RepoNotFound")
        if what == "refs":
            return self._json(_refs(repository))
        revision = repository.find(named or "main")
        if revision is None:
            return self._refuse(404, "RevisionNotFound")
        if what == "tree":
            return self._json(_tree(repository.revisions[revision]))
        siblings = [{"rfilename": name} for name in repository.revisions[revision]]
        return self._json({"id": repo_id, "sha": repository.commit(revision), "siblings": siblings})

    def _file(self, kind: str, repo_id: str, named: str, name: str) -> None:
        repository = getattr(self.hub, kind).get(repo_id)
        if repository is None:
            return self._refuse(401, "RepoNotFound")
        if repository.gated:
            return self._refuse(403, "GatedRepo")
        revision = repository.find(named)
        if revision is None:
            return self._refuse(404, "RevisionNotFound")
        content = repository.revisions[revision].get(name)
        headers = {"X-Repo-Commit": repository.commit(revision)}
        if content is None:
            return self._refuse(404, "EntryNotFound", headers)
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return self._content(206 if first else 200, name, content[first:], headers)

    def _content(self, status: int, name: str, content: bytes, headers: dict[str, str]) -> None:
        sent = self._before_the_cut(content)
        self._head(status, len(content), headers)
        if self.command == "GET":
            if len(sent) < len(content):
                self.close_connection = True
            else:  # noted before the client can go on
                self.hub.whole.append(name)
            self.wfile.write(sent)

    def _before_the_cut(self, content: bytes) -> bytes:
        if self.command == "HEAD" or self.hub.cut_after is None:
            return content
        with self.hub.lock:
            sent = content[: self.hub.cut_after]
            self.hub.cut_after -= len(sent)
            self.hub.out_of_order = self.hub.out_of_order or len(sent) < len(content)
            return sent

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, b"", {**(headers or {}), "X-Error-Code": code})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, len(content), headers or {})
        if self.command == "GET":
            self.wfile.write(content)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def _tree(files: Files) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
        for n, c in files.items()
    ]


def _refs(repository: Repository) -> dict[str, list[dict[str, str]]]:
    def listed(kind: str, names: list[str]) -> list[dict[str, str]]:
        return [
            {"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": repository.commit(n)}
            for n in names
        ]

    tags = [name for name in repository.revisions if name != "main"]
    branches = [name for name in repository.revisions if name == "main"]
    return {"branches": listed("heads", branches), "tags": listed("tags", tags), "converts": []}
