"""Pages of the site that are not files in docs/: a hook of MkDocs."""

import ast
import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Files of the top folder, and what they are called in the site.
PAGES = {
    "README.md": "index.md",
    "BUILD.md": "build.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
_LINK = re.compile(r"\]\((?P<path>[^)#:]+)(?P<anchor>#[^)]*)?\)")


def on_files(files, config):
    """Adds the pages."""
    for source, name in PAGES.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Lets links lead to the pages of the site."""
    return _LINK.sub(_link, markdown)


def reference():
    """Returns the page of everything that is public, in alphabetical order."""
    source = (ROOT / "keras_prunetrain" / "__init__.py").read_text()
    # By the module that defines it: some modules are called like a function.
    paths = {
        name.name: f"{node.module}.{name.name}"
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    return "# Reference\n\n" + "".join(
        f"::: {paths[name]}\n\n" for name in sorted(paths, key=str.lower)
    )


def _link(found):
    path = found["path"].removeprefix("../").removeprefix("docs/")
    return f"]({PAGES.get(path, path)}{found['anchor'] or ''})"
