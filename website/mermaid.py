"""The script that draws Mermaid diagrams, served by the site itself: a reader's browser asks no other host for it."""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

from website.pages import ROOT

VERSION = "12.3.0"
SHA256 = "336df803d87a38b70a01e736e666c8f7601d2ce42f5e47c8fafe5d721074b9a3"
_KEPT = ROOT / "build" / f"mermaid-{VERSION}.min.js"


def fetch_mermaid(target: Path) -> None:
    """Write the script to ``target``; npm fetches it once, into build/.

    Raises:
        SystemExit: npm is missing, or the script is not the one whose SHA-256 stands here.
    """
    if not _KEPT.exists():
        if shutil.which("npm") is None:
            raise SystemExit("error: npm is missing: it fetches mermaid, which draws the diagrams of the site")
        package = _KEPT.with_suffix(".tgz")
        _KEPT.parent.mkdir(exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", _KEPT.parent, f"mermaid@{VERSION}"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        package = _KEPT.with_name(packed.stdout.strip().splitlines()[-1])
        with tarfile.open(package) as archive:
            script = archive.extractfile("package/dist/mermaid.min.js")
            assert script is not None, "a file, not a folder"
            _KEPT.write_bytes(script.read())
        package.unlink()
    found = hashlib.sha256(_KEPT.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"error: {_KEPT} has SHA-256 {found}, not {SHA256}: delete it and build again")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_KEPT, target)
