"""Checkpoints of the Hub, from a small server that answers as the Hub does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hub import Repository, SmallHub, serving

from mtdit.checkpoint.find import find_pretrained
from mtdit.hub import Hub, explained, fetch, is_repo_id
from mtdit.policies.multi_task_dit.config_json import check_policy_type
from mtdit_robots.errors import UserError
from mtdit_runtime.files import read_json

FILES = {
    "config.json": b'{"type": "multi_task_dit"}',
    "model.safetensors": b"weights" * 1000,
    "policy_preprocessor.json": b"{}",
    "policy_preprocessor_step_4_normalizer_processor.safetensors": b"statistics",
    "tokenizer/tokenizer.json": b"{}",
    "README.md": b"nothing we need",
    "checkpoints/001000/model.safetensors": b"nothing we need either",
}


@pytest.fixture
def small() -> Iterator[SmallHub]:
    models = {
        "some/policy": Repository({"main": FILES}),
        "some/pi0": Repository({"main": {**FILES, "config.json": b'{"type": "pi0"}'}}),
        "some/dataset": Repository({"main": {"README.md": b""}}),
        "some/gated": Repository({"main": FILES}, gated=True),
    }
    with serving(SmallHub(models)) as hub:
        yield hub


@pytest.fixture
def hub(small: SmallHub, tmp_path: Path) -> Hub:
    return Hub(small.url, tmp_path / "cache")


def check(path: Path) -> None:
    check_policy_type(read_json(path), str(path))


def test_only_what_a_checkpoint_needs_comes(
    hub: Hub, small: SmallHub, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fetch("some/policy", check, hub)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == set(FILES) - {"README.md", "checkpoints/001000/model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert "looking for it on the Hugging Face Hub" in caplog.text
    asked = len(small.asked)
    assert fetch("some/policy", check, hub) == folder
    assert len(small.asked) == asked, "asked once per process"


def test_another_policy_is_refused_before_its_weights_come(hub: Hub, small: SmallHub) -> None:
    with pytest.raises(UserError, match="'pi0', which is not supported"):
        fetch("some/pi0", check, hub)
    assert small.asked
    assert not [path for path in small.asked if "safetensors" in path]


@pytest.mark.parametrize(
    ("repo_id", "says"),
    [
        ("some/gated", "is gated: accept its terms at https://huggingface.co/some/gated"),
        ("some/typo", "neither a local folder nor a model on the Hub: check the name"),
        ("some/dataset", r"has no config\.json, so it is not a policy"),
        ("some/..", r"neither a local folder nor a name of the Hub \(owner/name\)"),
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


def test_a_download_that_was_cut_goes_on(hub: Hub, small: SmallHub) -> None:
    small.cut_after = 3000  # within the weights
    with pytest.raises(UserError, match=r"run the same command again|Hub cannot be reached"):
        fetch("some/policy", check, hub)
    before = list(small.whole)
    assert "config.json" in before
    assert "model.safetensors" not in before
    with pytest.raises(UserError, match="run the same command again with a network"):
        fetch("some/policy", check, hub)  # it is still out of order
    small.out_of_order, small.cut_after = False, None
    folder = fetch("some/policy", check, hub)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert sorted(small.whole) == sorted({*small.whole}), "nothing came twice"


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadError("the connection was reset"),
        httpx.RemoteProtocolError("peer closed connection"),
        OSError("Consistency check failed: file should be of size 5"),
        RuntimeError("Data processing error: CAS service error"),  # hf_xet's
    ],
)
def test_whatever_the_client_raises_is_one_line(error: Exception) -> None:
    with (
        pytest.raises(UserError, match=r"^some/policy .*(go|kept)"),
        explained("some/policy", "model", "no config.json"),
    ):
        raise error


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
