"""docs/performance.svg: the main row as bars, and every figure that Envoy has, as how many times better or worse ours is."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from bench.results import Result

MAIN, REFERENCE = "proxied_get_jwt", "envoy"

_WIDTH, _LEFT, _RIGHT, _ROW, _GAP = 760, 240, 110, 22, 46
_BAR = _WIDTH - _LEFT - _RIGHT
_OURS, _THEIRS, _WORSE, _INK = "#1f6f8b", "#b8c4cc", "#c06c3e", "#222222"


def svg(results: Sequence[Result]) -> str:
    """Draw the results there are."""
    main = [result for result in results if result.name == MAIN]
    rates = [(result.peer, result.peer_median, _THEIRS) for result in main]
    if main:
        rates.append((main[0].subject, main[0].subject_median, _OURS))
    rates.sort(key=lambda one: -one[1])
    beside = [result for result in results if result.peer == REFERENCE]
    first, height = _rates(rates, 0)
    second, height = _ratios(beside, height + _GAP)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13">',
            f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
            *first,
            *second,
            "</svg>\n",
        ]
    )


def _rates(rates: Sequence[tuple[str, float, str]], top: int) -> tuple[list[str], int]:
    drawn = [_title(top, "GET of 140 bytes with a token through a proxy on one core: requests/s")]
    most = max((rate for _, rate, _ in rates), default=1.0)
    y = top + _GAP
    for name, rate, colour in rates:
        length = rate / most * _BAR
        drawn += [_label(y, name), _bar(_LEFT, y, length, colour), _value(_LEFT + length, y, f"{rate:,.0f}")]
        y += _ROW
    return drawn, y


def _ratios(results: Sequence[Result], top: int) -> tuple[list[str], int]:
    drawn = [
        _title(
            top, "Beside Envoy: how many times better (right) or worse (left) ours is, on a logarithmic scale"
        )
    ]
    gains = [
        (result.name, math.log2(result.ratio if result.better == "higher" else 1 / result.ratio))
        for result in results
    ]
    widest = max((abs(gain) for _, gain in gains), default=0.0) or 1.0
    middle, y = _LEFT + _BAR / 2, top + _GAP
    for name, gain in gains:
        length = abs(gain) / widest * _BAR / 2
        left = middle if gain >= 0 else middle - length
        drawn += [_label(y, name), _bar(left, y, length, _OURS if gain >= 0 else _WORSE)]
        drawn.append(_value(_LEFT + _BAR, y, f"{2**gain:.2f}"))
        y += _ROW
    drawn.append(
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{top + _GAP - 6}" y2="{y}" stroke="{_INK}" stroke-width="1"/>'
    )
    return drawn, y + 10


def _title(top: int, text: str) -> str:
    return f'<text x="10" y="{top + 26}" font-weight="bold" fill="{_INK}">{escape(text)}</text>'


def _label(y: int, text: str) -> str:
    return f'<text x="{_LEFT - 10}" y="{y + 12}" text-anchor="end" fill="{_INK}">{escape(text)}</text>'


def _bar(x: float, y: int, length: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{max(length, 1):.1f}" height="{_ROW - 7}" fill="{colour}"/>'


def _value(x: float, y: int, text: str) -> str:
    return f'<text x="{x + 8:.1f}" y="{y + 12}" fill="{_INK}">{text.replace(",", "&#8201;")}</text>'
