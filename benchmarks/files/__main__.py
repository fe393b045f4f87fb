"""What does a search by a file wait for? Each step of its path, by both rules of decoding.

python -m benchmarks.files [--quick] [--page docs/serving.md]
"""

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, console, print_table, progress, write_json
from dmsh_serving.program import run

app = make_app("Time the path of a file search, step by step.")

_NAME: Final = "files"  # in the markers of the page


@app.command()
def files(
    quick: Annotated[bool, typer.Option("--quick", help="The demo's network alone, for a second each.")] = False,
    codes: Annotated[int, typer.Option(min=1, help="Codes in the gallery.")] = 100_000,
    page: Annotated[Path | None, typer.Option(help="A page to write the tables to, between its markers.")] = None,
    json: JsonOption = None,
) -> None:
    """Time decoding in process, then file searches that Triton serves."""
    from benchmarks.common.page import around, replace
    from benchmarks.files.paths import decode_milliseconds, file_paths, steps_of
    from dmsh_export.compare.machine import machine_name

    if page is not None:
        around(page, _NAME)  # refused now, not after minutes of measuring
    head = f"{machine_name()}; load average {os.getloadavg()[0]:.1f} when it began; {codes:,} codes of 64 bits."
    decode = decode_milliseconds()
    found = []
    networks = ("demo",) if quick else ("demo", "resnet50")
    with progress() as bar:
        task = bar.add_task("file searches", total=len(networks))
        for name in networks:
            with tempfile.TemporaryDirectory() as folder:
                found += file_paths(name, Path(folder), codes, 0.3 if quick else 2.0)
            bar.advance(task)
    decode_rows = decode_table(decode)
    rows = steps_of(found)
    print_table("10-megapixel JPEG -> 224 pixels, in process", decode_rows[0], decode_rows[1:])
    print_table("one client, means", rows[0], rows[1:])
    console().print(head)
    if page is not None:
        replace(page, _NAME, "\n\n".join([head, markdown(decode_rows), markdown(rows)]))
    result: dict[str, Any] = {"decode_ms": decode, "paths": [dataclasses.asdict(path) for path in found]}
    write_json(json, {"machine": head, **result})


def decode_table(milliseconds: dict[str, float]) -> list[list[str]]:
    """Return a table of decoding times, its heads first; the last row is what the others are held against."""
    newest = list(milliseconds.values())[-1]
    return [
        ["10-megapixel JPEG -> 224 pixels", "ms", "x the newest rule"],
        *([name, f"{ms:.1f}", f"{ms / newest:.2f}"] for name, ms in milliseconds.items()),
    ]


def markdown(rows: list[list[str]]) -> str:
    """Return a table, its heads first, in Markdown."""
    words = [
        not any(row[column][:1].isdigit() or row[column][:1] == "-" for row in rows[1:])
        for column in range(len(rows[0]))
    ]
    return "\n".join(
        f"| {' | '.join(row)} |" for row in (rows[0], ["---" if word else "---:" for word in words], *rows[1:])
    )


if __name__ == "__main__":
    run(app)
