"""Promises about hostile data: paths stay below the image root, and no image takes the machine's memory."""

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from PIL import Image

from hacl.data.images import (
    MAX_BYTES,
    DamagedImage,
    RefusedImage,
    check_header,
    decode_image,
    load_image,
    resolve_image,
)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    (folder / "in").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "in" / "x.jpg")
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.jpg")
    return folder


@pytest.mark.parametrize("path", ["in/x.jpg", "./in/x.jpg", "in//x.jpg"])
def test_a_path_below_the_root_is_found(root, path):
    assert resolve_image(root, path) == (root / "in" / "x.jpg").resolve()


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../outside.jpg",
        "in/../../outside.jpg",
        "in/..",
        "~/x.jpg",
        "C:/x.jpg",
        "c:\\x.jpg",
        "\\\\server\\share\\x.jpg",
        "//server/share/x.jpg",
        "in\\..\\..\\outside.jpg",
        "http://example.org/x.jpg",
        "HTTPS://example.org/x.jpg",
        "file:///etc/passwd",
        "s3://bucket/x.jpg",
        "data:image/png;base64,AAAA",
        "in/x.jpg\0.png",
        "\\\\?\\C:\\x.jpg",
        "ftp://x@example.org/x.jpg",
        "D:x.jpg",
        "in/" + "x" * 300 + ".jpg",
        "in/" * 2000 + "x.jpg",
        "in/\ud800.jpg",
        "",
        "in",
        ".",
    ],
)
def test_a_path_that_is_no_file_below_the_root_is_refused_by_name(root, path):
    with pytest.raises(ValueError, match="image path"):
        resolve_image(root, path)


def test_a_link_that_leaves_the_root_is_refused(root):
    os.symlink(root.parent / "outside.jpg", root / "link.jpg")
    os.symlink(root.parent, root / "folder")
    for path in ("link.jpg", "folder/outside.jpg"):
        with pytest.raises(ValueError, match="leaves the image root"):
            resolve_image(root, path)


@pytest.mark.parametrize(
    "path", ["%2e%2e/outside.jpg", "..%2foutside.jpg", "%2fetc%2fpasswd", "in%00.jpg", "in/x.jpg "]
)
def test_a_path_is_never_decoded(root, path):
    with pytest.raises(FileNotFoundError, match="is not in"):
        resolve_image(root, path)
    odd = root / path
    odd.parent.mkdir(exist_ok=True)
    odd.write_bytes(b"")
    assert resolve_image(root, path) == odd.resolve(), "a file may be called so"


def test_links_in_a_circle_are_refused(root):
    os.symlink("b.jpg", root / "a.jpg")
    os.symlink("a.jpg", root / "b.jpg")
    os.symlink("self", root / "self")
    for path in ("a.jpg", "self/x.jpg", "self"):
        with pytest.raises((RefusedImage, FileNotFoundError), match="image"):
            resolve_image(root, path)


def test_a_link_whose_target_is_missing_is_missing(root):
    os.symlink("nothing.jpg", root / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"a\.jpg"):
        resolve_image(root, "a.jpg")


def test_a_root_that_is_a_link_is_a_root(root):
    os.symlink(root, root.parent / "alias")
    assert resolve_image(root.parent / "alias", "in/x.jpg") == (root / "in" / "x.jpg").resolve()


def test_a_link_inside_the_root_is_followed(root):
    os.symlink(root / "in" / "x.jpg", root / "link.jpg")
    assert resolve_image(root, "link.jpg").name == "x.jpg"


def test_a_pipe_is_not_opened(root):
    os.mkfifo(root / "pipe.jpg")
    with pytest.raises(ValueError, match="not a file"):
        resolve_image(root, "pipe.jpg")


@pytest.mark.parametrize("read", [load_image, check_header])
def test_pipes_devices_and_folders_are_refused_at_once_also_without_a_root(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero"), tmp_path):
        with pytest.raises((RefusedImage, IsADirectoryError)):
            read(path)


def test_a_file_is_not_read_if_it_is_too_large(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.write(png_of_size(4, 4))
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(RefusedImage, match=r"x\.png: 536,870,913 bytes"):
        load_image(tmp_path / "x.png")


def test_a_missing_file_and_a_missing_root_are_told_apart(root):
    with pytest.raises(FileNotFoundError, match="is not in"):
        resolve_image(root, "none.jpg")
    with pytest.raises(FileNotFoundError, match="image root"):
        resolve_image(root / "none", "x.jpg")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width, height, *more):
    """A PNG whose header says so, with chunks of its own and next to no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(b"\0" * 64)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(8001, 8000), (12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_from_its_header(tmp_path, size, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(*size))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(ValueError, match=r"bomb\.png"):
        load_image(path)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_strip_that_resizing_would_blow_up_is_refused(tmp_path, size):
    Image.new("L", size).save(tmp_path / "strip.png")
    with pytest.raises(ValueError, match="narrower"):
        load_image(tmp_path / "strip.png")


def test_an_ordinary_panorama_is_not_a_strip(tmp_path):
    Image.new("L", (2000, 100)).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png").size == (2000, 100)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp"])
def test_a_truncated_file_is_refused_by_name(tmp_path, suffix):
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    Image.effect_noise((64, 64), 90).convert("RGB").save(whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cut"):
        load_image(cut)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "web page or XML"),
        (b"", "empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\xc5\xd0\xd3\xc6" + b"\0" * 100, "not an image"),
        (b"%PDF-1.7\n1 0 obj\n", "not an image"),
        (b"8BPS\0\1" + b"\0" * 100, "not an image"),
        (b"\0\0\1\0\1\0" + b"\0" * 100, "not an image"),
        (b"<?xml version='1.0'?><svg/>", "web page or XML"),
        (b"  \n<HTML><script>", "web page"),
        (b"GIF89a", "x.jpg"),
        (b"PK\3\4" + b"\0" * 100, "not an image"),
        (b"\x89PNG\r\n\x1a\n", "x.jpg"),
        (bytes(range(256)), "not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(tmp_path, content, what):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=what):
        load_image(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    "bomb",
    [
        chunk(b"iCCP", b"name\0\0" + zlib.compress(b"\0" * 200_000_000)),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 200_000_000)),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"\0" * 200_000_000)),
        b"".join(chunk(b"zTXt", b"C%d\0\0" % n + zlib.compress(b"\0" * 900_000)) for n in range(200)),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\1\2\0\2\xff\xff\xff\xff\0\0\0\0" * 20_000),
        chunk(b"IDAT", zlib.compress(b"\0" * 200_000_000)),
    ],
    ids=["profile", "text", "international text", "many texts", "EXIF", "pixels"],
)
def test_what_an_image_brings_along_takes_bounded_memory(bomb):
    data = png_of_size(4, 4, bomb)
    assert len(data) < 1_000_000
    tracemalloc.start()
    try:
        try:
            assert decode_image(data, "x.png").size == (4, 4)
        except ValueError as error:
            assert str(error).startswith("x.png: ")
        assert tracemalloc.get_traced_memory()[1] < 80 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_of_many_frames_or_pages_only_the_first_is_decoded(tmp_path, kind, monkeypatch):
    frames = [Image.new("RGB", (8, 8), (shade, shade, shade)) for shade in range(0, 250)]
    frames[0].save(tmp_path / "x", kind, save_all=True, append_images=frames[1:])
    seeks = []
    for plugin in ("GifImagePlugin.GifImageFile", "WebPImagePlugin.WebPImageFile", "TiffImagePlugin.TiffImageFile"):
        monkeypatch.setattr(f"PIL.{plugin}.seek", lambda self, frame: seeks.append(frame))
    assert load_image(tmp_path / "x").getpixel((4, 4)) == (0, 0, 0) and not seeks


def test_a_canvas_larger_than_the_limit_is_refused_for_every_format_that_can_claim_one():
    claims = {
        "GIF": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
        "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "PPM": b"P6 60000 60000 255\n",
        "JPEG": b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", 65_500, 65_500) + b"\3\1\x22\0\2\x11\1\3\x11\1",
    }
    for name, data in claims.items():
        with pytest.raises(RefusedImage, match=f"{name}: .*limit"):
            decode_image(data, name)


def test_the_content_decides_and_not_the_name(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "x.jpg", "PNG")
    assert load_image(tmp_path / "x.jpg").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["LAB", "F", "I", "CMYK", "YCbCr"])
def test_an_unusual_mode_becomes_rgb_or_is_refused_by_name(mode):
    written = io.BytesIO()
    image = Image.effect_noise((8, 8), 50)
    (image.convert("RGB") if mode == "YCbCr" else image).convert(mode).save(written, "TIFF")
    try:
        assert decode_image(written.getvalue(), "x.tif").mode == "RGB"
    except DamagedImage as error:
        assert str(error).startswith("x.tif: ")


def test_an_error_of_the_machine_is_no_damage(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")

    def fails(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fails)
    with pytest.raises(OSError, match=r"x\.png: Input/output error"):
        load_image(tmp_path / "x.png")
