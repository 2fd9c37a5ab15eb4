"""Opens whatever holds a trained policy, a bundle or a checkpoint, as one `Policy`."""

from __future__ import annotations

from pathlib import Path

from mtdit_robots.errors import UserError
from mtdit_robots.extras import missing
from mtdit_runtime.bundle.bundle import open_bundle
from mtdit_runtime.bundle.manifest import MANIFEST, SUFFIX
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.policy.bundle_policy import BundlePolicy
from mtdit_runtime.policy.policy import Policy

TORCH_BACKENDS = ("auto", "cpu", "cuda")


def load(source: Path | str, backend: str = "auto", dataset: str | None = None) -> Policy:
    """Load a trained policy.

    source: a bundle folder, as `mtdit.export` writes it (no torch needed); or, with torch, a run of
    `mtdit.train` or `lerobot-train`, one of its checkpoints, or the repo id of a checkpoint on the
    Hugging Face Hub. A local folder is preferred to a repo id of the same name.

    backend: what computes the policy. A bundle takes "onnx" (CPU), "cuda", "tensorrt" or "auto",
    the fastest of them that works on this computer; a checkpoint runs in torch and takes "cpu",
    "cuda" or "auto".

    dataset: the folder or repo id of the dataset that a checkpoint of LeRobot was trained on.
    LeRobot's checkpoints name no joints, so without it no robot is driven by one. A bundle and a
    checkpoint of mtdit have their own names.

    UserError when there is no policy at `source` or it is damaged, when the backend does not work
    here, or when an extra of the package is missing.

        policy = mtdit.load("policy.mtdit")
        policy.reset("open the drawer", seed=0)
    """
    path = Path(source)
    if path.suffix == SUFFIX or (path / MANIFEST).is_file():
        bundle = open_bundle(path)
        return BundlePolicy(bundle, choose_engines(bundle, backend))
    if backend not in TORCH_BACKENDS:
        raise UserError(
            f"{source} is not a bundle, and a checkpoint has no backend {backend!r}: use one of "
            f"{', '.join(TORCH_BACKENDS)}, or export it first"
        )
    return _load_checkpoint(path, backend, dataset)


def _load_checkpoint(path: Path, backend: str, dataset: str | None) -> Policy:
    try:
        import torch

        from mtdit.torch_policy import open_policy
    except ModuleNotFoundError as error:
        needed = f"{path} is not a bundle, and a checkpoint needs {error.name}"
        raise missing(error.name or "torch", needed) from error
    has_gpu = torch.cuda.is_available()
    if backend == "cuda" and not has_gpu:
        raise UserError("torch finds no CUDA GPU on this computer: use the backend auto")
    return open_policy(path, "cuda" if has_gpu and backend != "cpu" else "cpu", dataset)
