"""Build the documentation site into build/site: ``make docs``. A broken link or an unknown name ends the build."""

import shutil
import subprocess
import sys

import yaml

from website.commands import command_pages
from website.llms import write_llms
from website.mermaid import fetch_mermaid
from website.pages import MERMAID, ROOT, gather_pages

PAGES = ROOT / "build" / "website"
SITE = ROOT / "build" / "site"


def main() -> None:
    """Gather the pages, generate the reference of the commands, and build the site.

    Raises:
        SystemExit: a link leads nowhere, a page is in no menu, or Zensical ends with a warning.
    """
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    shutil.rmtree(PAGES, ignore_errors=True)
    gather_pages(PAGES)
    for path, text in command_pages().items():
        (PAGES / path).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / path).write_text(text)
    fetch_mermaid(PAGES / MERMAID)
    write_llms(config, PAGES)
    subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=ROOT, check=True)
    for page in PAGES.rglob("*.md"):  # llms.txt leads to the pages as they were written
        shutil.copyfile(page, SITE / page.relative_to(PAGES))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
