"""The steps of a deployment, on computers made of folders."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from other_computers import OtherComputers, calls, others, program
from repository import DEMO, EXAMPLE

from mtdit_robots.errors import UserError
from mtdit_runtime.deploy.deploy import Deployment, deploy

__all__ = ["others"]
HOST = "me@jetson"
START = """ssh -t me@jetson 'cd mtdit && env/current/bin/mtdit run --task "open the drawer"'"""


def one(others: OtherComputers, **changed: object) -> Deployment:
    (done,) = deploy([HOST], DEMO, replace(others.options, **changed))
    return done


def mtdit_calls(home: Path) -> list[str]:
    return [call for call in calls(home) if call.startswith("mtdit ")]


def test_a_bundle_gets_to_a_jetson_and_the_line_starts_it(others: OtherComputers) -> None:
    home, lines, steps = others.add(), [], []
    (done,) = deploy(
        [HOST],
        DEMO,
        replace(others.options, calibration=EXAMPLE),
        say=lambda host, line: lines.append(f"{host}: {line}"),
        on_step=lambda host, step: steps.append(step),
    )
    assert done.error == ""
    assert (done.chunk_ms, done.budget_ms) == (12.5, 800.0)
    assert done.start == START
    folder = home / "mtdit"
    assert {path.name for path in folder.iterdir()} == {
        *("docker", "dist", ".dockerignore", "env", "bench.json"),
        *("demo.mtdit", EXAMPLE.name, "mtdit.toml"),
    }
    assert (folder / EXAMPLE.name).read_text() == EXAMPLE.read_text()
    config = "--config /dev/null"
    assert mtdit_calls(home) == [
        f"mtdit build demo.mtdit {config}",
        f"mtdit verify demo.mtdit --backend tensorrt {config}",
        f"mtdit bench demo.mtdit --backend tensorrt {config} --json bench.json",
    ]
    assert not [call for call in calls(home) if "apt" in call or "sudo" in call]
    for step in ("check the computer", "install", "build engines", "verify", "copy settings"):
        assert step in steps
        assert f"{HOST}: {step} ..." in lines
    assert "copy demo.mtdit 45%" in steps
    assert any("mtdit 0.1.0 for jp7" in line for line in lines)


@pytest.mark.parametrize("fault", ["dist/mtdit", "--no-deps", "demo.mtdit", "build", "bench"])
def test_what_was_interrupted_goes_on_and_the_settings_come_last(
    others: OtherComputers, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    home = others.add()
    (home / "mtdit").mkdir()
    (home / "mtdit/mtdit.toml").write_text("of a version before")
    monkeypatch.setenv("FAIL", fault)
    failed = one(others)
    assert failed.error.startswith(f"{HOST}: ")
    assert ("No space left" in failed.error) == (fault in ("dist/mtdit", "demo.mtdit"))
    assert (home / "mtdit/mtdit.toml").read_text() == "of a version before"
    assert not any(".part" in path.name for path in home.rglob("*"))
    is_installed = (home / "mtdit/env/current").exists()
    assert is_installed == (fault not in ("dist/mtdit", "--no-deps"))
    monkeypatch.setenv("FAIL", "")
    (home / "calls").write_text("")
    assert one(others).error == ""
    assert (home / "mtdit/mtdit.toml").read_text() == "port = 1\n"
    assert any("-m venv" in call for call in calls(home)) != is_installed


def test_engines_stay_where_they_were_built(others: OtherComputers, tmp_path: Path) -> None:
    home, bundle = others.add(), tmp_path / "demo.mtdit"
    shutil.copytree(DEMO, bundle)
    (bundle / "engines/here").mkdir(parents=True)
    (home / "mtdit/demo.mtdit/engines/there").mkdir(parents=True)
    (done,) = deploy([HOST], bundle, others.options)
    assert done.error == ""
    engines = home / "mtdit/demo.mtdit/engines"
    assert [path.name for path in engines.iterdir()] == ["there"]


def test_a_computer_without_tensorrt_computes_on_its_cpu(others: OtherComputers) -> None:
    home = others.add()
    shutil.rmtree(home / "root/etc")
    assert "add --backend onnx" in one(others).error
    done = one(others, backend="onnx")
    assert (done.error, done.release) == ("", "")
    assert [call.split()[1] for call in mtdit_calls(home)] == ["verify", "bench"]


def test_an_image_is_built_there_and_computes_there(others: OtherComputers) -> None:
    home = others.add()
    program(home / "programs/docker", '#!/bin/bash\necho "docker $*" >> "$CALLS"\n'
            'if [ "$4" = run ] && [ "$7" = bench ]; then (shift 6; mtdit "$@"); fi\n')  # fmt: skip
    done = one(others, image=True)
    assert done.error == ""
    compose = "docker compose -f docker/compose.yaml"
    built = [call for call in calls(home) if call.startswith("docker")]
    assert built[:2] == [
        f"{compose} build jp7",
        f"{compose} run --rm jp7 build demo.mtdit --config /dev/null",
    ]
    assert f"MTDIT_FOLDER=$PWD MTDIT_UID=$(id -u) {compose} run --rm jp7 run" in done.start
    assert not (home / "mtdit/env").exists()


def test_hosts_are_deployed_at_once_and_one_that_fails_ends_no_other(
    others: OtherComputers,
) -> None:
    for name in ("first", "third"):
        others.add(name)
    others.says("second", "ssh: Could not resolve hostname second: Name or service not known")
    hosts = ["me@first", "me@second", "me@third", "me@first"]
    done = deploy(hosts, DEMO, others.options)
    assert [each.host for each in done] == hosts[:3]
    assert [bool(each.error) for each in done] == [False, True, False]
    assert len([c for c in calls(others.hosts / "first") if "venv --" in c]) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ssh: Could not resolve hostname jetson: Name or service not known", "no computer has"),
        ("me@jetson: Permission denied (publickey,password).", "type ssh-copy-id me@jetson"),
        ("Host key verification failed.", "type ssh me@jetson once"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
         "type ssh-keygen -R jetson"),
        ("ssh: connect to host jetson port 22: Connection refused", "openssh-server"),
        ("ssh: connect to host jetson port 22: Connection timed out", "does not answer"),
        ("ssh: connect to host jetson port 22: No route to host", "does not answer"),
        ("client_loop: send disconnect: Broken pipe", "type the same line again"),
    ],
)  # fmt: skip
def test_what_ssh_refuses_is_one_line_with_what_to_type(
    others: OtherComputers, line: str, says: str
) -> None:
    others.says("jetson", line)
    error = one(others).error
    assert error.startswith(f"{HOST}: ")
    assert says in error
    assert "\n" not in error


@pytest.mark.parametrize("host", ["", "-oProxyCommand=x", "me@a:b", "a b", "me@jetson;reboot"])
def test_a_host_that_is_none(others: OtherComputers, host: str) -> None:
    with pytest.raises(UserError, match=r"is no host: type user@NAME"):
        deploy([host], DEMO, others.options)


def test_what_is_wrong_here_is_said_before_anything_is_done(
    others: OtherComputers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, other = others.add(), tmp_path / "other.mtdit"
    shutil.copytree(DEMO, other)
    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(
        manifest.replace('"schema_version": ', '"schema_version": 9')
    )
    with pytest.raises(UserError, match="schema"):
        deploy([HOST], other, others.options)
    with pytest.raises(UserError, match="--folder"):
        one(others, folder="a b")
    (others.source / "dist/mtdit-0.1.0-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match="type make dist"):
        one(others)
    with pytest.raises(UserError, match="add --repository CLONE"):
        one(others, source=tmp_path)
    assert calls(home) == []


def test_a_computer_here_without_ssh(
    others: OtherComputers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "openssh-client rsync" in one(others, ssh="no-such-ssh").error
