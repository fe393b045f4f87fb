"""What the gallery commands are given to put into a gallery: images and a model, or codes with ids and keys."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from dmsh_serving.gallery.keys import Keys


@dataclass(frozen=True)
class Given:
    """Codes to put into a gallery.

    Attributes:
        codes: (N, B) uint8.
        ids: (N,) integers; None numbers them on.
        keys: N strings, or None.
        bits: bits per code; None if unknown.
        fingerprint: fingerprint of the model that made the codes; None if unknown.
        bad: one line for each image that was left out.
        others: one line that counts the files that are no images by name, or None.
    """

    codes: "npt.NDArray[np.uint8]"
    ids: "npt.NDArray[np.integer] | None"
    keys: "Sequence[str] | Keys | None"
    bits: int | None
    fingerprint: str | None
    bad: tuple[str, ...] = ()
    others: str | None = None


def given_codes(
    model: Path | None,
    images: Path | None,
    codes: Path | None,
    bits: int | None,
    fingerprint: str | None,
    ids: Path | None,
    keys: Path | None,
    batch: int,
    skip_bad: bool,
) -> Given:
    """Read or compute the codes, by whichever of the two ways was asked for."""
    if codes is not None and model is None and images is None:
        if fingerprint is not None and not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
            raise InputError(f"--fingerprint {fingerprint!r} is not one: 64 hex digits, as the model's metadata says")
        given = _table(codes, bits, fingerprint)
    elif codes is not None or model is None or images is None:
        raise InputError("give either --model and --images, or --codes")
    elif bits is not None or fingerprint is not None:
        raise InputError("--bits and --fingerprint go with --codes: a model brings its own")
    else:
        given = _encoded(model, images, batch, skip_bad)
    return _with_own(given, codes, ids, keys)


def _table(path: Path, bits: int | None, fingerprint: str | None) -> Given:
    from dmsh_serving.gallery.tables import read_table

    table = read_table(path)
    for name, said, asked in (("bits", table.bits, bits), ("fingerprint", table.fingerprint, fingerprint)):
        if said is not None and asked is not None and said != asked:
            raise InputError(f"{path} says that it has {name} {said}, --{name} says {asked}")
    bits = table.bits if bits is None else bits
    return Given(table.codes, table.ids, table.keys, bits, fingerprint or table.fingerprint)


def _with_own(given: Given, codes: Path | None, ids: Path | None, keys: Path | None) -> Given:
    """Take ids and keys from the files that were named for them."""
    from dmsh_serving.gallery.tables import read_ids

    if codes is not None:
        for option, path, column in (("--ids", ids, given.ids), ("--keys", keys, given.keys)):
            if path is not None and column is not None:
                raise InputError(f"{codes} has a column of its own for that: leave {option} out")
    if ids is not None:
        given = replace(given, ids=read_ids(ids))
    return given if keys is None else replace(given, keys=read_keys(keys))


def _encoded(model: Path, images: Path, batch: int, skip_bad: bool) -> Given:
    from dmsh_serving.console import progress
    from dmsh_serving.encoder.codes_of_images import codes_of_images
    from dmsh_serving.images.read import others_line

    with progress() as display:
        task = display.add_task("encoding", total=None)
        encoded = codes_of_images(
            model,
            images,
            batch,
            skip_bad=skip_bad,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    space = (encoded.bits, encoded.fingerprint)
    return Given(encoded.codes, None, encoded.names, *space, encoded.bad, others_line(images))


def names_of_images(images: Path) -> list[str]:
    """Return the keys that the images of a folder will have; none for an .npy file, which is read later."""
    from dmsh_serving.images.read import image_paths

    return [path.relative_to(images).as_posix() for path in image_paths(images)] if images.is_dir() else []


def read_keys(path: Path) -> list[str]:
    """Read keys from a text file, one per line; the last line may or may not end with a newline."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file (UTF-8): {error.reason} at byte {error.start}") from None
    return lines if lines[-1] else lines[:-1]
