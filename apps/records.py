"""Reads the records of runs, and says which of them are not what a run writes.

A record is a file like any other: it breaks off when a run is killed, and
people edit, mix and mistake files. Whoever draws or compares runs gets values
of the kinds that are listed here, or a `RecordError` that names the file and
the line.
"""

import json
import pathlib
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

# What a figure can be drawn of; anything larger is no measurement.
_LARGEST = 1e30
_MEND = "Restore the file, or repeat the run."


class RecordError(ValueError):
    """A record that cannot be used; the message names it."""


class BrokenOffError(RecordError):
    """A record that is no JSON, as a run leaves it that was killed."""


class Kind(NamedTuple):
    """What a value has to be.

    Attributes:
        words: What is expected, for a message.
        fits: Function of a value that says whether it is that.
    """

    words: str
    fits: Callable[[Any], bool]


def _is_number(value):
    # A boolean is an integer for Python. What has diverged is NaN.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value != value or 0 <= value <= _LARGEST


def _is_count(value):
    return _is_number(value) and isinstance(value, int)


def _is_text(value):
    # Half of a surrogate pair cannot be written into a page.
    return isinstance(value, str) and not any(
        "\ud800" <= letter <= "\udfff" for letter in value
    )


def _is_cost(value):
    return value is None or (
        isinstance(value, dict) and _is_number(value.get("training_flops"))
    )


def _dict_of(fits):
    return lambda value: (
        isinstance(value, dict)
        and all(_is_text(k) and fits(v) for k, v in value.items())
    )


def _list_of(fits):
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _or_null(kind):
    return Kind(f"{kind.words}, or null", lambda x: x is None or kind.fits(x))


NUMBER = Kind("a number that is not negative", _is_number)
COUNT = Kind("a whole number that is not negative", _is_count)
TEXT = Kind("a text", _is_text)
_COST = Kind("an object with a number 'training_flops', or null", _is_cost)
_COUNTS = Kind("an object of whole numbers", _dict_of(_is_count))
_POSITIONS = Kind("an object of lists", _dict_of(_list_of(_is_count)))
_TEXTS = Kind("a list of texts", _list_of(_is_text))
_OBJECT = Kind("an object", lambda value: isinstance(value, dict))

_NUMBERS_OF_EPOCHS = (
    *("val_accuracy", "seconds", "training_flops", "density", "parameters"),
    *("batch_size", "learning_rate", "memory_bytes", "gradient_bytes"),
    *("updates", "weight_distance", "emulated_flops", "kept_gradient"),
)
_NUMBERS_OF_RESULTS = (
    *("val_accuracy", "parameters", "forward_flops", "total_training_flops"),
    *("seconds", "reconfiguration_seconds", "total_emulated_flops"),
)


class Record(NamedTuple):
    """What a record holds.

    Attributes:
        kinds: Dict from a key to its `Kind`. Other keys may hold anything.
        required: The keys that must be there.
    """

    kinds: dict[str, Kind]
    required: tuple[str, ...]


EPOCH = Record(
    {"epoch": COUNT, **dict.fromkeys(_NUMBERS_OF_EPOCHS, NUMBER)}, ("epoch",)
)
RECONFIGURATION = Record(
    {
        "epoch": COUNT,
        "channels_before": _COUNTS,
        "channels_after": _COUNTS,
        "keep": _POSITIONS,
        "removed_layers": _TEXTS,
        "cost_before": _COST,
        "cost_after": _COST,
        "batch_size": _or_null(COUNT),
        "batch_size_after": _or_null(COUNT),
        "learning_rate": _or_null(NUMBER),
        "seconds": NUMBER,
        "first_step_seconds": NUMBER,
    },
    (
        *("epoch", "channels_before", "channels_after", "removed_layers"),
        *("cost_before", "cost_after", "batch_size", "learning_rate"),
    ),
)
RECIPE = Record({"method": TEXT, "threshold": NUMBER}, ())
RESULT = Record(
    {
        "method": TEXT,
        "recipe": _OBJECT,
        "pruned_after_epochs": _or_null(COUNT),
        **dict.fromkeys(_NUMBERS_OF_RESULTS, NUMBER),
    },
    ("method",),
)


def parsed(text, place):
    """Returns what the JSON in `text` stands for.

    Args:
        text: String.
        place: Where it is from, for messages.

    Raises:
        BrokenOffError: If it is no JSON.
        RecordError: If it is JSON that cannot be held.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BrokenOffError(f"{place} breaks off. {_MEND}") from error
    except (RecursionError, ValueError) as error:  # A number of 5,000 digits.
        raise RecordError(
            f"{place} holds nothing that a run writes ({error}). {_MEND}"
        ) from error


def text_of(path):
    """Returns the text of a file.

    Raises:
        RecordError: If it is no text.
        OSError: If it cannot be read.
    """
    try:
        return pathlib.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is no text. {_MEND}") from error


def checked(value, record, place):
    """Returns `value` if it is what `record` describes.

    Args:
        value: Anything that JSON can hold.
        record: A `Record`.
        place: Where it is from, for messages.

    Raises:
        RecordError: If it is something else.
    """
    if not isinstance(value, dict):
        raise RecordError(
            f"{place} holds {shown(value)}, expected an object. {_MEND}"
        )
    for key in record.required:
        if key not in value:
            raise RecordError(f"{place} has no '{key}'. {_MEND}")
    for key, kind in record.kinds.items():
        if key in value and not kind.fits(value[key]):
            raise RecordError(
                f"{place}: '{key}' is {shown(value[key])}, expected "
                f"{kind.words}. {_MEND}"
            )
    return value


def checked_epochs(rows, places):
    """Returns `rows` if they are the epochs of one run, from its first.

    Args:
        rows: List of what the lines of `metrics.jsonl` hold.
        places: List of where each is from.

    Raises:
        RecordError: If they are something else.
    """
    for epoch, (row, place) in enumerate(zip(rows, places, strict=True)):
        found = checked(row, EPOCH, place)["epoch"]
        if found != epoch:
            raise RecordError(
                f"{place} is of epoch {found}, expected {epoch}: lines of "
                f"another run, or lines that are missing. {_MEND}"
            )
    return rows


def checked_result(value, place):
    """Returns `value` if it is what a `result.json` holds.

    Raises:
        RecordError: If it is something else.
    """
    checked(value, RESULT, place)
    checked(value.get("recipe", {}), RECIPE, f"{place}, 'recipe'")
    return value


def result(folder):
    """Returns what `result.json` of the finished run in `folder` holds.

    Raises:
        RecordError: If there is no such file, or one with other contents.
    """
    path = pathlib.Path(folder) / "result.json"
    try:
        text = text_of(path)
    except OSError as error:
        raise RecordError(
            f"No finished run in {folder}: expected {path} ({error.strerror})."
        ) from error
    try:
        return checked_result(parsed(text, path), path)
    except BrokenOffError as error:
        raise RecordError(f"No finished run in {folder}: {error}") from error


def shown(value):
    """Returns `value` as a message shows it, in a few characters."""
    return "null" if value is None else reprlib.repr(value)
