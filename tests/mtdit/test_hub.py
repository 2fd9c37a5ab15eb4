"""Checkpoints of the Hub, from a small server that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mtdit.checkpoint.find import find_pretrained
from mtdit.hub import Hub, fetch, is_repo_id
from mtdit.policies.multi_task_dit.config_json import check_policy_type
from mtdit_robots.errors import UserError
from mtdit_runtime.files import read_json

COMMIT = "c" * 40
FILES = {
    "config.json": b'{"type": "multi_task_dit"}',
    "model.safetensors": b"weights",
    "policy_preprocessor.json": b"{}",
    "policy_preprocessor_step_4_normalizer_processor.safetensors": b"statistics",
    "tokenizer/tokenizer.json": b"{}",
    "README.md": b"nothing we need",
    "checkpoints/001000/model.safetensors": b"nothing we need either",
}
REPOSITORIES = {
    "some/policy": FILES,
    "some/pi0": {**FILES, "config.json": b'{"type": "pi0"}'},
    "some/dataset": {"README.md": b""},
}


class Answering(BaseHTTPRequestHandler):
    """HEAD and GET of files; the list of a repository; refusals."""

    asked: list[str] = []  # noqa: RUF012 (reset by the fixture)

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            return self._list("/".join(path.split("/")[3:5]), tree="/tree/" in path)
        owner, name, _, _, file = path.lstrip("/").split("/", 4)
        self._file(f"{owner}/{name}", file)

    do_HEAD = do_GET  # noqa: N815 (http.server's name)

    def _file(self, repo_id: str, file: str) -> None:
        if repo_id == "some/gated":
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif repo_id not in REPOSITORIES:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif file not in REPOSITORIES[repo_id]:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            content = REPOSITORIES[repo_id][file]
            self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _list(self, repo_id: str, tree: bool) -> None:
        files = REPOSITORIES[repo_id].items()
        entries = [
            {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
            for n, c in files
        ]
        about = {
            "id": repo_id,
            "sha": COMMIT,
            "siblings": [{"rfilename": name} for name, _ in files],
        }
        self._send(
            200,
            json.dumps(entries if tree else about).encode(),
            {"Content-Type": "application/json"},
        )

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {
            **headers,
            "X-Repo-Commit": COMMIT,
            "Content-Length": str(len(content)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    Answering.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Hub(f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
    server.shutdown()
    thread.join()
    server.server_close()


def check(path: Path) -> None:
    check_policy_type(read_json(path), str(path))


def test_only_what_a_checkpoint_needs_comes(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    folder = fetch("some/policy", check, hub)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == set(FILES) - {"README.md", "checkpoints/001000/model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert "looking for it on the Hugging Face Hub" in caplog.text
    asked = len(Answering.asked)
    assert fetch("some/policy", check, hub) == folder
    assert len(Answering.asked) == asked, "asked once per process"


def test_another_policy_is_refused_before_its_weights_come(hub: Hub) -> None:
    with pytest.raises(UserError, match="'pi0', which is not supported"):
        fetch("some/pi0", check, hub)
    assert Answering.asked
    assert not [path for path in Answering.asked if "safetensors" in path]


@pytest.mark.parametrize(
    ("repo_id", "says"),
    [
        ("some/gated", "is gated: accept its terms at https://huggingface.co/some/gated"),
        ("some/typo", "neither a local folder nor on the Hub: check the name"),
        ("some/dataset", r"has no config\.json, so it is not a policy"),
        ("some/..", "cannot be downloaded from the Hub"),
    ],
)
def test_repositories_that_give_no_policy(repo_id: str, says: str, hub: Hub) -> None:
    with pytest.raises(UserError, match=says):
        fetch(repo_id, check, hub)


def test_without_a_network_what_was_kept_is_used(hub: Hub, tmp_path: Path) -> None:
    folder = fetch("some/policy", check, hub)
    nobody = Hub("http://127.0.0.1:9", hub.kept_in)  # the port of nothing
    assert fetch("some/policy", check, nobody) == folder
    with pytest.raises(UserError, match="the Hub cannot be reached"):
        fetch("some/policy", check, Hub("http://127.0.0.1:9", tmp_path / "empty"))


def test_which_words_name_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a person could mean as a folder is looked up."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert is_repo_id(Path("lerobot/some_policy-v0.1"))
    for path in (
        "runs/first",
        "outputs/train",
        "first",
        "/data/run",
        "../up/run",
        "a/b/c",
        "~/run",
        "some/pol icy",
        "",
    ):
        assert not is_repo_id(Path(path)), path
    for path in ("runs/first", "outputs/train"):
        with pytest.raises(UserError, match="does not exist"):
            find_pretrained(Path(path))
