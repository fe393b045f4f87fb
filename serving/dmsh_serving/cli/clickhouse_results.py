"""What the gallery commands do with a gallery in ClickHouse, and how they show it."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dmsh_serving.console import print_table, write_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dmsh_serving.clickhouse.catalogue import Published


def removed_remotely(address: str, ids: "npt.NDArray[np.integer] | None", keys: list[str]) -> "Published":
    """Remove the codes of ``ids``, or of ``keys`` if there are no ids."""
    import numpy as np

    from dmsh_serving.clickhouse.address import Address
    from dmsh_serving.clickhouse.changes import remove, remove_keys

    place = Address.parse(address)
    return remove_keys(place, keys) if ids is None else remove(place, ids.astype(np.int64))


def serving_remotely(address: str) -> "Published":
    """Return the version that serves, every row of which was checked."""
    from dmsh_serving.clickhouse.address import Address
    from dmsh_serving.clickhouse.changes import checked

    return checked(Address.parse(address))


def report_remote(
    title: str, address: str, version: "Published", json: Path | None, *, sent: int | None = None
) -> None:
    """Show a version in ClickHouse, and write it as JSON."""
    columns = dict(version.columns)
    rows = [
        ["version", version.version],
        ["codes", f"{version.count:,}"],
        ["bits", str(version.bits)],
        ["keys", "yes" if version.has_keys else "no"],
        ["metadata columns", ", ".join(f"{name} {kind}" for name, kind in columns.items()) or "none"],
        ["codes, segment by segment", " + ".join(f"{segment.count:,}" for segment in version.segments)],
        ["removed, not yet swept", f"{version.removed_count:,}"],
        ["made from", version.source],
    ]
    print_table(f"{title}: {address}", ["", ""], rows)
    typer.echo(f"fingerprint {version.fingerprint}")
    result = {
        "address": address,
        "version": version.version,
        "count": version.count,
        "bits": version.bits,
        "keys": version.has_keys,
        "columns": columns,
        "segments": [segment.count for segment in version.segments],
        "removed": version.removed_count,
        "fingerprint": version.fingerprint,
    }
    write_json(json, result if sent is None else result | {"sent": sent})
