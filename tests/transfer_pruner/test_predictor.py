from __future__ import annotations

import warnings
from unittest import SkipTest

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal, spearmanr
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from transfer_pruner import LearningRule, TaskEmbedding, TransferPredictor, TransferPrunerWarning
from transfer_pruner.pairs import attribution_score, ordered_pairs
from transfer_pruner.predictor.process import SCORE, SCORE_WEIGHTS

Embeddings = dict[str, TaskEmbedding]


def test_before_any_transfer_was_measured_it_ranks_by_attribution(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    predictor = TransferPredictor(embeddings)
    np.testing.assert_array_equal(
        predictor.predict(transfers), attribution_score(transfers, embeddings)
    )
    assert np.isnan(predictor.predict_proba(transfers)).all()


def test_measured_gains_teach_it_which_sources_are_good(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    held_out = transfers["target"] == "news"
    known = transfers[~held_out]
    predictor = TransferPredictor(embeddings).fit(known, known["gain"])
    predicted = predictor.predict(transfers[held_out])
    assert np.corrcoef(predicted, transfers[held_out]["gain"])[0, 1] > 0.8
    probability = predictor.predict_proba(transfers[held_out])
    assert ((probability > 0) & (probability < 1)).all()
    assert (np.diff(probability[np.argsort(predicted)]) >= 0).all()


def test_it_learns_from_measured_transfers_alone(transfers: pd.DataFrame) -> None:
    predictor = TransferPredictor().fit(transfers, transfers["gain"])
    assert predictor.tasks == sorted(set(transfers["source"]))
    assert np.corrcoef(predictor.predict(transfers), transfers["gain"])[0, 1] > 0.8


def test_probabilities_are_calibrated_where_gains_are_as_in_training() -> None:
    said, happened = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        tasks = [f"task-{i:02}" for i in range(20)]
        pairs = ordered_pairs(tasks)
        quality = dict(zip(tasks, rng.normal(0, 0.05, len(tasks)), strict=True))
        pairs["gain"] = pairs["source"].map(quality) + rng.normal(0, 0.05, len(pairs))
        known = pairs["target"].isin(tasks[:12])
        predictor = TransferPredictor().fit(pairs[known], pairs[known]["gain"])
        said.append(predictor.predict_proba(pairs[~known]))
        happened.append(pairs[~known]["gain"].to_numpy() > 0)
    probability, positive = np.concatenate(said), np.concatenate(happened)
    for low, high in ((0, 0.3), (0.3, 0.7), (0.7, 1)):
        chosen = (probability >= low) & (probability < high)
        assert positive[chosen].mean() == pytest.approx(probability[chosen].mean(), abs=0.1)


def test_scikit_learns_tools_take_it(embeddings: Embeddings, transfers: pd.DataFrame) -> None:
    predictor = TransferPredictor(embeddings, regressor=Ridge())
    copied = clone(predictor)
    assert copied.get_params()["regressor__alpha"] == 1.0
    assert copied.embeddings["news"] is embeddings["news"]
    predictor = TransferPredictor(embeddings)
    scores = cross_val_score(
        predictor,
        transfers,
        transfers["gain"],
        groups=transfers["target"],
        cv=LeaveOneGroupOut(),
        error_score="raise",
    )
    assert len(scores) == 6
    assert np.mean(scores) > 0.5
    ridges = [make_pipeline(SimpleImputer(), StandardScaler(), Ridge(x)) for x in (1, 100)]
    search = GridSearchCV(predictor, {"regressor": ridges}, cv=2, error_score="raise")
    assert search.fit(transfers, transfers["gain"]).best_score_ > 0


def test_equal_transfers_give_equal_predictions(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    first, second = (
        TransferPredictor(embeddings).fit(transfers, transfers["gain"]) for _ in range(2)
    )
    np.testing.assert_array_equal(first.predict(transfers), second.predict(transfers))
    np.testing.assert_array_equal(first.predict_proba(transfers), second.predict_proba(transfers))


def test_another_regressor_takes_the_same_features(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    forest = RandomForestRegressor(n_estimators=20, random_state=0)
    predictor = TransferPredictor(embeddings, regressor=forest).fit(transfers, transfers["gain"])
    assert np.isfinite(predictor.predict(transfers)).all()
    assert not hasattr(forest, "estimators_")


def test_columns_can_have_other_names(embeddings: Embeddings, transfers: pd.DataFrame) -> None:
    renamed = transfers.rename(columns={"source": "from_task", "target": "to_task"})
    predictor = TransferPredictor(
        embeddings, source_column="from_task", target_column="to_task"
    ).fit(renamed, renamed["gain"])
    expected = TransferPredictor(embeddings).fit(transfers, transfers["gain"])
    np.testing.assert_array_equal(predictor.predict(renamed), expected.predict(transfers))


def test_a_task_that_it_does_not_know_gets_no_prediction(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    stranger = pd.DataFrame({"source": ["gossip", "news"], "target": ["news", "advice"]})
    for predictor in (
        TransferPredictor(embeddings),
        TransferPredictor(embeddings).fit(transfers, transfers["gain"]),
    ):
        predicted = predictor.predict(stranger)
        assert np.isnan(predicted[0])
        assert np.isfinite(predicted[1])
        assert np.isnan(predictor.predict_proba(stranger)[0])


def test_gains_that_are_missing_are_left_out_and_counted(transfers: pd.DataFrame) -> None:
    gains = transfers["gain"].copy()
    gains.iloc[:4] = [np.nan, np.inf, np.nan, -np.inf]
    with pytest.warns(TransferPrunerWarning, match="gains has 4 NaN or infinite values of 30"):
        predictor = TransferPredictor().fit(transfers, gains)
    assert len(predictor.measured_) == 26


def test_few_or_featureless_transfers_are_enough(embeddings: Embeddings) -> None:
    one = pd.DataFrame({"source": ["news"], "target": ["advice"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", TransferPrunerWarning)
        predictor = TransferPredictor(embeddings).fit(one, [0.1])
    assert 0.08 < predictor.predict(one)[0] <= 0.1
    assert 0.5 < predictor.predict_proba(one)[0] < 1
    many = pd.DataFrame({"source": ["news"] * 3, "target": ["advice", "weather", "rescue"]})
    predicted = TransferPredictor(embeddings).fit(many, [0.2] * 3).predict(many)
    assert predicted == pytest.approx(0.2, abs=0.02)


def test_what_cannot_be_learnt_from_is_refused(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    predictor = TransferPredictor(embeddings)
    with pytest.raises(ValueError, match=r"at least one ordered pair .* but has 0 rows"):
        predictor.fit(transfers.iloc[:0], [])
    itself = pd.DataFrame({"source": ["news"], "target": ["news"]})
    with pytest.raises(ValueError, match="none of them usable"):
        predictor.fit(itself, [0.0])
    with pytest.raises(ValueError, match=r"each of the 30 pairs but has shape \(2,\)"):
        predictor.fit(transfers, [0.1, 0.2])
    with pytest.raises(NotFittedError, match="neither embeddings nor measured transfers"):
        TransferPredictor().predict(transfers)


class OnArrays(TransferPredictor):
    """The predictor behind scikit-learn's checks, which know arrays alone: a pair for each row."""

    def __init__(self) -> None:
        super().__init__()

    @property
    def feature_columns(self) -> list[str]:
        return [f"x{column}" for column in range(getattr(self, "_width", 0))]

    @feature_columns.setter
    def feature_columns(self, _: object) -> None:
        pass

    def fit(self, X: object, y: object) -> OnArrays:
        from sklearn.utils.validation import validate_data

        X, y = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
        self._width = self.n_features_in_
        super().fit(self._pairs(X), y)
        self.n_features_in_ = self._width
        return self

    def predict(self, X: object) -> np.ndarray:
        if isinstance(X, pd.DataFrame) and "source" in X:
            return super().predict(X)
        return super().predict(self._validated(X))

    def predict_proba(self, X: object) -> np.ndarray:
        if isinstance(X, pd.DataFrame) and "source" in X:
            return super().predict_proba(X)
        return super().predict_proba(self._validated(X))

    def _validated(self, X: object) -> pd.DataFrame:
        from sklearn.utils.validation import validate_data

        check_is_fitted(self)
        return self._pairs(validate_data(self, X, reset=False, dtype=np.float64))

    def _pairs(self, X: np.ndarray) -> pd.DataFrame:
        """Make source and target a matter of a row's values, the values its features."""
        table = pd.DataFrame(X, columns=[f"x{column}" for column in range(X.shape[1])])
        key = np.round(np.abs(X).sum(axis=1) * 1e3).astype(np.int64)
        table["source"] = [f"source-{k % 7}" for k in key]
        table["target"] = [f"target-{k // 7 % 5}" for k in key]
        return table


NOT_APPLICABLE = {
    "check_regressors_no_decision_function": "it predicts gains, and their sign's probability too",
}


def test_scikit_learns_own_checks_pass() -> None:
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    if not hasattr(checks, "estimator_checks_generator"):
        pytest.skip("this scikit-learn is older than estimator_checks_generator (1.6)")
    ran = 0
    for estimator, check in checks.estimator_checks_generator(OnArrays()):
        if getattr(check, "func", check).__name__ in NOT_APPLICABLE:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                check(estimator)
            except SkipTest:  # it asks for an environment variable
                continue
        ran += 1
    assert ran > 40


def test_further_columns_of_the_pairs_are_learnt_from(transfers: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    transfers["logme"] = rng.normal(size=len(transfers))
    transfers["gain"] = 0.1 * transfers["logme"] + rng.normal(0, 0.01, len(transfers))
    held_out = transfers["target"] == "news"
    known = transfers[~held_out]
    with_it, without = (
        TransferPredictor(feature_columns=columns).fit(known, known["gain"])
        for columns in (["logme"], [])
    )
    news = transfers[held_out]
    assert np.corrcoef(with_it.predict(news), news["gain"])[0, 1] > 0.9
    assert np.corrcoef(without.predict(news), news["gain"])[0, 1] < 0.9
    # A source that was never measured is known by its columns.
    unseen = pd.DataFrame({"source": ["new", "newer"], "target": "news", "logme": [-1.0, 1.0]})
    low, high = with_it.predict(unseen)
    assert low < high
    with pytest.raises(ValueError, match="feature_columns names 'logme', which pairs lacks"):
        with_it.predict(unseen[["source", "target"]])


@pytest.mark.parametrize("regressor", [None, RandomForestRegressor(5, random_state=0)])
def test_what_features_add_adds_up_to_the_prediction(
    regressor: RandomForestRegressor | None, embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    pairs = ordered_pairs([*embeddings, "unknown"]).iloc[::5]
    predictor = TransferPredictor(embeddings, regressor=regressor)
    base, terms = predictor.contributions(pairs)
    np.testing.assert_allclose(base + terms.sum(axis=1, skipna=False), predictor.predict(pairs))
    assert set(base[~np.isnan(base)]) == {0.0}
    predictor.fit(transfers, transfers["gain"])
    base, added = predictor.contributions(pairs)
    predicted = predictor.predict(pairs)
    np.testing.assert_allclose(base + added.sum(axis=1, skipna=False), predicted)
    assert list(added.columns) == list(predictor.features(pairs).columns)
    # The base is the target's alone, whatever the source.
    by_target = pd.Series(base).groupby(pairs["target"].to_numpy())
    assert (by_target.max() - by_target.min()).max() < 1e-12


def a_table(seed: int = 0, n: int = 10) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Gains that alike sources have alike on alike targets, and how alike the tasks are."""
    rng = np.random.default_rng(seed)
    tasks = [f"task-{i:02}" for i in range(n)]
    groups = np.arange(n) % 2
    alike = pd.DataFrame(0.9 * (groups[:, None] == groups), tasks, tasks)
    pairs = ordered_pairs(tasks)
    group = dict(zip(tasks, groups, strict=True))
    same = pairs["source"].map(group) == pairs["target"].map(group)
    pairs["gain"] = np.where(same, 0.05, -0.05) + rng.normal(0, 0.02, len(pairs))
    return pairs, alike


def test_what_was_measured_of_alike_tasks_tells_of_a_target_never_seen() -> None:
    pairs, alike = a_table()
    unseen = pairs["target"] == "task-03"
    known = pairs[~unseen]
    blind, seeing = (
        TransferPredictor(similarity=similarity).fit(known, known["gain"])
        for similarity in (None, alike)
    )
    gains = pairs[unseen]["gain"]
    assert np.corrcoef(seeing.predict(pairs[unseen]), gains)[0, 1] > 0.9
    assert np.corrcoef(blind.predict(pairs[unseen]), gains)[0, 1] < 0.5
    _, std = seeing.predict(pairs[unseen], return_std=True)
    _, wide = blind.predict(pairs[unseen], return_std=True)
    assert (std < wide).all()


def test_a_similarity_that_is_no_table_of_tasks_is_refused() -> None:
    pairs, alike = a_table()
    for wrong in (alike.to_numpy(), alike.iloc[:3]):
        with pytest.raises(ValueError, match="similarity must be a DataFrame with the same tasks"):
            TransferPredictor(similarity=wrong).fit(pairs, pairs["gain"])
    alike.iloc[0, 1] = np.nan
    with pytest.raises(ValueError, match="similarity must hold finite numbers"):
        TransferPredictor(similarity=alike).fit(pairs, pairs["gain"])


def test_with_few_transfers_the_attribution_score_decides_the_order(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    scores = attribution_score(transfers, embeddings)
    few = transfers[transfers["target"] == "news"][:2]
    predictor = TransferPredictor(embeddings).fit(few, few["gain"])
    rest = ~transfers["target"].isin(["news"]) & ~transfers["source"].isin(few["source"])
    found = [
        spearmanr(predictor.predict(rows), scores[rows.index]).statistic
        for _, rows in transfers[rest].groupby("target")
    ]
    assert np.mean(found) > 0.8


def test_predictions_do_not_depend_on_the_order_of_the_transfers(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    twice = pd.concat([transfers, transfers.assign(gain=transfers["gain"] + 0.01)])
    shuffled = twice.sample(frac=1, random_state=0)
    first, second = (
        TransferPredictor(embeddings).fit(table, table["gain"]) for table in (twice, shuffled)
    )
    np.testing.assert_array_equal(first.predict(transfers), second.predict(transfers))
    assert len(first.regressor_.X_train_) == len(transfers), "equal rows are one row"


def test_repeats_that_are_merged_teach_as_much_as_one_by_one(transfers: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    table = pd.concat([transfers] * 3, ignore_index=True)
    table["gain"] += rng.normal(0, 0.02, len(table))
    # A column that is different in every row, by next to nothing, keeps rows apart.
    table["row"] = np.arange(len(table))
    merged = TransferPredictor().fit(table, table["gain"])
    apart = TransferPredictor(feature_columns=["row"])
    candidates = pd.concat([table, table.assign(row=1e7)])
    apart.fit(table, table["gain"], candidates=candidates)
    assert len(apart.regressor_.X_train_) == len(table) == 3 * len(merged.regressor_.X_train_)
    for one, other in zip(
        merged.predict(table, return_std=True), apart.predict(table, return_std=True), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=0.02, atol=1e-3)


def test_the_covariance_is_that_of_the_gains(transfers: pd.DataFrame) -> None:
    measured = transfers[transfers["target"] != "news"]
    predictor = TransferPredictor().fit(measured, measured["gain"])
    covariance = predictor.covariance(transfers)
    np.testing.assert_allclose(covariance, covariance.T, atol=1e-12)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9
    _, std = predictor.predict(transfers, return_std=True)
    # One measurement spreads by more than the gain that it measures.
    assert (np.diag(covariance) < std**2).all()
    alone = (transfers["target"] == "news").to_numpy()
    assert np.diag(covariance)[alone].min() > np.diag(covariance)[~alone].max()
    with pytest.raises(NotFittedError, match="no fitted Gaussian process"):
        TransferPredictor().covariance(transfers)


def test_gains_of_another_scale_are_predicted_alike(transfers: pd.DataFrame) -> None:
    first, second = (
        TransferPredictor().fit(transfers, factor * transfers["gain"]) for factor in (1, 1000)
    )
    np.testing.assert_allclose(
        1000 * first.predict(transfers), second.predict(transfers), rtol=1e-3, atol=1e-3
    )
    # A target whose gains are ten times those of the others teaches no more of the sources.
    loud = transfers.assign(
        gain=transfers["gain"].where(transfers["target"] != "news", 10 * transfers["gain"])
    )
    predictor = TransferPredictor().fit(loud, loud["gain"])
    others = transfers[transfers["target"] != "news"]
    np.testing.assert_allclose(predictor.predict(others), first.predict(others), atol=0.03)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_score_that_misleads_is_left_on_evidence(sign: int) -> None:
    found = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        pairs = ordered_pairs([f"task-{i}" for i in range(8)])
        pairs["attribution_score"] = rng.normal(size=len(pairs))
        pairs["gain"] = sign * 0.05 * pairs["attribution_score"] + rng.normal(0, 0.02, len(pairs))
        some = pairs.sample(8, random_state=seed)
        predictor = TransferPredictor(feature_columns=["attribution_score"])
        predictor.fit(some, some["gain"], candidates=pairs)
        rest = pairs.drop(some.index)
        rest["said"] = predictor.predict(rest)
        found += [
            spearmanr(rows["said"], rows["gain"]).statistic for _, rows in rest.groupby("target")
        ]
    assert np.mean(found) > 0.7


def test_the_weight_of_the_score_is_the_mean_of_its_priors_by_their_likelihoods() -> None:
    rng = np.random.default_rng(1)
    pairs = ordered_pairs(["a", "b", "c", "d"])
    pairs["attribution_score"] = rng.normal(size=len(pairs))
    gains = rng.normal(0, 0.1, len(pairs))
    predictor = TransferPredictor(feature_columns=["attribution_score"]).fit(pairs, gains)
    process = predictor.regressor_
    x, score = process.X_train_, process.X_train_[:, SCORE]
    covariance = process.kernel_(x) + process.alpha * np.eye(len(x))
    gain = process.y_train_ + predictor._score_weight * score
    likelihood = [
        prior * multivariate_normal.pdf(gain - mean * score, cov=covariance)
        for mean, prior in SCORE_WEIGHTS.items()
    ]
    expected = np.average([*SCORE_WEIGHTS], weights=likelihood)
    assert predictor._score_weight == pytest.approx(expected)
    alpha = np.linalg.solve(covariance, process.y_train_)
    np.testing.assert_allclose(process.alpha_, alpha, rtol=1e-6)


def test_a_proxy_score_is_learnt_from_whatever_its_scale_is_on_each_target() -> None:
    rng = np.random.default_rng(0)
    tasks = [f"task-{number}" for number in range(10)]
    pairs = ordered_pairs(tasks)
    worth = pd.Series(rng.normal(size=len(pairs)))
    unit = dict(zip(tasks, np.geomspace(1, 10, len(tasks)), strict=True))
    level = dict(zip(tasks, rng.normal(scale=1000, size=len(tasks)), strict=True))
    pairs["proxy"] = pairs["target"].map(level) + pairs["target"].map(unit) * worth
    gains = worth + rng.normal(scale=0.3, size=len(pairs))
    new = pairs["target"].isin(tasks[::4])
    predictor = TransferPredictor(feature_columns=["proxy"])
    predictor.fit(pairs[~new], gains[~new], candidates=pairs)
    predicted = pd.Series(predictor.predict(pairs[new]), index=pairs.index[new])
    for _, its in predicted.groupby(pairs["target"][new]):
        assert spearmanr(its, worth[its.index]).statistic > 0.8


def test_an_infinite_feature_is_one_that_is_not_known() -> None:
    pairs = ordered_pairs(["a", "b", "c", "d"])
    gains = np.random.default_rng(0).normal(size=len(pairs))
    proxy = pairs.assign(proxy=np.arange(len(pairs), dtype=float))
    unknown, infinite = (
        proxy.assign(proxy=proxy["proxy"].where(proxy.index != 3, x)) for x in (np.nan, np.inf)
    )
    predictor = TransferPredictor(feature_columns=["proxy"])
    found = [predictor.fit(table, gains).predict(table) for table in (unknown, infinite)]
    np.testing.assert_array_equal(*found)


def test_of_no_pairs_it_predicts_nothing(embeddings: Embeddings, transfers: pd.DataFrame) -> None:
    none = transfers.iloc[:0]
    fitted = TransferPredictor(embeddings).fit(transfers, transfers["gain"])
    assert [x.shape for x in fitted.predict(none, return_std=True)] == [(0,), (0,)]
    assert fitted.predict_proba(none).shape == (0,)
    assert fitted.covariance(none).shape == (0, 0)
    assert not len(fitted.features(none))
    assert [len(part) for part in fitted.contributions(none)] == [0, 0]


def test_a_feature_that_is_no_number_is_refused_by_name(transfers: pd.DataFrame) -> None:
    words = transfers.assign(size="large")
    with pytest.raises(ValueError, match="feature_columns names 'size', which must hold numbers"):
        TransferPredictor(feature_columns=["size"]).fit(words, transfers["gain"])


def test_one_training_that_collapsed_is_not_the_scale_of_all_gains(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    def learnt(collapsed: float) -> tuple[np.ndarray, np.ndarray]:
        gains = transfers["gain"].to_numpy(dtype=float).copy()
        gains[0] = collapsed
        fitted = TransferPredictor(embeddings).fit(transfers, gains)
        assert fitted.measured_["gain"].tolist() == gains.tolist()
        return fitted.predict(transfers, return_std=True)

    usual = float(transfers["gain"].abs().median())
    mean, std = learnt(-1e12)
    assert mean[0] < -usual
    assert std.max() < 20 * usual
    for found, expected in zip(learnt(-1e3), (mean, std), strict=True):
        assert found == pytest.approx(expected), "how far it is below says nothing"
    # What is gained has no bound.
    assert learnt(1e3)[0][0] > 10


def test_a_regressor_that_takes_missing_values_takes_features_that_nothing_is_known_of(
    embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    bare = {task: TaskEmbedding(task, of.vectors) for task, of in embeddings.items()}
    # Without changes of single examples some features are NaN of every pair.
    trees = HistGradientBoostingRegressor(min_samples_leaf=2, random_state=0)
    predictor = TransferPredictor(bare, regressor=trees).fit(transfers, transfers["gain"])
    features = predictor.features(transfers)
    assert features.isna().all().any()
    assert np.isfinite(predictor.predict(transfers)).all()
    base, added = predictor.contributions(transfers)
    assert base + added.sum(axis=1).to_numpy() == pytest.approx(predictor.predict(transfers))
    assert (added.loc[:, features.isna().all()] == 0).to_numpy().all()


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ("size", r"feature_columns must be a list of names but got 'size': write \['size'\]"),
        (["size", "size"], "feature_columns names 'size', which is there already"),
        (["attribution_score"], "feature_columns names 'attribution_score', which is there"),
    ],
)
def test_feature_columns_that_cannot_be_told_apart_are_refused(
    columns: str | list[str], match: str, embeddings: Embeddings, transfers: pd.DataFrame
) -> None:
    table = transfers.assign(size=1.0, attribution_score=0.5)
    predictor = TransferPredictor(embeddings, feature_columns=columns)
    with pytest.raises(ValueError, match=match):
        predictor.fit(table, table["gain"])


def test_what_is_no_mapping_of_embeddings_is_refused(embeddings: Embeddings) -> None:
    pairs = ordered_pairs([*embeddings])
    for wrong in ([*embeddings.values()], "embeddings/", {task: [1.0, 2.0] for task in embeddings}):
        with pytest.raises(ValueError, match="embeddings must be a mapping of task to TaskEmb"):
            TransferPredictor(wrong).predict(pairs)  # type: ignore[arg-type]


def test_a_transfer_from_several_sources_is_of_no_pair(transfers: pd.DataFrame) -> None:
    several = pd.DataFrame({"source": [("news", "advice")], "target": ["rumour"], "gain": [0.5]})
    both = pd.concat([transfers, several], ignore_index=True)
    predictor = TransferPredictor().fit(both, both["gain"])
    assert len(predictor.measured_) == len(transfers)
    pairs = transfers[["source", "target"]]
    rule = LearningRule(TransferPredictor(), pairs=pairs)
    assert rule.refitted(both).table().equals(rule.refitted(transfers).table())
