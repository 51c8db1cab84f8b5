"""The networks of the papers, for images of any size and class count."""

from keras_prunetrain.models.resnet import (
    resnet8,
    resnet20,
    resnet32,
    resnet50_cifar,
    resnet56,
)
from keras_prunetrain.models.vgg import vgg11, vgg13

__all__ = [
    "resnet8",
    "resnet20",
    "resnet32",
    "resnet50_cifar",
    "resnet56",
    "vgg11",
    "vgg13",
]
