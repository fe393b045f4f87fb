"""dmsh-export inspect."""

from pathlib import Path
from typing import Annotated, Any

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
        try:
            rows += _parity_rows(manifest["parity"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"the manifest of {artefact} is damaged, in its parity: make the artefact again"
            ) from error
    print_table(str(artefact), ["", "value"], rows)
    write_json(json, manifest)


def _parity_rows(parity: dict[str, Any]) -> list[list[str]]:
    return [["parity", "passed" if parity["passed"] else "FAILED"]] + [
        [f"  {target['target']}", f"{target['wrong_bits']} wrong of {target['bits_compared']:,} bits"]
        for target in parity["targets"]
    ]
