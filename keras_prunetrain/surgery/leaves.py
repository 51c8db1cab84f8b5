"""The clones of a graph's layers and of their parts."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_prunetrain import keras_internals
from keras_prunetrain.channels.liveness import Plan
from keras_prunetrain.channels.resizing import new_arguments
from keras_prunetrain.channels.rules import rule_for
from keras_prunetrain.surgery.carried import (
    LayerPair,
    carry_built,
    carry_unbuilt,
)
from keras_prunetrain.surgery.copying import Twins, copy_operation
from keras_prunetrain.surgery.cut import Cut
from keras_prunetrain.surgery.pairing import Pairing
from keras_prunetrain.surgery.remaking import config_of, make, without_build
from keras_prunetrain.surgery.uses import refuse_use


class Leaves:
    """Clones the layers of a graph, except nested models.

    Attributes:
        keep: Dict from the `id` of a variable that is cut to its `Cut.keep`.
        pairs: List of pairs of a layer and its clone.

    Args:
        plan: The `Plan` for the model.
        twins: Dict from the `id` of an old layer to its clone; variables, seed
            generators and inner layers are added.
        copy_graph: Function that clones a functional model, given the model,
            its key, and the shapes of its inputs.
    """

    def __init__(
        self,
        plan: Plan,
        twins: Twins,
        copy_graph: Callable[[keras.Model, str, list[Any]], keras.Model],
    ):
        self._plan = plan
        self._twins = twins
        self._copy_graph = copy_graph
        self.keep = _positions(plan)
        self.pairs = []
        self._all_pairs = []  # Those of inner layers and models, too.
        self._resized = {}  # id of a layer -> its arguments that have changed.
        self._born = {}  # id of a layer -> attributes of its new clone.
        self._initializers = []  # Their owner, name, and they themselves.

    def clone(self, layer: keras.Operation, key: str) -> keras.Operation:
        """Returns a new layer, not yet built, of the sizes that are left.

        Args:
            layer: A layer or another operation.
            key: Its key in the numbering; of a layer in a wrapper, that of the
                wrapper.

        Raises:
            ValueError: If there is no way to make it.
        """
        changes = {}
        try:
            config = config_of(layer)
            if self._has_other_shape(key):
                config = without_build(config)
            changes = self._new_sizes(config, layer, key)
            inner = self._inner_layer(layer, key)
            clone = make(layer, config, {**changes, **inner})
        except Exception as error:
            clone = self._copy(layer, key, changes, error)
        else:
            self._carry_unbuilt(layer, clone)
            self._born[id(layer)] = (
                dict(keras_internals.own_attributes(clone)),
                lambda: vars(make(layer, config, inner)),
            )
            self._leave_unfilled(clone)
        self._resized[id(layer)] = changes.keys()
        # `x + y` is an operation, too, and no layer.
        if isinstance(layer, keras.layers.Layer):
            self.pairs.append((layer, clone))
        return clone

    def counterpart(self, value: Any) -> Any:
        """Returns the counterpart of a weight that the graph itself uses.

        `x * layer.scale` is a call of `multiply` with a variable. Other
        arguments of a call are returned as they are.

        Args:
            value: An argument of a call.

        Raises:
            ValueError: If the weight is cut.
        """
        if not isinstance(value, keras.Variable):
            return value
        owners = (
            (key, layer)
            for key, layer in self._plan.numbering.layers.items()
            if any(v is value for v in getattr(layer, "variables", ()))
            and not keras_internals.is_graph(layer)
        )
        key, layer = next(owners, (None, None))
        if layer is None:  # A variable of the user that no layer holds.
            return value
        if id(value) in self.keep:
            refuse_use("The graph itself", value, key)
        if id(layer) not in self._twins:
            self._twins[id(layer)] = self.clone(layer, key)
        clone = self._twins[id(layer)]
        if not clone.built:  # The graph calls it later.
            clone.build_from_config(layer.get_build_config())
        pairing = Pairing({}, {}, self._copy_model)
        pairing.add(layer, clone)
        return pairing.twins[id(value)]

    def pair(
        self, graphs: Sequence[tuple[keras.Model, keras.Model]]
    ) -> list[Cut]:
        """Returns the `Cut`s of all variables, once all clones are built.

        Args:
            graphs: List of pairs of a model and its clone, inner ones first.
        """
        for clone, name, initializer in self._initializers:
            vars(clone)[name] = initializer
        pairing = Pairing(self._twins, self.keep, self._copy_model)
        for layer, clone in self.pairs:
            pairing.add(layer, clone)
        cuts = pairing.cuts()
        self._all_pairs = [*graphs, *pairing.layers]
        return cuts

    def carry(self) -> None:
        """Carries the remaining state, once variables have their values."""
        for layer, clone in self._all_pairs:
            born, born_uncut = self._born.get(id(layer), (None, dict))
            carry_built(
                LayerPair(
                    old=layer,
                    new=clone,
                    is_cut=self._is_cut(layer, clone),
                    resized=self._resized.get(id(layer), set()),
                    born=born,
                    born_uncut=born_uncut,
                    twins=self._twins,
                )
            )

    def _carry_unbuilt(self, layer, clone):
        """Carries what `clone` and the layers in it need before the build."""
        carry_unbuilt(layer, clone)
        if not isinstance(layer, keras.layers.Layer):
            return
        old = keras_internals.parts(layer)
        for path, inner in keras_internals.parts(clone).items():
            if (
                isinstance(inner, keras.layers.Layer)
                and type(inner) is type(old.get(path))
                and id(old[path]) not in self._twins
                and not keras_internals.is_graph(inner)
            ):
                self._carry_unbuilt(old[path], inner)

    def _inner_layer(self, layer, key):
        """Returns the argument of a wrapper that holds a layer, a dict.

        The inner layer may also be called by itself, or be in two wrappers.
        """
        if not isinstance(layer, keras.layers.Wrapper):
            return {}
        inner = layer.layer
        if keras_internals.is_graph(inner):
            return {"layer": self._copy_model(inner)}
        if id(inner) not in self._twins:
            self._twins[id(inner)] = self.clone(inner, key)
        return {"layer": self._twins[id(inner)]}

    def _copy_model(self, model):
        """Returns the clone of a model inside a layer, where nothing is cut."""
        if id(model) not in self._twins:
            shapes = [x.shape for x in model.inputs]
            # No key of the numbering, which does not look into layers.
            key = f"<{model.name}>"
            self._twins[id(model)] = self._copy_graph(model, key, shapes)
        return self._twins[id(model)]

    def _copy(self, layer, key, changes, error):
        """Returns a copy of `layer` that needs no config.

        A layer without a usable config cannot be cut.
        """
        variables = getattr(layer, "variables", ())
        has_other_shape = self._has_other_shape(key)
        if (
            changes
            or any(id(v) in self.keep for v in variables)
            or (has_other_shape and variables)
        ):
            raise ValueError(
                f"Cannot make layer '{key}' anew with fewer channels. Check "
                f"that `get_config` of {type(layer).__name__} returns all that "
                "its `__init__` takes, or keep all channels of the layer with "
                f"`skip={layer.name!r}`. Keras says: {error}"
            ) from error
        clone = copy_operation(layer, self._twins, self._copy_model)
        if has_other_shape and isinstance(layer, keras.layers.Layer):
            clone.built = False
        return clone

    def _has_other_shape(self, key):
        numbering = self._plan.numbering
        touched = (
            *numbering.inputs.get(key, ()),
            *numbering.outputs.get(key, ()),
        )
        return not all(self._plan.alive[x.numbers].all() for x in touched)

    def _is_cut(self, layer, clone):
        if self._resized.get(id(layer)):
            return True
        if any(id(v) in self.keep for v in layer.variables):
            return True
        return layer.get_build_config() != clone.get_build_config()

    def _leave_unfilled(self, clone):
        # Values that are overwritten later would only take time.
        for name, value in list(vars(clone).items()):
            if isinstance(value, keras.initializers.Initializer):
                self._initializers.append((clone, name, value))
                vars(clone)[name] = keras_internals.Unfilled()

    def _new_sizes(self, config, layer, key):
        """Returns the arguments of `layer` that change, a dict."""
        rule = rule_for(layer)
        if rule is None or key not in self._plan.numbering.outputs:
            return {}
        outputs = self._plan.numbering.outputs[key]
        keeps = [self._plan.keep(x.numbers) for x in outputs]
        changes = {}
        if self._has_other_shape(key):
            changes = new_arguments(rule, layer, config, outputs, keeps)
        kinds = self._plan.numbering.inner.get(key, {})
        for names in rule.inner if kinds else ():
            names = (names,) if isinstance(names, str) else names
            numbers = kinds[names[0]]
            left = len(self._plan.keep(numbers))
            if left < len(numbers):
                for name in names:
                    count = config.get(name, len(numbers))
                    changes[name] = count * left // len(numbers)
        return changes


def _positions(plan):
    """Returns a dict from the `id` of each variable that is cut to its keep."""
    keep = {}
    for label in plan.numbering.labels:
        positions = plan.keep(label.numbers)
        if len(positions) < len(label.numbers):
            keep.setdefault(id(label.weight), {})[label.axis] = positions
    return keep
