"""TIFFs by the letter of the format (TIFF 6.0, 1992), of kinds that Pillow reads and does not write."""

import struct


def tiff_of(width, height, planes, order=">", **more):
    """Return a TIFF in this byte order, of one strip per plane (bytes); ``more`` are tags: a number, or several."""
    tags = {"compression": 1, "photometric": 1, "samples": 1, "bits": 8, **more}
    offsets = more.get("offsets") or [8 + sum(map(len, planes[:place])) for place in range(len(planes))]
    fields = {
        256: width, 257: height, 258: tags["bits"], 259: tags["compression"], 262: tags["photometric"],
        266: tags.get("fill_order"), 273: offsets, 277: tags["samples"], 278: height, 279: list(map(len, planes)),
        284: tags.get("planar"), 320: tags.get("palette"), 338: tags.get("extra"),
        339: tags.get("sample_format"), 530: tags.get("subsampling"),
    }  # fmt: skip
    present = {number: value for number, value in fields.items() if value is not None}
    directory, behind = struct.pack(f"{order}H", len(present)), b""
    start = sum(map(len, planes)) + 8
    end = start + 2 + 12 * len(present) + 4
    for number, value in sorted(present.items()):
        values = value if isinstance(value, (list, tuple)) else [value]
        kind, letter = (4, "I") if number in (273, 279) else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            directory += struct.pack(f"{order}HHII", number, kind, len(values), end + len(behind))
            behind += packed + bytes(len(packed) % 2)
        else:
            directory += struct.pack(f"{order}HHI", number, kind, len(values)) + packed.ljust(4, b"\0")
    head = b"MM\0*" if order == ">" else b"II*\0"
    return head + struct.pack(f"{order}I", start) + b"".join(planes) + directory + bytes(4) + behind
