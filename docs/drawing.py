"""Shapes and colours of the pictures in docs/, as lines of SVG."""

from __future__ import annotations

from html import escape

INK, PALE, SHARED, LORA, LEAVE = "#222222", "#e8e8e8", "#c9ddf2", ("#f2b8a0", "#b9dfb4"), "#2f7d32"
WHITE, FAINT, GATE = "#ffffff", "#717171", "#f6e3a1"


def box(x: float, y: float, width: float, height: float, fill: str, text: str = "", dashed: bool = False) -> str:
    stroke = f'stroke="{FAINT}" stroke-dasharray="4 3"' if dashed else f'stroke="{INK}"'
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{fill}" {stroke}/>'
    return shape + (label(x + width / 2, y + height / 2 + 4, text) if text else "")


def label(x: float, y: float, text: str, size: int = 12, anchor: str = "middle", fill: str = INK) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{fill}">{escape(text, False)}</text>'


def arrow(path: str, colour: str = INK) -> str:
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6" marker-end="url(#head)"/>'


def dashes(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{FAINT}" stroke-dasharray="4 3"/>'


def circle(x: float, y: float, radius: float, text: str) -> str:
    shape = f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{WHITE}" stroke="{INK}"/>'
    return shape + label(x, y + 5, text, 16)


def document(width: int, height: int, parts: list[str]) -> str:
    """A whole picture on white ground."""
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>'
    )
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    ground = f'<rect width="{width}" height="{height}" fill="{WHITE}"/>'
    return "\n".join([start, head, ground, *parts, "</svg>"]) + "\n"
