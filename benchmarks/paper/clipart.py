"""Debian's openclipart-png (8,121 PNG files in the public domain) -> a data set with one folder of images per class.

    python -m benchmarks.paper.clipart --out build/clipart
    python -m benchmarks.paper.clipart --image-size 128 --out demo/drawings.zip

A class is a category of the package that holds at least ``--least`` drawings itself while no category below it does,
so that no class is a mixture of others; of a larger one the first ``--most`` drawings by name are taken. Each is
decoded by the rule that every encoder is fed by (alpha over white, short side resized, centre cropped), so an image
written here is an image served. A folder gets PNG files. A .zip file gets lossy WebP files, a fifth of the size, and
the terms that put the drawings in the public domain; the same drawings give the same bytes.
"""

import io
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Final

import typer

from dmsh_serving import console
from dmsh_serving.commands import make_app
from dmsh_serving.errors import InputError, MissingError
from dmsh_serving.files import write_atomically
from dmsh_serving.program import run

PACKAGE: Final = "openclipart-png"
_CATEGORIES = Path("usr/share/openclipart/png")
_LICENCE = Path("usr/share/doc/openclipart-png/copyright")
_OF_NO_KIND = {"unsorted"}
_LARGEST_FILE_BYTES = 4 << 20  # a few posters of 10,000 pixels would take longer than all others
_ARCHIVE = ".zip"
_WEBP_QUALITY: Final = 80
_ARCHIVE_DATE: Final = (1980, 1, 1, 0, 0, 0)  # the earliest a .zip file can hold; a real one would change its bytes

app = make_app("Make a data set with one folder of images per class from Debian's openclipart-png.")


@app.command()
def make(
    out: Annotated[Path, typer.Option(help="Folder, or .zip file, to write.")] = Path("build/clipart"),
    package: Annotated[
        Path | None, typer.Option(help=f"The .deb file of {PACKAGE}.  [default: apt-get downloads it]")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Side of an image in pixels.")] = 32,
    least: Annotated[int, typer.Option(help="Drawings that a class must have.")] = 40,
    most: Annotated[int, typer.Option(help="Drawings that a class may have.")] = 200,
    json: console.JsonOption = None,
) -> None:
    """Write the data set and say how many images each class has."""
    if out.exists():
        raise InputError(f"{out} exists already: remove it, or choose another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = unpacked(package or downloaded(Path(scratch)), Path(scratch) / "files")
        classes = chosen_classes(root, least, most)
        with console.progress() as display:
            fresh = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
            try:
                suffix = ".webp" if out.suffix == _ARCHIVE else ".png"
                for name, files in display.track(classes.items(), description="decoding drawings"):
                    write_class(fresh / name, files, image_size, suffix)
                counts = {name: len(list((fresh / name).iterdir())) for name in classes}
                if out.suffix == _ARCHIVE:
                    write_atomically(out, archive_of(fresh, out.stem, licence_beside(root)))
                else:
                    fresh.chmod(0o755)
                    fresh.rename(out)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    console.print_table(
        f"{out}: {sum(counts.values())} images of {image_size} pixels in {len(counts)} classes",
        ["class", "images"],
        [[name, str(count)] for name, count in counts.items()],
    )
    console.write_json(json, {"out": str(out), "image_size": image_size, "classes": counts})


def downloaded(folder: Path) -> Path:
    """Fetch the package's .deb file into ``folder`` with apt-get.

    Raises:
        MissingError: no apt-get, or it finds no such package.
    """
    if not shutil.which("apt-get"):
        raise MissingError(f"apt-get is missing: fetch the .deb file of Debian's {PACKAGE} and give it as --package")
    done = subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
    files = list(folder.glob("*.deb"))
    if done.returncode or not files:
        said = " ".join(done.stderr.split())
        raise MissingError(f"apt-get download {PACKAGE} failed ({said}): run apt-get update, or give --package")
    return files[0]


def unpacked(package: Path, folder: Path) -> Path:
    """Unpack a .deb file into ``folder`` and return the folder of its categories.

    Raises:
        InputError: no such file, or another package.
        MissingError: no dpkg-deb.
    """
    if not package.is_file():
        raise InputError(f"{package} does not exist, or is not a file")
    if not shutil.which("dpkg-deb"):
        raise MissingError("dpkg-deb is missing: apt-get install dpkg")
    done = subprocess.run(
        ["dpkg-deb", "-x", str(package.absolute()), str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode or not (folder / _CATEGORIES).is_dir():
        raise InputError(f"{package} is not the package {PACKAGE} ({' '.join(done.stderr.split()) or 'other files'})")
    return folder / _CATEGORIES


def chosen_classes(root: Path, least: int, most: int) -> dict[str, list[Path]]:
    """Return the drawings of each class by its name, the category's path with dashes.

    Raises:
        InputError: fewer than two such categories.
    """
    own = {
        # Links repeat a drawing of another category: its class would not be one.
        folder: [path for path in sorted(folder.glob("*.png")) if not path.is_symlink() and _usable(path)]
        for folder in sorted(path for path in root.rglob("*") if path.is_dir())
    }
    large = [folder for folder, files in own.items() if len(files) >= least and folder.name not in _OF_NO_KIND]
    classes = {
        "-".join(folder.relative_to(root).parts): own[folder][:most]
        for folder in large
        if not any(folder in other.parents for other in large)
    }
    if len(classes) < 2:
        raise InputError(f"{root}: {len(classes)} categories of at least {least} drawings, two are needed")
    return classes


def _usable(path: Path) -> bool:
    return 0 < path.stat().st_size <= _LARGEST_FILE_BYTES


def licence_beside(root: Path) -> Path:
    """Return the file with the package's terms; ``root`` is the folder of its categories.

    Raises:
        InputError: it is missing, so the drawings must not be passed on.
    """
    licence = root.parents[len(_CATEGORIES.parts) - 1] / _LICENCE
    if not licence.is_file():
        raise InputError(f"{licence} is missing: an archive must carry the terms of its drawings")
    return licence


def archive_of(folder: Path, name: str, licence: Path) -> bytes:
    """Return a .zip file of LICENCE and of ``folder`` as the folder ``name``; equal contents give equal bytes."""
    members = {"LICENCE": licence} | {
        f"{name}/{path.relative_to(folder).as_posix()}": path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:  # stored: the images are compressed already
        for member, path in members.items():
            file.writestr(zipfile.ZipInfo(member, _ARCHIVE_DATE), path.read_bytes())
    return archive.getvalue()


def write_class(folder: Path, files: list[Path], image_size: int, suffix: str = ".png") -> None:
    """Decode ``files`` and write them to ``folder`` as images of ``image_size``; leave out those beyond the rule."""
    from PIL import Image

    from dmsh_serving.images.decode import image_from_bytes

    folder.mkdir()
    for number, path in enumerate(files):
        try:
            image = image_from_bytes(path.read_bytes(), image_size, name=path.name)
        except InputError:
            continue  # damaged, or more pixels than a server takes
        Image.fromarray(image).save(folder / f"{number:03d}{suffix}", quality=_WEBP_QUALITY)  # PNG has no quality


if __name__ == "__main__":
    run(app)
