"""Measures what a grown batch saves per image, where updates cost.

    python tools/benchmarks/batch_growth.py tools/results/RUN.json

The last architecture of a recorded run trains in turns with the first batch and
with the one that a `DynamicBatch` grows to in the memory of the dense network.
On one CPU, a larger batch saves time per image only while it is small.
"""

import json
import pathlib
import statistics
import sys

import recorded_run
from absl import app, flags
from architectures import SEED, architectures, cut_like
from communication import grown
from turns import in_turns

# `apps` is not part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps.environment import ROOT, environment  # noqa: E402

_TURNS = flags.DEFINE_integer("turns", 15, "Turns of each batch size.")

OUTPUT = ROOT / "tools" / "results" / "batch_growth.json"
# First batch size -> granularity: the finest for the small one, which has room
# for a few images more, and for the other one that suits a CPU.
FIRST = {16: 1, 64: 8}


def main(argv):
    run = recorded_run.read_one(argv[1:])
    rows = []
    for first, granularity in FIRST.items():
        stages = architectures(run)
        last = int(grown(stages, first, granularity)[-1])
        twin = cut_like(run.reports[-1], stages[-2])
        small, large = in_turns(
            [stages[-1], twin],
            _TURNS.value,
            SEED,
            batch_sizes=[first, last],
        )
        ratios = [
            (b / last) / (a / first) for a, b in zip(small, large, strict=True)
        ]
        rows.append(
            {
                "batch_sizes": [first, last],
                "granularity": granularity,
                "images_per_second": [
                    first / statistics.median(small),
                    last / statistics.median(large),
                ],
                "time_per_image_ratio": statistics.median(ratios),
                "ratio_quartiles": statistics.quantiles(ratios, n=4),
            }
        )
        print(rows[-1], flush=True)
    record = environment([SEED]) | {"run": argv[1], "growths": rows}
    OUTPUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
