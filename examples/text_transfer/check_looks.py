"""Are the proxy scores of a kept table what `score_pairs` gives today? Trains a few sources.

python examples/text_transfer/check_looks.py --train train.csv --test test.csv --out trec-is-4 \
        --target-positives 4 --target-epochs 20 --half --sources CleanUp Volunteer GoodsServices
"""

from __future__ import annotations

import features
import measure
import pandas as pd
from measure import Bench
from table import HERE

from transfer_pruner.pairs import ordered_pairs


def main() -> None:
    parser = measure.arguments()
    parser.add_argument("--sources", nargs="+", required=True)
    options = parser.parse_args()
    bench, seed = Bench(options), options.seeds[0]
    tops = {name: bench.source_model(name, seed) for name in options.sources}
    pairs = ordered_pairs(bench.names)
    pairs = pairs[pairs["source"].isin(options.sources)]
    kept = pd.read_csv(HERE / f"features-{bench.regime.target_size}.csv")
    kept = kept[kept["seed"] == seed]
    both = features.look(bench, tops, pairs, "zero_shot").merge(
        kept, on=["source", "target"], suffixes=("", "_kept"), validate="one_to_one"
    )
    largest = (both["look"] - both["look_kept"]).abs().max()
    print(f"{len(both)} of {len(pairs)} pairs, seed {seed}: they differ by {largest:.6f} at most.")


if __name__ == "__main__":
    main()
