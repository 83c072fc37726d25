"""Text tasks on a Ray cluster: embedded by `embed_many`, searched behind a `TransferScheduler`.

With RAY_ADDRESS set it goes to that cluster, whose nodes share `storage_path` only, else it starts
Ray here. Expect what is kept, how many actors started and how many did not have to, the savings.
"""

import os
import random
import tempfile

import ray
import torch
import transformers as hf
from ray import tune
from sklearn.metrics import f1_score
from tokenizers import Tokenizer, models, pre_tokenizers

from transfer_pruner import EliminationRule, TransferPredictor, estimate_savings, load_embeddings
from transfer_pruner_ray import TransferScheduler, embed_many, records_from_results

WATER, FOOD, SHELTER = ["water", "well", "bottle"], ["bread", "rice", "meal"], ["tent", "roof"]
TASKS = {"water": WATER, "food": FOOD, "shelter": SHELTER, "supplies": WATER + FOOD}
TARGETS = ["water", "supplies"]
WORDS = ["[PAD]", *WATER, *FOOD, *SHELTER, *(f"word{number}" for number in range(18))]
TEXTS = [random.Random(i).sample(WORDS[1:], 8, counts=[1] * 8 + [3] * 18) for i in range(600)]
PROBE = [" ".join(words) for words in TEXTS[332:396]]


def new_model() -> hf.PreTrainedModel:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = hf.BertConfig(vocab_size=len(WORDS), num_attention_heads=2, **size)
    return hf.BertForSequenceClassification(config)


def train(model: hf.PreTrainedModel, task: str, rows: range, steps: int) -> float:
    """Teach it which texts hold one of the task's words; return its F1 on the dev texts."""
    torch.set_num_threads(1)
    ids = torch.tensor([[WORDS.index(word) for word in words] for words in TEXTS])
    labels = torch.tensor([int(not set(TASKS[task]).isdisjoint(words)) for words in TEXTS])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        chosen = random.Random(step).sample(rows, 16)
        optimizer.zero_grad()
        model(input_ids=ids[chosen], labels=labels[chosen]).loss.backward()
        optimizer.step()
    found = model.eval()(input_ids=ids[400:]).logits.argmax(dim=1)
    return float(f1_score(labels[400:], found, zero_division=0))


def train_pair(config: dict, sources: dict[str, hf.PreTrainedModel]) -> None:
    model = new_model()
    if config["source"] != config["target"]:
        model.bert.load_state_dict(sources[config["source"]].bert.state_dict())
    actor = ray.get_runtime_context().get_actor_id()
    tune.report({"f1": train(model, config["target"], range(300, 332), 60), "actor": actor})


os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
here = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": 2, "include_dashboard": False}
ray.init(log_to_driver=False, **here)
sources = {task: new_model() for task in TASKS}
print("F1:", {t: round(train(m, t, range(300), steps=150), 2) for t, m in sources.items()})
backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
with tempfile.TemporaryDirectory() as folder:
    embed_many({t: (m, tokenizer) for t, m in sources.items()}, PROBE, folder, progress=False)
    rule = EliminationRule.top_k(TransferPredictor(load_embeddings(folder)), k=1)
print("kept:", {target: rule.kept(target) for target in TARGETS})
results = tune.Tuner(
    tune.with_parameters(train_pair, sources=sources),
    param_space={"source": tune.grid_search([*TASKS]), "target": tune.grid_search(TARGETS)},
    tune_config=tune.TuneConfig(metric="f1", mode="max", scheduler=TransferScheduler(rule)),
    run_config=tune.RunConfig(storage_path=os.path.abspath("ray-output"), verbose=0),
).fit()
started = {result.metrics["actor"] for result in results if "actor" in result.metrics}
print(f"{len(started)} actors started, {len(results) - len(started)} were avoided")
print(estimate_savings(records_from_results(results, rule)).headline())
