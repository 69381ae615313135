"""Bars of labels on the server's page, in a real browser."""

from pathlib import Path

import pytest

from flows.serving.page.page import page_of
from tests.support.browser import browsing

PUT = """const tint = new Map(), cards = [0, 1].map(() => new Bars(() => {}));
const cat = (score, passed) => [{label: "cat", score, threshold: 0.2, passed, why: "", box: null}];
cards.forEach(card => document.body.append(card.box));
const marks = () => cards.map(card => card.list.querySelector(".least")?.getAttribute("x1"));
const seen = [];
cards[0].put(cat(0.1, false), tint); seen.push(marks());
cards[1].put(cat(0.4, true), tint); seen.push(marks());
cards[1].put(cat(0.9, true), tint); seen.push(marks());
cards[0].put(cat(0.05, false), tint); seen.push(marks());
return seen"""


@pytest.mark.browser
def test_a_threshold_stands_at_one_place_on_every_card(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(page_of().html)
    with browsing(tmp_path / "profile") as browser:
        browser.open(path.as_uri())
        alone, *both = browser.run(PUT)
    assert alone[0] is not None and alone[1] is None
    assert all(first == second for first, second in both)
    assert len({first for first, _ in both}) == 2 and both[-1][0] == "20%"
