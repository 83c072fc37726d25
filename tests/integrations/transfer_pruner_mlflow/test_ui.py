"""MLflow's own UI in Chromium: who opens the run sees what was saved, without a network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
from matplotlib.image import imread

pytest.importorskip("selenium")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions as ec
from selenium.webdriver.support.wait import WebDriverWait

from tests.integrations.transfer_pruner_mlflow.server import Server
from transfer_pruner_mlflow import SavingsTracker

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="no Chromium here to open MLflow's UI with"
    ),
    # What is drawn does not depend on the database.
    pytest.mark.parametrize("server", ["sqlite"], indirect=True),
]
SAVED = (0, 158, 115)
"""Colour of the seconds saved in the report's figures."""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--window-size=1300,2600", f"--user-data-dir={tmp_path / 'profile'}"),
        # Of all hosts only the server answers.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


def visit(browser: webdriver.Chrome, run: str, page: str) -> None:
    browser.get("about:blank")  # from one page of a run to another, the UI keeps the artifact
    browser.get(f"{run}{page}?workflowType=machine_learning")


def text_of(browser: webdriver.Chrome, wanted: str) -> str:
    """Return the page's text once `wanted` stands in it."""
    body = (By.TAG_NAME, "body")
    WebDriverWait(browser, 120).until(ec.text_to_be_present_in_element(body, wanted))
    return browser.find_element(*body).text


def test_a_run_shows_headline_charts_pairs_and_report(
    server: Server,
    browser: webdriver.Chrome,
    search: Callable[..., optuna.Study],
    tmp_path: Path,
) -> None:
    with SavingsTracker("looked at", tracking_uri=server.uri, maximize=False) as tracker:
        search(tracker, 60)
    run = f"{server.uri}/#/experiments/{tracker.experiment_id}/runs/{tracker.run_id}"

    visit(browser, run, "")
    text = text_of(browser, "eliminated before training")
    assert "an estimated" in text
    assert "False eliminations:" in text
    assert "savings/estimated_fraction_saved" in text

    visit(browser, run, "/model-metrics")
    text_of(browser, "estimated_fraction_saved")
    charts = WebDriverWait(browser, 120).until(
        ec.presence_of_all_elements_located((By.CSS_SELECTOR, ".js-plotly-plot .scatterlayer path"))
    )
    assert len(charts) >= 4

    visit(browser, run, "/artifacts/savings/pairs.csv")
    assert "eliminated" in text_of(browser, "told so")

    visit(browser, run, "/artifacts/savings/report.html")
    WebDriverWait(browser, 120).until(
        ec.frame_to_be_available_and_switch_to_it((By.TAG_NAME, "iframe"))
    )
    assert "24 of 60 trials" in text_of(browser, "Headline")
    browser.switch_to.default_content()
    image = tmp_path / "shown.png"
    browser.save_screenshot(str(image))
    difference = np.abs(imread(image)[..., :3] - np.array(SAVED) / 255)
    assert (difference < 0.02).all(axis=2).sum() > 50
