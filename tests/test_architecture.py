"""Modules import as BUILD.md draws it, are short, and say what they take."""

import ast
import importlib
import inspect
import pathlib
import sys
import typing

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "keras_prunetrain"


def drawn_layers():
    """Returns the modules of each line of BUILD.md's second drawing."""
    drawing = (ROOT / "BUILD.md").read_text().split("```")[3]
    return [set(line.split(", ")) for line in drawing.strip().splitlines()]


# A module may import only from the layers before its own. The package itself
# imports what is public; the folders' `__init__` hold docstrings only.
LAYERS = [
    *drawn_layers(),
    {""},
    {"callbacks", "channels", "fit", "lasso", "sdgp", "surgery", "tensorboard"},
]
DEPTH = {module: i for i, layer in enumerate(LAYERS) for module in layer}
# Extras, imported where they are used.
OPTIONAL = {
    "batching": {"tensorflow"},
    "channels.picture": {"pydot"},
    "data_sets": {"tensorflow"},
    "distribution": {"tensorflow"},
    "keras_internals.backward": {"tensorflow"},
    "keras_internals.guards": {"tensorflow"},
    "keras_internals.in_step": {"tensorflow"},
    "keras_internals.kernels": {"tensorflow"},
    "keras_internals.random_state": {"tensorflow"},
    "keras_internals.retrying": {"tensorflow"},
    "keras_internals.second_order": {"tensorflow"},
    "keras_internals.skipping": {"tensorflow"},
    "keras_internals.variables": {"tensorflow"},
    "memory": {"tensorflow"},
    "sdgp.emulation": {"tensorflow"},
    "tensorboard.dashboard": {"matplotlib", "tensorboard"},
    "tensorboard.event_writer": {"tensorboard", "tensorflow"},
}
NOT_IN_THE_BASE = {"tensorflow", "tensorflow_datasets", "tensorboard", "absl"}


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
APPS = sorted((ROOT / "apps").rglob("*.py"))


def imports(path):
    """Yields the dotted names that a file imports, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


def imported_modules(path):
    """Yields the modules of the package that a file imports."""
    for name in imports(path):
        package, _, rest = name.partition(".")
        while package == PACKAGE.name:
            if rest in MODULES:
                yield rest
                break
            rest = rest.rpartition(".")[0]


def test_every_module_has_its_layer():
    assert MODULES.keys() == DEPTH.keys()


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_lower_layers(module):
    for name in imported_modules(MODULES[module]):
        assert DEPTH[name] < DEPTH[module], f"{module} imports {name}"


def test_the_imports_are_found_at_all():
    found = set(imported_modules(MODULES["callbacks.prune_train"]))
    assert {"lasso.calibrated", "callbacks.reconfiguring"} <= found
    assert set(imported_modules(MODULES["models"])) == {
        "models.resnet",
        "models.vgg",
    }


@pytest.mark.parametrize("module", MODULES)
def test_package_needs_keras_and_numpy_only(module):
    allowed = {PACKAGE.name, "keras", "numpy", *sys.stdlib_module_names}
    allowed |= OPTIONAL.get(module, set())
    for name in imports(MODULES[module]):
        top = name.partition(".")[0]
        assert top in allowed
        assert top not in NOT_IN_THE_BASE - allowed
        assert not name.startswith("keras.src"), f"{module} imports {name}"


@pytest.mark.parametrize("module", OPTIONAL)
def test_optional_packages_are_imported_where_they_are_used(module):
    at_the_top = ast.parse(MODULES[module].read_text()).body
    for node in at_the_top:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not OPTIONAL[module] & set(ast.unparse(node).split())


@pytest.mark.parametrize("path", APPS, ids=lambda path: path.name)
def test_apps_use_public_names_only(path):
    # `import keras_prunetrain as kpt` is followed by `kpt.name`.
    import keras_prunetrain

    allowed = {
        "keras_prunetrain",
        "keras_prunetrain.models",
        *(f"keras_prunetrain.{name}" for name in keras_prunetrain.__all__),
        *(
            f"keras_prunetrain.models.{name}"
            for name in keras_prunetrain.models.__all__
        ),
    }
    used = {x for x in imports(path) if x.startswith("keras_prunetrain")}
    assert used <= allowed
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("kpt", "keras_prunetrain")
        ):
            assert node.attr in [*keras_prunetrain.__all__, "models"]


@pytest.mark.parametrize(
    "path",
    [*MODULES.values(), *APPS],
    ids=lambda path: "/".join(path.parts[-2:]),
)
def test_nothing_imports_tools(path):
    assert not [x for x in imports(path) if x.partition(".")[0] == "tools"]


# Rows of rules: as long as there are layers.
TABLES = {"channels.layers"}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - TABLES))
def test_modules_are_short(module):
    assert len(MODULES[module].read_text().splitlines()) <= 330


def test_the_callback_of_the_paper_is_short():
    tree = ast.parse(MODULES["callbacks.prune_train"].read_text())
    (cls,) = (x for x in tree.body if isinstance(x, ast.ClassDef))
    assert cls.end_lineno - cls.lineno < 250


def lines_of_code(function):
    """Returns the lines of a function, those of its docstring left out."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


@pytest.mark.parametrize("module", sorted(MODULES.keys() - TABLES))
def test_functions_are_short(module):
    tree = ast.parse(MODULES[module].read_text())
    functions = [x for x in ast.walk(tree) if isinstance(x, ast.FunctionDef)]
    assert not [x.name for x in functions if lines_of_code(x) > 40]


def functions_of(cls):
    """Yields the public methods of a class, but for those of its base in Keras.

    A hook such as `on_epoch_end(self, epoch, logs=None)` is written as there.
    """
    bases = [x for x in cls.__mro__ if PACKAGE.name not in x.__module__]
    for name, method in vars(cls).items():
        if isinstance(method, property):
            method = method.fget
        method = inspect.unwrap(getattr(method, "__func__", method))
        is_keras = name != "__init__" and any(name in vars(x) for x in bases)
        is_public = name == "__init__" or not name.startswith("_")
        if inspect.isfunction(method) and is_public and not is_keras:
            yield method


def annotations(module):
    """Yields where, and the annotations of each public function and record.

    A missing one is `inspect.Signature.empty`.
    """
    found = importlib.import_module(f"{PACKAGE.name}.{module}".rstrip("."))
    for name, value in vars(found).items():
        value = inspect.unwrap(value) if callable(value) else value
        is_own = getattr(value, "__module__", None) == found.__name__
        if not is_own or name.startswith("_"):
            continue
        functions = [value]
        if inspect.isclass(value):
            functions = list(functions_of(value))
            fields = inspect.get_annotations(value).values()
            yield from ((name, field) for field in fields)
        for function in filter(inspect.isfunction, functions):
            where = function.__qualname__
            signature = inspect.signature(function)
            for parameter in signature.parameters.values():
                if parameter.name not in ("self", "cls"):
                    yield f"{where}({parameter.name})", parameter.annotation
            if function.__name__ != "__init__":
                yield where, signature.return_annotation


def says_too_little(annotation):
    """Whether an annotation is missing, or is a container of no one knows."""
    if annotation in (inspect.Signature.empty, dict, list, tuple, set):
        return True
    return any(map(says_too_little, typing.get_args(annotation)))


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_and_records_are_annotated(module):
    assert not [x for x, y in annotations(module) if says_too_little(y)]


def test_what_is_not_annotated_is_found():
    found = dict(annotations("surgery.cut"))
    assert {"sliced(keep)", "sliced", "Cut.shape", "Cut"} <= found.keys()
    found = dict(annotations("callbacks.prune_train"))
    assert "PruneTrainCallback.__init__(interval)" in found
    assert "PruneTrainCallback.on_epoch_end(epoch)" not in found
    assert says_too_little(inspect.Signature.empty)
    assert says_too_little(dict | None) and says_too_little(list[tuple])
    assert not says_too_little(dict[str, list[int]] | None)
