"""Where Keras lets an exception of `fit` pass, and who calls a callback.

What the guards are for is tested in tests/fit; a failure here says that a new
Keras has renamed what they stand on.
"""

import keras
import pytest

from keras_prunetrain import keras_internals
from tests.callbacks.fits import examples, network


class Guarding(keras.callbacks.Callback):
    """Guards one of the two places, and counts the calls of `leave`."""

    def __init__(self, place):
        super().__init__()
        self.place, self.left = place, 0

    def leave(self):
        self.left += 1

    def set_model(self, model):
        super().set_model(model)
        if self.place == "hooks":
            callbacks = keras_internals.calling_list()
            keras_internals.guard_hooks(callbacks, self.leave)

    def on_train_begin(self, logs=None):
        if self.place == "training":
            keras_internals.guard_loop(self.leave)

    def on_test_begin(self, logs=None):
        if self.place == "validation":
            keras_internals.guard_loop(self.leave)


class Raise(keras.callbacks.Callback):
    def __init__(self, hook):
        super().__init__()
        setattr(self, hook, self._raise)

    def _raise(self, *args, **kwargs):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("place", "hook"),
    [
        ("hooks", "on_train_begin"),
        ("hooks", "on_epoch_end"),
        ("training", "on_train_batch_end"),
        ("validation", "on_test_batch_end"),
    ],
)
def test_an_exception_passes_by_a_guard(place, hook):
    guarding = Guarding(place)
    with pytest.raises(KeyboardInterrupt) as held:  # No finalizer acts.
        network().fit(
            *examples(8),
            validation_data=examples(8),
            verbose=0,
            callbacks=[guarding, Raise(hook)],
        )
    assert guarding.left == 1
    del held


def test_what_fit_holds_goes_with_its_exception():
    guarding = Guarding("training")
    with pytest.raises(KeyboardInterrupt):
        network().fit(
            *examples(8), verbose=0, callbacks=[guarding, Raise("on_epoch_end")]
        )
    assert guarding.left == 1


def test_a_fit_that_succeeds_is_left_alone():
    guarding = Guarding("hooks")
    history = network().fit(
        *examples(8), verbose=0, callbacks=[guarding, Raise("on_predict_end")]
    )
    assert len(history.epoch) == 1
    assert guarding.left == 1  # By the finalizer, when `fit` has returned.


def test_running_fits_are_found_with_their_callbacks():
    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.found = keras_internals.running_fits()

    class FitAnother(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            other.fit(*examples(8), verbose=0, callbacks=[look])

    model, other = network(), network()
    look, outer = Look(), FitAnother()
    model.fit(*examples(8), verbose=0, callbacks=[outer])
    (inner, inner_list), (first, first_list) = look.found
    assert (inner, first) == (other, model)
    assert look in inner_list.callbacks
    assert outer in first_list.callbacks
    assert keras_internals.running_fits() == []


def test_a_progress_bar_learns_of_another_length(capsys):
    class Announce(keras.callbacks.Callback):
        def set_model(self, model):
            super().set_model(model)
            self.callbacks = keras_internals.calling_list().callbacks

        def on_epoch_begin(self, epoch, logs=None):
            keras_internals.announce_steps(self.callbacks, 7)

    network().fit(*examples(8), verbose=2, callbacks=[Announce()])
    assert "7/7" in capsys.readouterr().out


def test_steps_are_traced_anew():
    model = network(compiled={"run_eagerly": False})
    model.fit(*examples(8), validation_data=examples(8), verbose=0)
    before = model.train_function
    keras_internals.renew_steps(model)
    assert model.train_function not in (before, None)
    assert model.test_function is None
    model.fit(*examples(8), validation_data=examples(8), verbose=0)


def test_a_guard_of_the_validation_does_not_act_before_the_end_of_fit():
    """Keras lets go of its data before it calls `on_train_end`."""
    guarding = Guarding("validation")
    left = []
    end = keras.callbacks.LambdaCallback(
        on_train_end=lambda logs: left.append(guarding.left)
    )
    x, y = examples(8)
    network().fit(
        x,
        y,
        epochs=2,
        verbose=0,
        validation_data=(x, y),
        callbacks=[guarding, end],
    )
    assert left == [0]
