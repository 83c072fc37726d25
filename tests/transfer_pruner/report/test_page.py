"""The report is one file that holds what was measured, fetches nothing and runs nothing."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transfer_pruner import (
    EliminationRule,
    LearningRule,
    TaskEmbedding,
    TransferPredictor,
    TrialRecord,
    estimate_audit,
    estimate_savings,
    find_answer,
    ranking_trust,
    transfers_from_records,
)
from transfer_pruner.report import pairs_table, write_report

VOID = {"meta", "link", "br", "hr", "img", "input", "base"}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Glyph:UserWarning"),
    pytest.mark.filterwarnings("ignore:Matplotlib currently does not support:UserWarning"),
]


class Page(HTMLParser):
    """Reads a page strictly: whatever opens closes, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        self.words.append(data)

    def cell(self, row: str, column: int = 1) -> str:
        return next(cells[column] for cells in self.rows if cells and cells[0].strip() == row)


def is_harmless(page: Page) -> bool:
    """Whether nothing is fetched from elsewhere, and nothing runs."""
    links = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    return (
        not {"script", "iframe", "object", "embed", "link", "base", "img"} & set(page.tags)
        and not [name for name, _ in page.attributes if name.startswith("on")]
        # The names of markup's own vocabularies look like addresses.
        and not [name for name, value in page.attributes if "://" in value and name[:5] != "xmlns"]
        and all(link.startswith(("#", "data:image/png;", "report-data/")) for link in links)
    )


def written(path: Path, records: list[TrialRecord], **options: object) -> Page:
    write_report(records, path, **options)
    return Page(path.read_text("utf-8"))


@pytest.fixture
def rule(embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame) -> EliminationRule:
    predictor = TransferPredictor(embeddings).fit(transfers, transfers["gain"])
    return EliminationRule.top_k(predictor, k=2)


@pytest.fixture
def records(rule: EliminationRule, transfers: pd.DataFrame) -> list[TrialRecord]:
    """A search over all pairs with that rule; every third eliminated trial is audited."""
    found = [
        TrialRecord(at, None, target, "trained", 5.0, 0.5)
        for at, target in enumerate(sorted(set(transfers["target"])))
    ]
    gone = 0
    for row in transfers.itertuples():
        decision = rule.decide(row.source, row.target)
        gone += decision.eliminated
        audit = decision.eliminated and gone % 3 == 0
        runs = audit or not decision.eliminated
        found.append(
            TrialRecord(
                len(found),
                row.source,
                row.target,
                "trained" if runs else "eliminated",
                10.0 + len(found) if runs else 0.01,
                0.5 + row.gain if runs else math.nan,
                decision.score,
                decision.probability,
                decision.reason,
                {"lr": 0.1},
                audit,
            )
        )
    return found


def test_the_report_says_what_was_saved_and_what_of_it_is_estimated(
    tmp_path: Path,
    records: list[TrialRecord],
    rule: EliminationRule,
    embeddings: dict[str, TaskEmbedding],
    transfers: pd.DataFrame,
) -> None:
    baselines = pd.DataFrame({"source": None, "target": list(embeddings), "gain": 0.0})
    trials = pd.concat([transfers, baselines], ignore_index=True)
    trials["dev"] = trials["test"] = 0.5 + trials["gain"]
    page = written(
        tmp_path / "report.html",
        records,
        rule=rule,
        title="Crises & <b>tasks</b>",
        single_task_seconds=60.0,
        attribution_seconds=7.0,
        trials=trials,
        embeddings=embeddings,
    )
    assert is_harmless(page)
    assert page.tags.count("svg") == 3 + 6 + 4  # of all rankings, those of four targets
    savings = estimate_savings(records, single_task_seconds=60.0, attribution_seconds=7.0)
    assert savings.headline() in page.words
    assert estimate_audit(records).headline() in page.words
    assert "Crises & <b>tasks</b>" in page.words
    assert page.cell("seconds spent") == f"{savings.seconds_spent:,.1f}"
    assert page.cell("seconds spent", 2) == "measured"
    assert page.cell("seconds saved") == f"{savings.estimated_seconds_saved:,.1f}"
    assert page.cell("seconds saved", 2).startswith("estimated, 90% interval")
    assert page.cell("fingerprint") == rule.fingerprint
    assert '"rule": "top_k"' in page.cell("settings")
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_what_the_search_found_stands_before_what_it_saved(
    tmp_path: Path, records: list[TrialRecord]
) -> None:
    answer = find_answer(records, dev_sizes=50)
    page = written(tmp_path / "report.html", records, dev_sizes=50)
    titles = ("What the search found", answer.headline(), estimate_savings(records).headline())
    places = [page.words.index(words) for words in titles]
    assert places == sorted(places)
    for told in answer.shown():
        assert list(told.values()) in page.rows
        assert "50 dev examples" in told["how sure"]
    saved = pd.read_csv(tmp_path / "report-data" / "answer.csv", keep_default_na=False)
    assert saved["source"].tolist() == answer.table()["source"].tolist()


def test_why_the_search_stopped_and_what_it_never_started_are_told(
    tmp_path: Path, records: list[TrialRecord]
) -> None:
    ending = {"exhaustive_trials": len(records) + 5, "stopped": "of <no pair> more is expected"}
    page = written(tmp_path / "report.html", records, **ending)
    savings = estimate_savings(records, **ending)  # type: ignore[arg-type]
    assert savings.headline() in page.words
    assert "Why it stopped: of <no pair> more is expected" in page.words
    assert page.cell("trials never started") == "5"
    seconds = page.cell("of these, of trials never started")
    assert seconds == f"{savings.estimated_never_started_seconds:,.1f}"
    assert page.cell("of these, of trials never started", 2).startswith("estimated, 90% interval")
    plain = written(tmp_path / "report.html", records)
    assert "trials never started" not in [cells[0] for cells in plain.rows if cells]


def test_every_figure_lies_beside_its_numbers(
    tmp_path: Path, records: list[TrialRecord], rule: EliminationRule
) -> None:
    page = written(tmp_path / "report.html", records, rule=rule)
    links = [value for name, value in page.attributes if name == "href" and value[0] != "#"]
    assert len(links) == 9
    tables = {Path(link).stem: pd.read_csv(tmp_path / link) for link in links}
    assert sorted(path.stem for path in (tmp_path / "report-data").iterdir()) == sorted(tables)
    assert tables["savings_over_time"]["trials"].iloc[-1] == len(records)
    assert len(tables["source_ranking"]) == 30
    gains = transfers_from_records(records)
    measured = tables["predicted_and_measured"].set_index(["source", "target"])["gain"]
    for row in gains.itertuples():
        assert measured[row.source, row.target] == pytest.approx(row.gain)
    heat = tables["pair_heatmap"]
    assert heat["measured_gain"].count() == len(gains)
    assert heat["predicted"].count() == 30


def test_a_later_report_leaves_no_numbers_of_an_earlier_one(
    tmp_path: Path, records: list[TrialRecord], rule: EliminationRule
) -> None:
    written(tmp_path / "report.html", records, rule=rule)
    (tmp_path / "report-data" / "notes.csv").write_text("mine")
    written(tmp_path / "report.html", records)
    left = {path.name for path in (tmp_path / "report-data").iterdir()}
    assert "source_ranking.csv" not in left
    assert {"notes.csv", "pairs.csv"} <= left
    assert not list(tmp_path.rglob("*.partial"))


def test_pairs_are_rows_and_what_is_not_known_is_left_empty(tmp_path: Path) -> None:
    records = [
        TrialRecord(0, None, "t", "trained", 5.0, 0.5),
        TrialRecord(1, "a", "t", "trained", 3.0, 0.8, score=0.1),
        TrialRecord(2, "b", "t", "eliminated", 0.5, score=-0.3, reason="hopeless"),
        TrialRecord(3, ("a", "b"), "t", "trained", 6.0, 0.6),
    ]
    page = written(tmp_path / "report.html", records)
    assert page.cell("a", 8) == "+0.3000"
    assert page.cell("b", 8) == ""
    assert ["a + b", "t", "kept"] in [cells[:3] for cells in page.rows]
    saved = pd.read_csv(tmp_path / "report-data" / "pairs.csv", keep_default_na=False)
    assert saved["source"].tolist() == pairs_table(records)["source"].tolist()


def test_where_less_is_better_the_records_say_so_and_the_report_reads_them(
    tmp_path: Path, records: list[TrialRecord], rule: EliminationRule, transfers: pd.DataFrame
) -> None:
    """The same search with all values turned around is the same report."""
    turned = [replace(r, value=1 - r.value, maximize=False) for r in records]
    baselines = pd.DataFrame({"source": None, "target": list(dict.fromkeys(transfers["target"]))})
    trials = pd.concat([transfers, baselines.assign(gain=0.0)], ignore_index=True)
    up = trials.assign(dev=0.5 + trials["gain"], test=0.5 + trials["gain"])
    down = trials.assign(dev=0.5 - trials["gain"], test=0.5 - trials["gain"])
    page = written(tmp_path / "report.html", records, rule=rule, trials=up)
    data = {path.name: pd.read_csv(path) for path in (tmp_path / "report-data").iterdir()}
    other = written(tmp_path / "report.html", turned, rule=rule, trials=down)
    assert estimate_audit(records, maximize=True).headline() in page.words
    assert estimate_audit(records, maximize=True).headline() in other.words
    for name, table in data.items():
        again = pd.read_csv(tmp_path / "report-data" / name)
        values = [column for column in table if column.endswith("value")]
        pd.testing.assert_frame_equal(
            table.drop(columns=values), again.drop(columns=values), rtol=1e-9, atol=1e-9
        )
    mixed = [*records, replace(turned[0], number=999)]
    with pytest.raises(ValueError, match="some maximize and some minimize"):
        write_report(mixed, tmp_path / "mixed.html")
    assert not (tmp_path / "mixed.html").exists()


def test_names_are_text_wherever_they_stand(
    tmp_path: Path, transfers: pd.DataFrame, records: list[TrialRecord]
) -> None:
    evil = "<script src=//x>alert(1)</script>"
    names = {"news": evil, "advice": '"><img src=x onerror=alert(1)>', "rumour": "--></svg>$x_{$"}

    def renamed(name: str | None) -> str | None:
        return names.get(name, name) if name else name

    table = transfers.replace({"source": names, "target": names})
    rule = EliminationRule.top_k(TransferPredictor().fit(table, table["gain"]), k=2)
    odd = [
        replace(
            record,
            source=renamed(record.source),
            target=renamed(record.target),
            reason=f"</td>{evil}",
        )
        for record in records
    ]
    page = written(tmp_path / "report.html", odd, rule=rule, title=f"</title>{evil}")
    assert is_harmless(page)
    assert {evil, *names.values()} <= {cells[0] for cells in page.rows if cells}
    saved = pd.read_csv(tmp_path / "report-data" / "pairs.csv", keep_default_na=False)
    assert set(names.values()) <= set(saved["source"])


def test_a_rule_that_learns_is_drawn_as_it_decides_in_the_end(
    tmp_path: Path, records: list[TrialRecord], embeddings: dict[str, TaskEmbedding]
) -> None:
    learning = LearningRule(TransferPredictor(embeddings), refit_every=5)
    page = written(tmp_path / "report.html", records, rule=learning)
    now = learning.refitted(transfers_from_records(records))
    assert page.cell("fingerprint") == now.fingerprint
    assert "refitted to the measured transfers" in page.cell("rule")


def test_the_report_says_how_far_the_ranking_holds_where_it_knows_one(
    tmp_path: Path, embeddings: dict[str, TaskEmbedding], transfers: pd.DataFrame
) -> None:
    records = [TrialRecord(n, None, t, "trained", 1.0, 0.5) for n, t in enumerate(embeddings)]
    records += [
        TrialRecord(n, source, target, "trained", 1.0, 0.5 + gain)
        for n, (source, target, gain) in enumerate(transfers.to_numpy().tolist(), 10)
    ]
    write_report(records, tmp_path / "r.html", embeddings=embeddings)
    said = str(ranking_trust(embeddings, transfers))
    assert said[1:] in (tmp_path / "r.html").read_text()
    write_report(records, tmp_path / "r.html")
    assert "How far the ranking holds" not in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("outcome", ["trained", "eliminated", "failed"])
def test_one_record_is_a_report(tmp_path: Path, outcome: str) -> None:
    record = TrialRecord(0, "s", "t", outcome, 1.5, 0.5 if outcome == "trained" else math.nan)
    page = written(tmp_path / "new folder" / "report.html", [record])
    assert is_harmless(page)
    assert page.cell(f"trials {outcome}") == "1"
    assert estimate_savings([record]).headline() in page.words


def test_a_search_that_kept_nothing_and_one_that_eliminated_nothing_are_reports(
    tmp_path: Path, records: list[TrialRecord]
) -> None:
    gone = [r for r in records if r.outcome == "eliminated"]
    page = written(tmp_path / "report.html", gone)
    assert page.cell("seconds saved") == "not known"
    kept = [r for r in records if r.outcome == "trained" and not r.audit]
    page = written(tmp_path / "report.html", kept)
    assert page.cell("seconds saved") == "0.0"
    assert page.cell("trials eliminated") == "0"
    assert "Audit" not in page.words


def test_too_many_tasks_to_read_are_left_to_the_table(tmp_path: Path) -> None:
    records = [
        TrialRecord(at, f"task {at}", f"task {at + 1}", "trained", 1.0, 0.5, score=0.1)
        for at in range(90)
    ]
    page = written(tmp_path / "report.html", records)
    assert any("91 tasks are too many" in words for words in page.words)
    assert len(pd.read_csv(tmp_path / "report-data" / "pair_heatmap.csv")) == 90


def test_bad_input_stops_before_anything_is_written(
    tmp_path: Path, records: list[TrialRecord]
) -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ValueError, match="path must name a file"):
        write_report(records, tmp_path)
    with pytest.raises(ValueError, match="chosen_by is 'dev'"):
        write_report(
            records, tmp_path / "report.html", trials=pd.DataFrame({"source": [], "target": []})
        )
    assert not list(tmp_path.iterdir())


def test_thousands_of_trials_are_a_report(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tasks = [f"task {at}" for at in range(40)]
    records = [
        TrialRecord(
            at,
            None if at < 40 else tasks[rng.integers(40)],
            tasks[at % 40],
            "trained" if at < 40 or rng.random() < 0.4 else "eliminated",
            rng.lognormal(),
            rng.random(),
            rng.normal(),
            rng.random(),
            hyperparameters={"lr": float(rng.random()), "optimiser": str(rng.integers(3))},
        )
        for at in range(5000)
    ]
    page = written(tmp_path / "report.html", records)
    assert is_harmless(page)
    trained = sum(record.outcome == "trained" for record in records)
    assert page.cell("trials trained") == str(trained)


SOME_NAME = st.one_of(st.sampled_from(["a", "b", "", "a + b"]), st.text(max_size=8))
A_RECORD = st.builds(
    TrialRecord,
    number=st.integers(0, 30),
    source=st.one_of(st.none(), SOME_NAME, st.tuples(SOME_NAME, SOME_NAME)),
    target=st.one_of(st.sampled_from(["a", "b"]), st.text(max_size=8)),
    outcome=st.sampled_from(["trained", "eliminated", "failed"]),
    seconds=st.floats(0, 1e6),
    value=st.one_of(st.just(math.nan), st.floats(-1e6, 1e6), st.just(math.inf)),
    score=st.one_of(st.just(math.nan), st.floats(-1e6, 1e6), st.just(-math.inf)),
    probability=st.one_of(st.just(math.nan), st.floats(0, 1)),
    reason=st.text(max_size=20),
    hyperparameters=st.dictionaries(
        st.sampled_from(["lr", "score", "layers"]),
        st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers())),
    ),
    audit=st.booleans(),
)


@given(st.lists(A_RECORD, min_size=1, max_size=8), st.booleans())
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_odd_records_are_a_report_too(
    tmp_path: Path, records: list[TrialRecord], maximize: bool
) -> None:
    page = written(tmp_path / "report.html", records, maximize=maximize)
    assert is_harmless(page)
    assert page.cell("trials failed") == str(sum(r.outcome == "failed" for r in records))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to render the report with")
def test_a_browser_without_a_network_shows_every_figure(
    tmp_path: Path, records: list[TrialRecord], rule: EliminationRule
) -> None:
    write_report(records, tmp_path / "report.html", rule=rule)
    image = tmp_path / "page.png"
    assert CHROMIUM is not None
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND"),
        *("--window-size=1100,6000", f"--user-data-dir={tmp_path / 'profile'}"),
        *(f"--screenshot={image}", (tmp_path / "report.html").as_uri()),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    from matplotlib.image import imread

    shown = imread(image)[..., :3]
    assert shown.shape[1] == 1100

    def seen(colour: Callable[[np.ndarray], np.ndarray]) -> int:
        return int(colour(shown).sum())

    assert seen(lambda p: (p > 0.99).all(axis=2)) > shown[..., 0].size / 2  # dark on white
    for wanted in ("#0072B2", "#D55E00", "#009E73"):  # kept, eliminated, saved
        rgb = np.array([int(wanted[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        assert seen(lambda p, rgb=rgb: (np.abs(p - rgb) < 0.02).all(axis=2)) > 50, wanted
