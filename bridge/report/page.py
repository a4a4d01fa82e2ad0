"""The picture of a summary: one page of 512 x 512 RGB, drawn with Pillow and its own font.

The image stands as it was given (no flip, no rotation), the outline of each
label in its colour. No name, no number and no date of the patient but the study
date is drawn.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["SIZE", "Colour", "Edges", "Page", "Row", "draw", "plain_number"]

SIZE = 512
Colour = tuple[int, int, int]
Edges = tuple[float, float, float, float]
_BACK: Colour = (13, 17, 23)
_PANEL: Colour = (22, 28, 37)
_INK: Colour = (236, 240, 245)
_SOFT: Colour = (150, 160, 174)
_AMBER: Colour = (255, 191, 71)
_RED: Colour = (255, 122, 107)
_MARGIN = 16
_PICTURE = (_MARGIN, 72, 304, 372)
_COLUMN = (318, SIZE - _MARGIN)
_SPELLED = {
    "–": "-", "—": "-", "−": "-", "×": "x", "≥": ">=", "≤": "<=", "ß": "ss", "ø": "o", "Ø": "O",
    "æ": "ae", "Æ": "AE", "ł": "l", "Ł": "L", "đ": "d", "μ": "u", "±": "+/-", "…": "...",
    "‘": "'", "’": "'", "“": '"', "”": '"',
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result column: what, the number as text with its unit, and a colour."""

    what: str
    value: str
    unit: str = ""
    color: Colour | None = None
    under: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """The words and pictures of one page.

    `image` is uint8 [row, column], `outlines` are masks of its shape with their
    colours, `heat` is uint8 of its shape, `boxes` are x0, y0, x1, y1 in pixel edges
    with their colours; `aspect` is row spacing divided by column spacing. `warning` is
    drawn in red, `failed` makes the page say so at the top.
    """

    title: str
    subtitle: str
    statement: str
    rows: tuple[Row, ...]
    footer: tuple[str, ...]
    label: str
    image: NDArray[np.uint8] | None = None
    outlines: tuple[tuple[NDArray[np.bool_], Colour], ...] = ()
    aspect: float = 1.0
    warning: str = ""
    failed: bool = False
    heat: NDArray[np.uint8] | None = None
    boxes: tuple[tuple[Edges, Colour], ...] = ()


def _ascii(text: str) -> str:
    """Spell `text` with the characters that the built-in font has."""
    spelled = "".join(_SPELLED.get(c, c) for c in text)
    split = unicodedata.normalize("NFKD", spelled)
    split = "".join(_SPELLED.get(c, c) for c in split if not unicodedata.combining(c))
    return split.encode("ascii", "replace").decode()


def plain_number(value: float) -> str:
    """Return a number as a person reads it: about four digits, thousands apart, no exponent."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"


class _Canvas:
    """A drawing with text that fits: it shrinks, wraps or is cut, and never runs out."""

    def __init__(self) -> None:
        self.picture = Image.new("RGB", (SIZE, SIZE), _BACK)
        self.pen = ImageDraw.Draw(self.picture)

    def width(self, text: str, size: int) -> float:
        return float(self.pen.textlength(text, font=ImageFont.load_default(size=size)))

    def line(
        self,
        at: tuple[float, float],
        text: str,
        size: int,
        color: Colour = _INK,
        *,
        room: float = SIZE,
        bold: bool = False,
        anchor: str = "la",
        smallest: int = 10,
    ) -> float:
        """Draw one line, smaller or cut where there is no room; return its width."""
        text = _ascii(text)
        while size > smallest and self.width(text, size) > room:
            size -= 1
        if self.width(text, size) > room:
            while text and self.width(text + "...", size) > room:
                text = text[:-1]
            text = text.rstrip() + "..."
        font = ImageFont.load_default(size=size)
        weight = 0.4 if bold else 0
        self.pen.text(at, text, fill=color, font=font, anchor=anchor, stroke_width=weight)
        return self.width(text, size)

    def heading(self, at: tuple[float, float], text: str, *, room: float) -> float:
        """Draw what a number is, over two smaller lines where one is not enough; return y below."""
        if self.width(_ascii(text), 12) <= room:
            self.line(at, text, 13, _SOFT, room=room)
            return at[1] + 15
        return self.paragraph(at, text, 11, _SOFT, room=room, lines=2)

    def paragraph(
        self,
        at: tuple[float, float],
        text: str,
        size: int,
        color: Colour = _INK,
        *,
        room: float,
        lines: int,
    ) -> float:
        """Draw words over at most `lines` lines; return the y below them."""
        words = _ascii(text).split()
        rows: list[str] = []
        for word in words:
            if rows and self.width(f"{rows[-1]} {word}", size) <= room:
                rows[-1] = f"{rows[-1]} {word}"
            else:
                rows.append(word)
        if len(rows) > lines:
            rows = [*rows[: lines - 1], " ".join(rows[lines - 1 :])]
        y = at[1]
        for row in rows:
            self.line((at[0], y), row, size, color, room=room, smallest=size)
            y += size * 1.32
        return y


def _edges(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of the mask within two pixels of its outside."""
    inner = mask.copy()
    for _ in range(2):
        padded = np.pad(inner, 1)
        inner = (
            padded[1:-1, 1:-1]
            & padded[:-2, 1:-1]
            & padded[2:, 1:-1]
            & padded[1:-1, :-2]
            & padded[1:-1, 2:]
        )
    return mask & ~inner


def _warmed(pixels: NDArray[np.uint8], heat: Image.Image) -> NDArray[np.uint8]:
    """Lay a heat map over a picture: the warmer, the less of the picture shows, never none."""
    share = np.asarray(heat, np.float32)[:, :, None] / 255
    warm = np.concatenate([np.full_like(share, 255), 220 * share, np.zeros_like(share)], axis=2)
    mixed = pixels * (1 - 0.6 * share) + warm * 0.6 * share
    return np.rint(mixed).astype(np.uint8)


def _place_image(canvas: _Canvas, page: Page) -> None:
    x0, y0, x1, y1 = _PICTURE
    canvas.pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=(0, 0, 0))
    if page.image is None:
        middle = ((x0 + x1) / 2, (y0 + y1) / 2)
        canvas.line(middle, "no picture", 14, _SOFT, anchor="mm")
        return
    height, width = page.image.shape[0] * page.aspect, float(page.image.shape[1])
    scale = min((x1 - x0) / width, (y1 - y0) / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = Image.fromarray(page.image).resize(size, Image.Resampling.BICUBIC)
    pixels = np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)
    if page.heat is not None:
        pixels = _warmed(pixels, Image.fromarray(page.heat).resize(size, Image.Resampling.BILINEAR))
    for mask, color in page.outlines:
        small = Image.fromarray(mask.astype(np.uint8) * 255)
        wide = np.asarray(small.resize(size, Image.Resampling.BILINEAR)) > 127
        pixels[_edges(wide)] = color
    at = (x0 + (x1 - x0 - size[0]) // 2, y0 + (y1 - y0 - size[1]) // 2)
    canvas.picture.paste(Image.fromarray(pixels), at)
    across, down = size[0] / page.image.shape[1], size[1] / page.image.shape[0]
    for (left, top, right, bottom), color in page.boxes:
        corners = (left * across, top * down, right * across - 1, bottom * down - 1)
        x0, y0, x1, y1 = (round(v) for v in corners)
        box = (at[0] + x0, at[1] + y0, at[0] + max(x1, x0), at[1] + max(y1, y0))
        canvas.pen.rectangle(box, outline=color, width=2)


def _big_rows(canvas: _Canvas, rows: tuple[Row, ...], top: float) -> None:
    left, right = _COLUMN
    room = right - left
    step = 300 / max(4, len(rows))
    for row in rows:
        mark = 0
        if row.color is not None:
            canvas.pen.rectangle((left, top + 3, left + 9, top + 12), fill=row.color)
            mark = 15
        below = canvas.heading((left + mark, top), row.what, room=room - mark)
        size = 36 if len(rows) <= 4 else 26
        size = min(size, int(top + step - below - 14))
        unit_room = canvas.width(_ascii(row.unit), 15) + 6 if row.unit else 0
        used = canvas.line(
            (left, below), row.value, size, room=room - unit_room, bold=True, smallest=14
        )
        if row.unit:
            baseline = below + size * 0.94
            canvas.line((left + used + 6, baseline), row.unit, 15, _SOFT, anchor="ls")
        if row.under:
            canvas.line((left, below + 3 + size), row.under, 11, _SOFT, room=room)
        top += step


def _small_rows(canvas: _Canvas, rows: tuple[Row, ...], top: float) -> None:
    left, right = _COLUMN
    shown = rows if len(rows) <= 18 else rows[:17]
    step = min(22.0, 300 / max(len(shown) + (len(shown) < len(rows)), 1))
    for row in shown:
        if row.color is not None:
            canvas.pen.rectangle((left, top + 3, left + 7, top + 10), fill=row.color)
        value = f"{row.value} {row.unit}".strip()
        used = canvas.line((right, top), value, 12, anchor="ra", room=110)
        canvas.line((left + 12, top), row.what, 12, _SOFT, room=right - left - used - 20)
        top += step
    if len(shown) < len(rows):
        canvas.line((left, top), f"and {len(rows) - len(shown)} more in the report", 11, _SOFT)


def draw(page: Page) -> NDArray[np.uint8]:
    """Return the page as uint8 [512, 512, 3]."""
    canvas = _Canvas()
    wide = SIZE - 2 * _MARGIN
    badge = canvas.width(_ascii(page.label), 13) + 18
    canvas.pen.rounded_rectangle(
        (SIZE - _MARGIN - badge, 15, SIZE - _MARGIN, 37), 5, outline=_AMBER, width=1
    )
    canvas.line((SIZE - _MARGIN - badge / 2, 26), page.label, 13, _AMBER, anchor="mm")
    canvas.line((_MARGIN, 14), page.title, 21, room=wide - badge - 12, bold=True, smallest=13)
    canvas.line((_MARGIN, 44), page.subtitle, 13, _SOFT, room=wide)
    if page.failed:
        canvas.line((_MARGIN, 96), "No AI result", 40, _RED, bold=True)
        canvas.paragraph((_MARGIN, 156), page.statement, 20, room=wide, lines=6)
    else:
        _place_image(canvas, page)
        (_big_rows if len(page.rows) <= 5 else _small_rows)(canvas, page.rows, _PICTURE[1])
        canvas.paragraph((_MARGIN, 384), page.statement, 17, room=wide, lines=2)
    if page.warning:
        canvas.paragraph((_MARGIN, 434), page.warning, 12, _RED, room=wide, lines=2)
    canvas.pen.rectangle((0, 468, SIZE, SIZE), fill=_PANEL)
    for k, text in enumerate(page.footer[:2]):
        canvas.line((_MARGIN, 474 + 17 * k), text, 12, _INK if k == 0 else _SOFT, room=wide)
    return np.asarray(canvas.picture, np.uint8)
