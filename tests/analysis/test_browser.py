"""The page in a real browser: what a mouse, keys and controls do; hostile texts do nothing."""

import browser
import looked
import numpy as np
import pytest

from fiberjax.analysis import page, why

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser.path() is None, reason="needs Chromium"),
]
TITLE = f"run {looked.HOSTILE[2]}"


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The page, drawn, in a window of its own."""
    folder = tmp_path_factory.mktemp("page")
    found = looked.under("fiberpo_domain")
    text = page.page(found, title=TITLE, texts=looked.texts(), notes=[looked.HOSTILE[1]])
    path = page.write(folder / "page.html", text)
    window = browser.Browser(folder / "profile")
    window.open(path.as_uri())
    window.wait("document.documentElement?.dataset.drawn")
    yield window
    window.close()


def select(window, name, value):
    """Chooses in a control, and waits for what it draws."""
    drawn = window.evaluate("document.documentElement.dataset.drawn")
    window.evaluate(
        f"(() => {{ const e = document.getElementById({name!r}); e.value = {value!r};"
        "e.dispatchEvent(new Event('input', {bubbles: true})) })()"
    )
    if name != "colour":
        window.wait(f"document.documentElement.dataset.drawn !== {drawn!r}")


def rows(window):
    return window.evaluate("[...document.querySelectorAll('.row')].map(e => +e.dataset.row)")


def panel_numbers(window):
    return window.evaluate(
        "Object.fromEntries([...document.querySelectorAll('#numbers td')]"
        ".map(e => [e.dataset.name, +e.dataset.value]))"
    )


def reasons(window):
    """The sentences of the chosen token."""
    return window.evaluate(
        "[...document.querySelectorAll('#why li')].map(e => e.lastChild.textContent)"
    )


def test_hostile_texts_run_nothing_and_ask_for_nothing(shown):
    assert shown.evaluate("document.title") == TITLE
    assert (
        shown.evaluate("document.querySelectorAll('img, svg[onload], .tokens b, .prompt b').length")
        == 0
    )
    written = shown.evaluate("document.getElementById('list').textContent")
    assert looked.HOSTILE[0] in written and "⟨U+202E⟩gnissim" in written
    asked = [e for e in shown.events if e["method"] == "Network.requestWillBeSent"]
    assert len(asked) == 1 and asked[0]["params"]["type"] == "Document"
    assert not [
        e for e in shown.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")
    ]


def test_what_a_script_in_the_page_would_do_is_forbidden(shown):
    shown.evaluate(
        "(() => { const e = document.createElement('div');"
        "e.innerHTML = `<img src=x onerror=\"document.title = 'taken'\">`; document.body.append(e);"
        "const s = document.createElement('script'); s.textContent = \"document.title = 'taken'\";"
        "document.body.append(s); e.remove(); s.remove() })()"
    )
    assert shown.evaluate("new Promise(r => setTimeout(() => r(document.title), 50))") == TITLE


def test_pointing_shows_the_numbers_and_the_reasons_of_the_library(shown):
    found = looked.under("fiberpo_domain")
    row, columns = 5, np.flatnonzero(looked.kept().mask[5])
    for k in (0, len(columns) - 1):
        shown.point(f".row[data-row='{row}'] .t", k)
        at = row, int(columns[k])
        numbers = panel_numbers(shown)
        assert numbers["coefficient"] == found.coefficient[at]
        assert numbers["log_ratio"] == found.log_ratio[at]
        assert numbers["entropy"] == found.entropy[at]
        for name, part in found.parts.items():
            assert numbers[f"part {name}"] == np.float32(part[at])
        assert reasons(shown) == [step.text for step in why.why(found, *at)]


def test_keys_choose_tokens(shown):
    found, row = looked.under("fiberpo_domain"), 6
    columns = np.flatnonzero(looked.kept().mask[row])
    shown.point(f".row[data-row='{row}'] .t", 0, click=True)
    for key, k in (("ArrowRight", 1), ("End", len(columns) - 1), ("ArrowLeft", len(columns) - 2)):
        shown.press(key)
        expected = found.coefficient[row, columns[k]]
        assert panel_numbers(shown)["coefficient"] == expected
        focused = "document.activeElement.getAttribute('aria-selected')"
        assert shown.evaluate(focused) == "true"
    assert "Coefficient" in shown.evaluate("document.getElementById('said').textContent")
    shown.press("Escape")
    assert shown.evaluate("document.querySelectorAll('.chosen').length") == 0


def test_filters_leave_what_they_say(shown):
    kept, found = looked.kept(), looked.under("fiberpo_domain")
    reward = np.array(kept.table["reward"].to_pylist())
    domain = np.array(kept.table["domain"].to_pylist())
    assert rows(shown) == list(range(looked.ROWS))
    regime = sorted(set(found.regime)).index(found.regime[5])
    drift = np.abs(found.drift()[:, 2])
    for name, value, expected in (
        ("least", "0.5", reward >= 0.5),
        ("most", "0.5", reward <= 0.5),
        ("domain", "1", domain == "sort"),
        ("regime", str(regime), np.array(found.regime) == found.regime[5]),
        ("drift", "0.08", drift >= np.float32(0.08)),
        ("fate", "turned", (found.fate == 5).any(axis=1)),
    ):
        select(shown, name, value)
        assert rows(shown) == np.flatnonzero(expected).tolist(), name
        assert 0 < expected.sum() < looked.ROWS, name
        count = shown.evaluate("document.getElementById('count').textContent")
        assert count.startswith(f"{expected.sum()} of 16 trajectories")
        select(shown, name, "")


def test_sorting_orders_trajectories(shown):
    found = looked.under("fiberpo_domain")
    select(shown, "view", "rows")
    push = np.abs(found.coefficient).sum(axis=1)
    select(shown, "sort", "push")
    assert rows(shown) == np.argsort(-push, kind="stable").tolist()
    select(shown, "sort", "drift")
    assert rows(shown) == np.argsort(-np.abs(found.drift()[:, 2]), kind="stable").tolist()
    select(shown, "sort", "order")
    select(shown, "view", "groups")
    beside = shown.evaluate(
        "[...document.querySelectorAll('.group')].map(g => g.querySelectorAll('.row').length)"
    )
    assert beside == [4, 4, 4, 4]


def test_colours_follow_the_quantity(shown):
    found, kept = looked.under("fiberpo_domain"), looked.kept()
    names = shown.evaluate("index.quantities.map(of => of.name)")
    for name, values in (("log_ratio", found.log_ratio), ("coefficient", found.coefficient)):
        select(shown, "colour", str(names.index(name)))
        classes = shown.evaluate("[...document.querySelectorAll('#list .t')].map(e => e.className)")
        for said, value in zip(classes, values[kept.mask], strict=True):
            sign = "u" if value > 0 else "d"
            assert value == 0 or said.split()[1][0] == sign
        assert any(said.split()[1][1:] == "6" for said in classes)
    legend = shown.evaluate("document.getElementById('legend').textContent")
    assert "coefficient" in legend and "and above" in legend


@pytest.mark.parametrize("width", [400, 1300])
def test_a_page_fits_its_window_in_both_themes(shown, width):
    shown.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=800,
        deviceScaleFactor=1,
        mobile=False,
    )
    for theme in ("dark", "light"):
        shown.evaluate("document.getElementById('theme').click()")
        found = shown.evaluate(
            "(e => [e.dataset.theme, e.scrollWidth <= e.clientWidth,"
            " getComputedStyle(document.body).backgroundColor])(document.documentElement)"
        )
        assert found[:2] == [theme, True]
        assert (found[2] == "rgb(21, 23, 27)") == (theme == "dark")
    # Every control and region has a name for those who cannot see it.
    unnamed = shown.evaluate(
        "[...document.querySelectorAll('select, input, button, section, aside, [role=listbox]')]"
        ".filter(e => !e.ariaLabel && !e.closest('label') && !e.textContent.trim()).length"
    )
    assert unnamed == 0
