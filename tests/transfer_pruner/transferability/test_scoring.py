"""Every source's model sees the dev examples once, and scores every target on them."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import average_precision_score, f1_score
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from transfer_pruner import EliminationRule, TransferPredictor, TransferPrunerWarning, score_pairs
from transfer_pruner.attribution.features import see
from transfer_pruner.text.features import see_texts
from transfer_pruner.transferability import h_score, logme, null_corrected
from transfer_pruner.transferability.proxies import linear_probe, zero_shot

SaveModel = Callable[..., Path]
WORDS = "flood in the city help we need water and food for two hundred people at the old school"


def network(n_outputs: int = 1, seed: int = 0, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, n_outputs))


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32))


@pytest.fixture
def datasets(inputs: torch.Tensor) -> dict[str, Any]:
    """Three targets on the same inputs."""
    return {
        "news": (inputs, (inputs[:, 0] > 0).long()),
        "advice": (inputs, (inputs[:, 1] > 0).long()),
        "weather": (inputs, (inputs[:, 2] + inputs[:, 3] > 0).long()),
    }


@pytest.fixture
def texts() -> list[str]:
    words, rng = WORDS.split(), np.random.default_rng(0)
    return [" ".join(rng.choice(words, rng.integers(1, 7))) for _ in range(40)]


@pytest.fixture
def text_tasks(texts: list[str]) -> dict[str, Any]:
    return {
        "news": (texts, ["flood" in text or "water" in text for text in texts]),
        "advice": (texts[:30], [int("the" in text.split()) for text in texts[:30]]),
    }


def scored(table: pd.DataFrame, source: str, target: str) -> float:
    row = table[(table["source"] == source) & (table["target"] == target)]
    return float(row["score"].item())


def outputs_of(model: nn.Module, inputs: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What the model gives, and what its last layer is given."""
    model.eval()
    with torch.no_grad():
        return model(inputs).numpy(), model[:-1](inputs).numpy()  # type: ignore[index]


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_zero_shot_is_the_average_precision_of_the_sources_head(
    datasets: dict[str, Any], inputs: torch.Tensor, n_outputs: int
) -> None:
    models = {task: network(n_outputs, seed) for seed, task in enumerate(["news", "advice", "x"])}
    table = score_pairs(models, datasets, "zero_shot", progress=False)
    assert list(table.columns) == ["source", "target", "score", "method", "seconds"]
    # The single-task baselines are no pairs.
    assert len(table) == 7
    assert (table["source"] != table["target"]).all()
    for source, target in zip(table["source"], table["target"], strict=True):
        logits, _ = outputs_of(models[source], inputs)
        positive = logits[:, -1] - (logits[:, 0] if n_outputs == 2 else 0)
        expected = average_precision_score(datasets[target][1], positive)
        assert scored(table, source, target) == pytest.approx(expected)


@pytest.mark.parametrize("form", [int, str])
def test_zero_shot_of_several_classes_is_macro_f1(inputs: torch.Tensor, form: type) -> None:
    model = network(3)
    predicted = outputs_of(model, inputs)[0].argmax(axis=1)
    truth = np.random.default_rng(1).integers(0, 3, 60)
    labels = [form(label) if form is int else "abc"[label] for label in truth]
    table = score_pairs({"s": model}, {"t": (inputs, labels)}, progress=False)
    assert table["method"].item() == "zero_shot"
    assert table["score"].item() == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_classes_go_by_the_names_that_a_head_has_and_one_may_be_missing() -> None:
    truth = np.array([0, 2, 2, 3, 0, 3, 2, 0])
    outputs = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    predicted = outputs.argmax(axis=1)
    expected = f1_score(truth, predicted, labels=[0, 2, 3], average="macro", zero_division=0)
    assert zero_shot(outputs, truth) == pytest.approx(expected)
    named = np.array(["no", "maybe", "yes", "never"])[truth]
    assert zero_shot(outputs, named, ["no", "maybe", "yes", "never"]) == pytest.approx(expected)
    # Two classes: the second of the labels is the positive one, or what the head's second is.
    two, labels = outputs[:, :2], np.array(["good", "bad"] * 4)
    logits = two[:, 1] - two[:, 0]
    for names, positive in ((["bad", "good"], "good"), (["good", "bad"], "bad"), ((), "good")):
        expected = average_precision_score(labels == positive, logits)
        assert zero_shot(two, labels, names) == pytest.approx(expected)


@pytest.mark.parametrize("score", [logme, h_score])
def test_logme_and_h_score_are_of_the_heads_features_without_what_chance_gives(
    datasets: dict[str, Any], inputs: torch.Tensor, score: Any
) -> None:
    model = network()
    table = score_pairs({"s": model}, datasets, score.__name__, progress=False)
    features = outputs_of(model, inputs)[1]
    expected = [null_corrected(score, features, labels) for _, labels in datasets.values()]
    assert table["score"].tolist() == pytest.approx(expected, rel=1e-6)


def test_a_linear_probe_is_cross_validated(inputs: torch.Tensor) -> None:
    model, rng = network(), np.random.default_rng(0)
    continuous = inputs[:, 0].numpy() + rng.normal(0, 0.1, 60)
    three, two = rng.integers(0, 3, 60), (inputs[:, 0] > 0).numpy()
    data = {"two": (inputs, two), "three": (inputs, three), "ridge": (inputs, continuous)}
    # A head fits neither three classes nor a regression: so no pair is scored by its head.
    table = score_pairs({"s": model}, data, progress=False).set_index("target")
    assert set(table["method"]) == {"linear_probe"}
    features = outputs_of(model, inputs)[1].astype(float)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 5, 15)))
    stratified = StratifiedKFold(5, shuffle=True, random_state=0)
    for target, probe, labels, folds, scoring in (
        ("two", logistic, two, stratified, "average_precision"),
        ("three", logistic, three, stratified, "f1_macro"),
        ("ridge", ridge, continuous, KFold(5, shuffle=True, random_state=0), "r2"),
    ):
        expected = cross_val_score(probe, features, labels, cv=folds, scoring=scoring).mean()
        assert table.loc[target, "score"] == pytest.approx(expected), target


@pytest.mark.parametrize("method", ["linear_probe", "logme", "h_score"])
def test_a_class_of_one_example_costs_no_target_its_scores(
    inputs: torch.Tensor, method: str
) -> None:
    labels = (inputs[:, 0] > 0).long().numpy() + 1
    labels[7] = 0
    data = {"rare": (inputs, labels), "two": (inputs[:3], [0, 0, 1])}
    data = data if method == "linear_probe" else {"rare": data["rare"]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TransferPrunerWarning)
        table = score_pairs({"s": network()}, data, method, progress=False).set_index("target")
    assert np.isfinite(table.loc["rare", "score"])
    if method == "linear_probe":
        # It can be either trained or scored on. What is left has to be two classes.
        others = np.delete(np.arange(60), 7)
        features = outputs_of(network(), inputs)[1]
        assert table.loc["rare", "score"] == linear_probe(features[others], labels[others])
        assert np.isnan(table.loc["two", "score"])
        assert [str(one.message).count("1 of 2 pairs") for one in caught] == [1]


def test_left_out_the_method_is_zero_shot_where_every_head_fits(datasets: dict[str, Any]) -> None:
    table = score_pairs({"s": network(2)}, datasets, progress=False)
    assert set(table["method"]) == {"zero_shot"}
    both = score_pairs({"s": network(2), "other": network(3)}, datasets, "auto", progress=False)
    assert set(both["method"]) == {"logme"}


def test_left_out_the_method_is_a_linear_probe_where_a_target_is_a_regression(
    datasets: dict[str, Any], inputs: torch.Tensor
) -> None:
    data = datasets | {"size": (inputs, inputs[:, 0].numpy())}
    table = score_pairs({"s": network(3)}, data, progress=False)
    assert set(table["method"]) == {"linear_probe"}
    assert np.isfinite(table["score"]).all()


def test_a_module_sees_every_example_once_whatever_the_number_of_targets(
    inputs: torch.Tensor,
) -> None:
    model, seen = network(), Counter[bytes]()
    model.register_forward_pre_hook(
        lambda _, given: seen.update(row.numpy().tobytes() for row in given[0])
    )
    datasets = {
        "all": (inputs, (inputs[:, 0] > 0).long()),
        "some": (inputs[10:40], (inputs[10:40, 1] > 0).long()),
        "s": (inputs + 1, (inputs[:, 1] > 0).long()),  # the source's own, which no pair needs
        "loader": DataLoader(TensorDataset(inputs[:20], (inputs[:20, 2] > 0).long()), 7),
    }
    score_pairs({"s": model}, datasets, progress=False)
    assert set(seen.values()) == {1}
    assert len(seen) == 60
    assert model.training, "a model is left as it was"


def test_a_classifier_sees_every_text_once_unpadded(
    save_model: SaveModel, text_tasks: dict[str, Any], texts: list[str]
) -> None:
    folder = save_model("a")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen, shapes = Counter[tuple[int, ...]](), []

    def count(_: nn.Module, __: Any, given: dict[str, torch.Tensor]) -> None:
        shapes.append(given["input_ids"].shape)
        seen.update(tuple(row.tolist()) for row in given["input_ids"])

    model.register_forward_pre_hook(count, with_kwargs=True)
    table = score_pairs({"s": (model, tokenizer)}, text_tasks, progress=False)
    assert set(seen.values()) == {1}
    assert len(seen) == len(set(texts))
    assert [length for _, length in shapes] == sorted(length for _, length in shapes)
    labels = text_tasks["news"][1]
    with torch.no_grad():
        logits = [model.eval()(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    positive = [float(one[1] - one[0]) for one in logits]
    expected = average_precision_score(labels, positive)
    assert scored(table, "s", "news") == pytest.approx(expected)


def test_folders_in_memory_and_tables_give_the_same_scores(
    save_model: SaveModel, text_tasks: dict[str, Any]
) -> None:
    folder = save_model("a")
    loaded = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    frames = {
        task: pd.DataFrame({"words": texts, "y": [str(label) for label in labels]})
        for task, (texts, labels) in text_tasks.items()
    }
    for method in ("zero_shot", "logme"):
        one = score_pairs({"s": folder}, text_tasks, method, progress=False)
        other = score_pairs(
            {"s": loaded},
            frames,
            method,
            text_column="words",
            label_column="y",
            batch_size=3,
            progress=False,
        )
        assert one["score"].tolist() == pytest.approx(other["score"].tolist(), rel=1e-3)


def test_a_loader_may_give_texts_and_a_column_of_labels(
    save_model: SaveModel, text_tasks: dict[str, Any]
) -> None:
    texts, labels = text_tasks["advice"]
    rows = [(text, torch.tensor([float(label)])) for text, label in zip(texts, labels, strict=True)]
    loader = DataLoader(rows, batch_size=7)  # type: ignore[arg-type]
    model = {"s": save_model("a")}
    one = score_pairs(model, {"t": loader}, progress=False)
    other = score_pairs(model, {"t": (pd.Series(texts), np.array(labels))}, progress=False)
    assert one["score"].item() == pytest.approx(other["score"].item())


def test_rows_without_a_label_or_a_text_are_left_out(
    save_model: SaveModel, text_tasks: dict[str, Any]
) -> None:
    texts, labels = text_tasks["advice"]
    model = {"s": save_model("a")}
    holes = ([*texts, None, "help", "help"], [*labels, 1, None, float("nan")])
    one = score_pairs(model, {"t": holes}, progress=False)
    other = score_pairs(model, {"t": (texts, labels)}, progress=False)
    assert one["score"].item() == pytest.approx(other["score"].item())


def test_an_adapter_is_scored_with_its_base_model(
    save_model: SaveModel, text_tasks: dict[str, Any], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    base = AutoModelForSequenceClassification.from_pretrained(save_model("base"))
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    torch.manual_seed(0)
    adapted = peft.get_peft_model(base, config)
    nn.init.normal_(
        adapted.base_model.model.bert.encoder.layer[0].attention.self.query.lora_B.default.weight
    )
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models/base")
    models = {"folder": tmp_path / "adapter", "memory": (adapted, tokenizer)}
    table = score_pairs(models, text_tasks, "logme", progress=False)
    one, other = (table[table["source"] == name]["score"].tolist() for name in models)
    assert one == pytest.approx(other, rel=1e-4)


def test_what_a_call_gave_is_not_computed_again(
    save_model: SaveModel, text_tasks: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    from transfer_pruner.text import features

    ran: list[int] = []
    before = features.see_texts

    def counting(model: Any, tokenizer: Any, texts: list[str], *more: int) -> Iterator[Any]:
        ran.append(len(texts))
        return before(model, tokenizer, texts, *more)

    monkeypatch.setattr(features, "see_texts", counting)
    models = {"a": save_model("a"), "b": save_model("b", seed=1)}
    cache = tmp_path / "cache"

    def call(method: str | None = None, **more: Any) -> pd.DataFrame:
        ran.clear()
        return score_pairs(models, text_tasks, method, cache=cache, progress=False, **more)

    first = call()
    assert ran == [len(set(text_tasks["news"][0]))] * 2
    n_texts = ran[0]
    # Another method needs no model, and what a score cost it still costs.
    pd.testing.assert_series_equal(call()["score"], first["score"])
    assert not ran
    call("logme")
    assert not ran
    assert call()["seconds"].sum() == pytest.approx(first["seconds"].sum(), rel=0.5)
    # Of a further target only the new texts are run.
    text_tasks["more"] = (
        ["water " * 9, "food " * 9] * 2 + text_tasks["news"][0][:3],
        [1, 0] * 2 + [1, 0, 1],
    )
    call()
    assert ran == [2, 2]
    # Another model of the same name, another cut and half a file are others.
    save_model("b", seed=2)
    call()
    assert ran == [n_texts + 2]
    call(max_length=4)
    assert len(ran) == 2
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    call()
    assert len(ran) == 2


def test_modules_of_other_weights_or_parts_are_others(
    datasets: dict[str, Any], tmp_path: Path
) -> None:
    def score(model: nn.Module) -> list[float]:
        found = score_pairs({"s": model}, datasets, cache=tmp_path / "c", progress=False)
        return found["score"].tolist()

    model = network()
    first = score(model)
    assert score(model) == first
    assert score(network(seed=1)) != first
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))
    assert score(other) != first
    assert len(list((tmp_path / "c").iterdir())) == 3


def test_a_call_that_is_interrupted_goes_on_where_it_stopped(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import signal, sys, time, torch
        from torch import nn
        from transfer_pruner import score_pairs

        # A shell starts what runs in the background deaf to it.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        class Slow(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(2, 1)
            def forward(self, x):
                print("batch", flush=True)
                time.sleep(float(sys.argv[1]))
                return self.head(x)

        torch.manual_seed(0)
        models = {name: Slow() for name in "ab"}
        x = torch.randn(30, 2)
        data = {"t": (x, (x[:, 0] > 0).long())}
        print(score_pairs(models, data, cache="cache", batch_size=10, progress=False))
        """
    )
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "script.py"]
    options: dict[str, Any] = {"cwd": tmp_path, "text": True, "stdout": subprocess.PIPE}
    with subprocess.Popen([*command, "0.3"], stderr=subprocess.PIPE, **options) as stopped:
        assert stopped.stdout is not None
        for _ in range(5):
            assert stopped.stdout.readline() == "batch\n"
        stopped.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in stopped.communicate()[1]
    assert all(file.suffix == ".safetensors" for file in (tmp_path / "cache").iterdir())
    again = subprocess.run([*command, "0"], check=True, **options)
    # The second model had seen one batch of three, and the first all.
    assert again.stdout.count("batch") == 2


def test_what_cannot_be_scored_keeps_its_place_and_is_counted_once(
    datasets: dict[str, Any], inputs: torch.Tensor
) -> None:
    broken = network(seed=1)
    with torch.no_grad():
        broken[3].weight[0, 0] = np.nan  # type: ignore[index]
    datasets |= {
        "one class": (inputs, torch.ones(60)),
        "empty": (inputs[:0], torch.ones(0)),
        "no labels": (inputs, [None] * 60),
    }
    models = {"good": network(), "nan": broken, "wide": network(3), "narrow": network(width=5)}
    with pytest.warns(TransferPrunerWarning) as caught:
        table = score_pairs(models, datasets, "zero_shot", progress=False)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith("21 of 24 pairs have no zero_shot score and keep their place")
    assert "dev set is empty" in message
    assert len(table) == 24
    fine = table["score"].notna()
    assert set(table[fine]["source"]) == {"good"}
    assert set(table[fine]["target"]) == {"news", "advice", "weather"}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("wide", "head has 3 outputs and the target 2 classes"),
        ("nan", "outputs have NaN or infinite values in 60 rows"),
        ("narrow", "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_the_reason_is_said(datasets: dict[str, Any], source: str, said: str) -> None:
    broken = network(seed=1)
    with torch.no_grad():
        broken[3].weight[0, 0] = np.nan  # type: ignore[index]
    models = {"good": network(), "nan": broken, "wide": network(3), "narrow": network(width=5)}
    chosen = {"good": models["good"], source: models[source].train()}
    with pytest.warns(TransferPrunerWarning, match=f"3 of 6 pairs have no .*: 3 since.*{said}"):
        score_pairs(chosen, datasets, "zero_shot", progress=False)
    assert models[source].training, "a model is left as it was"
    # Where no pair is left, the call made no sense.
    with pytest.raises(ValueError, match=f"no pair can be scored by zero_shot: 3 since.*{said}"):
        score_pairs({source: models[source]}, datasets, "zero_shot", progress=False)


def test_a_model_that_fails_half_way_costs_only_itself(datasets: dict[str, Any]) -> None:
    class Breaking(nn.Sequential):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 2:
                raise MemoryError("no memory is left")
            return super().forward(x)

    models = {"good": network(), "breaking": Breaking(network(3))}
    with pytest.warns(TransferPrunerWarning, match="3 since MemoryError: no memory is left"):
        table = score_pairs(models, datasets, progress=False)
    assert table["score"].isna().tolist() == [False] * 3 + [True] * 3
    assert set(table["method"]) == {"zero_shot"}, "a model that failed has no say"


def test_pairs_may_be_named_and_unknown_ones_keep_their_place(datasets: dict[str, Any]) -> None:
    pairs = pd.DataFrame(
        {
            "source": ["s", "s", "nobody", "s", None],
            "target": ["news", "nowhere", "news", "s", "news"],
        }
    )
    with pytest.warns(TransferPrunerWarning, match="2 of 3 pairs") as caught:
        table = score_pairs({"s": network()}, datasets, pairs=pairs, progress=False)
    assert "datasets holds no task 'nowhere'" in str(caught[0].message)
    assert "models holds no task 'nobody'" in str(caught[0].message)
    assert table["score"].isna().tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "magic"}, "method must be one of zero_shot, logme, h_score, linear_probe"),
        ({"models": {}}, "models must be a mapping of task to model"),
        ({"models": {"s": 3}}, "models\\['s'\\] must be a torch module"),
        ({"models": {"s": "folder"}}, "takes texts but datasets hold arrays"),
        ({"datasets": {}}, "datasets must be a mapping of task to dev set"),
        ({"datasets": {"t": (["a", "b"], [0, 1])}}, "is a torch module but datasets hold texts"),
        ({"datasets": {"t": (torch.ones(2, 6), [1])}}, "has 2 inputs and 1 labels"),
        ({"datasets": {"t": torch.ones(2, 6)}}, "must be a pair \\(inputs, labels\\)"),
        ({"datasets": {"t": (torch.ones(0, 6), [])}}, "every dev set is empty"),
        ({"datasets": {"t": (torch.ones(2, 6), [[1, 0], [0, 1]])}}, "make a task of each label"),
        ({"datasets": {"t": (torch.ones(2, 6), [1, "a"])}}, "mixes the labels 'a' and 1"),
        ({"datasets": {"t": pd.DataFrame({"text": ["a"]})}}, "lacks the column 'label'"),
        ({"datasets": {"s": (torch.ones(2, 6), [0, 1])}}, "there is no pair to score"),
        ({"cache": __file__}, "cache must be a folder but .* is a file"),
        ({"batch_size": 0}, "batch_size must be at least 1 but got 0"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(
    datasets: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        score_pairs(
            **{"models": {"s": network()}, "datasets": datasets, "progress": False, **change}
        )


def test_a_rule_and_a_predictor_take_the_table(
    datasets: dict[str, Any], inputs: torch.Tensor
) -> None:
    models = {task: network(seed=seed) for seed, task in enumerate(datasets)}
    scores = score_pairs(models, datasets, progress=False)
    gains = np.linspace(-1, 1, len(scores))
    predictor = TransferPredictor(feature_columns=["score"]).fit(scores, gains)
    assert np.isfinite(predictor.predict(scores)).all()
    rule = EliminationRule.top_k(predictor, k=2, pairs=scores).refine(scores, k=1)
    for target in datasets:
        best = scores[scores["target"] == target].sort_values("score")["source"].iloc[-1]
        assert rule.kept(target) == [best]


def test_the_seconds_of_a_model_are_shared_among_its_targets(datasets: dict[str, Any]) -> None:
    class Slow(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.05)
            return super().forward(x)

    score_pairs({"s": network()}, datasets, progress=False)  # what is imported costs no pair
    started = time.perf_counter()
    table = score_pairs({"s": Slow(network())}, datasets, batch_size=20, progress=False)
    assert 0.15 < table["seconds"].sum() < time.perf_counter() - started
    assert (table["seconds"] > 0.05).all()


def test_features_are_what_the_head_takes() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 8, 8)

    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
            self.auxiliary = nn.Linear(4, 7)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            inner = self.body(x).relu()
            return self.head(inner).mean(dim=(2, 3)), self.auxiliary(inner.mean(dim=(2, 3)))

    class Auxiliary(Convolutional):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            inner = self.body(x).relu()
            return self.head(inner)[:, :, 0, 0].clone(), self.auxiliary(inner.mean(dim=(2, 3)))

    alone = nn.Linear(8, 2)
    outputs, features = see(alone, x[:, 0, 0])
    assert np.array_equal(features, x[:, 0, 0].numpy())
    assert outputs.shape == (5, 2)
    squeezed = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 1), nn.Flatten(0))
    outputs, features = see(squeezed, x[:, 0, 0])
    assert (outputs.shape, features.shape) == ((5, 1), (5, 4))
    softmax = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softmax(dim=1))
    assert see(softmax, x[:, 0, 0])[1].shape == (5, 4)
    by_position = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    outputs, features = see(by_position, x[:, 0])
    assert np.allclose(features, by_position[0](x[:, 0]).mean(dim=1).detach().numpy(), atol=1e-6)
    model = Convolutional()
    # No module gives the mean over places, so the features are those of the last one that answers.
    assert np.allclose(see(model, x)[1], model.body(x).relu().mean(dim=(2, 3)).detach(), atol=1e-6)
    # Without a head the outputs are the features.
    assert see(nn.ReLU(), x[:, 0, 0])[1].shape == (5, 8)


def test_a_decoder_without_padding_answers_with_its_last_token(tokenizer: Any) -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, n_positions=32, n_inner=8)
    model = GPT2ForSequenceClassification(config).eval()
    assert model.config.pad_token_id is None
    texts = ["flood in the city", "help we need water", "food"]
    for rows, outputs, features in see_texts(model, tokenizer, texts, 8, 16):
        (row,) = rows
        ids = torch.tensor([tokenizer(texts[row])["input_ids"]])
        with torch.no_grad():
            hidden = model.transformer(ids).last_hidden_state[0, -1]
            assert np.allclose(features[0], hidden.numpy(), atol=1e-5)
            assert np.allclose(outputs[0], model.score(hidden).numpy(), atol=1e-5)


def test_a_text_that_is_longer_than_the_model_reads_is_told(
    save_model: SaveModel, text_tasks: dict[str, Any]
) -> None:
    text_tasks["news"] = (["flood " * 100, "help"], [0, 1])
    with pytest.raises(ValueError, match="2 since max_length must be 64 or less"):
        score_pairs({"s": save_model("a")}, text_tasks, progress=False)


def test_it_tells_how_far_it_is(datasets: dict[str, Any], capsys: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_pairs({"s": network()}, datasets)
    assert "1/1" in (err := capsys.readouterr().err)
    assert "3/3" in err
    score_pairs({"s": network()}, datasets, progress=False)
    assert not capsys.readouterr().err
