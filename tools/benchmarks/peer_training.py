"""What the benchmarks of packages for PyTorch train, and on which images.

Network, images and augmentation are those of `apps/train_cifar.py`. FLOPs are
counted as `model_cost` counts them: 2 x the multiply-accumulates of kernels.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# `apps` is not part of the installed package. `apps.environment` imports only
# the standard library, so that this environment needs no TensorFlow.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from apps.environment import environment  # noqa: E402


class Block(nn.Module):
    """Two 3x3 convolutions with BN beside a shortcut."""

    def __init__(self, read, written, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(read, written, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(written)
        self.conv2 = nn.Conv2d(written, written, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(written)
        self.shortcut = nn.Identity()
        if read != written or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(read, written, 1, stride, bias=False),
                nn.BatchNorm2d(written),
            )

    def forward(self, x):
        branch = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(branch)) + self.shortcut(x))


def resnet20(classes):
    """Returns the network of `keras_prunetrain.models.resnet20`."""
    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)]
    layers.append(nn.ReLU())
    read = 16
    for stage, channels in enumerate((16, 32, 64)):
        for index in range(3):
            stride = 2 if stage and not index else 1
            layers.append(Block(read, channels, stride))
            read = channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)]
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return model


def flops(model, images):
    """Returns 2 x the multiply-accumulates of the kernels, for one image."""
    counts = []

    def count(module, read, written):
        counts.append(module.weight.numel() * written[0, 0].numel())

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    model.eval()
    with torch.no_grad():
        model(images[:1])
    for hook in hooks:
        hook.remove()
    return 2 * sum(counts)


class Images:
    """The data set, in the memory of the device.

    Args:
        path: File of `tools/benchmarks/export_images.py`.
        generator: Where the order and the augmentation come from.
    """

    def __init__(self, path, generator):
        self._generator = generator
        with np.load(path) as found:
            self.name, self.classes = str(found["name"]), int(found["classes"])
            self.padding, self.flips = (
                int(found["padding"]),
                bool(found["flips"]),
            )
            mean, std = found["mean"], found["std"]
            self.train = self._tensors(
                found["images"], found["labels"], mean, std
            )
            self.validation = self._tensors(
                found["validation_images"],
                found["validation_labels"],
                mean,
                std,
            )

    @staticmethod
    def _tensors(images, labels, mean, std):
        normalized = ((images - mean) / std).astype("float32")
        return (
            torch.from_numpy(normalized).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(labels.astype("int64")),
        )

    def batches(self, size):
        """Yields the batches of an epoch, shifted and flipped."""
        images, labels = self.train
        for chosen in self._draw(len(labels)).split(size):
            yield self._augmented(images[chosen]), labels[chosen]

    def _draw(self, count):
        return torch.randperm(count, generator=self._generator)

    def _augmented(self, x):
        count, _, height, width = x.shape

        def drawn(high):
            return torch.randint(high, (count, 1), generator=self._generator)

        rows = drawn(2 * self.padding + 1) + torch.arange(height)
        columns = torch.arange(width).expand(count, -1)
        if self.flips:
            columns = torch.where(drawn(2) == 1, columns.flip(1), columns)
        columns = drawn(2 * self.padding + 1) + columns
        padded = F.pad(x, [self.padding] * 4)
        each = torch.arange(count)[:, None, None]
        picked = padded[each, :, rows[:, :, None], columns[:, None, :]]
        return picked.permute(0, 3, 1, 2).contiguous()


def accuracy(model, images):
    """Returns the part of the validation images that is recognized."""
    model.eval()
    right = 0
    with torch.no_grad():
        for x, y in zip(
            *(tensor.split(512) for tensor in images.validation), strict=True
        ):
            right += int((model(x).argmax(1) == y).sum())
    return right / len(images.validation[1])


def step(model, batch, optimizer, penalizing=None):
    """Takes a training step, with the penalty of a pruner if there is one."""
    images, labels = batch
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    if penalizing:
        penalizing.regularize(model)
    optimizer.step()


def shared(package, model, images, options, epochs):
    """Returns what the record of every package that prunes has.

    Args:
        package: `(name, name of the distribution)`.
        model: The network at the end.
        images: The `Images`.
        options: The parsed arguments.
        epochs: A dict for each epoch, with its seconds and with the FLOPs of
            the network that it trained.
    """
    name, distribution = package
    example, count = images.train[0][:1], len(images.train[1])
    dense = flops(resnet20(images.classes), example)
    return {
        "peer": f"{name} {importlib.metadata.version(distribution)}",
        "dataset": images.name,
        "network": "resnet20",
        "image_size": example.shape[-1],
        "epochs": len(epochs),
        "seed": options.seed,
        "threads": options.threads,
        "val_accuracy": accuracy(model, images),
        "dense_forward_flops": dense,
        "forward_flops": flops(model, example),
        "total_training_flops": sum(
            3 * epoch["forward_flops"] * count for epoch in epochs
        ),
        "dense_training_flops": 3 * dense * count * len(epochs),
        "widths": [
            module.out_channels
            for module in model.modules()
            if isinstance(module, nn.Conv2d)
        ],
        "by_epoch": epochs,
    }


def parser(description):
    """Returns a parser of the arguments that all these benchmarks have."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--data", required=True)
    found.add_argument("--output", required=True)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--threads", type=int, default=os.cpu_count())
    return found


def record(run, options):
    """Writes what a benchmark finds.

    Args:
        run: Function of the `Images` and the options; returns a dict.
        options: The parsed arguments.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    images = Images(options.data, torch.Generator().manual_seed(options.seed))
    found = environment([options.seed], ["torch"]) | run(images, options)
    text = json.dumps(found, indent=2) + "\n"
    pathlib.Path(options.output).write_text(text)
    print(f"Wrote {options.output}.")
