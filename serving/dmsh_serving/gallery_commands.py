"""``dmsh-serve gallery``: build, append, remove, info."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_serving.console import JsonOption, SkipBadOption, make_app, print_table, progress, write_json
from dmsh_serving.contract import DEFAULT_MAX_BATCH
from dmsh_serving.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dmsh_serving.snapshot import Snapshot

gallery_app = make_app("Build and change a gallery: the codes that queries are compared with.")

GalleryArgument = Annotated[Path, typer.Argument(help="The gallery's folder.", show_default=False)]
ModelOption = Annotated[Path | None, typer.Option(help="ONNX model that turns --images into codes.")]
ImagesOption = Annotated[Path | None, typer.Option(help="Folder of image files, or .npy, uint8 [N, H, W, 3].")]
CodesOption = Annotated[Path | None, typer.Option(help="Ready codes instead: .npy, uint8 [N, ceil(bits/8)].")]
BitsOption = Annotated[int | None, typer.Option(help="Bits of a code in --codes.")]
FingerprintOption = Annotated[
    str | None, typer.Option(help="Fingerprint of the model that made --codes, 64 hex digits.")
]
IdsOption = Annotated[Path | None, typer.Option(help="Ids, .npy, integers [N]; else numbered on.")]
KeysOption = Annotated[Path | None, typer.Option(help="Keys, a text file, one a line; else the images' names.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Images encoded at once.")]


@dataclass(frozen=True)
class _Input:
    """What a command was given to put into the gallery."""

    codes: "npt.NDArray[np.uint8]"
    keys: list[str] | None
    bits: int | None
    fingerprint: str | None
    bad: list[str]


@gallery_app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder of the new gallery.", show_default=False)],
    model: ModelOption = None,
    images: ImagesOption = None,
    codes: CodesOption = None,
    bits: BitsOption = None,
    fingerprint: FingerprintOption = None,
    ids: IdsOption = None,
    keys: KeysOption = None,
    batch: BatchOption = DEFAULT_MAX_BATCH,
    skip_bad: SkipBadOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing gallery.")] = False,
    json: JsonOption = None,
) -> None:
    """Make a gallery from images (--model and --images) or from ready codes (--codes, --bits, --fingerprint)."""
    from dmsh_serving import gallery

    if (out / gallery.CURRENT).exists() and not overwrite:
        raise InputError(f"{out} already holds a gallery: append to it, or replace it with --overwrite")
    given = _input(model, images, codes, bits, fingerprint, keys, batch, skip_bad)
    if given.bits is None or given.fingerprint is None:
        raise InputError("--codes needs --bits and --fingerprint: they name the code space")
    snapshot = gallery.build(
        out,
        given.codes,
        _read_ids(ids) if ids else None,
        given.keys,
        bits=given.bits,
        fingerprint=given.fingerprint,
        overwrite=overwrite,
    )
    _report("Gallery built", out, snapshot, json, given.bad)


@gallery_app.command()
def append(
    folder: GalleryArgument,
    model: ModelOption = None,
    images: ImagesOption = None,
    codes: CodesOption = None,
    bits: BitsOption = None,
    fingerprint: FingerprintOption = None,
    ids: IdsOption = None,
    keys: KeysOption = None,
    batch: BatchOption = DEFAULT_MAX_BATCH,
    skip_bad: SkipBadOption = False,
    json: JsonOption = None,
) -> None:
    """Add images or codes as a new version. With --codes, --bits and --fingerprint are checked if given."""
    from dmsh_serving import gallery

    gallery.current_version(folder)
    given = _input(model, images, codes, bits, fingerprint, keys, batch, skip_bad)
    snapshot = gallery.append(
        folder, given.codes, _read_ids(ids) if ids else None, given.keys, bits=given.bits, fingerprint=given.fingerprint
    )
    _report(f"{len(given.codes)} codes appended", folder, snapshot, json, given.bad)


@gallery_app.command()
def remove(
    folder: GalleryArgument,
    ids: Annotated[Path | None, typer.Option(help="Ids to drop: .npy, integers [M].")] = None,
    id_: Annotated[list[int] | None, typer.Option("--id", help="One id to drop; may be repeated.")] = None,
    json: JsonOption = None,
) -> None:
    """Drop codes by id, as a new version."""
    import numpy as np

    from dmsh_serving import gallery

    if (ids is None) == (not id_):
        raise InputError("give the ids to drop: either --ids FILE.npy or --id ID")
    try:
        dropped = np.array(id_, np.int64) if ids is None else _read_ids(ids)
    except OverflowError:
        raise InputError("an id is too large: ids are int64") from None
    _report(f"{dropped.size} codes removed", folder, gallery.remove(folder, dropped), json, [])


@gallery_app.command()
def info(folder: GalleryArgument, json: JsonOption = None) -> None:
    """Check the gallery whole and say what it holds."""
    from dmsh_serving import gallery

    _report("Gallery", folder, gallery.open_current(folder), json, [])


def _input(
    model: Path | None,
    images: Path | None,
    codes: Path | None,
    bits: int | None,
    fingerprint: str | None,
    keys: Path | None,
    batch: int,
    skip_bad: bool,
) -> _Input:
    """Read or compute the codes, by whichever of the two ways was asked for."""
    given_keys = None if keys is None else _keys(keys)
    if codes is not None and model is None and images is None:
        if fingerprint is not None and not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
            raise InputError(f"--fingerprint {fingerprint!r} is not one: 64 hex digits, as the model's metadata says")
        return _Input(_codes(codes), given_keys, bits, fingerprint, [])
    if codes is not None or model is None or images is None:
        raise InputError("give either --model and --images, or --codes")
    if bits is not None or fingerprint is not None:
        raise InputError("--bits and --fingerprint go with --codes: a model brings its own")
    return _encode(model, images, given_keys, batch, skip_bad)


def _encode(model: Path, images: Path, keys: list[str] | None, batch: int, skip_bad: bool) -> _Input:
    import numpy as np

    from dmsh_serving.encoder import OnnxEncoder
    from dmsh_serving.images import iter_image_batches

    found, names, bad = [], [], []
    with OnnxEncoder(model) as encoder, progress() as display:
        task = display.add_task("encoding", total=None)
        batches = iter_image_batches(
            images,
            encoder.image_size,
            batch,
            skip_bad=skip_bad,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )
        for part in batches:
            bad += part.bad
            names += part.names
            if len(part.images):
                found.append(encoder.infer(part.images).code)
        return _Input(np.concatenate(found), names if keys is None else keys, encoder.bits, encoder.fingerprint, bad)


def _codes(path: Path) -> "npt.NDArray[np.uint8]":
    import numpy as np

    from dmsh_serving.images import load_npy

    array = load_npy(path, "codes, uint8 [N, ceil(bits/8)]")
    if array.dtype != np.uint8 or array.ndim != 2:
        raise InputError(f"{path} is {array.dtype} {list(array.shape)}, expected codes, uint8 [N, ceil(bits/8)]")
    return array.view(np.uint8)


def _read_ids(path: Path) -> "npt.NDArray[np.int64]":
    import numpy as np

    from dmsh_serving.images import load_npy

    array = load_npy(path, "ids, integers [N]")
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
        raise InputError(f"{path} is {array.dtype} {list(array.shape)}, expected ids, integers [N]")
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{path}: id {array.max()} is too large: ids are int64")
    return array.astype(np.int64)


def _keys(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file (UTF-8): {error.reason} at byte {error.start}") from None
    return lines if lines[-1] else lines[:-1]  # the last line may or may not end with a newline


def _report(title: str, folder: Path, snapshot: "Snapshot", json: Path | None, bad: list[str]) -> None:
    from dmsh_serving.snapshot import distinct_codes

    distinct = distinct_codes(snapshot.codes)
    size = snapshot.path.stat().st_size
    rows = [
        ["version", snapshot.version],
        ["codes", f"{snapshot.count:,}"],
        ["distinct codes", f"{distinct:,}"],
        ["bits", str(snapshot.bits)],
        ["keys", "yes" if snapshot.has_keys else "no"],
        ["size on disk", f"{size / 2**20:.2f} MiB"],
    ]
    if bad:
        rows.append(["skipped images", f"{len(bad):,}"])
    print_table(f"{title}: {folder}", ["", ""], rows)
    typer.echo(f"fingerprint {snapshot.fingerprint}")  # too long for a narrow table, and one wants to copy it
    for line in bad:
        typer.echo(f"skipped {line}", err=True)
    write_json(
        json,
        {
            "folder": str(folder),
            "version": snapshot.version,
            "count": snapshot.count,
            "distinct": distinct,
            "bits": snapshot.bits,
            "keys": snapshot.has_keys,
            "fingerprint": snapshot.fingerprint,
            "bytes": size,
            "skipped": bad,
        },
    )
