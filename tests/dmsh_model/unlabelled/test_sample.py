import tracemalloc

import pytest

from dmsh_model.unlabelled.sample import sampled_files, smallest
from dmsh_serving.errors import InputError


def test_the_sample_depends_on_names_and_seed_alone():
    names = [f"{number}.png" for number in range(1000)]
    chosen = smallest(names, 10, 0)
    assert chosen == smallest(reversed(names), 10, 0)
    assert chosen == smallest(names, 20, 0)[:10]
    assert chosen != smallest(names, 10, 1)
    assert set(smallest(names, 5000, 0)) == set(names)


def test_memory_depends_on_the_sample_and_not_on_the_folder():
    def peak(count):
        tracemalloc.start()
        smallest((f"folder/{number}.png" for number in range(count)), 100, 0)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(50_000) < 2 * peak(2_000)  # what Python kept of the call before is not counted


def test_hidden_files_are_left_out_and_subfolders_are_not(tmp_path):
    for name in ("a.png", ".hidden.png", "in/b.png", "in/deep/c.png", ".git/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(sampled_files(tmp_path, 9, 0)) == ["a.png", "in/b.png", "in/deep/c.png"]


def test_what_gives_no_files_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no files"):
        sampled_files(tmp_path, 9, 0)
    with pytest.raises(InputError, match="does not exist"):
        sampled_files(tmp_path / "absent", 9, 0)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        sampled_files(tmp_path / "file", 9, 0)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="is a link to a folder"):
        sampled_files(tmp_path, 9, 0)
