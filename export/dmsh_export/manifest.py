"""The manifest beside each artefact: ``<artefact>.json``, what it is and what it was made from."""

import contextlib
import importlib.metadata
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmsh_serving import __version__
from dmsh_serving.console import write_json
from dmsh_serving.errors import InputError
from dmsh_serving.files import move_durably, naming, sha256_of_file

__all__ = ["add_results", "manifest_path", "manifest_rows", "publish", "read_manifest", "write_manifest"]

FORMAT = "dmsh-manifest"
FORMAT_VERSION = 1


def manifest_path(artefact: Path) -> Path:
    """Return ``<artefact>.json``."""
    return artefact.with_name(artefact.name + ".json")


def write_manifest(
    artefact: Path,
    *,
    kind: str,
    fingerprint: str,
    made_from: dict[str, str],
    options: dict[str, Any],
    packages: tuple[str, ...],
    results: dict[str, Any],
) -> Path:
    """Write the manifest of ``artefact`` and return its path.

    ``made_from`` maps each source's name to its SHA-256 (or fingerprint); ``packages`` are the distributions whose
    versions matter; ``results`` holds the checks' outcomes (plain JSON types).
    """
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "artefact": artefact.name,
        "sha256": sha256_of_file(artefact),
        "fingerprint": fingerprint,
        "made_from": made_from,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "options": options,
        "versions": {
            "dmsh-toolkit": __version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "machine": {"architecture": platform.machine(), "system": platform.system()},
        **results,
    }
    path = manifest_path(artefact)
    write_json(path, manifest)
    return path


def read_manifest(artefact: Path) -> dict[str, Any]:
    """Return the manifest of ``artefact``, checked to be about these very bytes.

    Raises:
        InputError: no manifest, of another format, or of another file.
    """
    path = manifest_path(artefact)
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: every artefact of dmsh-export has its manifest beside it") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path} is not a {FORMAT}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {manifest.get('format_version')}, this release reads {FORMAT_VERSION}"
        )
    if manifest.get("sha256") != sha256_of_file(artefact):
        raise InputError(f"{path} is about another file than {artefact}: the SHA-256 differs; make the artefact again")
    return manifest


def add_results(artefact: Path, results: dict[str, Any]) -> None:
    """Add ``results`` to the manifest of ``artefact``."""
    write_json(manifest_path(artefact), {**read_manifest(artefact), **results})


@contextlib.contextmanager
def publish(*artefacts: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a place to make each of ``artefacts`` in; at the end each is renamed to its name, manifest and all.

    The places are on the artefacts' own file systems. An exception publishes nothing; a place that was left empty
    publishes nothing either.

    Raises:
        InputError: a folder does not exist or cannot be written, or the name is a folder's.
    """
    for path in artefacts:
        if not path.absolute().parent.is_dir() or path.is_dir():
            raise InputError(f"{path}: name a file in a folder that exists")
    with contextlib.ExitStack() as stack:
        drafts = []
        for path in artefacts:
            try:
                folder = tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".dmsh-export-")
            except OSError as error:
                raise InputError(f"{path}: cannot write into its folder: {error.strerror}") from error
            drafts.append(Path(stack.enter_context(folder)) / path.name)
        with naming(artefacts[0]):
            yield tuple(drafts)
        for draft, path in zip(drafts, artefacts, strict=True):
            for made, final in ((draft, path), (manifest_path(draft), manifest_path(path))):
                if made.exists():
                    move_durably(made, final)


def manifest_rows(value: Any, name: str = "") -> list[list[str]]:
    """Return ``value``, of a manifest, as rows of dotted name and text; a list of tables gets a row for each."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in manifest_rows(inner, f"{name}.{key}" if name else key)]
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return [[name, ", ".join(" ".join(row) for row in manifest_rows(entry))] for entry in value]
    if isinstance(value, list):
        return [[name, " ".join(str(entry) for entry in value) or "-"]]
    return [[name, "-" if value is None else str(value)]]
