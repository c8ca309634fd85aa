"""The report in a headless browser: sliders, keyboard, layouts, and what a hostile limit can do."""

import dataclasses
import json
import shutil
from itertools import combinations

import numpy as np
import pytest
from helpers import small_limit, unknown_limit

from pruning_limits import UserError
from pruning_limits.ladder import allowed, percent, rows, target_line, title
from pruning_limits.parts import Layer
from pruning_limits.report import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed, which drives the browser")
By, Keys = pytest.importorskip("selenium.webdriver.common.by").By, webdriver.Keys

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SLIDERS = ("epsilon", "weights", "curvature")
CHARTS = ("rungs", "crossing", "spectrum")
HOSTILE = """</script><script>document.title="run"</script><img src=x onerror="document.title='run'">"""

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed (Debian: chromium chromium-driver)"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def limit():
    return small_limit()


@pytest.fixture(scope="module")
def dropping():
    """Return a limit whose allowed loss is a fall of the accuracy."""
    return small_limit(metric="accuracy", epsilon="batch-std", max_drop=0.05)


@pytest.fixture
def show(browser, tmp_path):
    """Open the report of a limit; after the test nothing may have gone wrong or out in the page."""
    page = tmp_path / "report.html"

    def show(limit, width=1200, media="", scheme="light"):
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        write_report(limit, page)
        browser.get(page.as_uri())
        return browser

    browser.get_log("browser"), browser.get_log("performance")
    yield show
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in requests if not url.startswith(("data:", "chrome:", "chrome-untrusted:"))} == {page.as_uri()}


def with_evidence(limit, **changes):
    return dataclasses.replace(limit, evidence=dataclasses.replace(limit.evidence, **changes))


def move(browser, **values):
    for name, value in values.items():
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        browser.execute_script(script, browser.find_element(By.ID, name), value)


def unfold(browser):
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")


def number(browser, name):
    return float(browser.execute_script("return document.getElementById(arguments[0]).value", name))


def text(browser, name):
    return browser.find_element(By.ID, name).get_property("textContent")


def boxes(browser, selector):
    script = """return [...document.querySelectorAll(arguments[0])].filter((one) => one.textContent).map((one) => {
        const { left, right, top, bottom } = one.getBoundingClientRect();
        return [left, right, top, bottom, one.textContent];
    })"""
    return browser.execute_script(script, selector)


def assert_apart(rectangles, where):
    for (l1, r1, t1, b1, first), (l2, r2, t2, b2, second) in combinations(rectangles, 2):
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1, f"{where}: {first!r} and {second!r} overlap"


def target_of(browser):
    """Return the sparsity that the position of the slider means: three digits of what is kept."""
    return 1 - float(f"{10 ** -number(browser, 'target'):.3g}")


def asked(limit, browser):
    """Ask Python under the conditions that the sliders show."""
    logarithms = {name: number(browser, name) for name in (*SLIDERS, "drop")}
    epsilon = limit.epsilon * 10 ** logarithms["epsilon"] if logarithms["epsilon"] else None
    max_drop = limit.max_drop * 10 ** logarithms["drop"] if logarithms["drop"] else None
    return limit.what_if(epsilon, 10 ** logarithms["weights"], 10 ** logarithms["curvature"], max_drop)


def assert_shows(browser, limit):
    script = """return [...document.querySelectorAll('#ladder-rows tr')].map(
        (row) => [row.querySelector('.term'), ...row.querySelectorAll('td')].map((cell) => cell.textContent))"""
    expected = [dataclasses.astuple(row) for row in rows(limit)]
    if limit.metric is None:
        expected = [row[:3] + row[4:] for row in expected]
    assert browser.execute_script(script) == [list(row) for row in expected]
    assert text(browser, "allowed") == allowed(limit)
    assert text(browser, "verdict") == target_line(limit, target_of(browser))
    assert limit.check(target_of(browser)).status in browser.find_element(By.ID, "verdict").get_attribute("class")


@pytest.mark.parametrize("kind", ["rise", "drop"])
def test_it_opens_with_the_stored_answer(limit, dropping, show, kind):
    limit = limit if kind == "rise" else dropping
    browser = show(limit)
    assert browser.title == "Pruning limit: Sequential"
    assert browser.find_element(By.TAG_NAME, "h1").text == title(limit)
    assert_shows(browser, limit)
    assert target_of(browser) == 0.9
    assert len(browser.find_elements(By.CSS_SELECTOR, "#layers tr")) == len(limit.layers())
    assert len(browser.find_elements(By.CSS_SELECTOR, ".chart svg")) == 3
    notes = browser.find_element(By.CSS_SELECTOR, ".doubts").text
    assert all(line in notes for line in (*limit.notes, limit.status))
    assert not browser.find_element(By.ID, "stale").is_displayed()
    for name in CHARTS:
        assert len(browser.find_element(By.ID, name).get_attribute("aria-label")) > 40
    assert [details.get_attribute("open") for details in browser.find_elements(By.TAG_NAME, "details")] == [None] * 4
    assert browser.find_element(By.ID, "epsilon").is_displayed() == (kind == "rise")
    assert browser.find_element(By.ID, "drop").is_displayed() == (kind == "drop")


def test_unknown_answers_are_told(show):
    limit = unknown_limit()
    browser = show(limit, width=320)
    unfold(browser)
    move(browser, target=3)
    assert_shows(browser, limit)
    assert text(browser, "verdict").count("no bound is established") == 1
    assert "GGN" not in browser.find_element(By.CSS_SELECTOR, "[aria-labelledby=crossing-title] .legend").text
    assert limit.evidence.unknown in browser.find_element(By.ID, "notes").text
    missing = "#rungs .bound, #crossing .ggn"
    assert browser.find_elements(By.CSS_SELECTOR, missing) == []
    assert "no hope beyond unknown" in browser.find_element(By.ID, "rungs").get_attribute("aria-label")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 320
    move(browser, epsilon=1.0, weights=0.2)
    assert_shows(browser, asked(limit, browser))
    assert not browser.find_element(By.ID, "failure").is_displayed()


@pytest.mark.parametrize("growth", [1.0, 0.8])
def test_the_caption_says_where_marks_lie_beside_crossings(limit, show, growth):
    hessian = dataclasses.replace(limit.evidence.hessian, growth=growth)
    browser = show(with_evidence(limit, hessian=hessian))
    unfold(browser)
    caption = browser.find_element(By.CSS_SELECTOR, "[aria-labelledby=crossing-title] figcaption").text
    assert ("beside the crossings" in caption) == (growth != 1)


@pytest.mark.parametrize("kind", ["measured", "unmeasured", "drop"])
def test_sliders_answer_as_what_if_does(limit, dropping, show, kind):
    if kind == "unmeasured":
        limit = small_limit(measure=False, curvature="ggn", negative="clip")
    elif kind == "drop":
        limit = dropping
    sliders = ("drop" if kind == "drop" else "epsilon", "weights", "curvature")
    browser, generator = show(limit), np.random.default_rng(0)
    for moved in (*([name] for name in sliders), sliders[:1], sliders[:1], *[sliders] * 5):
        values = {name: round(generator.uniform(-0.8, 0.8), 2) if name in moved else 0 for name in sliders}
        move(browser, **values, target=round(generator.uniform(0, 3), 2))
        answer = asked(limit, browser)
        assert_shows(browser, answer)
        assert text(browser, "target-value") == percent(target_of(browser))
        if kind != "drop":
            assert text(browser, "epsilon-value") == f"{answer.epsilon:.4g}"
        assert browser.find_element(By.ID, "stale").is_displayed()
        assert not browser.find_element(By.ID, "failure").is_displayed()
    assert len(browser.find_elements(By.CSS_SELECTOR, ".chart svg")) == 3


def test_the_target_reaches_further_in_larger_networks(limit, show):
    browser = show(limit)
    assert float(browser.find_element(By.ID, "target").get_attribute("max")) == pytest.approx(3)
    large = with_evidence(limit, parameters=25_000_000)
    assert float(show(large).find_element(By.ID, "target").get_attribute("max")) == pytest.approx(6)
    move(browser, target=4.6)
    assert text(browser, "target-value") == percent(target_of(browser)) == "99.9975 %"


def test_marks_lie_where_the_rungs_are(limit, show):
    browser = show(limit)
    move(browser, target=-np.log10(1 - limit.lower))
    script = """const place = (selector) => document.querySelector(selector).getBoundingClientRect();
        const middle = ({ left, right }) => (left + right) / 2;
        return ['one-shot', 're-trained', 'bound', 'formula'].map((rung) => middle(place(`#rungs .point.${rung}`)))
            .concat(middle(place('#rungs .line.target')))"""
    places = browser.execute_script(script)
    logarithms = [-np.log10(1 - answer.sparsity) for answer in limit.answers]
    expected = np.interp(logarithms, [logarithms[0], logarithms[2]], [places[0], places[2]])
    np.testing.assert_allclose(places[:4], expected, atol=0.5)
    assert places[4] == pytest.approx(places[0], abs=5)
    dots = browser.find_elements(By.CSS_SELECTOR, "#rungs .dot")
    assert len(dots) == len([point for point in limit.evidence.points if point.sparsity <= 0.99])


def test_points_below_the_axis_are_told(dropping, show):
    browser = show(dropping)
    assert not browser.find_element(By.ID, "below").is_displayed()
    assert len(browser.find_elements(By.CSS_SELECTOR, "#rungs .error")) == len(dropping.evidence.points)
    move(browser, drop=-0.8)
    arrows = browser.find_elements(By.CSS_SELECTOR, "#rungs path.dot")
    assert len(arrows) == sum(point.drop > 20 * 0.05 * 10**-0.8 + 1e-9 for point in dropping.evidence.points) > 0
    assert browser.find_element(By.ID, "below").is_displayed()


def test_words_are_explained_on_focus(limit, show):
    browser = show(limit, width=360)
    words = browser.find_elements(By.CSS_SELECTOR, ".term")
    assert len(words) == 3 + 1 + len(limit.answers)
    tip = browser.find_element(By.ID, "tip")
    for word in [word for word in words if word.is_displayed()]:
        browser.execute_script("arguments[0].focus()", word)
        assert tip.is_displayed()
        assert tip.text == text(browser, word.get_attribute("aria-describedby"))
        ((left, right, *_),) = boxes(browser, "#tip")
        assert 0 <= left < right <= 360
        webdriver.ActionChains(browser).send_keys(Keys.ESCAPE).perform()
        assert not tip.is_displayed()


def test_the_keyboard_does_it_all(limit, show):
    browser = show(limit)
    order = []
    while "reset" not in order and len(order) < 30:
        webdriver.ActionChains(browser).send_keys(Keys.TAB).perform()
        focus = browser.switch_to.active_element
        order.append(focus.get_attribute("id") or focus.get_attribute("class") or focus.tag_name)
        if order[-1] in ("target", "epsilon"):
            before = number(browser, order[-1])
            focus.send_keys(Keys.ARROW_RIGHT * 3, Keys.ARROW_UP)
            step = float(focus.get_attribute("step"))
            assert number(browser, order[-1]) == pytest.approx(before + 4 * step)
            assert focus.accessible_name == browser.find_element(By.CSS_SELECTOR, f"label[for={order[-1]}]").text
            assert focus.get_attribute("aria-valuetext") == text(browser, f"{order[-1]}-value")
    assert order == ["term"] * 8 + ["target", "epsilon", "reset"]
    assert_shows(browser, asked(limit, browser))
    webdriver.ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert_shows(browser, limit)
    assert browser.switch_to.active_element.get_attribute("id") == "target"
    assert browser.find_element(By.ID, "verdict").get_attribute("aria-live") == "polite"
    webdriver.ActionChains(browser).send_keys(Keys.TAB, Keys.TAB).perform()
    assert browser.switch_to.active_element.tag_name == "summary"
    webdriver.ActionChains(browser).send_keys(Keys.ENTER, Keys.TAB, Keys.ARROW_RIGHT).perform()
    assert number(browser, "weights") == pytest.approx(0.01)
    assert_shows(browser, asked(limit, browser))


def test_hostile_text_is_shown_and_not_run(limit, show):
    layer = dataclasses.replace(limit.layer_table[0], name=HOSTILE)
    settings = dataclasses.replace(limit.settings, penalty=HOSTILE, parameters=(HOSTILE,))
    changes = {"status": HOSTILE, "notes": (HOSTILE,), "layer_table": (layer,), "settings": settings}
    hostile = with_evidence(limit, origin=dataclasses.replace(limit.evidence.origin, model=HOSTILE, data=HOSTILE))
    browser = show(dataclasses.replace(hostile, **changes))
    assert browser.title == f"Pruning limit: {HOSTILE}"
    assert browser.find_elements(By.TAG_NAME, "img") == []
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 2
    for place in ("layers", "notes", "title", "behind"):
        assert HOSTILE in text(browser, place), place


def test_conditions_without_an_answer_are_told(limit, dropping, show):
    known = limit.evidence.directions
    steep = tuple((np.ones_like(nodes), 1e-9 * weights) for nodes, weights in known.rules)
    hopeless = with_evidence(
        limit, directions=dataclasses.replace(known, rules=steep, rises=tuple(1e9 for _ in known.rises))
    )
    browser = show(hopeless)
    assert_shows(browser, hopeless)
    move(browser, weights=0.5)
    with pytest.raises(UserError):
        hopeless.what_if(weight_scale=10**0.5)
    assert "no re-tuning reaches this epsilon" in text(browser, "failure")
    browser.find_element(By.ID, "reset").click()
    assert not browser.find_element(By.ID, "failure").is_displayed()
    assert_shows(browser, hopeless)
    show(dropping)
    move(browser, drop=1)
    with pytest.raises(UserError):
        asked(dropping, browser)
    assert "no network that was measured has lost so much" in text(browser, "failure")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_layouts_fit_and_labels_do_not_overlap(limit, dropping, show, width, scheme):
    long = [dataclasses.replace(layer, name=f"blocks.{n}." + "layer" * 20) for n, layer in enumerate(limit.layers())]
    for kind, moves in ((limit, {"epsilon": -1.5}), (dropping, {"drop": -0.7}), (dropping, {"target": 0.05})):
        browser = show(dataclasses.replace(kind, layer_table=tuple(long)), width, scheme=scheme)
        unfold(browser)
        move(browser, **moves)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        for name in CHARTS:
            labels = boxes(browser, f"#{name} text")
            assert len(labels) > 5
            for left, right, *_, label in labels:
                assert left >= 0, label
                assert right <= width, label
            assert_apart(labels, name)
        cells = boxes(browser, "#ladder td, #ladder .term")
        assert len(cells) > 15
        assert_apart([box for box in cells if box[0] < box[1]], "ladder")
        controls = boxes(browser, ".controls label, .controls output, .controls .hint, .controls button")
        assert_apart([box for box in controls if box[0] < box[1]], "controls")


def test_a_list_of_many_layers_scrolls_under_its_head(limit, show):
    names = [f"layer{n // 40}.{n % 40}.weight" for n in range(161)]
    layers = tuple(dataclasses.replace(limit.layer_table[0], name=name) for name in names)
    browser = show(dataclasses.replace(limit, layer_table=layers), 360)
    unfold(browser)
    region = browser.find_element(By.ID, "layers-region")
    assert region.size["height"] < 500
    assert len(browser.find_elements(By.CSS_SELECTOR, "#layers tr")) == 161
    browser.execute_script("arguments[0].scrollTop = arguments[0].scrollHeight", region)
    head = browser.find_element(By.CSS_SELECTOR, ".layers thead th").rect["y"]
    assert head == pytest.approx(region.rect["y"], abs=1)
    last = browser.find_element(By.CSS_SELECTOR, "#layers tr:last-child").rect
    assert last["y"] + last["height"] <= region.rect["y"] + region.rect["height"] + 1
    assert region.get_attribute("tabindex") == "0"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("media", ["screen", "print"])
def test_text_stands_out_on_screen_and_on_paper(limit, show, media, scheme):
    browser = show(limit, media=media, scheme=scheme)

    def colour(selector, name):
        element = browser.find_element(By.CSS_SELECTOR, selector)
        value = element.value_of_css_property(name)
        return [int(part) / 255 for part in value[value.index("(") + 1 : -1].split(",")[:3]]

    def luminance(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(selector, name):
        ends = sorted((luminance(colour(selector, name)), luminance(colour("body", "background-color"))))
        return (ends[1] + 0.05) / (ends[0] + 0.05)

    dark = luminance(colour("body", "background-color")) < 0.1
    assert dark == (media == "screen" and scheme == "dark")
    texts = ("tr.one-shot td.sparsity", "td.how", "#verdict", ".hint", "figcaption", "th", ".control label", ".term")
    for selector in (*texts, "#tip"):
        assert contrast(selector, "color") >= 4.5, selector
    strokes = (".line.network", ".line.formula", ".line.ggn", ".line.scale", ".line.curve", ".whisker.bound")
    for selector in (*strokes, ".bar.positive", ".point.one-shot", ".point.re-trained", ".point.formula"):
        fill = "bar" in selector or "point" in selector
        assert contrast(selector, "fill" if fill else "stroke") >= 3, selector


def test_it_prints_without_its_sliders_and_unfolded(limit, show):
    browser = show(limit, media="print")
    assert not any(field.is_displayed() for field in browser.find_elements(By.CSS_SELECTOR, "input, #reset"))
    assert browser.find_element(By.ID, "epsilon-value").is_displayed()
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.find_element(By.ID, "layers").is_displayed()
    assert browser.find_element(By.CSS_SELECTOR, "#crossing svg").size["width"] > 300
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert not browser.find_element(By.ID, "layers").is_displayed()
    assert browser.print_page().startswith("JVBER")  # %PDF in base 64


def test_a_limit_at_the_edges_is_drawn(limit, show):
    full = Layer("all gone", 4, 1.0, 0.0, 0.0, sparsity=1.0)
    whole = tuple(dataclasses.replace(answer, sparsity=1.0, low=1.0, high=1.0) for answer in limit.answers)
    edges = dataclasses.replace(limit, sparsity=1.0, retrained=1.0, answers=whole, layer_table=(full,))
    edges = with_evidence(edges, points=())
    browser = show(edges)
    assert_shows(browser, edges)
    nothing = tuple(dataclasses.replace(answer, sparsity=0.0, low=0.0, high=0.0) for answer in limit.answers)
    empty = dataclasses.replace(limit, lower=0.0, sparsity=0.0, interval=(0.0, 0.0), answers=nothing, layer_table=())
    assert_shows(show(empty), empty)
    assert text(browser, "layers-note") == "This limit holds no table of layers."


def test_layers_that_were_measured_are_searched(browser, tmp_path):
    measured = small_limit(pattern=("unstructured", "1:2"))
    measured.layers(measured=True)
    write_report(measured, tmp_path / "layers.html")
    browser.get((tmp_path / "layers.html").as_uri())
    field = browser.find_element(By.CSS_SELECTOR, "input[data-rows]")
    rows = browser.find_elements(By.CSS_SELECTOR, f"#{field.get_attribute('data-rows')} tr")
    browser.execute_script("arguments[0].closest('details').open = true", field)
    assert [row.is_displayed() for row in rows] == [True, True]
    field.send_keys("2.WEI")
    names = [row.find_element(By.TAG_NAME, "th").text for row in rows if row.is_displayed()]
    assert names == ["2.weight"]
    assert browser.find_element(By.ID, "patterns-title").is_displayed()
