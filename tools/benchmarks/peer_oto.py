"""Trains a ResNet-20 and prunes it with OTO's HESSO, from scratch.

    python -m venv /tmp/oto
    /tmp/oto/bin/pip install -r tools/benchmarks/peer_oto_requirements.txt
    python tools/benchmarks/export_images.py --dataset=cifar10 --image_size=16 \
        --output=/tmp/cifar10_16.npz
    /tmp/oto/bin/python tools/benchmarks/peer_oto.py \
        --data=/tmp/cifar10_16.npz --epochs=30 --group_sparsity=0.3 \
        --output=tools/results/peer.json

The program needs an environment of its own. Network, images, augmentation,
batch size, weight decay, learning rates and the number of epochs are those of
`apps/train_cifar.py`.

HESSO (Chen et al. 2024) is an optimizer that chooses groups of channels and
shrinks these groups to zero while all others train on. Here HESSO begins after
a tenth of the steps, and has ended after a quarter of the steps. The
network keeps its size until the end, where OTO cuts the groups that are zero:
the training FLOPs are those of dense training. OTO takes a target for the part
of the groups and none for the FLOPs.
"""

import tempfile
import time

import peer_training
import torch
from only_train_once import OTO
from peer_training import accuracy, flops, resnet20, step

if not torch.cuda.is_available():
    # HESSO moves its masks to a GPU, whether there is one or not.
    torch.Tensor.cuda = lambda self, *arguments, **options: self

BATCH_SIZE = 128
RATE = 0.1
BEGIN, END = 0.1, 0.25  # Of the steps, between which channels are chosen.
PERIODS = 10


def run(images, options):
    """Trains and prunes; returns the record."""
    model = resnet20(images.classes)
    example = images.train[0][:1]
    dense = flops(model, example)
    oto = OTO(model=model, dummy_input=example)
    size = len(images.train[1])
    steps = options.epochs * -(-size // BATCH_SIZE)
    optimizer = oto.hesso(
        variant="sgd",
        lr=RATE,
        first_momentum=0.9,
        weight_decay=5e-4,
        target_group_sparsity=options.group_sparsity,
        start_pruning_step=round(BEGIN * steps),
        pruning_steps=round((END - BEGIN) * steps),
        pruning_periods=PERIODS,
    )
    # The learning rate is divided by 10 where `apps/train_cifar.py` does so.
    drop_epochs = options.epochs // 2, options.epochs * 3 // 4
    rows = []
    for epoch in range(options.epochs):
        drops = sum(epoch >= x for x in drop_epochs)
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.1**drops
        seconds = train(model, images, optimizer)
        rows.append(
            {
                "val_accuracy": accuracy(model, images),
                "seconds": seconds,
                "forward_flops": dense,
            }
        )
        print(len(rows), rows[-1], flush=True)
    small, cut_seconds = cut(oto)
    return peer_training.shared(
        ("OTO", "only-train-once"), small, images, options, rows
    ) | {
        "recipe": "hesso",
        "batch_size": BATCH_SIZE,
        "seconds": sum(row["seconds"] for row in rows) + cut_seconds,
        "pruning_seconds": cut_seconds,
    }


def train(model, images, optimizer):
    """Trains for an epoch; returns the seconds."""
    model.train()
    started = time.perf_counter()
    for batch in images.batches(BATCH_SIZE):
        step(model, batch, optimizer)
    return time.perf_counter() - started


def cut(oto):
    """Returns the network without the groups that are zero, and the seconds."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        oto.construct_subnet(out_dir=folder)
        small = torch.load(oto.compressed_model_path)
    return small, time.perf_counter() - started


def main():
    parser = peer_training.parser(__doc__)
    parser.add_argument("--group_sparsity", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=30)
    peer_training.record(run, parser.parse_args())


if __name__ == "__main__":
    main()
