"""`--help` of a command with many options: under headings, what must be given first."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class Sections(TyperCommand):
    """A command whose options are shown in the sections that `rich_help_panel` names; the others come last."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """One list for every heading, in the order of the first option of each."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                heading = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or OTHERS
                sections.setdefault(heading, []).append(record)
        sections[OTHERS] = sections.pop(OTHERS, [])
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


OTHERS = "Results and other options"
