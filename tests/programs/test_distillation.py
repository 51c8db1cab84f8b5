"""Distillation: a frozen teacher, and a student that learns from it."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import keras_prunetrain as kpt
from tests.programs.watched import descend, images, kinds, trained


class Distiller(keras.Model):
    """Trains a student by the labels and by what the teacher says."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.teacher.trainable = False

    def call(self, x, training=False):
        return self.student(x, training=training)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self.student(x, training=True)
            soft = ops.softmax(self.teacher(x, training=False) / 2.0)
            loss = self.compute_loss(x, y, y_pred) + ops.mean(
                keras.losses.kl_divergence(soft, ops.softmax(y_pred / 2.0))
            )
        descend(tape, loss, self.student.trainable_weights, self.optimizer)
        return self.compute_metrics(x, y, y_pred) | {"loss": loss}


def classifier(width, name):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(width, 3, 2, activation="relu")(image)
    x = layers.Conv2D(2 * width, 3, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(5)(x), name=name)


def distiller():
    model = Distiller(classifier(6, "student"), classifier(12, "teacher"))
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        run_eagerly=True,
    )
    return model


DATA = images(32, 8, 8, 3), np.arange(32) % 5


@kinds()
def test_the_student_shrinks_and_the_teacher_stays(callback, float64):
    model = distiller()
    taught = model.teacher.get_weights()
    trained(
        *(callback, model, lambda x: [x.student], *DATA),
        validation_data=DATA,
    )
    for one, other in zip(model.teacher.get_weights(), taught, strict=True):
        np.testing.assert_array_equal(one, other)
    assert {x.partition("/")[0] for x in callback.reports[0].keep} == {
        "student"
    }


def test_one_cut_by_the_gradient_flow_needs_a_call_and_a_loss(float64):
    model = distiller()
    before = kpt.model_cost(model.student).forward_flops
    pruning = kpt.EarlyCroPCallback(0.5, DATA, "flops", when="start")
    model.fit(*DATA, epochs=1, callbacks=[pruning], verbose=0)
    left = kpt.model_cost(model.student).forward_flops / before
    assert 0.4 < left <= 0.5
