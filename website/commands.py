"""One page per command, from the options and help texts of the code: typer writes them."""

import re
import subprocess
import sys
from importlib import import_module

import typer

COMMANDS = {"dmsh-train": "dmsh_model.cli", "dmsh-export": "dmsh_export.cli", "dmsh-serve": "dmsh_serving.cli"}
_OPTIONS = re.compile(r"(?<=^\*\*Options\*\*:\n\n)((?:\* .*\n)+)", re.MULTILINE)
_EXAMPLES = re.compile(r"^\x08\n(Examples?):\n((?:  .+\n)+)", re.MULTILINE)
_LISTED = re.compile(r"^\* `(\w[\w-]*)`: .*$", re.MULTILINE)


def command_pages() -> dict[str, str]:
    """Return {path of a page: its Markdown} for every command of the toolkit."""
    return {
        f"reference/{name}.md": linked(grouped(typer_docs(name, module), panels(name, module)))
        for name, module in COMMANDS.items()
    }


def typer_docs(name: str, module: str) -> str:
    """Return what typer writes about the application in ``module``, as Markdown."""
    command = [sys.executable, "-m", "typer", module, "utils", "docs", "--name", name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def linked(text: str) -> str:
    """Turn lists of commands, whose summaries typer cuts off, into links to their sections; set examples as code."""
    text = _EXAMPLES.sub(lambda found: f"**{found[1]}**:\n\n```console\n{found[2].replace('  ', '$ ')}```\n", text)
    lines, title = [], ""
    for line in text.splitlines():
        if heading := re.match(r"#+ `(.+)`$", line):
            title = heading[1]
        if listed := _LISTED.match(line):
            anchor = f"{title} {listed[1]}".replace(" ", "-")
            line = f"* [{title} {listed[1]}](#{anchor})"
        lines.append(line)
    return "\n".join(lines) + "\n"


def panels(name: str, module: str) -> dict[str, dict[str, str]]:
    """Return {full name of a command: {option: the group that the command's help shows it in}}."""
    found: dict[str, dict[str, str]] = {}
    waiting = [(name, typer.main.get_command(import_module(module).app))]
    while waiting:
        title, command = waiting.pop()
        waiting.extend((f"{title} {each}", child) for each, child in getattr(command, "commands", {}).items())
        named = [(parameter, getattr(parameter, "rich_help_panel", None)) for parameter in command.params]
        found[title] = {option: panel for parameter, panel in named if panel for option in parameter.opts}
    return found


def grouped(text: str, panels: dict[str, dict[str, str]]) -> str:
    """Put each list of options in the order of its groups, under the groups' names: typer leaves them out."""
    sections = re.split(r"^(?=#+ `)", text, flags=re.MULTILINE)
    return "".join(_grouped_section(section, panels) for section in sections)


def _grouped_section(section: str, panels: dict[str, dict[str, str]]) -> str:
    title = re.match(r"#+ `(.+)`", section)
    own = panels.get(title[1], {}) if title else {}

    def by_panel(match: re.Match[str]) -> str:
        groups = {"": ""}
        for line in match[1].splitlines(keepends=True):
            option = re.match(r"\* `([\w-]+)", line)
            panel = own.get(option[1], "") if option else ""
            groups[panel] = groups.get(panel, "") + line
        return "\n".join(f"**{panel}**:\n\n{lines}" if panel else lines for panel, lines in groups.items())

    return _OPTIONS.sub(by_panel, section)
