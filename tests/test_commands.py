"""Every command that the documentation shows can be typed as it stands.

The flags of the training programs are parsed, with their checks, and nothing is
trained. Of the other programs, each flag must be one that the file defines.
"""

import ast
import json
import pathlib
import re
import shlex

import pytest
from absl import flags

from apps import train_cifar, train_imagenet
from tests.apps.programs import parsed

ROOT = pathlib.Path(__file__).parents[1]
# The changes tell of commands that may be gone.
PAGES = [
    *sorted(x for x in ROOT.glob("*.md") if x.name != "CHANGELOG.md"),
    *sorted(ROOT.glob("docs/*.md")),
]
PROGRAMS = [
    *sorted(ROOT.glob("apps/*.py")),
    *sorted(ROOT.glob("tools/**/*.py")),
]
TRAINING = {
    "apps/train_cifar.py": train_cifar,
    "apps/train_imagenet.py": train_imagenet,
}
# What --strategy=multiworker asks for.
CLUSTER = {
    "cluster": {"worker": ["host0:2222", "host1:2222"]},
    "task": {"type": "worker", "index": 0},
}
# Folders of the reader, which are looked at when the flags are parsed.
_FOLDERS = ("--workdir=", "--data_dir=", "--dense=", "--initial_run=")


def text_of(path):
    """Returns a page, or a program's docstring, with no line broken in two."""
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    text = re.sub(r" *\\\n *", " ", text)
    return re.sub(
        r"(?<!`)`[^`]+`(?!`)", lambda x: x[0].replace("\n", " "), text
    )


def commands(text):
    """Returns the commands of the repository's programs in a text."""
    program = r"(?:apps|tools)/[\w/]+\.py"
    return re.findall(rf"(?:python |`)({program}[^`|'#\n]*)", text)


def source_of(program):
    """Returns the text of a program, and the flags that it imports.

    Those are defined in a module of the same folder that is no program itself.
    """
    text = program.read_text()
    imported = re.findall(r"^(?:import|from) (\w+)", text, re.M)
    paths = [program.with_name(f"{name}.py") for name in imported]
    beside = [path.read_text() for path in paths if path.is_file()]
    defined = r'(?:add_argument|DEFINE_\w+)\(\s*"[^"]+"'
    flags_beside = [
        definition
        for other in beside
        if "__main__" not in other
        for definition in re.findall(defined, other)
    ]
    return "\n".join([text, *flags_beside])


def faults(command, folder="/nowhere"):
    """Returns what is wrong with a command, as sentences."""
    program, *words = shlex.split(command)
    if not (ROOT / program).is_file():
        return [f"there is no {program}"]
    if program in TRAINING:
        return _refused(TRAINING[program], words, folder)
    source = source_of(ROOT / program)
    names = [x.split("=")[0].removeprefix("--") for x in words if x[0] == "-"]
    return [
        f"{program} has no --{name}"
        for name in names
        if not re.search(rf'["(](--)?{name}"', source)
    ]


def _refused(program, words, folder):
    words = [x for x in words if not x.startswith(_FOLDERS)]
    try:
        beside, _ = parsed(program, *words, f"--workdir={folder}")
    except flags.Error as error:
        return [str(error)]
    return [f"{word} is no flag" for word in beside[1:]]


@pytest.mark.parametrize(
    "path",
    [x for x in [*PAGES, *PROGRAMS] if commands(text_of(x))],
    ids=lambda path: path.name,
)
def test_commands_can_be_typed(path, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(CLUSTER))
    found = dict.fromkeys(commands(text_of(path)))
    wrong = {x: faults(x, tmp_path / "run") for x in found}
    assert {x: y for x, y in wrong.items() if y} == {}


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("apps/train_cifar.py --methode=dense", "methode"),
        ("apps/train_cifar.py --method=targetprune", "needs one target"),
        ("apps/train_imagenet.py --epochs=none", "whole number"),
        ("apps/train_cifar.py dense", "dense is no flag"),
        ("apps/train.py", "there is no"),
        ("tools/chaos.py --kill=3", "has no --kill"),
        ("tools/benchmarks/peer_time.py --epochs=3", "has no --epochs"),
    ],
)
def test_a_command_that_is_wrong_is_noticed(command, fault, tmp_path):
    (found,) = faults(command, tmp_path / "run")
    assert fault in found


def test_flags_between_words_exist():
    """Such as `--method=dense`, without a program."""
    values = flags.FlagValues()
    train_cifar.define(values)
    others = flags.FlagValues()
    train_imagenet.define(others)
    sources = "".join(x.read_text() for x in PROGRAMS)
    count = 0
    for page in PAGES:
        for span in re.findall(r"`(--\w[^`]*)`", text_of(page)):
            for word in shlex.split(span):
                name, _, value = word.removeprefix("--").partition("=")
                known = values if name in values else others
                assert name in known or f'"--{name}"' in sources, word
                if value and name in known:
                    known[name].parse(value)
                count += 1
    assert count > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_of_make_exist(page):
    text = text_of(page)
    shown = re.findall(r"`make ([\w-]+)`|^    make ([\w-]+)", text, re.M)
    fences = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    made = {x or y for x, y in shown}.union(
        *(re.findall(r"\bmake ([\w-]+)", fence) for fence in fences)
    )
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert made <= {*targets}
