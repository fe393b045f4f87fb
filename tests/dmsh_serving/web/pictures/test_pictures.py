"""Images to look at: found by key alone, made small, free of metadata, kept within a bound."""

import errno
import io
import os
import resource
import zlib

import numpy as np
import pytest
from named_pipe import pipe_at
from PIL import Image, ImageFile

from dmsh_serving.errors import InputError
from dmsh_serving.images.decode import rgb_from_bytes
from dmsh_serving.images.isolated import Decoders
from dmsh_serving.web.pictures import originals as originals_module
from dmsh_serving.web.pictures import region
from dmsh_serving.web.pictures import thumbnails as thumbnails_module
from dmsh_serving.web.pictures.originals import Originals
from dmsh_serving.web.pictures.region import cut_out
from dmsh_serving.web.pictures.thumbnails import THUMBNAIL_BOX, Thumbnails, rendered

SECRET = b"49 degrees north"


def jpeg(width=800, height=400, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = SECRET.decode()
    file = io.BytesIO()
    pixels = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", exif=exif, comment=SECRET, icc_profile=b"profile " + SECRET)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    (images / "a").mkdir(parents=True)
    (images / "a" / "wide.jpg").write_bytes(jpeg())
    (images / "a" / "turned.jpg").write_bytes(jpeg(orientation=6))
    (images / "broken.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "secret.png").write_bytes(jpeg())
    return images


def test_a_key_is_looked_up_and_never_joined(folder):
    originals = Originals(folder)
    assert len(originals) == 3
    assert originals.path("a/wide.jpg") == folder / "a" / "wide.jpg"
    for key in (
        "../secret.png",
        str(folder.parent / "secret.png"),
        "a/../a/wide.jpg",
        "./a/wide.jpg",
        "a",
        "",
        ".",
        "..",
    ):
        assert originals.path(key) is None
        with pytest.raises(InputError, match="no image has the key"):
            originals.read(key)


def test_sizes_are_upright_and_what_is_no_image_has_none(folder):
    originals = Originals(folder)
    keys = ["a/wide.jpg", "a/turned.jpg", "broken.png", "nothing"]
    assert not originals.are_sized(keys)
    assert [originals.size(key) for key in keys] == [(800, 400), (400, 800), None, None]
    assert originals.are_sized(keys)
    assert originals.known_size("a/wide.jpg") == (800, 400)


def chunk(kind, data):
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def png(width, height, pixels, *after):
    """A PNG, grey; ``pixels`` are compressed, ``after`` are chunks behind them."""
    header = chunk(b"IHDR", width.to_bytes(4) + height.to_bytes(4) + bytes([8, 0, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join([chunk(b"IDAT", pixels), *after, chunk(b"IEND", b"")])


def test_a_size_is_read_from_a_png_s_header_and_its_exif_wherever_that_is_without_decoding_a_pixel(folder, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = png(3, 2, zlib.compress(bytes(2 * 4)), chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    assert rgb_from_bytes(turned).size == (2, 3)
    (folder / "turned.png").write_bytes(turned)
    Image.new("L", (3, 2)).save(folder / "early.png", exif=exif)
    Image.new("L", (3, 2)).save(folder / "turned.tiff", tiffinfo={0x0112: 6})
    assert rgb_from_bytes((folder / "turned.tiff").read_bytes()).size == (2, 3)
    (folder / "plain.png").write_bytes(png(3, 2, zlib.compress(bytes(2 * 4))))
    described = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<rdf tiff:Orientation="6"/>'
    (folder / "xmp.png").write_bytes(png(3, 2, zlib.compress(bytes(2 * 4)), chunk(b"iTXt", described)))
    assert rgb_from_bytes((folder / "xmp.png").read_bytes()).size == (2, 3)
    comment = b"\xff\xfe\xff\xff" + bytes(65_533)
    (folder / "a" / "long.jpg").write_bytes(jpeg(orientation=6).replace(b"\xff\xdb", comment * 20 + b"\xff\xdb", 1))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    originals = Originals(folder)
    keys = ("turned.png", "early.png", "xmp.png", "plain.png", "turned.tiff", "a/turned.jpg", "a/long.jpg")
    sizes = [originals.size(key) for key in keys]
    assert sizes == [(2, 3), (2, 3), (2, 3), (3, 2), (2, 3), (400, 800), (400, 800)]


def test_a_decompression_bomb_has_no_size_and_is_refused_in_one_line(folder, tmp_path):
    (folder / "bomb.png").write_bytes(png(9000, 9000, zlib.compress(bytes(9001 * 9000), 1)))  # 81 MB in 0.4 MB
    (folder / "flood.png").write_bytes(png(1, 1, zlib.compress(bytes(2)), chunk(b"tEXt", b"") * 70_000))
    (folder / "flood.jpg").write_bytes(jpeg().replace(b"\xff\xdb", b"\xff\xfe\0\2" * 5000 + b"\xff\xdb", 1))
    (folder / "stray.jpg").write_bytes(jpeg().replace(b"\xff\xdb", bytes(70_000) + b"\xff\xdb", 1))
    originals = Originals(folder)
    thumbnails = Thumbnails(originals, tmp_path / "cache", 1 << 20)
    for key, said in (
        ("bomb.png", "9000 x 9000 pixels is too large"),
        ("flood.png", "more than 65536 blocks"),
        ("flood.jpg", "more than 4096 marker segments"),
        ("stray.jpg", "more than 65536 stray bytes before the JPEG's image"),
    ):
        assert originals.size(key) is None
        with pytest.raises(InputError, match=rf"^{key}: .*{said}.*$"):
            thumbnails.made(key, thumbnails.tag(key))


def test_new_files_are_seen_after_a_refresh_and_a_folder_that_breaks_changes_nothing(folder, monkeypatch):
    monkeypatch.setattr(originals_module, "_FRESH_SECONDS", 0)
    originals = Originals(folder)
    (folder / "new.jpg").write_bytes(jpeg())
    assert "new.jpg" not in originals
    assert originals.refresh()
    assert "new.jpg" in originals
    (folder / "link").symlink_to(folder.parent)
    assert not originals.refresh()
    assert len(originals) == 4
    assert not originals.is_old
    monkeypatch.setattr(originals_module, "_OLD_SECONDS", 0)
    monkeypatch.setattr(originals, "_took", 0)
    assert originals.is_old
    monkeypatch.setattr(originals, "_took", 60)
    assert not originals.is_old
    monkeypatch.setattr(originals_module, "_FRESH_SECONDS", 60)
    monkeypatch.setattr(originals, "_indexed", lambda: pytest.fail("read again"))
    assert not originals.refresh()


def test_a_file_that_is_gone_is_an_error(folder):
    originals = Originals(folder)
    (folder / "a" / "wide.jpg").unlink()
    with pytest.raises(InputError, match=r"a/wide\.jpg: No such file"):
        originals.read("a/wide.jpg")


def test_a_pipe_or_a_device_among_the_images_has_no_size_and_is_refused_in_one_line(folder):
    (folder / "endless.png").symlink_to("/dev/zero")
    with pipe_at(folder / "pipe.png"):
        originals = Originals(folder)
        for key in ("endless.png", "pipe.png"):
            assert originals.size(key) is None
            with pytest.raises(InputError, match=f"^{key}: not a regular file$"):
                originals.read(key)


def test_what_is_shown_fits_its_box_is_upright_and_tells_nothing_but_pixels():
    assert SECRET in jpeg()
    for orientation, size in ((1, (560, 280)), (6, (160, 320))):
        data = rendered(jpeg(orientation=orientation), THUMBNAIL_BOX, "x")
        assert SECRET not in data
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size) == ("WEBP", size)
            assert not image.getexif()
            assert "icc_profile" not in image.info
    small = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    file = io.BytesIO()
    Image.fromarray(small).save(file, "PNG")
    with Image.open(io.BytesIO(rendered(file.getvalue(), THUMBNAIL_BOX, "x"))) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), small)  # small ones lose nothing


def test_a_link_or_a_pipe_among_the_thumbnails_is_not_read(folder, tmp_path):
    thumbnails = Thumbnails(Originals(folder), tmp_path / "cache", 1 << 20)
    (tmp_path / "cache" / "a.webp").symlink_to(folder / "a" / "wide.jpg")
    assert thumbnails.kept("a") is None
    with pipe_at(tmp_path / "cache" / "b.webp"):
        assert thumbnails.kept("b") is None


def test_a_thumbnail_is_made_once_and_again_when_its_file_changes(folder, tmp_path):
    thumbnails = Thumbnails(Originals(folder), tmp_path / "cache", 1 << 20)
    tag = thumbnails.tag("a/wide.jpg")
    assert thumbnails.kept(tag) is None
    first = thumbnails.made("a/wide.jpg", tag)
    assert thumbnails.kept(tag) == first
    before = (folder / "a" / "wide.jpg").stat()
    (folder / "a" / "wide.jpg").write_bytes(jpeg(orientation=3))
    os.utime(folder / "a" / "wide.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))  # as archives give all their files
    assert (folder / "a" / "wide.jpg").stat().st_size == before.st_size
    changed = thumbnails.tag("a/wide.jpg")
    assert changed != tag
    assert thumbnails.kept(changed) is None
    assert thumbnails.made("a/wide.jpg", changed) != first
    assert thumbnails.tag("nothing") is None
    with pytest.raises(InputError, match=r"broken\.png: "):
        thumbnails.made("broken.png", thumbnails.tag("broken.png"))


def test_the_cache_stays_within_its_bound_and_keeps_what_was_looked_at_last(folder, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    cache, most = tmp_path / "cache", 160_000
    thumbnails = Thumbnails(Originals(folder), cache, most)
    photo = tmp_path / "photo.webp"
    photo.write_bytes(bytes(most + 1))
    photo.replace(cache / "photo.webp")  # of somebody else
    first = thumbnails.tag("0.png")
    thumbnails.made("0.png", first)
    for number in range(1, 40):
        tag = thumbnails.tag(f"{number}.png")
        thumbnails.made(f"{number}.png", tag)
        os.utime(cache / f"{tag}.webp", ns=(number, number))
        assert thumbnails.kept(first) is not None  # and with that it is the newest
        assert sum(file.stat().st_size for file in cache.iterdir() if file.stem != "photo") <= most
    assert thumbnails.kept(thumbnails.tag("1.png")) is None
    assert thumbnails.kept(thumbnails.tag("39.png")) is not None
    (cache / "photo.webp").unlink()  # which was left alone
    assert Thumbnails(Originals(folder), cache, most)._bytes == sum(file.stat().st_size for file in cache.iterdir())
    assert oct(cache.stat().st_mode & 0o777) == "0o700"


def test_a_thumbnail_that_a_full_disk_cannot_take_is_made_all_the_same_and_leaves_nothing(folder, tmp_path, caplog):
    cache = tmp_path / "cache"
    thumbnails = Thumbnails(Originals(folder), cache, 1 << 20)
    tag = thumbnails.tag("a/wide.jpg")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # a write that ends in the middle of a file
    try:
        made = [thumbnails.made("a/wide.jpg", tag) for _ in range(3)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert all(data == rendered(jpeg(), THUMBNAIL_BOX, "x") for data in made)
    assert list(cache.iterdir()) == []
    (told,) = caplog.messages  # once
    assert told == f"thumbnails are not kept in {cache}: File too large"
    assert thumbnails.made("a/wide.jpg", tag) == thumbnails.kept(tag) == made[0]
    cache.rename(tmp_path / "gone")
    assert thumbnails.made("a/wide.jpg", tag) == made[0]


def test_a_thumbnail_is_given_if_its_time_cannot_be_set_and_an_empty_one_is_made_again(folder, tmp_path, monkeypatch):
    thumbnails = Thumbnails(Originals(folder), tmp_path / "cache", 1 << 20)
    tag = thumbnails.tag("a/wide.jpg")
    made = thumbnails.made("a/wide.jpg", tag)

    def read_only(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", read_only)
    assert thumbnails.kept(tag) == made
    (tmp_path / "cache" / f"{tag}.webp").write_bytes(b"")
    assert thumbnails.kept(tag) is None


def test_a_region_is_cut_from_the_upright_image_to_whole_pixels():
    pixels = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")

    decoders = Decoders(1)

    def cut(*box):
        with Image.open(io.BytesIO(cut_out(file.getvalue(), box, decoders))) as image:
            return np.asarray(image)

    np.testing.assert_array_equal(cut(0, 0, 1, 1), pixels)
    np.testing.assert_array_equal(cut(0.25, 0.5, 0.5, 0.5), pixels[5:, 5:15])
    np.testing.assert_array_equal(cut(0.999, 0.999, 0.001, 0.001), pixels[9:, 19:])
    with pytest.raises(InputError, match="not an image"):
        cut_out(b"nothing", (0, 0, 1, 1), decoders)
    decoders.close()


def test_a_region_that_is_larger_than_any_file_that_is_decoded_is_refused_with_what_to_do(monkeypatch):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(file, "PNG")
    decoders = Decoders(1)
    monkeypatch.setattr(region, "MAX_FILE_BYTES", 2000)
    with pytest.raises(InputError, match=r"^the region has .* at most 2,000 are taken: draw a smaller one$"):
        cut_out(file.getvalue(), (0, 0, 1, 1), decoders)
    assert len(cut_out(file.getvalue(), (0, 0, 0.5, 0.5), decoders)) <= 2000
    decoders.close()


def test_what_is_held_in_memory_is_bounded_and_grows_old(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails_module, "_MOST_HELD_BYTES", 100)
    thumbnails = Thumbnails(Originals(folder), tmp_path / "cache", 1 << 20)
    for key in ("a", "b", "a", "c"):
        thumbnails.hold(key, f"tag {key}", key.encode() * 40)
    assert thumbnails.at_hand("b") is None  # the one that was held for the longest time
    assert thumbnails.at_hand("a") == ("tag a", b"a" * 40)
    monkeypatch.setattr(originals_module, "_FRESH_SECONDS", -1)
    thumbnails._originals.refresh()  # its file may have been edited
    assert thumbnails.at_hand("a") is None
    thumbnails.hold("a", "tag", b"a")
    assert thumbnails.at_hand("a") == ("tag", b"a")
    monkeypatch.setattr(thumbnails_module, "SHOWN_SECONDS", 0)
    assert thumbnails.at_hand("a") is None
