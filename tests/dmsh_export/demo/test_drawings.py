"""The archive of drawings becomes two folders and a split; anything else is refused."""

import zipfile

import numpy as np
import pytest
from project import ROOT

from dmsh_export.demo.drawings import unpack_drawings
from dmsh_serving.errors import InputError
from dmsh_serving.images.read import image_paths, load_images


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, unpack_drawings(ROOT / "demo" / "drawings.zip", out, 128)


def test_the_archive_holds_36_classes_with_ten_queries_each(unpacked):
    _, data = unpacked
    split = data.given_split
    assert (len(data.images), len(data.class_names), len(split.query)) == (2836, 36, 360)
    assert np.bincount(data.labels[split.query]).tolist() == [10] * 36
    assert len(np.intersect1d(split.query, split.database)) == 0
    assert len(split.query) + len(split.database) == 2836


def test_the_files_are_the_images_and_ids_follow_their_names(unpacked):
    out, data = unpacked
    split = data.given_split
    names = [path.relative_to(out / "database").as_posix() for path in image_paths(out / "database")]
    assert names == [data.names[row] for row in split.database]
    assert (load_images(out / "queries", 128).images == data.images[np.sort(split.query)]).all()
    assert sorted(path.name for path in out.iterdir()) == ["database", "queries"]


def test_what_is_no_archive_of_drawings_is_refused(tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("LICENCE", "terms")
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as file:
        file.writestr("drawings/../../outside.txt", "x")
    for name, message in (
        ("absent", "does not exist"),
        ("text", "is not a .zip file"),
        ("other", "holds no drawings"),
        ("hostile", "leads out of the archive"),
    ):
        with pytest.raises(InputError, match=message):
            unpack_drawings(tmp_path / f"{name}.zip", tmp_path / "out", 128)
    assert not (tmp_path / "outside.txt").exists()
