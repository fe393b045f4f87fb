"""``dmsh-serve gallery``: build, append, remove, compact, rollback, merge, verify, info, export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmsh_serving.commands import command, make_app
from dmsh_serving.console import JsonOption, SkipBadOption, print_table, printable, reporting, write_json
from dmsh_serving.contract import DEFAULT_MAX_BATCH
from dmsh_serving.errors import CheckError, InputError

if TYPE_CHECKING:
    from dmsh_serving.gallery.snapshot import Snapshot

gallery_app = make_app("Build and change a gallery: the codes that are searched.")


def _on_this_machine(folder: Path) -> Path:
    from dmsh_serving.clickhouse.address import is_address

    if is_address(str(folder)):
        raise InputError(
            f"{folder} is in ClickHouse, and this command reads folders: dmsh-serve gallery pull writes one, and "
            "dmsh-serve gallery info checks what is there"
        )
    return folder


GalleryArgument = Annotated[Path, typer.Argument(help="Gallery folder.", show_default=False, callback=_on_this_machine)]
PlaceArgument = Annotated[
    str, typer.Argument(help="Gallery folder, or an address in ClickHouse.", metavar="GALLERY", show_default=False)
]
OutOption = Annotated[Path, typer.Option(help="Gallery folder to write.", show_default=False)]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing gallery.")]
ModelOption = Annotated[Path | None, typer.Option(help="ONNX model that turns --images into codes.")]
ImagesOption = Annotated[Path | None, typer.Option(help="Folder of image files, or .npy, uint8 [N, H, W, 3].")]
CodesOption = Annotated[
    Path | None,
    typer.Option(
        help="Codes instead of images: .npy, uint8 [N, ceil(bits/8)], or .parquet with columns id, key, code."
    ),
]
BitsOption = Annotated[int | None, typer.Option(help="Bits per code in --codes.")]
FingerprintOption = Annotated[
    str | None, typer.Option(help="Fingerprint of the model that made --codes, 64 hex digits.")
]
IdsOption = Annotated[Path | None, typer.Option(help="Ids: .npy, integers [N].  [default: the next free numbers]")]
KeysOption = Annotated[
    Path | None, typer.Option(help="Keys: a text file, one per line.  [default: names of the image files]")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Images encoded at once.")]


@command(gallery_app, "dmsh-serve gallery build --model build/model.onnx --images photos --out build/gallery")
def build(
    out: OutOption,
    model: ModelOption = None,
    images: ImagesOption = None,
    codes: CodesOption = None,
    bits: BitsOption = None,
    fingerprint: FingerprintOption = None,
    ids: IdsOption = None,
    keys: KeysOption = None,
    batch: BatchOption = DEFAULT_MAX_BATCH,
    skip_bad: SkipBadOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Make a gallery from images or from codes.

    Give --model and --images, or --codes, --bits and --fingerprint.
    """
    from dmsh_serving import gallery
    from dmsh_serving.cli.gallery_inputs import given_codes

    if (out / gallery.CURRENT).exists() and not overwrite:
        raise InputError(f"{out} already holds a gallery: append to it, or replace it with --overwrite")
    given = given_codes(model, images, codes, bits, fingerprint, ids, keys, batch, skip_bad)
    if given.bits is None or given.fingerprint is None:
        raise InputError("--codes needs --bits and --fingerprint: they name the code space")
    snapshot = gallery.build(
        out,
        given.codes,
        given.ids,
        given.keys,
        bits=given.bits,
        fingerprint=given.fingerprint,
        overwrite=overwrite,
    )
    with reporting(snapshot.version):
        _report("Gallery built", out, snapshot, json, given.bad, others=given.others)


@command(gallery_app, "dmsh-serve gallery append build/gallery --model build/model.onnx --images more")
def append(
    folder: GalleryArgument,
    model: ModelOption = None,
    images: ImagesOption = None,
    codes: CodesOption = None,
    bits: BitsOption = None,
    fingerprint: FingerprintOption = None,
    ids: IdsOption = None,
    keys: KeysOption = None,
    again: Annotated[bool, typer.Option("--again", help="Also add codes whose keys the gallery has already.")] = False,
    batch: BatchOption = DEFAULT_MAX_BATCH,
    skip_bad: SkipBadOption = False,
    json: JsonOption = None,
) -> None:
    """Add images or codes as a new version."""
    from dmsh_serving import gallery
    from dmsh_serving.cli.gallery_inputs import given_codes, names_of_images
    from dmsh_serving.gallery.changes import refuse_known_keys

    gallery.current_version(folder)
    if images is not None and keys is None and not again:
        refuse_known_keys(folder, names_of_images(images))  # before they are encoded
    given = given_codes(model, images, codes, bits, fingerprint, ids, keys, batch, skip_bad)
    snapshot = gallery.append(
        folder,
        given.codes,
        given.ids,
        given.keys,
        bits=given.bits,
        fingerprint=given.fingerprint,
        new_keys=not again,  # once more, and for sure: another writer may have been at work meanwhile
    )
    with reporting(snapshot.version):
        _report(f"{len(given.codes)} codes appended", folder, snapshot, json, given.bad, others=given.others)


@command(
    gallery_app,
    "dmsh-serve gallery remove build/gallery --id 3",
    "dmsh-serve gallery remove build/gallery --key red/photos-05.png",
)
def remove(
    place: PlaceArgument,
    ids: Annotated[Path | None, typer.Option(help="Ids to remove: .npy, integers [M].")] = None,
    id_: Annotated[list[int] | None, typer.Option("--id", help="Id to remove; may be repeated.")] = None,
    key: Annotated[list[str] | None, typer.Option(help="Key whose codes to remove; may be repeated.")] = None,
    json: JsonOption = None,
) -> None:
    """Remove codes by id or key, as a new version."""
    import numpy as np

    from dmsh_serving import gallery
    from dmsh_serving.cli.clickhouse_results import removed_remotely, report_remote
    from dmsh_serving.clickhouse.address import is_address
    from dmsh_serving.gallery.changes import remove_keys
    from dmsh_serving.gallery.part import ascending_ids
    from dmsh_serving.gallery.tables import read_ids

    if sum(map(bool, (ids, id_, key))) != 1:
        raise InputError("say what to remove: --ids FILE.npy, --id ID or --key KEY")
    try:
        dropped = np.array(id_, np.int64) if id_ else read_ids(ids) if ids else None
    except OverflowError:
        raise InputError("an id is too large: ids are int64") from None
    if is_address(place):
        published = removed_remotely(place, dropped, key or [])
        with reporting(published.version):
            report_remote("Codes removed", place, published, json)
        return
    folder = Path(place)
    if dropped is None:
        snapshot, dropped = remove_keys(folder, key or [])
    else:
        snapshot = gallery.remove(folder, dropped)
    with reporting(snapshot.version):
        _report(f"{len(ascending_ids(dropped))} codes removed", folder, snapshot, json)


@command(gallery_app, "dmsh-serve gallery compact build/gallery")
def compact(place: PlaceArgument, json: JsonOption = None) -> None:
    """Write the whole gallery as one file. Its layout is chosen again to suit its codes."""
    from dmsh_serving import gallery
    from dmsh_serving.cli.clickhouse_results import report_remote
    from dmsh_serving.clickhouse.address import Address, is_address

    if is_address(place):
        from dmsh_serving.clickhouse.changes import compact as compact_remotely

        published = compact_remotely(Address.parse(place))
        with reporting(published.version):
            report_remote("Gallery compacted", place, published, json)
        return
    snapshot = gallery.compact(Path(place))
    with reporting(snapshot.version):
        _report("Gallery compacted", Path(place), snapshot, json)


@command(gallery_app, "dmsh-serve gallery rollback build/gallery")
def rollback(place: PlaceArgument, json: JsonOption = None) -> None:
    """Serve the newest sound version before the current one. Use it after damage, or to take a change back."""
    from dmsh_serving import gallery
    from dmsh_serving.cli.clickhouse_results import report_remote
    from dmsh_serving.clickhouse.address import Address, is_address

    if is_address(place):
        from dmsh_serving.clickhouse.changes import rollback as rollback_remotely

        published = rollback_remotely(Address.parse(place))
        with reporting(published.version):
            report_remote("Gallery rolled back", place, published, json)
        return
    snapshot = gallery.rollback(Path(place))
    with reporting(snapshot.version):
        _report("Gallery rolled back", Path(place), snapshot, json)


@command(gallery_app, "dmsh-serve gallery merge build/gallery build/other --out build/merged --renumber")
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Gallery folders of one model.", show_default=False)],
    out: OutOption,
    renumber: Annotated[
        bool, typer.Option("--renumber", help="Number all codes anew from 0 instead of keeping their ids.")
    ] = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Write one gallery with the codes of several. These stay as they are."""
    from dmsh_serving import gallery

    snapshot = gallery.merge(folders, out, renumber=renumber, overwrite=overwrite)
    with reporting(snapshot.version):
        _report(f"{len(folders)} galleries merged", out, snapshot, json)


@command(gallery_app, "dmsh-serve gallery info build/gallery")
def info(place: PlaceArgument, json: JsonOption = None) -> None:
    """Check a gallery and show what it holds, its layout, and why."""
    from dmsh_serving import gallery
    from dmsh_serving.cli.clickhouse_results import report_remote, serving_remotely
    from dmsh_serving.clickhouse.address import is_address
    from dmsh_serving.gallery.snapshot import distinct_codes

    if is_address(place):
        report_remote("Gallery", place, serving_remotely(place), json)
        return
    folder = Path(place)
    snapshot = gallery.open_current(folder)
    distinct = None if _counted(snapshot) else distinct_codes(snapshot.codes)
    _report("Gallery", folder, snapshot, json, distinct=distinct)


@command(gallery_app, "dmsh-serve gallery verify build/gallery")
def verify(folder: GalleryArgument, json: JsonOption = None) -> None:
    """Check every byte of every file, older versions too. The exit code is 1 if one is damaged."""
    from dmsh_serving.gallery.verify import verify as checked

    found = checked(folder)
    rows = [[name, problem or "sound"] for name, problem in found.files]
    rows += [["the version that serves", found.current or "sound"]]
    rows += [[name, "left by a writer that was killed; the next one sweeps it"] for name in found.leftovers]
    print_table(f"Files of {folder}", ["", ""], rows)
    problems = {name: problem for name, problem in found.files if problem}
    write_json(
        json,
        {
            "folder": str(folder),
            "sound": found.sound,
            "files": [name for name, _ in found.files],
            "problems": problems,
            "current": found.current,
            "leftovers": list(found.leftovers),
        },
    )
    if not found.sound:
        raise CheckError(found.current or next(iter(problems.values())))


@command(gallery_app, "dmsh-serve gallery export build/gallery --out build/codes.npy --ids build/ids.npy")
def export(
    folder: GalleryArgument,
    out: Annotated[Path, typer.Option(help="File to write: .parquet (id, key, code), or .npy (the codes).")],
    ids: Annotated[
        Path | None, typer.Option(help="Also write the ids: .npy, int64 [N]; Parquet holds them itself.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    json: JsonOption = None,
) -> None:
    """Write the codes for other tools, in ascending order of ids. Parquet holds the keys as well."""
    from dmsh_serving import gallery
    from dmsh_serving.gallery.tables import PARQUET_SUFFIX, write_npy, write_parquet

    if out.suffix not in (PARQUET_SUFFIX, ".npy"):
        raise InputError(f"--out {out}: name a file that ends with .parquet or .npy")
    if ids is not None and (out.suffix == PARQUET_SUFFIX or ids.suffix != ".npy" or ids == out):
        raise InputError("--ids names a second .npy, beside the codes in --out; Parquet holds the ids itself")
    present = [str(path) for path in (out, ids) if path is not None and path.exists()]
    if present and not overwrite:
        raise InputError(f"{', '.join(present)} exists already: replace it with --overwrite, or write elsewhere")
    snapshot = gallery.open_current(folder)
    if out.suffix == PARQUET_SUFFIX:
        write_parquet(out, snapshot)
    else:
        contents = snapshot.contents()
        write_npy(out, contents.codes)
        if ids is not None:
            write_npy(ids, contents.ids)
    typer.echo(f"wrote {snapshot.count:,} codes to {out}")
    write_json(json, {"folder": str(folder), "version": snapshot.version, "count": snapshot.count, "out": str(out)})


def _counted(snapshot: "Snapshot") -> bool:
    """Say whether the number of different codes was counted when this version was written."""
    return len(snapshot.parts) == 1 and snapshot.parts[0].distinct is not None


def _report(
    title: str,
    folder: Path,
    snapshot: "Snapshot",
    json: Path | None,
    bad: tuple[str, ...] = (),
    distinct: int | None = None,
    others: str | None = None,
) -> None:
    lowest = snapshot.parts[0]
    if _counted(snapshot):
        distinct = lowest.distinct
    paths = [snapshot.path.with_name(f"gallery-{name.version}.safetensors") for name in snapshot.names]
    size = sum(path.stat().st_size for path in paths)
    held = sum(part.count for part in snapshot.parts)
    rows = [
        ["version", snapshot.version],
        ["codes", f"{snapshot.count:,}"],
        ["distinct codes", "not counted again: see info" if distinct is None else f"{distinct:,}"],
        ["bits", str(snapshot.bits)],
        ["keys", "yes" if snapshot.has_keys else "no"],
        ["layout", lowest.layout_reason],
        ["codes, part by part", " + ".join(f"{part.count:,}" for part in snapshot.parts)],
        ["removed, not yet swept", f"{held - snapshot.count:,}"],
        ["size on disk", f"{size / 2**20:.2f} MiB"],
    ]
    if bad:
        rows.append(["skipped images", f"{len(bad):,}"])
    print_table(f"{title}: {folder}", ["", ""], rows)
    typer.echo(f"fingerprint {snapshot.fingerprint}")  # too long for a narrow table, and one wants to copy it
    if others:
        typer.echo(printable(others))
    for line in bad:
        typer.echo(f"skipped {printable(line)}", err=True)
    write_json(
        json,
        {
            "folder": str(folder),
            "version": snapshot.version,
            "count": snapshot.count,
            "distinct": distinct,
            "bits": snapshot.bits,
            "keys": snapshot.has_keys,
            "layout": lowest.layout,
            "layout_reason": lowest.layout_reason,
            "parts": [part.count for part in snapshot.parts],
            "removed": held - snapshot.count,
            "fingerprint": snapshot.fingerprint,
            "bytes": size,
            "skipped": list(bad),
        },
    )
