"""Brings a bundle to other computers and makes it ready to run there.

Every step may be repeated, and takes no time where its result is there: a deployment that was
interrupted goes on where it stopped. Nothing half done is in the place of what worked: the
environment, the bundle and the settings are replaced in one go, the settings last.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shlex import join, quote
from typing import Any

from mtdit_robots.errors import UserError
from mtdit_runtime.bundle.bundle import Bundle, as_bundle
from mtdit_runtime.bundle.manifest import ENGINES
from mtdit_runtime.deploy.other_side import (
    NEEDED_MB,
    Facts,
    Wanted,
    facts,
    problems,
    questions,
)
from mtdit_runtime.deploy.remote import Remote
from mtdit_runtime.engines.cache import engine_records

CONFIG = "mtdit.toml"
_ENVIRONMENT = "env"  # beside the bundles
_BENCH = "bench.json"  # the latest figures of the computer
_NO_CONFIG = "--config /dev/null"  # the settings there may be of another version


@dataclass(frozen=True)
class DeployOptions:
    """What to bring, and how.

    source: the folder with docker/ and with the wheel in dist/; None: the current folder, or the
    clone that this mtdit runs from. folder: where it goes, from the home folder there. backend:
    onnx or cuda build no engines. image: a Docker image in place of an environment. calibration:
    the file of the arm. config: the text of mtdit.toml; empty: it is left as it is. devices: what
    must be plugged in, as files of /dev. ssh: the command, with options if need be.
    """

    source: Path | None = None
    folder: str = "mtdit"
    backend: str = "auto"
    image: bool = False
    calibration: Path | None = None
    config: str = ""
    devices: Sequence[str] = ()
    ssh: str = "ssh"

    @property
    def builds_engines(self) -> bool:
        return self.backend in ("auto", "tensorrt")


@dataclass(frozen=True)
class Deployment:
    """One computer. release: of its JetPack, empty on others. chunk_ms: what one chunk takes there
    (median), of budget_ms. start: the line that starts the run. error: why it failed, else empty.
    """

    host: str
    release: str = ""
    chunk_ms: float | None = None
    budget_ms: float | None = None
    start: str = ""
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def deploy(
    hosts: Sequence[str],
    bundle: Bundle | Path | str,
    options: DeployOptions = DeployOptions(),
    *,
    say: Callable[[str, str], None] = lambda host, line: None,
    on_step: Callable[[str, str], None] = lambda host, step: None,
) -> list[Deployment]:
    """Deploy a bundle to all hosts at once: check them, copy, install, build engines, verify, time.

    A host that fails does not end the others; its `Deployment` says why. say: called with host and
    every line that is printed there, from several threads; on_step: with what is being done.
    UserError when the bundle, the options or what would be copied is wrong here.
    """
    if not re.fullmatch(r"[\w./][\w./-]*", options.folder, re.ASCII):
        raise UserError(f"--folder {options.folder!r}: use letters, digits and . _ - / only")
    opened, source = as_bundle(bundle), _source(options.source)
    wheel = newest_wheel(source)
    remotes = [
        Remote(
            host,
            options.ssh,
            partial(say, host),
            partial(on_step, host),
        )
        for host in dict.fromkeys(hosts)
    ]

    def one(remote: Remote) -> Deployment:
        try:
            return _Deploying(remote, opened, source, wheel, options).result()
        except UserError as error:
            return Deployment(remote.host, error=str(error))

    with ThreadPoolExecutor(len(remotes)) as pool:
        running = [pool.submit(one, remote) for remote in remotes]
        try:
            return [each.result() for each in running]
        except BaseException:  # Ctrl-C
            for remote in remotes:
                remote.stop()
            raise


def newest_wheel(source: Path) -> Path:
    """The wheel that `make dist` made last. UserError: there is none."""
    wheels = sorted((source / "dist").glob("mtdit-*.whl"), key=lambda file: file.stat().st_mtime)
    if not wheels:
        raise UserError(f"no wheel in {source / 'dist'}: type make dist in the clone of mtdit")
    return wheels[-1]


def _source(given: Path | None) -> Path:
    clone = Path(__file__).parents[3]
    places = [given] if given is not None else [Path.cwd(), clone]
    for place in places:
        if (place / "docker/install.sh").is_file():
            return place.absolute()
    raise UserError(
        f"no docker/install.sh in {places[0]}: go to a clone of mtdit, or add --repository CLONE"
    )


class _Deploying:
    """The steps for one computer, from top to bottom."""

    def __init__(
        self, remote: Remote, bundle: Bundle, source: Path, wheel: Path, options: DeployOptions
    ) -> None:
        self._remote, self._bundle, self._options = remote, bundle, options
        self._source, self._wheel, self._folder = source, wheel, options.folder
        # a link is copied as what it points to, under its own name
        self._place = Path(os.path.abspath(bundle.folder))
        self._name = quote(self._place.name)

    def result(self) -> Deployment:
        here = self._check()
        self._copy_program()
        self._install(here.target)
        mtdit = self._mtdit(here.target)
        self._copy_bundle()
        backend = "tensorrt" if self._options.backend == "auto" else self._options.backend
        if self._options.builds_engines:
            self._run("build engines", f"{mtdit} build {self._name} {_NO_CONFIG}")
        given = f"{self._name} --backend {backend} {_NO_CONFIG}"
        self._run("verify", f"{mtdit} verify {given}")
        self._run("measure", f"{mtdit} bench {given} --json {_BENCH}")
        figures = json.loads("\n".join(self._remote.ask(f"cat {self._folder}/{_BENCH}")))
        self._copy_config()
        return Deployment(
            self._remote.host,
            here.release,
            figures["stages"]["tick"]["p50_ms"],
            figures["budget_ms"],
            self._start(mtdit),
        )

    def _check(self) -> Facts:
        options, ssh = self._options, self._remote.ssh
        megabytes = sum(f.stat().st_size for f in self._place.rglob("*") if f.is_file()) / 1e6
        wanted = Wanted(
            self._folder,
            round(3 * megabytes) + (0 if options.image else NEEDED_MB),  # graphs, engines, kernels
            options.devices,
            options.builds_engines,
            options.image,
            f"{ssh} {self._remote.host}",
        )
        self._remote.step("check the computer")
        here = facts(self._remote.ask(questions(wanted)))
        *others, last = [*problems(here, wanted)] or [""]
        for problem in others:
            self._remote.say(problem)
        if last:
            raise UserError(f"{self._remote.host}: {last}")
        return here

    def _copy_program(self) -> None:
        """docker/ and the wheel, as they lie in the clone: from there it can be deployed again."""
        self._remote.step("copy mtdit")
        self._remote.ask(f"mkdir -p {self._folder}")
        parts = [f"docker/{name}" for name in ("*.sh", "locks", "compose.yaml", "Dockerfile.*")]
        files = [path for part in parts for path in sorted(self._source.glob(part))]
        files += [path for path in [self._source / ".dockerignore"] if path.exists()]
        relative = [
            f"{self._source}/./{file.relative_to(self._source)}" for file in (*files, self._wheel)
        ]
        self._remote.copy(relative, self._folder, "-R")

    def _install(self, target: str) -> None:
        if self._options.image:
            self._run("build the image", f"docker compose -f docker/compose.yaml build {target}")
            return
        words = ["docker/install.sh", "--without-root", "--target", target]
        words += [] if self._options.builds_engines else ["--without-tensorrt"]
        words += ["--wheel", f"dist/{self._wheel.name}"]
        self._run("install", f'{join(words)} --prefix "$PWD/{_ENVIRONMENT}"')

    def _mtdit(self, target: str) -> str:
        """The command that is `mtdit` there, in the folder."""
        if not self._options.image:
            return f"{_ENVIRONMENT}/current/bin/mtdit"
        compose = f"docker compose -f docker/compose.yaml run --rm {target}"
        return f"MTDIT_FOLDER=$PWD MTDIT_UID=$(id -u) {compose}"

    def _copy_bundle(self) -> None:
        """Without its engines: they run on the GPU that built them, and those there stay."""
        self._remote.step(f"copy {self._place.name}")
        for record in engine_records(self._bundle).values():
            self._remote.say(
                f"left out: engines built for {record.gpu}, TensorRT {record.tensorrt}"
            )
        self._remote.copy([self._place], self._folder, f"--exclude={ENGINES}/")

    def _copy_config(self) -> None:
        self._remote.step("copy settings")
        with tempfile.TemporaryDirectory() as scratch:
            files = [self._options.calibration] if self._options.calibration else []
            if self._options.config:
                files.append(Path(scratch, CONFIG))
                files[-1].write_text(self._options.config)
            if files:
                self._remote.copy([file.absolute() for file in files], self._folder)

    def _run(self, step: str, command: str) -> None:
        self._remote.step(step)
        self._remote.run(f"cd {self._folder} && {command}")

    def _start(self, mtdit: str) -> str:
        task = next(iter(self._bundle.manifest.tasks), "TASK")
        # quotes within quotes are hard to read, and few instructions need them
        said = f'"{task}"' if re.fullmatch(r"[\w ,.-]*", task) else quote(task)
        run = f"cd {self._folder} && {mtdit} run --task {said}"
        return f"{self._remote.ssh} -t {self._remote.host} {quote(run)}"
