from xml.etree import ElementTree

import pytest

from raylm.observe.chart import Series, line_chart, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (3.2, 9.1, [2, 4, 6, 8, 10]),
        (5, 5, [5.0, 5.2, 5.4, 5.6, 5.8, 6.0]),
        (0.001, 0.004, [0.001, 0.002, 0.003, 0.004]),
    ],
)
def test_ticks_are_round_and_cover_the_range(
    low: float, high: float, expected: list[float]
) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_a_chart_is_well_formed_and_has_every_point() -> None:
    svg = line_chart(
        [Series("a & b", [(0, 1.0), (1, 2.0), (2, float("nan"))]), Series("none", [])],
        x_label="x",
        y_label="y",
    )
    root = ElementTree.fromstring(svg)
    (line,) = root.findall("polyline")
    assert len(line.attrib["points"].split()) == 2
    assert "a & b" in [text.text for text in root.findall("text")]


def test_nothing_to_draw_is_nothing() -> None:
    assert line_chart([Series("a", [])], x_label="x", y_label="y") == ""
