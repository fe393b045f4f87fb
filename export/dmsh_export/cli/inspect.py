"""dmsh-export inspect."""

from pathlib import Path
from typing import Annotated

import typer

from dmsh_serving.console import JsonOption, print_table, write_json
from dmsh_serving.errors import InputError


def inspect(
    artefact: Annotated[Path, typer.Argument(help="A file that dmsh-export wrote, beside its manifest.")],
    json: JsonOption = None,
) -> None:
    """Show what a file is, its source, and what was proven about it."""
    from dmsh_export.manifest import manifest_rows, read_manifest

    if not artefact.is_file():
        raise InputError(f"{artefact} is not a file: name an artefact of dmsh-export")
    manifest = read_manifest(artefact)
    shown = {key: value for key, value in manifest.items() if key not in ("format", "format_version", "parity", "fold")}
    rows = manifest_rows(shown)
    if "parity" in manifest:
        rows.append(["parity", "passed" if manifest["parity"]["passed"] else "FAILED"])
        rows += [
            [f"  {target['target']}", f"{target['wrong_bits']} wrong of {target['bits_compared']:,} bits"]
            for target in manifest["parity"]["targets"]
        ]
    print_table(str(artefact), ["", "value"], rows)
    write_json(json, manifest)
