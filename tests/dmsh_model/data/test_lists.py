import numpy as np
import pytest
from PIL import Image

from dmsh_model.data import lists as data_lists
from dmsh_model.data.load import load_labelled
from dmsh_model.data.split import SplitOptions, split_images
from dmsh_serving.errors import InputError

DATABASE = ["a.png 1 0 1", "b.png 0 1 0", "c.png 1 1 0"]
LISTS = {"database": DATABASE, "train": [DATABASE[0], DATABASE[1]], "test": ["sub/q.png 1 0 0", "r.png 0 0 1"]}


@pytest.fixture
def root(tmp_path):
    """Images 8 x 8 of one grey each, and beside them the three lists."""
    (tmp_path / "set" / "sub").mkdir(parents=True)
    for grey, name in enumerate(("a", "b", "c", "sub/q", "r")):
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(tmp_path / "set" / f"{name}.png")
    write(tmp_path / "set", LISTS)
    return tmp_path / "set"


def write(folder, lists):
    for part, lines in lists.items():
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")


def load(root, kind="lists", **options):
    return load_labelled(f"{kind}:{root}", 8, **options)


def test_lists_give_images_their_labels_and_the_split(root):
    data = load(root)
    assert data.names == ["a.png", "b.png", "c.png", "sub/q.png", "r.png"]
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert data.labels.dtype == np.uint8
    assert data.labels.tolist() == [[1, 0, 1], [0, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1]]
    split = split_images(data, SplitOptions())
    assert split.given
    assert [part.tolist() for part in (split.query, split.database, split.train)] == [[3, 4], [0, 1, 2], [0, 1]]


def test_a_byte_order_mark_is_no_part_of_a_name(root):
    (root / "test.txt").write_text("\ufeff" + (root / "test.txt").read_text())
    assert load(root).names[3] == "sub/q.png"


def test_paths_are_relative_to_a_root_that_may_lie_elsewhere(root, tmp_path):
    (tmp_path / "lists").mkdir()
    for part in LISTS:
        (root / f"{part}.txt").rename(tmp_path / "lists" / f"{part}.txt")
    assert load(f"{tmp_path / 'lists'}:{root}").names == load_names(root)


def load_names(root):
    write(root, LISTS)
    return load(root).names


def test_an_absolute_path_inside_of_the_root_is_taken(root):
    write(root, {"test": [f"{root}/sub/../r.png 0 0 1"]})
    assert load(root).names[-1] == "r.png"


@pytest.mark.parametrize(
    "lines",
    [
        {"database": ["a.png 0", "b.png 2"], "train": ["a.png 0"], "test": ["r.png 1"]},
        {"database": ["a.png 1 0 0", "b.png 0 0 1"], "train": ["a.png 1 0 0"], "test": ["r.png 0 1 0"]},
    ],
)
def test_numbers_of_classes_and_one_label_each_become_single_labels(root, lines):
    write(root, lines)
    data = load(root)
    assert data.labels.dtype == np.int64
    assert data.labels.tolist() == [0, 2, 1]
    assert data.class_names == ["0", "1", "2"]


BAD_LISTS = {
    "no label": ({"test": ["r.png 0 0 0"]}, r"test\.txt: 1 bad lines: line 1: no label at all"),
    "too few columns": ({"database": ["a.png 1 0 1", "b.png 0 1"]}, "line 2: 2 columns of labels, 3 in the first"),
    "no columns": ({"database": ["a.png"]}, "line 1: a path without labels"),
    "columns of another list": ({"test": ["r.png 0 1"]}, r"differ in their columns.*database\.txt 3, test\.txt 2"),
    "a column of something else": ({"test": ["r.png 0 1 x"]}, "line 1: x among columns of 0 and 1"),
    "a path with blanks": ({"test": ["r 1.png 0 1 0"]}, "a path must hold no blanks"),
    "a class that is no number": ({part: ["a.png -1"] for part in LISTS}, "-1 is no number of a class"),
    "a class beyond reason": ({part: ["a.png " + "9" * 5000] for part in LISTS}, "no number of a class, 0 to"),
    "a path up": ({"test": ["../r.png 0 0 1"]}, r"line 1: \.\./r\.png leads out of"),
    "a path up from below": ({"test": ["sub/../../r.png 0 0 1"]}, "leads out of"),
    "an absolute path": ({"test": ["/etc/hostname 0 0 1"]}, "/etc/hostname leads out of"),
    "an empty list": ({"train": [""]}, r"train\.txt lists no images"),
    "an image twice": ({"database": ["a.png 1 0 1", "a.png 1 0 1"]}, r"a\.png is listed more than once"),
    "other labels": ({"train": ["a.png 1 1 1"]}, r"a\.png has other labels in train\.txt"),
    "a query in the database": ({"test": ["b.png 0 1 0"]}, r"1 queries of test\.txt are in database\.txt.*b\.png"),
    "a query that was trained on": (
        {"train": ["r.png 0 0 1"], "test": ["r.png 0 0 1"]}, r"test\.txt are in train\.txt.*r\.png",
    ),
    "one class": ({"database": ["a.png 0"], "train": ["a.png 0"], "test": ["r.png 0"]}, "only one class"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_bad_list_is_refused_with_its_line(root, case):
    lines, message = BAD_LISTS[case]
    write(root, lines)
    with pytest.raises(InputError, match=message):
        load(root)


def test_a_name_that_begins_with_dots_leads_nowhere_else(root):
    (root / "r.png").rename(root / "..r.png")
    write(root, {"test": ["..r.png 0 0 1"]})
    assert load(root).names[-1] == "..r.png"


def test_a_link_out_of_the_root_is_refused_and_one_inside_is_taken(root, tmp_path):
    (root / "r.png").rename(tmp_path / "outside.png")
    (root / "r.png").symlink_to(root / "a.png")
    assert load(root).images[-1, 0, 0, 0] == 0
    (root / "r.png").unlink()
    (root / "r.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(InputError, match=r"r\.png is, or lies behind, a link out of"):
        load(root)


def test_missing_lists_and_a_missing_root_are_named_with_a_hint(root):
    (root / "train.txt").unlink()
    with pytest.raises(InputError, match=r"train\.txt not there.*give lists:LISTS:ROOT"):
        load(root)
    with pytest.raises(InputError, match=r"the folder .*absent not there.*cocodataset\.org"):
        load(f"{root}:{root}/absent", "coco")
    with pytest.raises(InputError, match=r"coco: give coco:LISTS"):
        load_labelled("coco:", 8)


@pytest.mark.parametrize("kind", data_lists.KNOWN)
def test_a_known_data_set_has_its_own_number_of_labels(root, kind):
    with pytest.raises(InputError, match=f"the lists have 3 labels, {kind} has {data_lists.KNOWN[kind].classes}"):
        load(root, kind)


def test_a_known_data_set_is_read(root, monkeypatch):
    monkeypatch.setitem(data_lists.KNOWN, "coco", data_lists.KnownLists(3, ""))
    assert load(root, "coco").source == "coco"


def test_a_list_that_is_no_text_is_refused(root):
    (root / "test.txt").write_bytes(b"\xff\xfe\x00r.png")
    with pytest.raises(InputError, match=r"test\.txt is no list of images"):
        load(root)


def test_a_missing_and_a_corrupt_image_are_named(root):
    (root / "b.png").unlink()
    (root / "r.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"2 of 5 files cannot be read.*b\.png: does not exist; r\.png"):
        load(root)


@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_images_are_left_out_of_every_part_when_asked(root, tmp_path, cached):
    (root / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    cache = tmp_path / "cache" if cached else None
    for _ in range(2):
        data = load(root, skip_bad=True, cache=cache)
        assert data.names == ["a.png", "c.png", "sub/q.png", "r.png"]
        assert [line.split(":")[0] for line in data.bad] == ["b.png"]
        split = data.given_split
        assert [part.tolist() for part in (split.query, split.database, split.train)] == [[2, 3], [0, 1], [0]]
        assert data.labels[split.database].tolist() == [[1, 0, 1], [1, 1, 0]]
    with pytest.raises(InputError, match=r"1 (of 5 )?files cannot be read"):
        load(root, cache=cache)


def test_a_part_without_a_readable_image_is_refused(root):
    for name in ("sub/q.png", "r.png"):
        (root / name).write_bytes(b"GIF")
    with pytest.raises(InputError, match=r"test\.txt: none of its images"):
        load(root, skip_bad=True)
