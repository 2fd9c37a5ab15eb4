"""The text of `--help`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

# The headings that options are declared with, in the order in which `--help` lists them.
HEADINGS = (
    *("Arguments", "Data", "Policy", "Robot", "Leader", "Cameras", "Calibration", "Procedure"),
    *("Instead of calibrating", "Session", "Evaluation", "Motion", "Length", "Checks"),
    *("Optimiser", "Machine", "Results", "Start", "Help"),
)
MAX_UNGROUPED = 8  # options; more are listed under headings


class CommandList(TyperGroup):
    """Help that shows the whole sentence about each command, where click would cut it at 60
    characters.
    """

    def get_help_option(self, ctx: Any) -> Any:
        """Without a default, typer imports pydantic to convert None, also for `mtdit X --help`."""
        help_option = super().get_help_option(ctx)
        if help_option is not None:
            help_option.default = False
        return help_option

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        names = self.list_commands(ctx)
        with formatter.section("Commands"):
            formatter.write_dl([(n, self.commands[n].get_short_help_str(200)) for n in names])


class GroupedHelp(TyperCommand):
    """Help that lists the options of a command under their headings if there are many."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        if sum(option.name != "help" for option in self.params) <= MAX_UNGROUPED:
            super().format_options(ctx, formatter)
            return
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None:
                groups.setdefault(heading(option), []).append(record)
        for name in sorted(groups, key=HEADINGS.index):
            with formatter.section(name):
                formatter.write_dl(groups[name])


def heading(option: Any) -> str:
    """The heading under which `--help` lists an option or an argument."""
    if option.param_type_name == "argument":
        return "Arguments"
    return getattr(option, "rich_help_panel", None) or "Help"
