"""Trains a ResNet-20 and prunes it with Torch-Pruning, from scratch.

    python -m venv /tmp/peer
    /tmp/peer/bin/pip install \
        -r tools/benchmarks/peer_torch_pruning_requirements.txt
    python tools/benchmarks/export_images.py --dataset=cifar10 --image_size=16 \
        --output=/tmp/cifar10_16.npz
    /tmp/peer/bin/python tools/benchmarks/peer_torch_pruning.py \
        --data=/tmp/cifar10_16.npz --epochs=30 --target_flops=0.48 \
        --output=tools/results/peer.json

The program needs an environment of its own. Network, images, augmentation,
batch size, weight decay and the total number of epochs are those of
`apps/train_cifar.py`. There are two recipes:

* `group_sl`, that of Torch-Pruning's own benchmark of CIFAR-10 (DepGraph, Fang
  et al., CVPR 2023): half of the epochs dense, at a learning rate of 0.1 that
  is divided by 10 after 60, 75 and 90% of them; a quarter at 0.01, divided by
  10 after 60 and 80%, with a penalty on groups in the place of the weight
  decay; then channels go, by one global ranking in small steps, until the
  target is met; and a quarter at 0.01 again, with weight decay.
* `magnitude`: half of the epochs dense, then channels go by the magnitude of
  their weights, and half of the epochs at 0.01.

Torch-Pruning's benchmark keeps the epoch with the best test accuracy of each
phase. Nothing is selected here: the last epoch counts.

FLOPs are counted as `model_cost` counts them: 2 x the multiply-accumulates of
kernels, three times that for a training step.
"""

import sys
import time

import numpy as np
import peer_training
import torch
import torch_pruning
from peer_training import accuracy, flops, resnet20, step

# Phases: share of the epochs, learning rate, shares after which it drops,
# weight decay, and whether the penalty on groups acts.
RECIPES = {
    "group_sl": (
        (0.5, 0.1, (0.6, 0.75, 0.9), 5e-4, False),
        (0.25, 0.01, (0.6, 0.8), 0.0, True),
        (0.25, 0.01, (0.6, 0.8), 5e-4, False),
    ),
    "magnitude": (
        (0.5, 0.1, (0.6, 0.75, 0.9), 5e-4, False),
        (0.5, 0.01, (0.6, 0.8), 5e-4, False),
    ),
}


def train(model, images, batch_size, epochs, phase, pruner):
    """Trains one phase; yields a dict for each epoch."""
    _, rate, drops, decay, is_penalized = phase
    optimizer = torch.optim.SGD(
        model.parameters(), rate, momentum=0.9, weight_decay=decay
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [max(1, round(share * epochs)) for share in drops]
    )
    for _ in range(epochs):
        started = time.perf_counter()
        model.train()
        for batch in images.batches(batch_size):
            step(model, batch, optimizer, pruner if is_penalized else None)
        schedule.step()
        seconds = time.perf_counter() - started
        yield {"val_accuracy": accuracy(model, images), "seconds": seconds}


def pruner_of(model, method, images, penalty):
    """Returns a pruner that ranks all channels but the classes."""
    arguments = {
        "global_pruning": True,
        "pruning_ratio": 1.0,
        "iterative_steps": 400,
        "ignored_layers": [model[-1]],
    }
    example = images.train[0][:1]
    if method == "magnitude":
        return torch_pruning.pruner.BasePruner(
            model,
            example,
            torch_pruning.importance.MagnitudeImportance(p=2),
            **arguments,
        )
    return torch_pruning.pruner.GroupNormPruner(
        model,
        example,
        torch_pruning.importance.GroupMagnitudeImportance(
            p=2, normalizer="max"
        ),
        reg=penalty,
        **arguments,
    )


def prune(model, pruner, example, limit):
    """Lets channels go until the FLOPs of `model` are at most `limit`."""
    while flops(model, example) > limit:
        if pruner.current_step == pruner.iterative_steps:
            left = flops(model, example)
            sys.exit(
                f"The target is not met: {left} FLOPs stay, and {limit:.0f} "
                "were asked for. Choose a larger --target_flops."
            )
        pruner.step()


def run(images, options):
    """Trains and prunes; returns the record."""
    model = resnet20(images.classes)
    example = images.train[0][:1]
    dense = flops(model, example)
    recipe = RECIPES[options.method]
    ends = np.cumsum([share for share, *_ in recipe]) * options.epochs
    lengths = np.diff(np.round(ends).astype(int), prepend=0)
    pruner = pruner_of(model, options.method, images, options.penalty)
    rows, pruning_seconds = [], 0.0
    for i, (phase, epochs) in enumerate(zip(recipe, lengths, strict=True)):
        if i == len(recipe) - 1:
            started = time.perf_counter()
            model.eval()
            prune(model, pruner, example, options.target_flops * dense)
            pruning_seconds = time.perf_counter() - started
        cost = flops(model, example)
        for row in train(
            model, images, options.batch_size, int(epochs), phase, pruner
        ):
            rows.append(row | {"forward_flops": cost})
            print(len(rows), rows[-1], flush=True)
    return peer_training.shared(
        ("Torch-Pruning", "torch-pruning"), model, images, options, rows
    ) | {
        "recipe": options.method,
        "batch_size": options.batch_size,
        "seconds": sum(row["seconds"] for row in rows) + pruning_seconds,
        "pruning_seconds": pruning_seconds,
    }


def main():
    parser = peer_training.parser(__doc__)
    parser.add_argument("--method", choices=RECIPES, default="group_sl")
    parser.add_argument("--target_flops", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--penalty", type=float, default=5e-4)
    peer_training.record(run, parser.parse_args())


if __name__ == "__main__":
    main()
