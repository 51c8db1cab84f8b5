"""A running `fit` goes on with the smaller model."""

from keras_prunetrain import keras_internals


def take_over(model, smaller):
    """Makes the object `model` the model `smaller`, between two steps of `fit`.

    Whoever holds `model` (the user, the loop in `fit`, other callbacks) or its
    optimizer holds the smaller ones from now on, without noticing. The next
    step is traced anew.

    Args:
        model: The model in training; modified.
        smaller: What `carry_out` made of it; of no use afterwards.
    """
    with keras_internals.strategy_scope(model):
        keras_internals.take_over(model, smaller)
