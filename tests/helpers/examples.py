"""The commands of the three programs, and the examples at the end of their helps."""

import typer

import dmsh_export.cli
import dmsh_model.cli
import dmsh_serving.cli

PROGRAMS = {
    "dmsh-train": dmsh_model.cli,
    "dmsh-export": dmsh_export.cli,
    "dmsh-serve": dmsh_serving.cli,
}


def commands(group, name):
    """Yield (name, command) of every command below ``group``."""
    for each in group.list_commands(typer.Context(group)):
        command = group.get_command(typer.Context(group), each)
        if hasattr(command, "list_commands"):
            yield from commands(command, f"{name} {each}")
        else:
            yield f"{name} {each}", command


COMMANDS = {
    name: command
    for program, module in PROGRAMS.items()
    for name, command in commands(typer.main.get_command(module.app), program)
}


def examples(name):
    """Return the command lines at the end of the command's help."""
    _, _, text = (COMMANDS[name].epilog or "").partition("Example")
    return [line.strip() for line in text.splitlines()[1:]]
