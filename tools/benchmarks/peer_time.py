"""Times the training by Torch-Pruning's recipes, relative to dense training.

    python tools/benchmarks/export_images.py --dataset=cifar10 --image_size=16 \
        --output=/tmp/cifar10_16.npz
    /tmp/peer/bin/python tools/benchmarks/peer_time.py \
        --data=/tmp/cifar10_16.npz --output=tools/results/peer_time.json

`peer_torch_pruning.py` says how its environment is made, and has the recipes.
Three networks take steps in turns: the dense one, the dense one with the
penalty on groups, and one that was pruned to the target. The steps of a recipe,
each weighted with the share of its phase, give the time of the training. The
pruned network is cut by `group_sl` before it is trained: it has about the FLOPs
of a recorded run of either recipe, in other widths.
"""

import importlib.metadata
import itertools
import statistics
import time

import peer_torch_pruning as peer
import peer_training
import torch
from peer_training import flops, resnet20, step

STEPS = 10  # Of a turn.
WARM_UP = 2  # Turns that are not counted.
BATCH_SIZE = 128
PENALTY = 5e-4


class Trained:
    """A network that takes training steps.

    Args:
        images: `peer_training.Images`.
        limit: FLOPs of inference that the network is pruned to. Defaults to
            `None`, the dense network.
        is_penalized: Whether the penalty on groups acts. Defaults to `False`.
    """

    def __init__(self, images, limit=None, is_penalized=False):
        self.model = resnet20(images.classes)
        pruner = peer.pruner_of(self.model, "group_sl", images, PENALTY)
        if limit is not None:
            self.model.eval()
            peer.prune(self.model, pruner, images.train[0][:1], limit)
        self._penalizing = pruner if is_penalized else None
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4
        )

    def seconds(self, images):
        """Returns the seconds of a step, their mean over a turn."""
        self.model.train()
        batches = itertools.islice(images.batches(BATCH_SIZE), STEPS)
        started = time.perf_counter()
        for batch in batches:
            step(self.model, batch, self._optimizer, self._penalizing)
        return (time.perf_counter() - started) / STEPS


def run(images, options):
    """Returns the record."""
    dense = Trained(images)
    example = images.train[0][:1]
    limit = options.target_flops * flops(dense.model, example)
    networks = {
        "dense": dense,
        "penalized": Trained(images, is_penalized=True),
        "pruned": Trained(images, limit),
    }
    turns = [
        {name: x.seconds(images) for name, x in networks.items()}
        for _ in range(WARM_UP + options.turns)
    ][WARM_UP:]
    ratios = {
        name: statistics.median(turn[name] / turn["dense"] for turn in turns)
        for name in networks
    }
    return {
        "timed": f"Torch-Pruning {importlib.metadata.version('torch-pruning')}",
        "dataset": images.name,
        "network": "resnet20",
        "image_size": example.shape[-1],
        "batch_size": BATCH_SIZE,
        "threads": options.threads,
        "turns": options.turns,
        "networks": {
            name: {
                "forward_flops": flops(x.model, example),
                "step_seconds": statistics.median(t[name] for t in turns),
                "time_ratio": ratios[name],
            }
            for name, x in networks.items()
        },
        "training_time_ratios": {
            recipe: training_time(phases, ratios)
            for recipe, phases in peer.RECIPES.items()
        },
    }


def training_time(phases, ratios):
    """Returns the time of a recipe, relative to dense training.

    Args:
        phases: As in `peer_torch_pruning.RECIPES`.
        ratios: Dict with the time of each network's step, relative to dense.
    """
    total = 0.0
    for i, (share, *_, is_penalized) in enumerate(phases):
        is_last = i == len(phases) - 1
        name = "pruned" if is_last else "penalized" if is_penalized else "dense"
        total += share * ratios[name]
    return total


def main():
    parser = peer_training.parser(__doc__)
    parser.add_argument("--target_flops", type=float, default=0.5)
    parser.add_argument("--turns", type=int, default=10)
    peer_training.record(run, parser.parse_args())


if __name__ == "__main__":
    main()
