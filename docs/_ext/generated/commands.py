"""The commands, from click's own help."""

import click

from headrace.cli import main


def markdown() -> str:
    """A heading and the text of `--help` for each command."""
    parts = []
    for name, command in sorted(main.commands.items()):
        context = click.Context(command, info_name=f"headrace {name}", terminal_width=100, max_content_width=100)
        context.help_option_names = ["-h", "--help"]
        parts.append(f"## headrace {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)
