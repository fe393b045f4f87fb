"""One page per command, from the options and help texts of the code: typer writes them."""

import re
import subprocess
import sys

COMMANDS = {"dmsh-train": "dmsh_model.cli", "dmsh-export": "dmsh_export.cli", "dmsh-serve": "dmsh_serving.cli"}
_LISTED = re.compile(r"^\* `(\w[\w-]*)`: .*$", re.MULTILINE)


def command_pages() -> dict[str, str]:
    """Return {path of a page: its Markdown} for every command of the toolkit."""
    return {f"reference/{name}.md": linked(typer_docs(name, module)) for name, module in COMMANDS.items()}


def typer_docs(name: str, module: str) -> str:
    """Return what typer writes about the application in ``module``, as Markdown."""
    command = [sys.executable, "-m", "typer", module, "utils", "docs", "--name", name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def linked(text: str) -> str:
    """Turn each list of commands, whose summaries typer cuts off, into links to the commands' own sections."""
    lines, title = [], ""
    for line in text.splitlines():
        if heading := re.match(r"#+ `(.+)`$", line):
            title = heading[1]
        if listed := _LISTED.match(line):
            anchor = f"{title} {listed[1]}".replace(" ", "-")
            line = f"* [{title} {listed[1]}](#{anchor})"
        lines.append(line)
    return "\n".join(lines) + "\n"
