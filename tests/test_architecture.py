"""The imports between modules follow the layers drawn in BUILD.md."""

import ast
import pathlib
import sys

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
    {"callbacks", "channels", "fit", "lasso", "surgery", "tensorboard"},
]
DEPTH = {module: i for i, layer in enumerate(LAYERS) for module in layer}
# Extras, imported where they are used.
OPTIONAL = {
    "channels.picture": {"pydot"},
    "data_sets": {"tensorflow"},
    "distribution": {"tensorflow"},
    "keras_internals.guards": {"tensorflow"},
    "keras_internals.variables": {"tensorflow"},
    "memory": {"tensorflow"},
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
    assert {"lasso.calibrated", "fit.reconfiguring"} <= found
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
