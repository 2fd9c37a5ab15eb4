"""`mtdit inspect`."""

from __future__ import annotations

from mtdit.cli.options import BUNDLE, BundleArgument, Json
from mtdit.cli.terminal.console import console, write_json


def inspect(bundle: BundleArgument = BUNDLE, json_out: Json = None) -> None:
    """Show what a bundle contains: policy, cameras, joints, graphs, checks, origin and engines."""
    from mtdit.cli.terminal.bundle_tables import inspect_parts
    from mtdit_runtime.bundle.bundle import open_bundle
    from mtdit_runtime.verify.inspect import describe

    facts = describe(open_bundle(bundle))
    write_json(json_out, facts)
    for part in inspect_parts(facts):
        console.print(part)
