"""The pages as written, gathered into one folder; links that lead out of docs/ are turned to where they lead online."""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/dmsh-toolkit/dmsh-toolkit"
# Pages that lie at the top of the repository, because people and tools look for them there.
TOP_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
MERMAID = "assets/mermaid.min.js"
_PLAIN = (".md", ".png", ".svg", ".css")
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)")


def gather_pages(target: Path) -> None:
    """Copy docs/ and the pages of the top folder to ``target``.

    Raises:
        SystemExit: a link leads to no file of the repository.
    """
    docs = ROOT / "docs"
    for file in sorted(docs.rglob("*")):
        if file.is_file() and file.suffix in _PLAIN:
            place = target / file.relative_to(docs)
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".md":
                place.write_text(with_diagrams(with_site_links(file, file.relative_to(docs)), file.relative_to(docs)))
            else:
                shutil.copyfile(file, place)
    for name, page in TOP_PAGES.items():
        (target / page).write_text(with_site_links(ROOT / name, Path(page)))


def with_site_links(file: Path, place: Path) -> str:
    """Return the text of ``file``, which is to lie at ``place`` in the site, with its links changed to fit.

    A link to a page of the site stays within it; a link to any other file of the repository leads to the repository.
    """

    def moved(match: re.Match[str]) -> str:
        goal, anchor = match[1], match[2] or ""
        found = (file.parent / goal).resolve()
        if found.is_relative_to(ROOT / "docs") and file.is_relative_to(ROOT / "docs"):
            return match[0]  # Zensical checks these
        if not found.exists() or not found.is_relative_to(ROOT):
            raise SystemExit(f"error: {file.relative_to(ROOT)} links to {goal}, which is not there")
        within = found.relative_to(ROOT).as_posix()
        up = "../" * (len(place.parts) - 1)
        if within in TOP_PAGES:
            return f"]({up}{TOP_PAGES[within]}{anchor})"
        if within.startswith("docs/") and found.suffix == ".md":
            return f"]({up}{within.removeprefix('docs/')}{anchor})"
        kind = "tree" if found.is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{within}{anchor})"

    return _LINK.sub(moved, file.read_text())


def with_diagrams(text: str, place: Path) -> str:
    """Let a page with diagrams load the script that draws them; no other page pays for its five megabytes."""
    if "```mermaid" not in text:
        return text
    up = "../" * len(place.parts)  # the page itself becomes a folder
    return f'{text}\n<script src="{up}{MERMAID}"></script>\n'
