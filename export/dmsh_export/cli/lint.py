"""dmsh-export lint: find what is wrong in a model repository before a server does."""

from pathlib import Path
from typing import Annotated

import typer

from dmsh_serving.console import JsonOption, console, print_table, write_json
from dmsh_serving.errors import CheckError


def lint(
    repository: Annotated[Path, typer.Argument(help="A Triton model repository.")],
    json: JsonOption = None,
) -> None:
    """Check a model repository against its model and its gallery. The exit code is 1 on any finding."""
    from dmsh_export.lint.repository import lint_repository

    report = lint_repository(repository)
    if report.findings:
        print_table(
            f"{repository}: what is wrong",
            ["file", "problem", "fix"],
            [[finding.file, finding.problem, finding.fix] for finding in report.findings],
        )
    for note in report.notes:
        console().print(f"note: {note}")
    write_json(json, report.to_dict())
    if report.findings:
        raise CheckError(f"{repository}: {len(report.findings)} findings in {len(report.models)} models")
    console().print(f"{repository}: nothing is wrong in its {len(report.models)} models ({', '.join(report.models)})")
