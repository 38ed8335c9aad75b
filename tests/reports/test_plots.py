import re

import pytest

from reports.pareto import front
from reports.plots import HEIGHT, WIDTH, scatter, sparkline_svg


def cases(make_record, figures, **changes):
    return [
        make_record(
            f"minilm-x{index}-int4-torch",
            **{"accuracy.value": value, "accuracy.delta": value - 0.946, "accuracy.baseline": 0.946},
            **{"accuracy.ci95": [value - 0.951, value - 0.941], "size.bytes": size, **changes},
        )
        for index, (value, size) in enumerate(figures)
    ]


def drawn(records, cost="size", backends=("torch",)):
    return scatter(front(records, cost), {id(record): index for index, record in enumerate(records)}, backends)


def marks(svg):
    """Kind, x and y of each row's mark."""
    found = re.findall(
        r'<g class="p b\d (\w+)[^"]*" data-i="(\d+)".*?<g transform="translate\((\S+) (\S+)\)">', svg, re.DOTALL
    )
    return {int(row): (kind, float(x), float(y)) for kind, row, x, y in found}


def ticks(svg, anchor):
    return [float(text) for text in re.findall(rf'text-anchor="{anchor}">([\d.e+-]+)</text>', svg)]


def test_better_is_up_and_left_and_kinds_are_told(make_record):
    records = cases(make_record, [(0.94, 2_000_000), (0.92, 4_000_000), (0.935, 2_100_000)])
    found = marks(drawn(records))
    assert [found[row][0] for row in range(3)] == ["lead", "dom", "tied"]
    assert found[0][1] < found[2][1] < found[1][1]
    assert found[0][2] < found[2][2] < found[1][2]
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for _, x, y in found.values())


def test_lower_perplexity_is_drawn_higher(make_record):
    own = {"accuracy.metric": "perplexity", "accuracy.better": "lower"}
    records = cases(make_record, [(21.0, 1000), (25.0, 2000)], **own)
    for record, value in zip(records, (21.0, 25.0), strict=True):
        record["accuracy"] |= {"baseline": 20.0, "delta": value - 20, "ci95": [value - 20.1, value - 19.9]}
    svg = drawn(records)
    assert marks(svg)[0][2] < marks(svg)[1][2]
    assert ticks(svg, "end") == sorted(ticks(svg, "end"), reverse=True)
    assert "perplexity 21.0 (20.9 to 21.1)" in svg


@pytest.mark.parametrize("sizes", [(1_000_000, 1_500_000), (1_000_000, 900_000_000), (5_000_000, 5_000_000)])
def test_axes_have_a_few_round_ticks_inside(make_record, sizes):
    svg = drawn(cases(make_record, [(0.94, sizes[0]), (0.945, sizes[1])]))
    assert ("logarithmic" in svg) == (sizes[1] > 100 * sizes[0])
    for anchor in ("middle", "end"):
        shown = ticks(svg, anchor)
        assert 2 <= len(shown) <= 8
        assert all(len(f"{tick:g}".replace(".", "").strip("0")) <= 3 for tick in shown)


def test_an_outlier_does_not_squeeze_the_rest_but_stays_on_the_edge(make_record):
    records = cases(make_record, [(0.94 + index / 1000, 1_000_000 + 1000 * index) for index in range(9)])
    records += cases(make_record, [(0.10, 9_000_000)])
    records[-1]["case"]["method"] = "broken"
    svg = drawn(records)
    found = marks(svg)
    assert max(y for _, _, y in found.values()) == found[9][2]
    assert "below the axis" in svg
    assert found[0][2] - found[8][2] > HEIGHT / 4


def test_what_was_not_measured_is_hollow_and_whiskers_have_the_width_of_intervals(make_record):
    wide = cases(make_record, [(0.94, 2_000_000), (0.945, 4_000_000)], evidence="simulated")
    svg = drawn(wide)
    assert svg.count("hollow") == 2
    ends = [tuple(map(float, pair)) for pair in re.findall(r'class="w" d="M\S+ (\S+?)V(\S+?)"', svg)]
    heights = [high - low for low, high in ends]
    assert heights == [pytest.approx(heights[0], abs=0.3)] * 2
    assert heights[0] > 10


def test_a_sparkline_marks_where_levels_began():
    svg = sparkline_svg([1.0, 1.0, 3.0, 3.0], [(2, False)], 'a "course"')
    points = re.search(r'points="([^"]+)"', svg)[1].split()
    heights = [float(point.partition(",")[2]) for point in points]
    assert heights[0] == heights[1] > heights[2] == heights[3]
    assert f'class="down" cx="{points[2].partition(",")[0]}"' in svg
    assert 'aria-label="a &quot;course&quot;"' in svg
    assert 'points="5.0,14.0 127.0,14.0"' in sparkline_svg([0.0, 0.0], [], "nothing")
    small = re.findall(r",([\d.]+)", re.search(r'points="([^"]+)"', sparkline_svg([1.0, 1.001], [], "x"))[1])
    assert 0 < float(small[0]) - float(small[1]) < 2
    assert "nan" not in sparkline_svg([2.0], [], "one")
