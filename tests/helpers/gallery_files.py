"""A small gallery, and ways to damage its files."""

import json

import numpy as np

from dmsh_serving.gallery import part_file
from dmsh_serving.gallery.folder import current_version

F = "f" * 64


def random_codes(count, width=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, width), dtype=np.uint8)


def snapshot_path(folder):
    return folder / f"gallery-{current_version(folder)}.safetensors"


def damaged(folder, change):
    """Replace the serving snapshot's bytes by change(bytes)."""
    path = snapshot_path(folder)
    data = change(path.read_bytes())
    path.unlink()
    path.write_bytes(data)


def with_header(change):
    """Return a change of a snapshot's bytes that edits its JSON header."""

    def apply(data):
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return apply


def publish_as_it_is(folder, part):
    """Make ``part`` the version that serves, checksummed and well named, whatever is wrong with it."""
    digest = part_file.digest_of(part)
    version = f"00000009-{digest[:8]}"
    with (folder / f"gallery-{version}.safetensors").open("wb") as file:
        part_file.write_part(file, part, digest)
    (folder / "CURRENT").write_text(version)
