"""Which photos a calibration is made from, and how they become graph inputs: through the contract, like every other.

Files are taken in the order of their digests. That is a shuffle, but everybody's is the same one: it needs no seed,
does not depend on names, folders or the order in which they were given, and no pattern of names (every third picture
is blurred) can fall in step with the dealing of scenes or the thinning.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import glob
import hashlib
import io
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.cli import printable
from gamma_runtime.commands.run import expand
from gamma_runtime.crops import mirrored, prepare
from gamma_runtime.decode import decode, name_of, read_bytes
from gamma_runtime.errors import InputError, UsageError
from gamma_runtime.steps import Steps

if TYPE_CHECKING:
    from gamma_runtime.contract import Contract

__all__ = ["CalibrationImage", "CalibrationSet", "SetOptions", "find_images", "graph_inputs"]

_LISTS = (".txt", ".csv")
_ARRAYS = (".npy", ".npz")
_MAX_LIST = 64 * 2**20  # bytes; holds half a million paths
_FEW = 64  # photos; under it a warning
_REFUSED_PERCENT = 5  # hostile_inputs.md row 26
_SHOWN = 5  # reasons in an error


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetOptions:
    """How many images; which ones, the files' digests decide, so there is no seed.

    Attributes:
        count: most images that are used; a larger set is thinned evenly, balanced over the scenes.
        minimum: fewer usable ones are refused.

    Raises:
        UsageError: ``minimum`` is less than 1, or ``count`` less than ``minimum``.
    """

    count: int = 256
    minimum: int = 16

    def __post_init__(self) -> None:
        if self.minimum < 1:
            raise UsageError(f"a minimum of {self.minimum} images; at least 1 is needed")
        if self.count < self.minimum:
            raise UsageError(f"at most {self.count} images, but at least {self.minimum}", hint="raise the first number")


_DEFAULTS = SetOptions()


@dataclasses.dataclass(frozen=True)
class CalibrationImage:
    """One photo: its absolute path, the scene whose working size it goes through, and the SHA-256 of its file."""

    path: Path
    scene: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class CalibrationSet:
    """What a calibration is made from.

    Attributes:
        images: in the order in which they are taken, which is that of their digests.
        warnings: sentences for people: what was left out and why, and what is thin.
    """

    images: tuple[CalibrationImage, ...]
    warnings: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Digest of the files' digests and scenes, in order; where the files lie does not matter."""
        listed = "".join(f"{image.sha256} {image.scene}\n" for image in self.images)
        return hashlib.sha256(listed.encode()).hexdigest()


class _Found(NamedTuple):
    """A file that may become part of the set; the scene is None where nobody named one."""

    path: Path
    scene: str | None


def find_images(
    sources: Sequence[Path],
    contract: Contract,
    options: SetOptions = _DEFAULTS,
    *,
    avoid: Collection[str] = (),
    steps: Steps | None = None,
) -> CalibrationSet:
    """Choose the images of a calibration; every one of them has been decoded once.

    All files are read for their digests. Copies, photos of one colour and those of ``avoid`` are left out with a
    warning; so are unusable files, as long as they are few. Where there are more photos, others take their place.
    Photos without a scene are dealt over the contract's working sizes, so that each is seen.

    Args:
        sources: folders (searched recursively), image files, globs, and lists: ``.txt`` with a path a line (blank ones
            and ``#`` comments are skipped), ``.csv`` with a column ``path`` and perhaps ``scene``. Paths in a list are
            relative to its folder.
        contract: of the bundle.
        options: how many.
        avoid: digests (64 hex digits) of the files that the result will be verified with.
        steps: where progress is shown.

    Raises:
        InputError: a source that does not exist, has no images or is no list of images; over 5 % of the files that
            were tried cannot be used; no photos, too few, or all alike.

    Example:
        >>> photos = find_images([Path("photos")], bundle.contract)
        >>> for number, pixels in enumerate(graph_inputs(photos, bundle.contract)): ...
    """
    steps = steps or Steps()
    found = [file for source in sources for file in _files_of(source, contract)]
    if not found:
        raise InputError("no photos to calibrate with", hint="name a folder of photos, or a list of them")
    distinct = _distinct(found, contract, steps)
    fresh = {digest: file for digest, file in distinct.items() if digest not in avoid}
    tally = _Tally(len(found), copies=len(found) - len(distinct), overlap=len(distinct) - len(fresh))
    _try_out(_dealt(fresh, contract), contract, options.count, tally, steps)
    warnings = tally.judge(options.minimum)
    return CalibrationSet(tuple(sorted(tally.usable, key=lambda image: image.sha256)), warnings)


def graph_inputs(images: CalibrationSet, contract: Contract, start: int = 0) -> Iterator[NDArray[np.uint8]]:
    """What the graph eats of each image, one at a time: a file is read when its turn comes, and not kept.

    Args:
        images: as they were chosen.
        contract: of the bundle.
        start: number of the first one, for a calibration that goes on; as many images as there are gives none.

    Returns:
        uint8 crops ``[C, 224, 224, 3]``, or a frame ``[H, W, 3]`` where the graph takes frames. For policies where C
        `varies` it is that of each photo.

    Raises:
        UsageError: there is no image ``start``; at once. InputError: a file is not what it was when it was chosen, or
            the contract refuses it; when its turn comes.
    """
    if not 0 <= start <= len(images.images):
        raise UsageError(f"image {start} of {len(images.images)} to start with")
    return (_graph_input(image, contract) for image in images.images[start:])


def _graph_input(image: CalibrationImage, contract: Contract) -> NDArray[np.uint8]:
    """Read once, so that what was hashed is what is decoded."""
    data = read_bytes(image.path, contract.limits.max_bytes)
    where = name_of(image.path)
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise InputError(f"{where}: changed since it was chosen", hint="begin anew, and leave the photos as they are")
    try:
        if contract.crop.frame:  # photos stand in for a camera's frames, as when an export is verified
            return mirrored(decode(data, contract.limits).pixels, *contract.crop.frame)
        return prepare(data, contract, image.scene).graph_input
    except InputError as error:
        reason = error.message.removeprefix(f"{name_of(data)}: ")
        raise InputError(f"{where}: {reason}", hint=error.hint) from error


# What the sources name


def _files_of(source: Path, contract: Contract) -> Iterator[_Found]:
    path = Path(os.path.expanduser(source))
    if path.suffix.lower() in _LISTS and not path.is_dir():
        yield from (_rows if path.suffix.lower() == ".csv" else _lines)(path, contract)
        return
    if not os.path.lexists(path) and not glob.has_magic(str(path)):
        raise InputError(f"{name_of(path)}: no such file or folder")
    for name, error in expand([str(path)]):
        if error is not None:
            raise error
        yield _photo(Path(name))


def _photo(path: Path, scene: str | None = None) -> _Found:
    if path.suffix.lower() in _ARRAYS:
        raise InputError(
            f"{name_of(path)}: an array; calibration takes photos",
            hint="name the photos themselves, so that they go through the bundle's contract like those to be scored",
        )
    return _Found(Path(os.path.abspath(path)), scene)


def _lines(path: Path, _contract: Contract) -> Iterator[_Found]:
    """The files of a list with a path a line."""
    for line in io.StringIO(_text(path), newline=None):
        name = line.strip()
        if name and not name.startswith("#"):
            yield _photo(path.parent / os.path.expanduser(name))


def _rows(path: Path, contract: Contract) -> Iterator[_Found]:
    """The files of a table with a header."""
    where = name_of(path)
    table = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True, skipinitialspace=True)
    try:
        columns = list(table.fieldnames or ())
        if columns.count("path") != 1 or columns.count("scene") > 1:
            raise InputError(
                f"{where}: columns {printable(', '.join(columns))[:200]!r}; needed is one 'path', perhaps one 'scene'",
                hint="the first line names the columns, with commas between them",
            )
        for row in table:
            yield _row(path.parent, row, contract, f"{where}:{table.line_num}")
    except csv.Error as error:
        raise InputError(f"{where}:{table.reader.line_num}: not comma-separated values ({error})") from error


def _row(folder: Path, row: Mapping[str | None, str | None], contract: Contract, where: str) -> _Found:
    """One line; DictReader marks a missing or surplus cell with None."""
    name, scene = (row["path"] or "").strip(), (row.get("scene") or "").strip() or None
    if None in row or None in row.values() or not name:
        raise InputError(f"{where}: no path, or not as many cells as the header has")
    if scene is not None and scene not in contract.short_sides:
        known = ", ".join(contract.short_sides)
        raise InputError(f"{where}: unknown scene {printable(scene)[:100]!r}", hint=f"one of {known}")
    return _photo(folder / os.path.expanduser(name), scene)


def _text(path: Path) -> str:
    try:
        return read_bytes(path, _MAX_LIST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name_of(path)}: not UTF-8 text (byte {error.start})", hint="save it as UTF-8") from error


# Which of them are taken


def _distinct(found: Sequence[_Found], contract: Contract, steps: Steps) -> dict[str, _Found]:
    """The files by digest, in its order; of copies the one with a scene is kept, then the first by path."""
    rank: dict[str | None, int] = {scene: place for place, scene in enumerate(contract.short_sides)}
    ordered = sorted(found, key=lambda file: (rank.get(file.scene, len(rank)), file.path))
    first: dict[str, _Found] = {}
    with steps.step(f"reading {len(found)} files", len(found)) as tick:
        for file in ordered:
            first.setdefault(_digest(file.path, contract.limits.max_bytes), file)
            tick(1)
    return dict(sorted(first.items()))


def _digest(path: Path, max_bytes: int) -> str:
    """Of the content; of the name where it cannot be read: the file keeps a place, and its error comes there."""
    try:
        return hashlib.sha256(read_bytes(path, max_bytes)).hexdigest()
    except InputError:
        return hashlib.sha256(os.fsencode(path)).hexdigest()


def _dealt(files: Mapping[str, _Found], contract: Contract) -> dict[str, list[CalibrationImage]]:
    """Images by scene, in the contract's order; one without a scene goes where the fewest have its working size."""
    first: dict[int | None, str] = {}
    for scene, side in contract.short_sides.items():
        first.setdefault(side, scene)
    seen = collections.Counter(contract.short_sides[file.scene] for file in files.values() if file.scene)
    made: dict[str, list[CalibrationImage]] = {scene: [] for scene in contract.short_sides}
    for digest, file in files.items():
        scene = file.scene or first[min(first, key=seen.__getitem__)]
        if file.scene is None:
            seen[contract.short_sides[scene]] += 1
        made[scene].append(CalibrationImage(file.path, scene, digest))
    return made


def _shares(available: Mapping[str, int], total: int) -> dict[str, int]:
    """Equal numbers as far as there are enough; where it does not come out even, the first ones have one more.

    Example:
        >>> _shares({"a": 5, "b": 100, "c": 100}, 30)
        {'a': 5, 'b': 13, 'c': 12}
    """
    shares = dict.fromkeys(available, 0)
    for _ in range(min(total, sum(available.values()))):
        open_ones = (name for name in available if shares[name] < available[name])
        shares[min(open_ones, key=shares.__getitem__)] += 1
    return shares


def _evenly_first(images: Sequence[CalibrationImage], count: int) -> collections.deque[CalibrationImage]:
    """The same images; those in front, ``count`` of them, are spread evenly over all."""
    chosen = [number * len(images) // count for number in range(count)]
    others = sorted(set(range(len(images))) - set(chosen))
    return collections.deque(images[number] for number in (*chosen, *others))


@dataclasses.dataclass
class _Tally:
    """What became of the files: how many there were, copies, of ``avoid``, and of the images that were tried.

    ``refused`` has the reasons.
    """

    files: int
    copies: int
    overlap: int
    usable: list[CalibrationImage] = dataclasses.field(default_factory=list)
    constant: int = 0
    refused: list[str] = dataclasses.field(default_factory=list)

    @property
    def tried(self) -> int:
        return len(self.usable) + self.constant + len(self.refused)

    def add(self, image: CalibrationImage, contract: Contract) -> bool:
        """Decode it; whether it is usable."""
        try:
            pixels = _graph_input(image, contract).reshape(-1, 3)
        except InputError as error:
            self.refused.append(error.message)  # the error itself would keep the image's bytes
            return False
        if (pixels == pixels[0]).all():
            self.constant += 1
            return False
        self.usable.append(image)
        return True

    def check(self) -> None:
        """Refuse a set of which too much is broken."""
        bad = len(self.refused)
        if 100 * bad > _REFUSED_PERCENT * self.tried:
            shown = "; ".join(self.refused[:_SHOWN]) + ("; …" if bad > _SHOWN else "")
            raise InputError(
                f"{bad} of {self.tried} photos cannot be used; the limit is {_REFUSED_PERCENT} %: {shown}",
                hint="leave them out, or get the original files again",
            )

    def judge(self, minimum: int) -> tuple[str, ...]:
        """The set's warnings; an error where it is no set to calibrate with."""
        usable, same = len(self.usable), self.copies + self.constant
        if usable < 2 and same and usable + same == self.files:
            raise InputError(
                f"all {self.files} photos are copies of one picture or have one colour: there is no range in them",
                hint="calibrate with photos like those that will be scored",
            )
        sentences = list(self._left_out())
        if usable < minimum:
            raise InputError(
                "; ".join([f"{usable} usable photos; at least {minimum} are needed", *sentences]),
                hint="add photos like those that will be scored, or lower the minimum",
            )
        if usable < _FEW:
            sentences.append(f"only {usable} photos: ranges from few photos are narrow; {_FEW} or more are better")
        return tuple(sentences)

    def _left_out(self) -> Iterator[str]:
        if self.copies:
            yield f"{self.copies} of {self.files} files left out: copies of others"
        if self.overlap:
            yield (
                f"{self.overlap} of {self.files} files left out: the result is verified with them, "
                "and a gate on photos that the calibration saw proves less"
            )
        if self.constant:
            yield f"{self.constant} of {self.tried} photos left out: they have one colour, and no range to see"
        if self.refused:
            yield f"{len(self.refused)} of {self.tried} photos left out: they cannot be used: {'; '.join(self.refused)}"


def _try_out(
    groups: Mapping[str, Sequence[CalibrationImage]], contract: Contract, count: int, tally: _Tally, steps: Steps
) -> None:
    """Decode images, always of the scene that has the fewest, until there are ``count`` or no more."""
    shares = _shares({scene: len(images) for scene, images in groups.items()}, count)
    waiting = {scene: _evenly_first(images, shares[scene]) for scene, images in groups.items()}
    planned, taken = sum(shares.values()), dict.fromkeys(groups, 0)
    with steps.step(f"decoding {planned} photos", planned) as tick:
        while len(tally.usable) < count and (scenes := [scene for scene, images in waiting.items() if images]):
            scene = min(scenes, key=taken.__getitem__)
            if tally.add(waiting[scene].popleft(), contract):
                taken[scene] += 1
                tick(1)
            if tally.tried >= planned:  # the first ones alone would say little
                tally.check()
