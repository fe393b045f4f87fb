"""llms.txt: every page with one sentence, for programs that read documentation (llmstxt.org)."""

import re
from pathlib import Path
from typing import Any


def write_llms(config: dict[str, Any], pages: Path) -> None:
    """Write llms.txt into ``pages``: the menu of mkdocs.yml, each page with the first sentence of its text.

    Raises:
        SystemExit: a page is in no menu.
    """
    lines = [f"# {config['site_name']}", "", f"> {config['site_description']}"]
    listed = {"index.md"}
    for section in config["nav"]:
        for title, entries in section.items():
            if isinstance(entries, str):
                continue
            lines += ["", f"## {title}", ""]
            for entry in entries:
                ((name, path),) = entry.items()
                listed.add(path)
                lines.append(f"- [{name}]({path}): {first_sentence((pages / path).read_text())}")
    missing = sorted({page.relative_to(pages).as_posix() for page in pages.rglob("*.md")} - listed)
    if missing:
        raise SystemExit(f"error: mkdocs.yml has these pages in no menu: {', '.join(missing)}")
    (pages / "llms.txt").write_text("\n".join(lines) + "\n")


def first_sentence(text: str) -> str:
    """Return the first sentence of the first plain paragraph of a Markdown page, without markup.

    Raises:
        SystemExit: the page has no such paragraph.
    """
    without_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n", re.sub(r"^#.*$", "", without_code, flags=re.MULTILINE)):
        paragraph = paragraph.strip()
        if re.match(r"[\w`*\[]", paragraph) and not paragraph.startswith(("* ", "**Usage")):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", " ".join(paragraph.split()))
            return re.split(r"(?<=[.?!])\s", plain)[0]
    raise SystemExit(f"error: a page has no sentence that says what it is about: {text[:60]!r}")
