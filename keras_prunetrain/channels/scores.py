"""Scores channels: the score of a channel decides whether the channel stays.

A score function takes one `Label`, which stands for one channel axis of one
weight. The function returns a float array of shape `(channels,)`, finite and at
least 0, or `None` if this label does not count. The score of a channel number
is the largest score over all labels that count.
"""

from collections.abc import Callable, Collection

import numpy as np

from keras_prunetrain.channels.labels import Label, Numbering

Score = Callable[[Label], np.ndarray | None]


def magnitude(label: Label) -> np.ndarray | None:
    """Scores the channels of a kernel by their largest weight magnitude.

    The paper's criterion: a channel is dead if all weights that write it and
    all weights that read it are below the threshold.

    Args:
        label: A `Label`.

    Returns:
        Float array, shape `(channels,)`, in the unit of the weights; `None`
        for the label of a weight that is no kernel.
    """
    return label.magnitudes() if label.is_kernel else None


def label_scores(numbering: Numbering, score: Score) -> list[np.ndarray | None]:
    """Returns the result of `score` for each label, in the order of the labels.

    Raises:
        ValueError: If `score` is no function, if it fails, or if it returns
            a value of the wrong kind.
    """
    check_score(score)
    return [_checked(_asked(score, x), x) for x in numbering.labels]


def check_score(score: Score) -> None:
    """Raises a `ValueError` if `score` is no function."""
    if not callable(score):
        raise ValueError(
            "`score` must be a function of a label that returns an array with "
            "one number per channel, or `None`. Received: "
            f"score={score!r}"
        )


def channel_scores(
    numbering: Numbering,
    by_label: list[np.ndarray | None],
    removed: Collection[str] = (),
) -> np.ndarray:
    """Returns the score of each channel number, shape `(numbering.size,)`.

    Args:
        numbering: A `Numbering`.
        by_label: The list that `label_scores` returns for this numbering.
        removed: Keys of the layers that leave the graph, whose labels do not
            count. A channel number without a label that counts scores 0.
    """
    scores = np.zeros(numbering.size)
    for label, values in zip(numbering.labels, by_label, strict=True):
        if values is not None and label.layer not in removed:
            np.maximum.at(scores, label.numbers, values)
    return scores


def scores_of_layers(
    numbering: Numbering, score: Score
) -> dict[str, np.ndarray]:
    """Returns the scores of the channels that each layer's kernel writes.

    With `magnitude`, the scores are those of the layer's own kernel; the
    weights of another layer may still keep a channel alive. With another
    `score`, they are the scores over all labels, which decide what stays.

    Returns:
        Dict from `Label.name` to a float array, `(channels,)`.

    Raises:
        ValueError: As `label_scores`, unless `score` is `magnitude`.
    """
    computed = numbering.computed()
    if score is magnitude:
        return {name: x.magnitudes() for name, x in computed.items()}
    scores = channel_scores(numbering, label_scores(numbering, score))
    return {name: scores[x.numbers] for name, x in computed.items()}


def unscored(
    numbering: Numbering, by_label: list[np.ndarray | None]
) -> np.ndarray:
    """Returns the channel numbers that no label scores, sorted ints."""
    silent = np.ones(numbering.size, bool)
    for label, values in zip(numbering.labels, by_label, strict=True):
        if values is not None:
            silent[label.numbers] = False
    return np.flatnonzero(silent)


def _asked(score, label):
    """Returns `score(label)`; if `score` fails, the error names the label."""
    try:
        return score(label)
    except Exception as error:
        raise ValueError(
            f"`score` fails for {_place(label)}: {error!r}. It is called with "
            "one `Label`."
        ) from error


def _place(label):
    return f"axis {label.axis} of '{label.weight.path}'"


def _checked(values, label):
    """Returns the scores of one label as an array, or `None`.

    Args:
        values: The result of the score function for the label.
        label: The `Label`.

    Raises:
        ValueError: If `values` is not one finite number >= 0 per channel.
    """
    if values is None:
        return None
    where = _place(label)
    try:
        # "same_kind" refuses complex numbers.
        scores = np.asarray(values).astype("float64", casting="same_kind")
    except (TypeError, ValueError, OverflowError):
        scores = np.empty(0)
    if scores.shape != label.numbers.shape:
        raise ValueError(
            "`score` must return `None`, or one number for each of the "
            f"{len(label.numbers)} channels on {where}. Received: {values!r}"
        )
    fits = np.isfinite(scores) & (scores >= 0.0)
    if fits.all():
        return scores
    if not np.isfinite(label.magnitudes()).all():
        raise ValueError(
            f"Cannot tell which channels are dead: '{label.layer}' has "
            f"weights that are not finite ({label.weight.path}). The "
            "training has diverged; lower the learning rate."
        )
    raise ValueError(
        "`score` must return finite numbers of at least 0. Received for "
        f"{where}: {scores[~fits][0]}"
    )
