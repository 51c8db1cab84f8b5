"""Finds the counterpart of each variable and each inner layer."""

from collections.abc import Mapping

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.surgery.copying import CopyModel, Twins, copied, copy_part
from keras_prunetrain.surgery.cut import Cut, Keep


class Pairing:
    """Pairs the parts of layers with the parts of their clones.

    Parts are paired by the attribute that holds them. `Layer.variables` cannot
    pair them: its order and length change with a flag, or with a rate that
    needs a seed generator, if these are set after the layer was made.

    Attributes:
        layers: List of pairs of a layer and its clone; inner layers come after
            their outer layer.
        twins: Dict from the `id` of an old layer, variable or seed generator
            to its counterpart.

    Args:
        twins: The `twins` that are known at the beginning.
        keep: Dict from the `id` of a variable that is cut to its `Cut.keep`.
        copy_model: Function that returns a copy of a functional model.
    """

    def __init__(
        self, twins: Twins, keep: Mapping[int, Keep], copy_model: CopyModel
    ):
        self.layers = []
        self.twins = twins
        self._keep = keep
        self._copy_model = copy_model
        self._cuts = {}  # id of an old variable -> its `Cut`.
        self._missing = []
        self._added = set()

    def add(self, layer: keras.layers.Layer, clone: keras.layers.Layer) -> None:
        """Pairs the built `layer` and `clone`, and all that is in them."""
        if id(layer) in self._added:
            return
        self._added.add(id(layer))
        self.twins[id(layer)] = clone
        self.layers.append((layer, clone))
        counterparts = keras_internals.parts(clone)
        for path, part in keras_internals.parts(layer).items():
            counterpart = counterparts.get(path)
            if type(counterpart) is not type(part):
                self._missing.append((layer, clone, path, part))
                continue
            known = self.twins.get(id(part), counterpart)
            if known is not counterpart:
                if keras_internals.is_graph(clone):
                    raise ValueError(
                        f"Layer '{part.name}' also stands in the model "
                        f"'{layer.name}', inside another layer, and would be "
                        "another one there. Call that model in the graph "
                        "itself."
                    )
                # The part is also one of another layer, and stays that.
                keras_internals.replace_part(clone, counterpart, known)
            self._pair(part, known)

    def cuts(self) -> list[Cut]:
        """Returns the `Cut`s of all variables, when all layers are added.

        Raises:
            ValueError: If a clone has other weights than its layer.
        """
        for layer, clone, path, part in self._missing:
            self._complete(layer, clone, path, part)
        self._missing.clear()
        cuts = {id(cut.new): cut for cut in self._cuts.values()}
        for layer, clone in self.layers:
            _check(layer, clone, cuts)
        return list(cuts.values())

    def _pair(self, part, counterpart):
        """Notes a pair of parts: a variable's `Cut`, and all in a layer."""
        self.twins[id(part)] = counterpart
        keras_internals.carry_names(part, counterpart)
        if isinstance(part, keras.layers.Layer):
            self.add(part, counterpart)
            return
        if isinstance(part, keras.random.SeedGenerator):
            part, counterpart = part.state, counterpart.state
            self.twins[id(part)] = counterpart
            keras_internals.carry_names(part, counterpart)
        keep = self._keep.get(id(part), {})
        self._cuts.setdefault(id(part), Cut(part, counterpart, keep))

    def _complete(self, layer, clone, path, part):
        """Gives `clone` a part that its config does not make.

        A layer can be given a variable after it was made, and a `Dropout`
        whose rate was set to zero still has its seed generator.
        """
        if id(part) not in self.twins:
            shape = None
            if isinstance(part, keras.Variable):
                shape = Cut(part, None, self._keep.get(id(part), {})).shape
            self.twins[id(part)] = copy_part(
                part, self.twins, self._copy_model, shape
            )
        self._pair(part, self.twins[id(part)])
        name = keras_internals.attribute_of(path)
        if name is None:
            keras_internals.track(clone, self.twins[id(part)])
        else:
            value = copied(vars(layer)[name], self.twins)
            keras_internals.set_attribute(clone, name, value)


def _check(layer, clone, cuts):
    """Raises a `ValueError` if a weight of `clone` is not that of a `Cut`.

    Args:
        layer: A layer.
        clone: Its clone.
        cuts: Dict from the `id` of a new variable to its `Cut`.
    """
    for part in keras_internals.parts(clone).values():
        if not isinstance(part, keras.Variable):
            continue
        cut = cuts.get(id(part))
        if cut is None:
            problem = f"a weight '{part.name}', which the layer has not"
        elif tuple(part.shape) != cut.shape:
            problem = (
                f"'{part.name}' the shape {tuple(part.shape)}, where "
                f"{cut.shape} is left of {tuple(cut.old.shape)}"
            )
        else:
            continue
        raise ValueError(
            f"Cannot make layer '{layer.name}' anew: its config gives "
            f"{problem}. Check that `get_config` of {type(layer).__name__} "
            "returns the very arguments that its `__init__` was called with."
        )
