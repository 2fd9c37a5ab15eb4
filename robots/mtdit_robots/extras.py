"""The optional dependencies of mtdit: which module belongs to which extra, and the command that
installs an extra for the way in which mtdit was installed here.
"""

from __future__ import annotations

import importlib.util
import json
from contextlib import suppress
from pathlib import Path

from mtdit_robots.errors import UserError

# extra -> the modules that it installs, as in pyproject.toml. A module of two extras stands in the
# smaller one.
EXTRAS = {
    "runtime": ("onnxruntime", "PIL", "regex"),
    "record": ("pyarrow", "av"),
    "twin": ("mujoco",),
    "cuda": ("cuda",),
    "tensorrt": ("tensorrt",),
    "train": (
        "torch", "torchvision", "lerobot", "transformers", "accelerate", "open_clip",
        "tensorboard", "matplotlib",
    ),
    "export": ("onnx", "onnxscript"),
}  # fmt: skip


# Wheels that put a package `onnxruntime` into one folder and overwrite each other's files.
ONNXRUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-training",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
)


def extra_of(module: str) -> str | None:
    """The extra that installs a module, e.g. "runtime" for "regex"; None if there is none."""
    package = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if package in modules), None)


def missing(module: str, needed: str = "", extra: str = "") -> UserError:
    """The error for a module that is not installed. needed: what needs it, e.g. "cameras need
    Pillow"; without it, the error names the module alone. extra: the extra to install; default:
    the one of the module.
    """
    subject = f"{needed}, which is not installed" if needed else f"{module} is not installed"
    return UserError(f"{subject}: {install(fitting(extra or extra_of(module) or 'runtime'))}")


def require(who: str, *modules: str) -> None:
    """UserError that names all those of the modules that are not installed, and their extras."""
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if not absent:
        return
    extras = ",".join(dict.fromkeys(fitting(extra_of(module) or "runtime") for module in absent))
    *first, last = absent
    names = f"{', '.join(first)} and {last}, which are" if first else f"{last}, which is"
    raise UserError(f"{who} needs {names} not installed: {install(extras)}")


def onnxruntime_wheels() -> list[str]:
    """The wheels of ONNX Runtime that are installed here; more than one is a mistake."""
    from importlib import metadata

    found = []
    for name in ONNXRUNTIMES:
        with suppress(metadata.PackageNotFoundError):
            metadata.distribution(name)
            found.append(name)
    return found


def fitting(extra: str) -> str:
    """The extra that adds what is missing without a second ONNX Runtime beside the one for GPUs."""
    is_gpu = extra == "runtime" and "onnxruntime-gpu" in onnxruntime_wheels()
    return "runtime-gpu" if is_gpu else extra


def reinstall_onnxruntime(gpu: bool) -> str:
    """The commands that leave one ONNX Runtime, the one for GPUs or the one for the CPU. Both are
    taken out first: each removes files of the other.
    """
    extra = "runtime-gpu" if gpu else "runtime"
    wheels = " ".join(onnxruntime_wheels() or ONNXRUNTIMES[:2])
    return f"pip uninstall --yes {wheels} && {install(extra)}"


def install(extra: str, options: str = "") -> str:
    """The command that adds an extra to this installation: from the same folder, wheel or
    repository that mtdit was installed from (PEP 610), so it works without a package index too.
    """
    return " ".join(["pip install", *options.split(), _source(extra)])


def _source(extra: str) -> str:
    from importlib import metadata  # takes longer than printing help
    from urllib.parse import unquote, urlsplit

    try:
        record = metadata.distribution("mtdit").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return f'"./mtdit[{extra}]"'  # in the folder that holds the clone
    if record is None:  # installed by its name
        return f'"mtdit[{extra}]"'
    origin = json.loads(record)
    url = urlsplit(origin["url"])
    if "vcs_info" in origin:
        return f'"mtdit[{extra}] @ {origin["vcs_info"]["vcs"]}+{origin["url"]}"'
    if url.scheme != "file":
        return f'"mtdit[{extra}] @ {origin["url"]}"'
    path = Path(unquote(url.path))
    if not path.exists():  # the folder or the wheel has moved
        return f'"./mtdit[{extra}]"'
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f'{editable}"{path}[{extra}]"'
