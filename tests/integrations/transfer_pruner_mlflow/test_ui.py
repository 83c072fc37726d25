"""MLflow's own UI in Chromium: who opens a run sees what was found and saved, without a network.

With ``UI_PICTURES=FOLDER`` they leave pictures there, such as docs/mlflow_compare.png.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
import optuna
import pytest
from matplotlib.image import imread
from mlflow import MlflowClient

pytest.importorskip("selenium")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions as ec
from selenium.webdriver.support.wait import WebDriverWait

from tests.integrations.transfer_pruner_mlflow.server import Server
from transfer_pruner import Decision, EliminationRule, LearningRule, TransferPredictor
from transfer_pruner_mlflow import SavingsTracker
from transfer_pruner_optuna import TrackingCallback, TransferSampler, gate

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
) -> None:
    with SavingsTracker("looked at", tracking_uri=server.uri, maximize=False) as tracker:
        search(tracker, 60)
    run = f"{server.uri}/#/experiments/{tracker.experiment_id}/runs/{tracker.run_id}"

    visit(browser, run, "")
    text = text_of(browser, "eliminated before training")
    assert "an estimated" in text
    assert text.index("Transfer is best for") < text.index("an estimated")
    assert "False eliminations:" in text
    assert "savings/estimated_fraction_saved" in text

    # Charts are drawn as far as they are in the window: the best of each target, then the savings.
    browser.set_window_size(1300, 6000)
    visit(browser, run, "/model-metrics")
    assert "best" in text_of(browser, "estimated_fraction_saved")
    charts = WebDriverWait(browser, 120).until(
        ec.presence_of_all_elements_located((By.CSS_SELECTOR, ".js-plotly-plot .scatterlayer path"))
    )
    assert len(charts) >= 4

    browser.set_window_size(1300, 2600)

    visit(browser, run, "/artifacts/savings/pairs.csv")
    assert "eliminated" in text_of(browser, "told so")

    visit(browser, run, "/artifacts/savings/report.html")
    WebDriverWait(browser, 120).until(
        ec.frame_to_be_available_and_switch_to_it((By.TAG_NAME, "iframe"))
    )
    # How many an audit takes is drawn by the study's name.
    assert f"{tracker.savings().trials_eliminated} of 60 trials" in text_of(browser, "Headline")
    figures = browser.find_elements(By.CSS_SELECTOR, "figure svg")
    pictures = [imread(BytesIO(figure.screenshot_as_png))[..., :3] for figure in figures]
    assert len(pictures) >= 5
    for picture in pictures:
        assert (picture < 0.98).any(axis=2).mean() > 0.005, "a figure is drawn"
    # How long the dashed line is depends on the seconds that were measured.
    saved = [np.abs(picture - np.array(SAVED) / 255) < 0.02 for picture in pictures]
    assert any(picture.all(axis=2).any() for picture in saved)


TASKS = ["advice", "news", "rescue", "weather"]
SPACE = {"source": TASKS, "target": TASKS, "lr": [0.1, 0.01, 0.001]}
HELPS = {"advice": 0.01, "news": 0.06, "rescue": 0.03, "weather": -0.04}


def objective(trial: optuna.Trial) -> float:
    chosen = {name: trial.suggest_categorical(name, choices) for name, choices in SPACE.items()}
    source, target = chosen["source"], chosen["target"]
    gain = 0.0 if source == target else HELPS[source] + 0.01 * (target == "weather")
    return 0.6 + 0.05 * TASKS.index(target) + gain - 0.01 * SPACE["lr"].index(chosen["lr"])


def three_searches(uri: str) -> dict[str, SavingsTracker]:
    """One search three times: exhaustive, behind a gate, and by a rule that learns."""
    pairs = [(s, t) for s in TASKS for t in TASKS if s != t]
    rule = EliminationRule(
        {pair: Decision(HELPS[pair[0]] < 0.02, HELPS[pair[0]], 0.5, "told so") for pair in pairs},
        {"rule": "top_k", "k": 2},
    )
    candidates = rule.table()[["source", "target"]]
    learning = LearningRule(TransferPredictor(), pairs=candidates)
    trackers: dict[str, SavingsTracker] = {}
    for name, its_rule, trials in (
        ("exhaustive", None, 48),
        ("gated", rule, 48),
        ("learning", learning, 24),
    ):
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.GridSampler(SPACE, seed=0)
        )
        with SavingsTracker(
            "compared", run_name=name, tracking_uri=uri, rule=its_rule, study=study
        ) as tracker:
            if name == "exhaustive":
                study.optimize(objective, n_trials=trials, callbacks=[TrackingCallback(tracker)])
            elif name == "gated":
                study.optimize(gate(objective, rule, tracker=tracker), n_trials=trials)
            else:
                base = optuna.samplers.TPESampler(seed=0)
                study.sampler = TransferSampler(learning, base, tracker=tracker, seed=0)
                study.optimize(objective, n_trials=trials)
        trackers[name] = tracker
    return trackers


def test_searches_stand_side_by_side_under_the_same_names(
    server: Server, browser: webdriver.Chrome
) -> None:
    trackers = three_searches(server.uri)
    client = MlflowClient(server.uri)
    runs = {name: client.get_run(str(one.run_id)).data for name, one in trackers.items()}
    # How far a ranking holds is told where pairs were ranked beforehand.
    metrics = [
        {name for name in data.metrics if not name.startswith("trust/")} for data in runs.values()
    ]
    assert metrics[0] == metrics[1] == metrics[2], "every figure has its fellow in each run"
    best = [{key for key in data.params if key.startswith("best/")} for data in runs.values()]
    assert best[0] == best[1] == best[2] == {f"best/{task}" for task in TASKS}
    kinds = {name: data.tags["transfer_pruner.search"] for name, data in runs.items()}
    assert list(kinds.values()) == ["no elimination", "elimination", "learning"]
    for task in TASKS:
        assert runs["gated"].metrics[f"best/{task}"] == runs["exhaustive"].metrics[f"best/{task}"]

    ids = quote(json.dumps([one.run_id for one in trackers.values()]))
    experiments = quote(json.dumps([trackers["gated"].experiment_id]))
    browser.get(
        f"{server.uri}/#/compare-runs?runs={ids}&experiments={experiments}"
        "&workflowType=machine_learning"
    )
    text = text_of(browser, "best/news")
    assert all(name in text for name in trackers)
    assert "news with lr=0.1" in text
    if "UI_PICTURES" in os.environ:
        # What the picture is not about is folded up.
        for place in ("//*[text()='Visualizations']", "//button[@aria-label='Close']"):
            for element in browser.find_elements(By.XPATH, place)[:1]:
                element.click()
        browser.set_window_size(1300, 1500)
        browser.save_screenshot(str(Path(os.environ["UI_PICTURES"]) / "mlflow_compare.png"))
