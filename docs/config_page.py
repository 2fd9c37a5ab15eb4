"""Writes the tables of docs/config.md and docs/example.mtdit.toml from the options of the commands:
`python docs/config_page.py`. A test says when they are old.
"""

from __future__ import annotations

from pathlib import Path

from mtdit.cli.app import COMMANDS
from mtdit.cli.config_keys import Key, keys_of, shared_texts, shown
from mtdit.cli.config_text import config_text

DOCS = Path(__file__).parent
PAGE, EXAMPLE = DOCS / "config.md", DOCS / "example.mtdit.toml"
BEGIN, END = "<!-- made by docs/config_page.py -->\n", "<!-- end -->\n"
# The answers to the questions of `mtdit init`.
VALUES = {
    "robot": "so101",
    "port": "/dev/serial/by-id/usb-follower",
    "calibration": "my_arm",
    "leader_port": "/dev/serial/by-id/usb-leader",
    "leader_calibration": "my_leader",
    "bundle": "outputs/policy.mtdit",
}
CAMERAS = {
    "top": {"source": "/dev/v4l/by-id/usb-HD-index0"},
    "wrist": {"source": "/dev/v4l/by-id/usb-Wide-index0"},
}


def main() -> None:
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{tables()}{END}{rest.partition(END)[2]}")
    EXAMPLE.write_text(example())


def example() -> str:
    return config_text(VALUES, CAMERAS)


def tables() -> str:
    """The keys of the top, then those of each command."""
    top: dict[str, dict[str, Key]] = {}
    for name, command in COMMANDS.items():
        for key in keys_of(command).values():
            if key.is_shared:
                top.setdefault(key.name, {})[name] = key
    rows = [_row(word, places) for word, places in sorted(top.items())]
    own = {
        name: [f"`{key.name}`" for key in keys_of(command).values() if not key.is_shared]
        for name, command in COMMANDS.items()
    }
    lines = [f"| `[{name}]` | {', '.join(keys)} |" for name, keys in own.items() if keys]
    return "\n".join(
        [
            "| key | value | default | meaning | for |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "| table | keys besides those of the top |",
            "|---|---|",
            *lines,
            "",
        ]
    )


def _row(word: str, places: dict[str, Key]) -> str:
    """One key of the top. default: if it is the same for all commands."""
    key, defaults = next(iter(places.values())), {shown(one.default) for one in places.values()}
    default = "see `--help`" if len(defaults) > 1 else f"`{defaults.pop()}`"
    default = "" if default == "`null`" else default
    commands = ", ".join(f"`{name}`" for name in places)
    return f"| `{word}` | {key.wanted} | {default} | {_cell(shared_texts()[word])} | {commands} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
