"""Rasterise a scene: primitives of :mod:`hacl.pocket.world` at twice the size, then one antialiased reduction."""

from __future__ import annotations

from PIL import Image, ImageDraw

from hacl.pocket.scenes import GRID, IMAGE_SIZE, Scene
from hacl.pocket.world import BACKGROUNDS, BY_NAME, COLOURS

DARK, WHITE = (40, 40, 48), (255, 255, 255)
_SCALE = 2


def draw_scene(scene: Scene) -> Image.Image:
    """RGB image of ``IMAGE_SIZE`` x ``IMAGE_SIZE`` pixels; the same scene always gives the same pixels."""
    side = IMAGE_SIZE * _SCALE
    canvas = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(canvas)
    cell = side / GRID
    for thing in scene.things:
        size = cell * thing.size
        left = thing.column * cell + (cell - size) / 2 + thing.shift_x * _SCALE
        top = thing.row * cell + (cell - size) / 2 + thing.shift_y * _SCALE
        fills = {"c": COLOURS[thing.colour], "k": DARK, "w": WHITE}
        for shape, fill, *numbers in BY_NAME[thing.kind].drawing:
            width = max(1, round(numbers.pop(0) * size)) if shape == "line" else 0
            points = [(left + x * size, top + y * size) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
            if shape == "poly":
                pen.polygon(points, fill=fills[fill])
            elif shape == "line":
                pen.line(points, fill=fills[fill], width=width, joint="curve")
            else:
                (pen.ellipse if shape == "oval" else pen.rectangle)(points, fill=fills[fill])
    return canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
