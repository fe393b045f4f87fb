"""Check every file of a gallery to the last byte, whether or not the version that serves needs it."""

from dataclasses import dataclass
from pathlib import Path

from dmsh_serving.errors import InputError
from dmsh_serving.gallery.folder import CURRENT, current_version, leftover_paths, open_current, part_paths
from dmsh_serving.gallery.part import ascending_ids
from dmsh_serving.gallery.part_file import read_part

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes:
        files: per file, its name and what is wrong with it, or None.
        current: what is wrong with the version that serves, or None.
        leftovers: names of files that a killed writer left; the next writer sweeps them.
    """

    files: tuple[tuple[str, str | None], ...]
    current: str | None
    leftovers: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return self.current is None and all(problem is None for _, problem in self.files)


def verify(folder: Path) -> Verification:
    """Check every part in ``folder``, and the version that serves as a whole.

    Raises:
        InputError: nothing in it is a gallery's.
    """
    paths = part_paths(folder) if folder.is_dir() else []
    if not paths and not (folder / CURRENT).exists():
        current_version(folder)  # says so
    files = tuple((path.name, _problem(path)) for path in paths)
    try:
        snapshot = open_current(folder)
        only = snapshot.parts[0] if len(snapshot.parts) == 1 else None
        if only is not None and only.ids is None:
            repeated = 0  # a range: not written out, for a billion ids take 8 GB
        else:
            ids = snapshot.ids
            repeated = int((ids[1:] == ids[:-1]).sum())
        current = f"{repeated} ids are there more than once" if repeated else None
    except (InputError, OSError) as error:
        current = str(error)
    return Verification(files, current, tuple(path.name for path in leftover_paths(folder)))


def _problem(path: Path) -> str | None:
    try:
        part, _ = read_part(path)
        if part.ids is not None and len(ascending_ids(part.ids)) != part.count:
            return "an id is there more than once"
    except (InputError, OSError) as error:
        return str(error)
    return None
