"""The report in a headless browser: sliders, keyboard, layouts, and what a hostile limit can do."""

import dataclasses
import json
import shutil
from itertools import combinations

import numpy as np
import pytest
from helpers import small_limit, unknown_limit

from pruning_limits import UserError
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
NUMBERS = ("sparsity", "lower", "upper", "retrained", "directional")
SLIDERS = ("epsilon", "weights", "curvature")
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


def move(browser, **values):
    for name, value in values.items():
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        browser.execute_script(script, browser.find_element(By.ID, name), value)


def number(browser, name):
    return float(browser.execute_script("return document.getElementById(arguments[0]).value", name))


def text(browser, name):
    return browser.find_element(By.ID, name).text


def asked(limit, browser):
    """Ask Python under the conditions that the sliders show."""
    logarithms = {name: number(browser, name) for name in SLIDERS}
    epsilon = limit.epsilon * 10 ** logarithms["epsilon"] if logarithms["epsilon"] else None
    return limit.what_if(epsilon, 10 ** logarithms["weights"], 10 ** logarithms["curvature"])


def assert_shows(browser, limit, target):
    for name in NUMBERS:
        assert number(browser, name) == pytest.approx(getattr(limit, name), abs=1e-9), name
        assert text(browser, name) == f"{getattr(limit, name):.2%}"
    assert [number(browser, name) for name in ("low", "high")] == pytest.approx(limit.interval, abs=1e-9)
    assert text(browser, "achieved") == ("–" if limit.achieved is None else f"{limit.achieved:.2%}")
    assert text(browser, "headroom") == ("–" if limit.headroom is None else f"{100 * limit.headroom:.2f} pts")
    verdict = limit.check(target)
    rest = verdict.reason.removeprefix(f"{target:.2%} ")
    assert text(browser, "verdict") == f"{target:.2%} is {verdict.status}: it {rest}."


def test_it_opens_with_the_stored_answer(limit, show):
    browser = show(limit)
    assert browser.title == "Pruning limit"
    assert_shows(browser, limit, 0.9)
    assert text(browser, "change") == ""
    assert len(browser.find_elements(By.CSS_SELECTOR, "#layers tr")) == len(limit.layers())
    assert len(browser.find_elements(By.CSS_SELECTOR, ".chart svg")) == 3
    assert limit.status in text(browser, "notes")
    for name in ("line", "crossing", "spectrum"):
        assert len(browser.find_element(By.ID, name).accessible_name) > 40


def test_unknown_answers_are_told(show):
    limit = unknown_limit()
    browser = show(limit, width=320)
    move(browser, target=0.999)
    for name in ("retrained", "directional", "upper", "headroom"):
        assert text(browser, name) == "unknown"
    assert "no bound is established" in browser.find_element(By.CSS_SELECTOR, ".bounds").text
    assert "hope ends" not in browser.find_element(By.CSS_SELECTOR, ".bounds").text
    assert "re-trained" not in browser.find_element(By.CSS_SELECTOR, "[aria-labelledby=crossing-title] .legend").text
    assert limit.unknown in text(browser, "notes")
    assert text(browser, "verdict") == f"99.90% is open: it {limit.check(0.999).reason.removeprefix('99.90% ')}."
    assert browser.find_elements(By.CSS_SELECTOR, ".point.retrained, #crossing .line.retrained, .zone.infeasible") == []
    assert "open beyond" in browser.find_element(By.ID, "line").accessible_name
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 320
    move(browser, epsilon=1.0, weights=0.2)
    answer = asked(limit, browser)
    assert text(browser, "sparsity") == f"{answer.sparsity:.2%}"
    assert text(browser, "upper") == "unknown"
    assert not browser.find_element(By.ID, "failure").is_displayed()


@pytest.mark.parametrize("growth", [1.0, 0.8])
def test_the_caption_says_where_dots_lie_beside_crossings(limit, show, growth):
    browser = show(dataclasses.replace(limit, hessian=dataclasses.replace(limit.hessian, growth=growth)))
    caption = browser.find_element(By.CSS_SELECTOR, "[aria-labelledby=crossing-title] figcaption").text
    assert ("beside the crossings" in caption) == (growth != 1)


@pytest.mark.parametrize("kind", ["measured", "unmeasured"])
def test_sliders_answer_as_what_if_does(limit, show, kind):
    limit = limit if kind == "measured" else small_limit(measure=False, curvature="ggn", negative="clip")
    browser, generator = show(limit), np.random.default_rng(0)
    for moved in (["epsilon"], ["weights"], ["curvature"], *[SLIDERS] * 5):
        values = {name: round(generator.uniform(-1, 1), 2) if name in moved else 0 for name in SLIDERS}
        target = round(generator.uniform(0, 0.999), 3)
        move(browser, **values, target=target)
        answer = asked(limit, browser)
        assert_shows(browser, answer, target)
        assert text(browser, "change").endswith(f"from the prediction, {limit.sparsity:.2%}")
        assert text(browser, "epsilon-value") == f"{answer.epsilon:.4g}"
    assert len(browser.find_elements(By.CSS_SELECTOR, ".chart svg")) == 3


def test_the_keyboard_does_it_all(limit, show):
    browser = show(limit)
    order = []
    for _ in range(4):
        webdriver.ActionChains(browser).send_keys(Keys.TAB).perform()
        focus = browser.switch_to.active_element
        order.append(focus.get_attribute("id"))
        before = number(browser, order[-1])
        focus.send_keys(Keys.ARROW_RIGHT * 3, Keys.ARROW_UP)
        step = float(focus.get_attribute("step"))
        assert number(browser, order[-1]) == pytest.approx(before + 4 * step)
        assert focus.accessible_name == browser.find_element(By.CSS_SELECTOR, f"label[for={order[-1]}]").text
        assert focus.get_attribute("aria-valuetext") == text(browser, f"{order[-1]}-value")
    assert order == ["target", *SLIDERS]
    assert_shows(browser, asked(limit, browser), 0.904)
    webdriver.ActionChains(browser).send_keys(Keys.TAB, Keys.ENTER).perform()
    assert_shows(browser, limit, 0.904)
    assert browser.switch_to.active_element.get_attribute("id") == "epsilon"
    assert browser.find_element(By.ID, "verdict").get_attribute("aria-live") == "polite"


def test_hostile_text_is_shown_and_not_run(limit, show):
    layer = dataclasses.replace(limit.layer_table[0], name=HOSTILE)
    settings = dataclasses.replace(limit.settings, penalty=HOSTILE, parameters=(HOSTILE,))
    changes = {"status": HOSTILE, "notes": (HOSTILE,), "layer_table": (layer,), "settings": settings}
    browser = show(dataclasses.replace(limit, **changes))
    assert browser.title == "Pruning limit"
    assert browser.find_elements(By.TAG_NAME, "img") == []
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 2
    for place in ("#layers", "#notes", "#network", "#assumptions"):
        assert HOSTILE in browser.find_element(By.CSS_SELECTOR, place).text, place


def test_conditions_without_an_answer_are_told(limit, show):
    steep = tuple((np.ones_like(nodes), 1e-9 * weights) for nodes, weights in limit.directions.rules)
    rises = tuple(1e9 for _ in limit.directions.rises)
    hopeless = dataclasses.replace(limit, directions=dataclasses.replace(limit.directions, rules=steep, rises=rises))
    browser = show(hopeless)
    assert_shows(browser, hopeless, 0.9)
    move(browser, weights=0.5)
    with pytest.raises(UserError):
        hopeless.what_if(weight_scale=10**0.5)
    assert "no re-tuning reaches this epsilon" in text(browser, "failure")
    browser.find_element(By.ID, "reset").click()
    assert not browser.find_element(By.ID, "failure").is_displayed()
    assert_shows(browser, hopeless, 0.9)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_layouts_fit_and_labels_do_not_overlap(limit, show, width, scheme):
    long = [dataclasses.replace(layer, name=f"blocks.{n}." + "layer" * 20) for n, layer in enumerate(limit.layers())]
    browser = show(dataclasses.replace(limit, layer_table=tuple(long)), width, scheme=scheme)
    move(browser, epsilon=-1.5)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for name in ("line", "crossing", "spectrum"):
        script = """return [...document.querySelectorAll(arguments[0])].map((one) => {
            const { left, right, top, bottom } = one.getBoundingClientRect();
            return [left, right, top, bottom, one.textContent];
        })"""
        boxes = browser.execute_script(script, f"#{name} text")
        assert len(boxes) > 5
        for left, right, *_, label in boxes:
            assert left >= 0, label
            assert right <= width, label
        for (l1, r1, t1, b1, one), (l2, r2, t2, b2, other) in combinations(boxes, 2):
            assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1, f"{name}: {one!r} and {other!r} overlap"


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
        one, other = sorted((luminance(colour(selector, name)), luminance(colour("body", "background-color"))))
        return (other + 0.05) / (one + 0.05)

    dark = luminance(colour("body", "background-color")) < 0.1
    assert dark == (media == "screen" and scheme == "dark")
    for selector in (".number", "#verdict", ".hint", "figcaption", "th", ".control label"):
        assert contrast(selector, "color") >= 4.5, selector
    for selector in (".line.network", ".line.predicted", ".line.retrained", ".line.scale", ".bar.positive"):
        assert contrast(selector, "fill" if "bar" in selector else "stroke") >= 3, selector


def test_it_prints_without_its_sliders(limit, show):
    browser = show(limit, media="print")
    assert not any(one.is_displayed() for one in browser.find_elements(By.CSS_SELECTOR, "input, button"))
    assert browser.find_element(By.ID, "epsilon-value").is_displayed()
    assert browser.print_page().startswith("JVBER")  # %PDF in base 64


def test_a_limit_at_the_edges_is_drawn(limit, show):
    full = Layer("all gone", 4, 1.0, 0.0, 0.0, 0.0)
    edges = dataclasses.replace(
        limit, sparsity=1.0, upper=1.0, retrained=1.0, layer_table=(full,), rises=(), achieved=None
    )
    browser = show(edges)
    assert_shows(browser, edges, 0.9)
    empty = dataclasses.replace(limit, lower=0.0, sparsity=0.0, interval=(0.0, 0.0), layer_table=())
    assert_shows(show(empty), empty, 0.9)
    assert text(browser, "layers-note") == "This limit holds no table of layers."
