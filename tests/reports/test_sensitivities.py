import pytest

from reports.html import page
from reports.sensitivities import LEVELS, heat_map
from tests.reports.test_html import HOSTILE, Structure, a_run

FORMATS = ["int8", "int4", "int2"]


@pytest.fixture
def mixed(make_record):
    def make(errors, chosen=("int4", "int2"), **changes):
        layers = [
            {"name": f"layer.{index}", "format": word, "error": row[FORMATS.index(word)], "errors": row}
            for index, (word, row) in enumerate(zip(chosen, errors, strict=True))
        ]
        section = {"criterion": "sqnr", "formats": FORMATS}
        return make_record("minilm-mixed-mixed_4p5-mlx", sensitivity=section, layers=layers, **changes)

    return make


def test_a_map_shows_every_error_and_what_was_chosen(mixed):
    found = heat_map(mixed([[1e-6, 1e-4, 1e-2], [1e-7, 1e-5, 1e-3]]))
    (first, cells), (_, others) = found.weights
    assert first == "layer.0"
    assert [cell.text for cell in cells] == ["1.0e-6", "1.0e-4", "1.0e-2"]
    assert [cell.chosen for cell in cells] == [False, True, False]
    assert [cell.chosen for cell in others] == [False, False, True]
    levels = [cell.level for cell in cells]
    assert levels == sorted(levels)
    assert max(levels) == LEVELS - 1
    assert others[0].level == 0
    assert found.together == ["1.1e-6", "1.1e-4", "1.1e-2"]


def test_missing_and_equal_errors_have_a_shade(mixed):
    found = heat_map(mixed([[0.0, None, 0.5], [0.5, 0.5, 0.5]], ("int8", "int4")))
    assert [cell.text for cell in found.weights[0][1]] == ["0", "–", "5.0e-1"]
    assert all(0 <= cell.level < LEVELS for _, cells in found.weights for cell in cells)
    assert found.together[1] == "–"
    assert heat_map(mixed([[0.0, 0.0, 0.0]], ("int8",))).weights[0][1][0].level == 0


def test_other_records_have_no_map(make_record):
    assert heat_map(make_record()) is None
    assert heat_map(make_record(layers=[{"name": "a", "error": 1.0}])) is None


def test_the_page_has_a_table_for_each_case_that_a_screen_reader_can_read(mixed):
    record = mixed([[1e-6, 1e-4, 1e-2], [1e-7, 1e-5, 1e-3]])
    text = page([a_run(record)])
    found = Structure(text)
    assert "sensitivities" in [attributes["id"] for attributes in found.all("section")]
    assert found.all("a", href="#sensitivities")
    assert found.all("table", class_="heat")
    assert text.count("<table") == text.count("<caption") == 2
    assert all("scope" in attributes for attributes in found.all("th"))
    assert text.count(", chosen</span>") == 2
    assert "All weights alike" in text
    del record["sensitivity"]
    assert 'id="sensitivities"' not in page([a_run(record)])


def test_hostile_names_stay_texts(mixed):
    record = mixed([[1.0, 1, 1]], ("int8",))
    record["layers"][0]["name"] = record["sensitivity"]["formats"][0] = record["sensitivity"]["criterion"] = HOSTILE
    found = Structure(page([a_run(record)]))
    assert found.all("img") == []
    assert len(found.scripts) == 2
