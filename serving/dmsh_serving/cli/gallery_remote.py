"""``dmsh-serve gallery push`` and ``pull``: a gallery between a folder and ClickHouse."""

from pathlib import Path
from typing import Annotated

import typer

from dmsh_serving.cli.clickhouse_results import report_remote
from dmsh_serving.cli.gallery import gallery_app
from dmsh_serving.commands import command
from dmsh_serving.console import JsonOption, progress, reporting, write_json
from dmsh_serving.errors import InputError

AddressArgument = Annotated[
    str, typer.Argument(help="clickhouse://[user@]host[:port]/database/gallery", metavar="ADDRESS", show_default=False)
]


@command(
    gallery_app,
    "dmsh-serve gallery push build/gallery clickhouse://localhost/images/photos",
)
def push(
    source: Annotated[
        Path,
        typer.Argument(
            help="Gallery folder, .parquet (id, code, key), or folder of dmsh-export encode.", show_default=False
        ),
    ],
    address: AddressArgument,
    append: Annotated[bool, typer.Option("--append", help="Add to the gallery instead of replacing it.")] = False,
    column: Annotated[
        list[str] | None, typer.Option(help="Metadata column of the Parquet file to filter by; may be repeated.")
    ] = None,
    bits: Annotated[int | None, typer.Option(help="Bits per code, if the Parquet file does not say it.")] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="Fingerprint of the model, if the Parquet file does not say it.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Publish a gallery in ClickHouse. What is there already is not sent again; a killed push goes on.

    Options of the connection follow the address: ?secure=1, ?ca=FILE, ?cluster=NAME, ?timeout=SECONDS. The password is
    taken from DMSH_CLICKHOUSE_PASSWORD.
    """
    from dmsh_serving import gallery
    from dmsh_serving.clickhouse.address import Address
    from dmsh_serving.clickhouse.push import push as pushed
    from dmsh_serving.clickhouse.rows import source_of_gallery, source_of_parquet
    from dmsh_serving.gallery.tables import PARQUET_SUFFIX

    place = Address.parse(address)
    encoded = source.is_dir() and not (source / gallery.CURRENT).exists() and any(source.glob("codes-*.parquet"))
    if encoded or source.suffix == PARQUET_SUFFIX:
        rows = source_of_parquet(source, tuple(column or ()), bits, fingerprint)
    elif column or bits is not None or fingerprint is not None:
        raise InputError("--column, --bits and --fingerprint go with a Parquet file: a gallery brings its own")
    else:
        rows = source_of_gallery(source, gallery.open_current(source))
    with progress() as display:
        task = display.add_task("pushing", total=None)
        version, sent = pushed(
            rows,
            place,
            append=append,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    with reporting(version.version):
        report_remote(f"{sent:,} codes sent", address, version, json, sent=sent)


@command(gallery_app, "dmsh-serve gallery pull clickhouse://localhost/images/photos --out build/pulled")
def pull(
    address: AddressArgument,
    out: Annotated[Path, typer.Option(help="Gallery folder to write.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing gallery.")] = False,
    json: JsonOption = None,
) -> None:
    """Write a gallery of ClickHouse as a gallery folder."""
    from dmsh_serving import gallery
    from dmsh_serving.clickhouse.address import Address
    from dmsh_serving.clickhouse.changes import pull as pulled

    if (out / gallery.CURRENT).exists() and not overwrite:
        raise InputError(f"{out} already holds a gallery: write elsewhere, or replace it with --overwrite")
    with progress() as display:
        task = display.add_task("pulling", total=None)
        contents, version = pulled(
            Address.parse(address),
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    snapshot = gallery.build(
        out,
        contents.codes,
        contents.ids,
        contents.keys,
        bits=version.bits,
        fingerprint=version.fingerprint,
        next_id=version.next_id,
        overwrite=overwrite,
    )
    with reporting(snapshot.version):
        typer.echo(f"wrote {snapshot.count:,} codes of version {version.version} to {out}, version {snapshot.version}")
        write_json(json, {"address": address, "version": version.version, "count": snapshot.count, "out": str(out)})
