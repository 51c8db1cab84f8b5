"""The record of a run in the folder of its event files."""

import json
import os
import pathlib
from typing import Any

from keras_prunetrain.checks import is_count, is_number, is_path

_RECORD = "density_log.json"


class LoggedRun:
    """The record beside the event files, by which a run is recognized.

    Args:
        folder: Path of a local folder.

    Raises:
        ValueError: If `folder` is not the path of a local folder.
    """

    def __init__(self, folder: str | os.PathLike):
        if not is_path(folder):
            raise ValueError(
                "`log_dir` must be the path of a folder, a string or a path "
                f"object. Received: log_dir={folder!r}"
            )
        if "://" in str(folder):
            raise ValueError(
                "`log_dir` must be a folder of this machine. Received: "
                f"log_dir={str(folder)!r}"
            )
        self.folder = pathlib.Path(folder).expanduser()
        self._record = None
        self._resumes = False

    @property
    def channels(self) -> int:
        """Integer, the channels that the model had at first."""
        return self._record["channels"]

    @property
    def training_flops(self) -> int | None:
        """Integer, FLOPs of the first model per example; `None` if unknown."""
        return self._record["training_flops"]

    @property
    def layers(self) -> list[str]:
        """List of the names of the layers that the model had at first."""
        return list(self._record["layers"])

    @property
    def densities(self) -> list[list[float]]:
        """A list for each epoch: the share of channels left in each layer."""
        return self._record["densities"]

    def begin(
        self, channels: int, counts: dict[str, int], training_flops: int | None
    ) -> None:
        """Begins the run, or goes on with the one in the folder.

        Args:
            channels: Integer, the channels of the whole model.
            counts: Dict from each layer with a kernel to its channels.
            training_flops: Integer, per example, or `None`.

        Raises:
            ValueError: If the folder cannot be written, or its record cannot be
                read.
        """
        self._resumes = False
        if self._record is not None:
            return
        self._record = self._read()
        self._resumes = self._record is not None
        if not self._resumes:
            self._record = {
                "layers": counts,
                "channels": channels,
                "training_flops": training_flops,
                "densities": [],
            }

    def _read(self):
        """Returns the record in the folder, `None` if there is none yet.

        Makes the folder, and tries whether a file can be written there.
        """
        record = self.folder / _RECORD
        scratch = record.with_suffix(".new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            scratch.unlink(missing_ok=True)  # Never write through a link.
            scratch.touch()
            scratch.unlink()
            text = record.read_text() if record.exists() else None
        except OSError as error:
            raise ValueError(
                f"DensityLog cannot write into '{self.folder}': {error}. Give "
                "it a folder that may be written."
            ) from error
        if text is None:
            return None
        try:
            run = json.loads(text)
        except (ValueError, RecursionError):
            run = None
        if not _is_record(run):
            self._refuse(f"its record, {_RECORD}, cannot be read")
        return run

    def offset(self, epoch: int, counts: dict[str, int]) -> int:
        """Returns the offset from the epochs of a `fit` to TensorBoard's steps.

        Args:
            epoch: Integer. The first one of this `fit`.
            counts: Dict from each layer to its channels before this epoch.

        Raises:
            ValueError: If the run in the folder is another one.
        """
        done = len(self.densities)
        if not self._resumes:
            # A second `fit` counts its epochs anew.
            if not done:
                self._record["offset"] = -epoch
            return done - epoch
        offset = self._record.get("offset", 0)
        step = epoch + offset
        if not 0 < step <= done:
            self._refuse(
                f"it has the epochs up to {done - offset}, and this `fit` "
                f"begins with `initial_epoch={epoch}`"
            )
        # A checkpoint may have been written before the epoch's surgery.
        if counts not in (self._counts(step - 1), self._counts(step - 2)):
            self._refuse("its model has other layers or channels")
        return offset

    def _counts(self, step):
        """Returns the channels of each layer after `step`."""
        first = self._record["layers"]
        densities = self.densities[step] if step >= 0 else [1.0] * len(first)
        counts = {
            layer: round(density * count)
            for (layer, count), density in zip(
                first.items(), densities, strict=True
            )
        }
        return {layer: count for layer, count in counts.items() if count}

    def _refuse(self, reason):
        """Raises that the folder holds another run; forgets its record."""
        self._record = None
        raise ValueError(
            f"The folder '{self.folder}' holds the log of another run: "
            f"{reason}. Give each run a folder of its own, or delete this one. "
            "To continue a run, load its model and pass `initial_epoch` to "
            "`fit`."
        )

    def note(self, counts: dict[str, int], *, again: bool = False) -> None:
        """Notes the channels after an epoch, or once more after the last."""
        row = [
            counts.get(layer, 0) / count
            for layer, count in self._record["layers"].items()
        ]
        if again:
            self.densities[-1] = row
        else:
            self.densities.append(row)

    def save(self) -> None:
        """Writes the record so that a reader finds the old or the new one."""
        path = self.folder / _RECORD
        scratch = path.with_suffix(".new")
        scratch.unlink(missing_ok=True)  # Never write through a link.
        scratch.write_text(json.dumps(self._record))
        scratch.replace(path)


def _is_record(run: Any) -> bool:
    """Whether `run` has all that a record needs, each of the right type."""
    if not isinstance(run, dict):
        return False
    layers, densities = run.get("layers"), run.get("densities")
    flops = run.get("training_flops")
    return (
        isinstance(layers, dict)
        and all(is_count(count, minimum=1) for count in layers.values())
        and is_count(run.get("channels"), minimum=1)
        and (flops is None or (is_number(flops) and flops >= 0))
        and isinstance(run.get("offset", 0), int)
        and isinstance(densities, list)
        and all(_is_row(row, len(layers)) for row in densities)
        and bool(densities)
    )


def _is_row(row: Any, length: int) -> bool:
    return (
        isinstance(row, list)
        and len(row) == length
        and all(is_number(share) and 0 <= share <= 1 for share in row)
    )
