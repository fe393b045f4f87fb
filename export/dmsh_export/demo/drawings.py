"""The demo's images: an archive of drawings in class folders -> queries and database, as folders of files."""

import dataclasses
import zipfile
from pathlib import Path
from typing import Final

import numpy as np

from dmsh_model.data.labelled import LabelledImages, Split
from dmsh_model.data.load import load_labelled
from dmsh_model.data.split import SplitOptions, split_images
from dmsh_serving.errors import InputError

__all__ = ["DATABASE", "QUERIES", "SPLIT", "unpack_drawings"]

QUERIES, DATABASE = "queries", "database"
SPLIT: Final = SplitOptions(queries_per_class=10, train_per_class=None)
_FOLDER = "drawings/"


def unpack_drawings(archive: Path, out: Path, image_size: int) -> LabelledImages:
    """Unpack ``archive`` to ``out/queries/CLASS`` and ``out/database/CLASS``, and return its images with that split.

    The database is in the order of its files' names, which is the order of ids in a gallery of that folder.

    Raises:
        InputError: no such archive, or one of something else.
    """
    if not archive.is_file():
        raise InputError(
            f"{archive} does not exist: run the demo where the toolkit was checked out, or give --drawings"
        )
    everything = out / "everything"
    try:
        with zipfile.ZipFile(archive) as file:
            names = [name for name in file.namelist() if name.startswith(_FOLDER) and not name.endswith("/")]
            for name in names:
                place = everything / name.removeprefix(_FOLDER)
                if everything.resolve() not in place.resolve().parents:
                    raise InputError(f"{archive}: {name} leads out of the archive")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(file.read(name))
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive} is not a .zip file: {error}") from error
    if not names:
        raise InputError(f"{archive} holds no {_FOLDER}CLASS/IMAGE: it is another archive")
    data = load_labelled(str(everything), image_size)
    drawn = split_images(data, SPLIT)
    split = Split(drawn.query, np.sort(drawn.database), np.sort(drawn.train), given=True)
    for part, rows in ((QUERIES, split.query), (DATABASE, split.database)):
        for row in rows:
            place = out / part / data.names[row]
            place.parent.mkdir(parents=True, exist_ok=True)
            (everything / data.names[row]).rename(place)
    for folder in (*everything.iterdir(), everything):
        folder.rmdir()
    return dataclasses.replace(data, source="drawings", given_split=split)
