"""Hugging Face's Trainer inside an Optuna objective, behind the gate: neither knows of the other.

Six tasks on made-up texts, a small BERT from scratch. The same Trainer makes the single-task
models, which are embedded from memory, and the transfers to targets of 32 texts. Expect the kept
sources, the mean gain of the pairs that trained, and what was saved.
"""

import random
import tempfile

import optuna
import torch
import transformers as hf
from sklearn.metrics import f1_score
from tokenizers import Tokenizer, models, pre_tokenizers

import transfer_pruner as tp
from transfer_pruner_optuna import gate, records_from_study, transfers_from_study

WATER, FOOD, SHELTER = ["water", "well", "cup"], ["bread", "rice", "ham"], ["tent", "roof", "bed"]
# A task is to tell the texts that hold one of its words.
TASKS = {"water": WATER, "food": FOOD, "shelter": SHELTER, "supplies": WATER + FOOD}
TASKS |= {"camp": FOOD + SHELTER, "anything": WATER + FOOD + SHELTER}
WORDS = TASKS["anything"] + [f"word{number}" for number in range(18)]
TEXTS = [random.Random(i).sample(WORDS, 8, counts=[1] * 9 + [3] * 18) for i in range(600)]
SOURCE, FEW, DEV = range(300), range(300, 332), range(400, 600)
PROBE = [" ".join(words) for words in TEXTS[332:396]]
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)
backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", *WORDS])}))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


def examples(task: str, rows: range) -> list[dict]:
    ids = tokenizer(TEXTS, is_split_into_words=True)["input_ids"]
    labels = [int(not set(TASKS[task]).isdisjoint(words)) for words in TEXTS]
    return [{"input_ids": ids[row], "labels": labels[row]} for row in rows]


def new_model(seed: int) -> hf.BertForSequenceClassification:
    torch.manual_seed(seed)
    config = hf.BertConfig(vocab_size=len(WORDS) + 1, num_hidden_layers=2, **SIZE)
    return hf.BertForSequenceClassification(config)


def train(model: torch.nn.Module, task: str, rows: range, lr: float, epochs: int) -> float:
    """Train with the Trainer; return F1 on the dev texts."""
    arguments = hf.TrainingArguments(folder, learning_rate=lr, num_train_epochs=epochs, **QUIET)
    trainer = hf.Trainer(model, arguments, train_dataset=examples(task, rows))
    trainer.remove_callback(hf.PrinterCallback)
    trainer.train()
    found = trainer.predict(examples(task, DEV))
    return float(f1_score(found.label_ids, found.predictions.argmax(axis=1), zero_division=0))


def objective(trial: optuna.Trial) -> float:
    source = trial.suggest_categorical("source", list(TASKS))
    target = trial.suggest_categorical("target", list(TASKS))
    model = new_model(seed=1)
    if source != target:
        model.bert.load_state_dict(sources[source].bert.state_dict())
    return train(model, target, FEW, trial.suggest_float("lr", 1e-3, 1e-2, log=True), epochs=8)


with tempfile.TemporaryDirectory() as folder:
    sources = {task: new_model(seed=0) for task in TASKS}
    print("F1:", {t: round(train(m, t, SOURCE, lr=3e-3, epochs=5), 2) for t, m in sources.items()})
    tp.embed_many({t: (m, tokenizer) for t, m in sources.items()}, PROBE, folder, progress=False)
    rule = tp.EliminationRule.top_k(tp.TransferPredictor(tp.load_embeddings(folder)), k=2)
    print("kept:", "; ".join(f"{t} from {', '.join(rule.kept(t))}" for t in TASKS))
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for task in TASKS:
        study.enqueue_trial({"source": task, "target": task})  # a gain needs its baseline
    study.optimize(gate(objective, rule), n_trials=50)
print(transfers_from_study(study).groupby(["target", "source"])["gain"].mean().round(2))
print(tp.estimate_savings(records_from_study(study, rule)).headline())
