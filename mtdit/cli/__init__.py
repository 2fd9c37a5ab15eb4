"""The `mtdit` command."""


def main() -> None:
    """The entry point of `mtdit`, `python -m mtdit` and `python -m mtdit.cli`."""
    from mtdit.cli.app import main as run_app

    run_app()
