import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reports.__main__ import main
from reports.findings import Finding
from reports.html import page, script_json
from reports.judgement import Judgement
from reports.limits import parse_limit
from reports.runs import Run
from tests.reports import chromium

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
_VOID = {"meta", "link", "input", "br", "img", "circle", "rect", "path", "polyline"}


class Structure(HTMLParser):
    """Checks that elements nest, and keeps what the tests look at."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.elements, self.scripts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)

    def all(self, tag, **wanted):
        found = [attributes for name, attributes in self.elements if name == tag]
        return [a for a in found if all(a.get(key.rstrip("_")) == value for key, value in wanted.items())]


def a_run(*records, index=0, cpu="M1", versions=None):
    machine = {"quant": {"cpu": cpu, "threads": 1, "isa": ["neon"], "versions": versions or {"torch": "2.13"}}}
    commit = {"id": f"{index:07}deadbeef", "branch": "main"}
    return Run(Path(f"{index:04}_main.json"), list(records), {}, machine, commit, f"2026-11-{index + 1:02}T10:00:00")


@pytest.fixture
def make_records(make_record):
    """``make_records(40)``: that many cases of two models on four backends, one of which was not measured."""

    def make(count, speed=1.0):
        records = []
        for index in range(count):
            model, backend = ("minilm", "digits")[index % 2], ("torch", "mlx", "onnxruntime", "coreml")[index % 4]
            value = 0.9 + 0.001 * (index * 37 % 90)
            record = make_record(
                f"{model}-method{index}-int{2 + index % 7}-{backend}",
                evidence="simulated" if backend == "mlx" else "measured",
                **{
                    "accuracy.baseline": 0.95,
                    "accuracy.value": value,
                    "accuracy.delta": value - 0.95,
                    "accuracy.ci95": [value - 0.96, value - 0.94],
                    "size.bytes": 10_000 * (1 + index * 53 % 97),
                    "size.baseline_bytes": 1_000_000,
                    "size.ratio": 0.01 * (1 + index * 53 % 97),
                    "speed.ratio": 1.87 * speed,
                    "speed.ci95": [1.83 * speed, 1.91 * speed],
                    "speed.p50": 0.001 * (1 + index * 29 % 83),
                },
            )
            if backend == "coreml":
                record["speed"] = {"reason": "Core ML runs on macOS only"}
            if index % 5 == 0:
                record["layers"] = [{"name": f"block.{n}", "error": 0.01 * (n + 1)} for n in range(6)]
            records.append(record)
        return records

    return make


@pytest.fixture
def make_runs(make_records):
    """Eight saves of some cases; the last three are slower."""
    speeds = [1.0, 1.01, 0.99, 1.0, 1.005, 0.8, 0.81, 0.8]
    return lambda count=12: [a_run(*make_records(count, speed), index=index) for index, speed in enumerate(speeds)]


def a_judgement(base, head):
    case = "minilm-method0-int2-torch"
    limit = parse_limit("accuracy:1pp")
    findings = [
        Finding("digits-method1-int3-mlx", limit, "inconclusive", 0.95, 0.94, 1.0, (-1.0, 3.0), 0.2, 500, 2000),
        Finding(case, limit, "regressed", 0.95, 0.90, 5.0, (3.0, 7.0), 0.001, 500),
        Finding("minilm-method2-int4-onnxruntime", limit, "pass", 0.95, 0.95, 0.0, (0.0, 0.0), 1.0, 500),
    ]
    return Judgement(base, head, findings, lost={"minilm-gone-int4-torch": "no such case"}, notes=["a note"])


def test_the_page_is_whole_and_its_landmarks_are_there(make_runs):
    runs = make_runs()
    text = page(runs, a_judgement(runs[0], runs[-1]))
    found = Structure(text)
    assert len(found.ids) == len(set(found.ids))
    assert found.all("html", lang="en")
    assert found.all("main")
    sections = [attributes["id"] for attributes in found.all("section")]
    assert sections == ["verdict", "cases", "fronts", "layers", "history", "environment"]
    assert all(f"#{attributes['href'][1:]}" == attributes["href"] for attributes in found.all("a"))
    assert {attributes["href"][1:] for attributes in found.all("a")} <= set(found.ids)
    assert {a["aria-labelledby"] for _, a in found.elements if "aria-labelledby" in a} <= set(found.ids)
    assert text.count("<table") == text.count("<caption") == 3
    assert all("scope" in attributes for attributes in found.all("th"))
    assert all("aria-label" in attributes for attributes in found.all("svg") if "aria-hidden" not in attributes)


def test_nothing_is_loaded(make_runs):
    text = page(make_runs())
    assert not re.search(r"https?:|//[a-z]", text.replace("http-equiv", ""))
    assert not re.search(r"\b(?:src|srcset|action|ping)=", text)
    links = {value for tag, a in Structure(text).elements for key, value in a.items() if key == "href"}
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(", text)


@pytest.fixture
def hostile(make_record):
    """A page whose every text tries to be markup."""
    record = make_record(
        speed={"reason": HOSTILE},
        layers=[{"name": HOSTILE, "error": 0.1}],
        **{"accuracy.metric": HOSTILE, "coverage.notes": [HOSTILE], "case.method": HOSTILE, "case.model": HOSTILE},
    )
    other = make_record(**{"case.model": HOSTILE})
    runs = [a_run(record, other, cpu=HOSTILE, index=index, versions={HOSTILE: str(index // 2)}) for index in range(4)]
    runs[0].commit["branch"] = runs[-1].commit["branch"] = HOSTILE
    limit = parse_limit("size:1%")
    finding = Finding(f"{HOSTILE}-gptq-int4-onnxruntime", limit, "regressed", 1.0, 2.0, 100.0, reason=HOSTILE)
    return page(runs, Judgement(runs[0], runs[-1], [finding], lost={HOSTILE: HOSTILE}, notes=[HOSTILE]))


def test_hostile_texts_stay_texts(hostile):
    found = Structure(hostile)
    assert [a.get("type") for a in found.all("script")] == ["application/json", None]
    assert found.all("img") == []
    assert not [key for _, attributes in found.elements for key in attributes if key.startswith("on")]
    assert len(found.scripts) == 2
    data = json.loads(found.scripts[0])
    assert HOSTILE in [value for flat in data["rows"] for value in flat[1::2]]
    assert data["layerNames"] == [[HOSTILE]]


def test_script_data_cannot_leave_their_element():
    value = {"a": "</ScRipT><!--<script>\u2028&", "b": [None, 1.5, True]}
    text = script_json(value)
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == value


def test_a_thousand_records_are_under_eight_megabytes(make_records):
    text = page([a_run(*make_records(1000))])
    assert len(text.encode()) < 8_000_000
    assert text.count("<tr data-i=") == 1000


def test_rows_say_what_was_measured_and_why_not(make_records):
    text = page([a_run(*make_records(4))])
    assert re.search(r'<td class="num" title="Core ML runs on macOS only">–</td>', text)
    assert "1.87× ±.04" in text
    assert "– coreml: Core ML runs on macOS only" in text
    assert ">minilm-method0-int2-torch<" in text


def test_the_last_record_of_each_case_on_each_machine_is_shown(make_record):
    old, new = make_record(**{"size.bytes": 1}), make_record(**{"fidelity.agreement": 0.123})
    other = make_record("digits-rtn-int4-torch")
    text = page([a_run(new, index=2), a_run(old, other, index=1), a_run(old, index=0, cpu="M2")])
    assert text.count("<tr data-i=") - text.count("#past") >= 3
    assert text.count('data-v="0.123"') == 1
    assert "M1, 1 thread; M2, 1 thread" in text
    assert ">Machine</th>" in text
    assert ">Machine</th>" not in page([a_run(new)])


def test_history_names_the_save_that_changed(make_runs):
    text = page(make_runs())
    assert "1.87× → 1.50× at <b>0005_main (0000005)</b>" in text
    assert "#history" not in page(make_runs()[:1])


def test_a_judgement_comes_first_and_its_worst_finding_before_the_rest(make_runs):
    runs = make_runs()
    text = page(runs, a_judgement(runs[0], runs[-1]))
    assert text.index('class="banner regressed"') < text.index('id="cases"')
    tags = re.findall(r'<td><span class="tag [\w-]+">([\w ]+)</span></td>', text)
    assert tags == ["regressed", "inconclusive", "pass"]
    assert "+5 pp <small>+3 to +7</small>" in text
    assert "about 2,000 samples would decide" in text
    assert "95.0 %" in text
    assert "minilm-gone-int4-torch: no such case" in text


def test_without_labels_or_times_the_page_still_comes(make_record):
    bare = make_record(
        accuracy={"reason": "no labels"},
        speed={"reason": "not timed"},
        fidelity={"reason": "not compared"},
        coverage={"reason": "hidden"},
        memory={"reason": "not measured"},
    )
    text = page([Run(Path("bare.json"), [bare])])
    Structure(text)
    assert "#fronts" not in text
    assert "no labels" in text


def test_what_quantizers_cost_is_a_table_of_its_own(make_record):
    cost = {"seconds": 3.21, "elapsed_seconds": 4.0, "peak_bytes": 50_000_000, "float_bytes": 25_000_000}
    record = {**make_record(kind="quantize"), "cost": {**cost, "cached": False}}
    text = page([a_run(make_record("digits-rtn-int4-torch"), record)])
    Structure(text)
    assert text.count("<tr data-i=") == 1
    assert re.search(r"minilm-gptq-int4-onnxruntime\s+3.21", text[text.index('id="costs"') :])
    alone = page([a_run(record)])
    Structure(alone)
    assert "<tr data-i=" not in alone
    assert 'id="costs"' not in page([a_run(make_record())])


@pytest.fixture
def save(tmp_path):
    def save(run):
        document = {
            "benchmarks": [{"extra_info": {"quant": record}} for record in run.records],
            "machine_info": run.machine,
            "commit_info": run.commit,
            "datetime": run.saved,
        }
        path = tmp_path / run.path
        path.write_text(json.dumps(document))
        return str(path)

    return save


def test_the_command_judges_beside_a_baseline(make_runs, save, tmp_path, capsys):
    runs = make_runs()
    runs[-1].records[0]["size"] |= {"bytes": 20_000, "ratio": 0.02}
    paths = [save(run) for run in runs]
    output = tmp_path / "report.html"
    assert main(["html", paths[-1], "--baseline", paths[0], "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"Written to {output}\n"
    text = output.read_text(encoding="utf-8")
    assert 'class="banner regressed"' in text
    assert "<td>size:1%</td>" in text
    assert main(["html", *paths, "-o", str(output)]) == 0
    assert 'class="banner' not in output.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail", "size:1%"], "--fail size:1% needs --baseline"),
        (["--baseline", "RUN", "--fail", "size"], "'size' is not METRIC:LIMIT"),
        (["--baseline", "absent"], "no complete save called 'absent'"),
        (["-o", f"{__file__}/page.html"], "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(make_runs, save, capsys, arguments, message):
    path = save(make_runs()[0])
    assert main(["html", path, *[path if word == "RUN" else word for word in arguments]]) == 4
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.installed() is None:
        pytest.skip(f"no browser to check the page in: none of {', '.join(chromium.NAMES)} is installed")
    with chromium.Page(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def opened(browser, make_runs, tmp_path):
    """The page of eight runs with a judgement, open on a desk."""
    runs = make_runs(24)
    path = tmp_path / "report.html"
    path.write_text(page(runs, a_judgement(runs[0], runs[-1])), encoding="utf-8")
    browser.emulate(1280, 900)
    browser.open(path.as_uri())
    yield browser
    assert browser.errors() == []
    assert browser.requests() == [path.as_uri()]


def visible(browser):
    script = "[...document.querySelectorAll('#table tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
    return browser.evaluate(script)


def test_filters_narrow_table_plots_and_history_together(opened):
    assert len(visible(opened)) == 24
    opened.evaluate("document.querySelector('#search').value = 'METHOD2 torch'")
    opened.evaluate("document.querySelector('#search').dispatchEvent(new Event('input', {bubbles: true}))")
    assert visible(opened) == ["minilm-method20-int8-torch"]
    assert opened.evaluate("document.querySelector('#shown').textContent") == "1 of 24 cases"
    assert opened.evaluate("document.querySelectorAll('.grid .p:not(.out)').length") == 3
    shown = (
        "new Set([...document.querySelectorAll('#past tbody tr')].filter(r => !r.hidden).map(r => r.dataset.i)).size"
    )
    assert opened.evaluate(shown) == 1
    opened.evaluate("document.querySelector('#search').value = 'nothing like it'")
    opened.evaluate("document.querySelector('#search').dispatchEvent(new Event('input', {bubbles: true}))")
    assert opened.evaluate("!document.querySelector('#none').hidden")
    opened.evaluate("document.querySelector('#reset').click()")
    opened.wait_for("document.querySelector('#shown').textContent === '24 cases'")
    opened.evaluate("document.querySelector('select[data-axis=\"3\"]').value = 'mlx'")
    opened.evaluate("document.querySelector('#search').dispatchEvent(new Event('input', {bubbles: true}))")
    assert len(visible(opened)) == 6
    assert all(name.endswith("-mlx") for name in visible(opened))


def test_headings_sort_both_ways_with_missing_figures_last(opened):
    column = 5
    assert opened.evaluate(f"document.querySelectorAll('#table th')[{column}].textContent") == "ms"
    for direction in ("ascending", "descending"):
        opened.evaluate(f"document.querySelectorAll('#table .sort')[{column}].click()")
        assert opened.evaluate(f"document.querySelectorAll('#table th')[{column}].ariaSort") == direction
        cells = opened.evaluate(
            f"[...document.querySelectorAll('#table tbody tr')].map(r => r.cells[{column}].dataset.v ?? null)"
        )
        known = [float(cell) for cell in cells if cell is not None]
        assert known == sorted(known, reverse=direction == "descending")
        assert cells == [*cells[: len(known)], *[None] * 6]


def test_a_point_tells_itself_to_pointer_and_keyboard(opened):
    opened.hover(".plots:not([hidden]) .p.lead > g")
    opened.wait_for("!document.querySelector('#tip').hidden")
    assert "on the front" in opened.evaluate("document.querySelector('#tip').textContent")
    opened.evaluate("document.querySelector('.plots:not([hidden]) .p[tabindex=\"0\"]').focus()")
    first = opened.evaluate("document.activeElement.getAttribute('aria-label')")
    opened.press("ArrowRight")
    second = opened.evaluate("document.activeElement.getAttribute('aria-label')")
    assert first != second
    assert (
        opened.evaluate("document.querySelectorAll('.plots:not([hidden]) figure:first-child [tabindex=\"0\"]').length")
        == 1
    )
    opened.press("Enter")
    assert opened.evaluate("document.querySelector('#details').open")
    assert opened.evaluate("document.querySelector('#details-title').textContent") == second.partition(":")[0]
    opened.press("Escape")
    opened.wait_for("!document.querySelector('#details').open")
    assert opened.evaluate("document.activeElement.getAttribute('aria-label')") == second


def test_the_first_stop_of_the_keyboard_skips_to_the_cases(opened):
    opened.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    opened.press("Enter")
    opened.wait_for("location.hash === '#cases'")


def test_layers_are_a_table(opened):
    rows = "document.querySelectorAll('#layer-table tbody tr').length"
    assert opened.evaluate(rows) == 6
    assert opened.evaluate("document.querySelector('#layer-table caption').textContent").startswith(
        "Error of each layer"
    )


def test_hostile_texts_stay_texts_in_a_browser(browser, hostile, tmp_path):
    path = tmp_path / "hostile.html"
    path.write_text(hostile, encoding="utf-8")
    browser.open(path.as_uri())
    browser.hover(".p > g")
    browser.wait_for("!document.querySelector('#tip').hidden")
    browser.evaluate("document.querySelector('button.case').click()")
    assert HOSTILE in browser.evaluate("document.querySelector('#details-title').textContent")
    assert HOSTILE in browser.evaluate("document.querySelector('#layer-table').textContent")
    assert browser.evaluate("document.images.length") == 0
    assert browser.errors() == []
    assert browser.requests() == [path.as_uri()]


CONTRASTS = """
(() => {
  const parse = text => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = color => color.slice(0, 3).reduce((sum, c, i) => sum + linear(c / 255) * [.2126, .7152, .0722][i], 0);
  const background = element => {
    for (; element; element = element.parentElement) {
      const color = parse(getComputedStyle(element).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
  };
  const low = [];
  for (const element of document.querySelectorAll('main *, header *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (element.closest('svg') || !own) continue;
    const colors = [parse(getComputedStyle(element).color), background(element)];
    const [a, b] = colors.map(light).sort((x, y) => y - x);
    const contrast = (a + .05) / (b + .05);
    if (contrast < 4.5) low.push(`${element.tagName}.${element.className}: ${contrast.toFixed(2)}`);
  }
  return [...new Set(low)];
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_and_phones_need_no_sideways_scrolling(opened, scheme):
    opened.emulate(360, 740, scheme)
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(16, 18, 22)"
    )
    assert opened.evaluate(CONTRASTS) == []
    assert opened.evaluate("document.documentElement.scrollWidth") == 360


def test_the_theme_can_be_chosen(opened):
    ground = "getComputedStyle(document.body).backgroundColor"
    before = opened.evaluate(ground)
    opened.evaluate("document.querySelector('#theme').click()")
    assert opened.evaluate(ground) == before
    opened.evaluate("document.querySelector('#theme').click()")
    assert opened.evaluate(ground) != before
    opened.evaluate("document.querySelector('#theme').click()")
    assert opened.evaluate(ground) == before
