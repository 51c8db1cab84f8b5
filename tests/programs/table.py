"""The programs of this folder, and the table of them in docs/coverage.md."""

import collections
import re

from tests.programs import (
    kinds,
    kinds_of_sequences,
    test_contrastive,
    test_distillation,
    test_enhancement,
    test_fine_tuning,
    test_gan,
    test_metric_learning,
    test_siamese,
    test_translation,
    test_vae,
)
from tests.programs.halved import halve

# Those that `fit` trains as they stand, by what docs/coverage.md calls them.
KINDS = {
    "classification from scratch": kinds.classification,
    "segmentation (U-Net)": kinds.segmentation,
    "detection, several heads": kinds.detection,
    "keypoints, nested backbone": kinds.keypoints,
    "super-resolution, sub-pixels": kinds.super_resolution,
    "denoising autoencoder": kinds.denoising,
    "OCR, CTC in the graph": kinds.ocr,
    "CRNN, CTC as the loss": kinds.crnn,
    "1-D classification": kinds.time_series,
    "3-D classification": kinds.volumes,
    "video, CNN and GRU": kinds_of_sequences.video,
    "video, ConvLSTM": kinds_of_sequences.next_frames,
    "audio, spectrogram": kinds_of_sequences.audio,
    "text, embedding and CNN": kinds_of_sequences.text,
    "CCT": kinds_of_sequences.compact_transformer,
    "MobileViT": kinds_of_sequences.mobile_vit,
    "table, wide and deep": kinds_of_sequences.wide_and_deep,
    "multiple instances": kinds_of_sequences.instances,
}
# Those with a file of their own: the functional models that become smaller.
OTHERS = {
    "fine-tuning in two phases": lambda: [test_fine_tuning.fine_tuned()],
    "low-light enhancement": lambda: [test_enhancement.curves()],
    "metric learning": lambda: [test_metric_learning.embedding()],
    "siamese network": lambda: [
        test_siamese.triplets(test_siamese.embedding())
    ],
    "contrastive learning": lambda: [
        test_contrastive.encoder(),
        test_contrastive.dense("head", 12, 6),
    ],
    "distillation": lambda: [test_distillation.classifier(6, "student")],
    "GAN": lambda: [test_gan.discriminator(), test_gan.generator()],
    "VAE": lambda: [test_vae.encoder(), test_vae.decoder()],
    "image translation": lambda: [
        test_translation.generator("there"),
        test_translation.discriminator("of_b"),
    ],
}


def halves(name):
    """The `Halved` of each functional model of a program, a list."""
    if name in KINDS:
        return [halve(KINDS[name]().model)]
    return [halve(model) for model in OTHERS[name]()]


def row(name, parts):
    """The line of a program in the table, from its `halves`."""
    held = collections.Counter()
    for part in parts:
        for reason, count in part.held.items():
            # The class says enough, without the layer's name.
            held[re.sub(r"^\S+ \((\w+)\)", r"`\1`", reason)] += count
    before, after = (
        sum(getattr(part, x) for part in parts) for x in ("parameters", "left")
    )
    reasons = "; ".join(f"{x} ({n})" for x, n in held.most_common())
    return f"| {name} | {before:,} | {after / before:.0%} | {reasons} |"


def section():
    """The section of docs/coverage.md; computes everything anew."""
    rows = [row(name, halves(name)) for name in (*KINDS, *OTHERS)]
    return _INTRODUCTION + "\n".join(rows) + "\n"


_INTRODUCTION = """
## Programs

Each row is a small program of `tests/programs/`, of a kind that users write.
With one line added, the program trains and its model becomes smaller. The
smaller model computes to 1e-12 in float64 what the larger one computes with
its dead weights zero, and is saved and loaded. "after" is the share of the
parameters that is left if a random half of the removable channels is dead on
both sides. The last column says what holds the other channels, with their
number in `channel_report`. `tools/program_table.py` writes the table.

| program | parameters | after | what holds channels |
| --- | ---: | ---: | --- |
"""
