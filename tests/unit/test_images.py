"""Promises of image loading: always upright RGB, whatever the file."""

import numpy as np
import pytest
from PIL import Image

from hacl.data.images import load_image
from tests.photographs import coco_mini  # noqa: F401 (a fixture)


def two_halves(width=40, height=20):
    """Left half red, right half blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = (255, 0, 0)
    pixels[:, width // 2 :] = (0, 0, 255)
    return Image.fromarray(pixels)


def close(pixel, wanted):
    return all(abs(a - b) < 40 for a, b in zip(pixel, wanted, strict=True))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA", "YCbCr"])
def test_every_mode_becomes_rgb_of_the_same_size(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    two_halves().convert("L" if mode == "LA" else "RGB").convert(mode).save(path)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 20))


def test_cmyk_and_palette_keep_their_colours(tmp_path):
    two_halves().convert("CMYK").save(tmp_path / "x.jpg")
    two_halves().convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "x.png")
    for name in ("x.jpg", "x.png"):
        image = load_image(tmp_path / name)
        assert close(image.getpixel((4, 10)), (255, 0, 0)), name
        assert close(image.getpixel((36, 10)), (0, 0, 255)), name


def test_transparency_is_laid_over_white(tmp_path):
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "rgba.png")
    Image.new("P", (8, 8)).save(tmp_path / "palette.png", transparency=0)
    for name in ("rgba.png", "palette.png"):
        assert load_image(tmp_path / name).getpixel((0, 0)) == (255, 255, 255), name


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png").getpixel((0, 0)) == (128, 128, 128)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert close(load_image(tmp_path / "x.gif").getpixel((0, 0)), (255, 0, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_camera_says(tmp_path, orientation):
    """Each stored form is made by undoing the turn; loading must bring back red on the left."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = two_halves() if orientation == 1 else two_halves().transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.jpg", exif=exif, quality=95)
    image = load_image(tmp_path / "x.jpg")
    assert image.size == (40, 20)
    assert close(image.getpixel((4, 10)), (255, 0, 0))


def test_a_senseless_orientation_means_no_turn(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 99
    two_halves().save(tmp_path / "x.jpg", exif=exif)
    assert load_image(tmp_path / "x.jpg").size == (40, 20)


def test_a_photograph_of_the_mini_collection_decodes(coco_mini):  # noqa: F811
    path = next((coco_mini / "images").glob("*.jpg"))
    assert load_image(path).mode == "RGB"
