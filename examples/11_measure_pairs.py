"""No transfer measured yet: measure a few pairs, chosen well, and let them teach the ranking.

`suggest_pairs` says which 24 of 132 ordered pairs to measure, in two rounds: what the first one
teaches chooses the second. Expect a table: attributions alone, with those 24 pairs, and with 24 at
random (mean of 20 draws), each held against a full measurement, which a new search does not have.
Columns: rank correlation of predicted and measured gain within a target, and the share of the
attainable gain that is kept with one source of eleven for each target, and with three. This is one
draw of small data, so that the order of the rows is no law.
"""

import numpy as np
import pandas as pd
import torch

import digits
from transfer_pruner import EliminationRule, TransferPredictor, embed, regret, suggest_pairs

TASKS = list(digits.TASKS)[2:]
BUDGET, ROUNDS = 24, 2
torch.set_num_threads(1)

models = {task: digits.source_model(task) for task in TASKS}
embeddings = {t: embed(model, digits.PROBE, name=t, target=1) for t, model in models.items()}


def measure(pairs: pd.DataFrame) -> pd.DataFrame:
    """Train every pair, and score it on the dev and the test images."""
    scores = [
        digits.transfer_scores(models.get(source), target, lr=1e-2, epochs=30)
        for source, target in pairs[["source", "target"]].itertuples(index=False)
    ]
    return pairs.assign(dev=[dev for dev, _ in scores], test=[test for _, test in scores])


baselines = measure(pd.DataFrame({"source": None, "target": TASKS}))


def gains(measured: pd.DataFrame, split: str) -> pd.Series:
    return measured[split] - measured["target"].map(baselines.set_index("target")[split])


def fitted(measured: pd.DataFrame) -> TransferPredictor:
    return TransferPredictor(embeddings).fit(measured, gains(measured, "dev"))


predictor, pilot = TransferPredictor(embeddings), pd.DataFrame()
for _ in range(ROUNDS):
    pilot = pd.concat([pilot, measure(suggest_pairs(predictor, BUDGET // ROUNDS))])
    predictor = fitted(pilot)
first = ", ".join(pilot["source"][:3] + " -> " + pilot["target"][:3])
print(f"measured: {first} and {len(pilot) - 3} more")

# What a user does not have: all pairs, measured.
pairs = [(source, target) for source in TASKS for target in TASKS if source != target]
everything = measure(pd.DataFrame(pairs, columns=["source", "target"]))
trials = pd.concat([baselines, everything], ignore_index=True)
measured_gain = gains(everything, "test").groupby(everything["target"]).rank()


def judged(predictor: TransferPredictor) -> list[float]:
    predicted = pd.Series(predictor.predict(everything)).groupby(everything["target"]).rank()
    kept = [regret(trials, EliminationRule.top_k(predictor, k)).share_kept for k in (1, 3)]
    return [predicted.corr(measured_gain), *kept]


ways = {
    "attributions alone": [TransferPredictor(embeddings)],
    "and 24 pairs suggested": [predictor],
    "and 24 pairs at random": [
        fitted(everything.sample(BUDGET, random_state=i)) for i in range(20)
    ],
}
table = pd.DataFrame(
    {way: np.mean([judged(p) for p in found], axis=0) for way, found in ways.items()}
)
print(table.set_axis(["correlation", "keep 1", "keep 3"]).T.to_string(float_format="%.2f"))
