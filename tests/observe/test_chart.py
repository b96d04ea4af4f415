from xml.etree import ElementTree

import pytest

from raylm.observe.chart import Mark, Series, line_chart, thinned, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (3.2, 9.1, [2, 4, 6, 8, 10]),
        (5, 5, [5, 6, 7, 8, 9, 10]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
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
    # One line is named by its axis; two have a key.
    assert "a & b" not in [text.text for text in root.findall("text")]
    svg = line_chart(
        [Series("a & b", [(0, 1.0)]), Series("c", [(0, 1.0), (4, 2)], style="second")],
        x_label="x",
        y_label="y",
    )
    root = ElementTree.fromstring(svg)
    assert {"a & b", "c"} <= {text.text for text in root.findall("text")}
    # A line of one point is a dot.
    assert [dot.attrib["class"] for dot in root.findall("circle")] == ["dot first"]


def test_marks_lie_at_their_x_and_tell_what_happened() -> None:
    svg = line_chart(
        [Series("a", [(0, 1.0), (10, 2.0)])],
        x_label="x",
        y_label="y",
        marks=[
            Mark("restart", 5, "restarted <here>", "restart"),
            Mark("skipped window", 99, "outside", "skip"),
        ],
    )
    root = ElementTree.fromstring(svg)
    (mark,) = [line for line in root.findall("line") if "mark" in line.attrib["class"]]
    assert mark.attrib["class"] == "mark restart"
    assert float(mark.attrib["x1"]) == pytest.approx((66 + 696) / 2)
    (title,) = mark
    assert title.text == "restarted <here>"


def test_a_long_line_is_thinned_and_keeps_its_spikes() -> None:
    points = [(float(x), 1.0) for x in range(100_000)]
    points[70_001] = (70_001.0, 50.0)
    points[20_002] = (20_002.0, -3.0)
    found = thinned(points, most=600)
    assert len(found) <= 600
    assert found == sorted(found)
    assert {(70_001.0, 50.0), (20_002.0, -3.0)} <= set(found)
    assert thinned(points[:600], most=600) == points[:600]


def test_nothing_to_draw_is_nothing() -> None:
    assert line_chart([Series("a", [])], x_label="x", y_label="y") == ""
