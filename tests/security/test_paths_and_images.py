"""Promises about hostile data: paths stay below the image root, and no image takes the machine's memory."""

import os
import struct
import zlib

import pytest
from PIL import Image

from hacl.data.images import load_image, resolve_image


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


def test_a_link_inside_the_root_is_followed(root):
    os.symlink(root / "in" / "x.jpg", root / "link.jpg")
    assert resolve_image(root, "link.jpg").name == "x.jpg"


def test_a_pipe_is_not_opened(root):
    os.mkfifo(root / "pipe.jpg")
    with pytest.raises(ValueError, match="not a file"):
        resolve_image(root, "pipe.jpg")


def test_a_missing_file_and_a_missing_root_are_told_apart(root):
    with pytest.raises(FileNotFoundError, match="is not in"):
        resolve_image(root, "none.jpg")
    with pytest.raises(FileNotFoundError, match="image root"):
        resolve_image(root / "none", "x.jpg")


def png_of_size(width, height):
    """A PNG whose header says so, with next to no data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


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
        (b"\x89PNG\r\n\x1a\n", "x.jpg"),
        (bytes(range(256)), "not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(tmp_path, content, what):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=what):
        load_image(tmp_path / "x.jpg")
