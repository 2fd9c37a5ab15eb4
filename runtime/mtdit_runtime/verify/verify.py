"""Verifies a bundle on this computer: checksums, schema, and what its engines compute."""

from __future__ import annotations

from pathlib import Path

from mtdit_runtime.bundle.bundle import Bundle, as_bundle
from mtdit_runtime.engines.choose import choose_engines
from mtdit_runtime.verify.gates import Verification, check_bundle


def verify(bundle: Bundle | Path | str, backend: str = "auto") -> Verification:
    """Compare what a bundle computes here with its golden fixtures: inputs and outputs of the
    trained policy, stored in the bundle.

    UserError when the bundle is damaged or the backend does not run here. Outputs that differ
    raise no error: they are in `failures`.

        assert mtdit.verify("policy.mtdit", backend="tensorrt").ok
    """
    opened = as_bundle(bundle)
    return check_bundle(opened, choose_engines(opened, backend))
