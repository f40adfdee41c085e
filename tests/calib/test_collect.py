"""Rows 27 and 30 of the hostile list: activations in histograms, whatever interrupts, and tensors that hold NaN."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gamma_calib import collect as module
from gamma_calib.collect import BINS, Tap, collect
from gamma_calib.record import Histogram, Record, find_record, write_record
from gamma_runtime.errors import InputError, OutputError, UsageError
from tests import tiny_export
from tests.calib.records import KEY, same

Pixels = NDArray[np.uint8]
TOTAL = 6
WIDTH = 6
# Of the columns: zeros; then from the subnormal to the largest numbers, with exact powers of two among them.
SCALE = np.array([0, 2.0**-140, 2.0**-40, -1 / 3, 2.0, 2.0**120], np.float32)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """uint8 [1, 4, 6] -> rows [-1, 6], scaled by the columns; "log" and "root" turn 0 into -inf and 1 into NaN."""
    import onnx
    from onnx import helper

    nodes = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Reshape", ["cast", "shape"], ["rows"]),
        helper.make_node("Mul", ["rows", "scale"], ["scaled"]),
        helper.make_node("Neg", ["rows"], ["negative"]),
        helper.make_node("Log", ["rows"], ["log"]),
        helper.make_node("Sub", ["rows", "two"], ["less"]),
        helper.make_node("Sqrt", ["less"], ["root"]),
        helper.make_node("Shape", ["rows"], ["int64"]),
        helper.make_node("Mul", ["cast", "cast"], ["cube"]),
        helper.make_node("ReduceMean", ["scaled"], ["score"], keepdims=0),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.array([-1, WIDTH]), "shape"),
        onnx.numpy_helper.from_array(SCALE, "scale"),
        onnx.numpy_helper.from_array(np.array([2], np.float32), "two"),
    ]
    pixels = helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, [1, 4, WIDTH])
    score = helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, [])
    stale = helper.make_tensor_value_info("scaled", onnx.TensorProto.FLOAT, [4, WIDTH])  # true of one image only
    made = helper.make_graph(nodes, "made", [pixels], [score], weights, value_info=[stale])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path_factory.mktemp("graph") / "made.onnx"
    onnx.save(model, path, save_as_external_data=True, location="made.bin", size_threshold=50)
    assert {p.name for p in path.parent.iterdir()} == {"made.onnx", "made.bin"}
    return path


def images(seed: int = 0, count: int = TOTAL, batch: int = 2) -> list[Pixels]:
    """No zeros and ones, and each image brighter than the one before, so that histograms have to grow."""
    numbers = np.random.default_rng(seed)
    return [numbers.integers(2, 3 + 250 * (i + 1) // count, (batch, 4, WIDTH), np.uint8) for i in range(count)]


TAPS = [Tap("scaled", "scaled"), Tap("left", "scaled", (0, 4)), Tap("one", "scaled", (3, 4)), Tap("minus", "negative")]


def measure(graph: Path, taken: Sequence[Pixels], taps: Sequence[Tap] = TAPS, **options: Any) -> Record:
    """All images in one go."""
    return collect(graph, taps, iter(taken), Record(KEY, 0, len(taken)), lambda _: None, threads=1, **options)


def check(record: Record, name: str, values: NDArray[np.float32]) -> None:
    """Against numpy, with float64 throughout, for all images' rows of one tensor."""
    histogram, peak = record.histograms[name], float(np.abs(values).max())
    assert histogram.low == 0
    assert histogram.high / 2 <= peak < histogram.high
    bins = np.floor(np.abs(values).astype(np.float64) * (BINS / histogram.high)).astype(np.int64)
    assert histogram.counts.tolist() == np.bincount(bins.ravel(), minlength=BINS).tolist()
    assert record.channels[name].tolist() == np.abs(values).max(axis=0).tolist()
    assert record.ranges["max"][name] == (-peak, peak)


def test_histograms_and_channels_are_those_of_numpy(graph: Path) -> None:
    taken = images()
    rows = np.concatenate(taken).reshape(-1, WIDTH).astype(np.float32)
    record = measure(graph, taken)
    assert record.complete
    assert [*record.histograms] == [tap.name for tap in TAPS]
    check(record, "scaled", rows * SCALE)
    check(record, "left", (rows * SCALE)[:, :4])
    check(record, "one", (rows * SCALE)[:, 3:4])
    check(record, "minus", -rows)
    with pytest.raises(AssertionError):
        check(record, "minus", rows[1:])  # the comparison itself can fail
    assert [p.name for p in graph.parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("column", range(1, WIDTH))
def test_bins_of_any_magnitude(graph: Path, column: int) -> None:
    """Powers of two lie on the edges of bins; the largest number needs R = 2**128, the smallest is not normal."""
    powers = np.array([2, 4, 8, 16, 32, 64, 128, 127, 255, 3, 5, 9], np.uint8)
    taken = [np.tile(value, (1, 4, WIDTH)) for value in powers]
    record = measure(graph, taken, [Tap("column", "scaled", (column, column + 1))])
    values = powers.astype(np.float32) * SCALE[column]
    histogram = record.histograms["column"]
    if column == 1:  # far below any activation: one bin
        assert (histogram.high, histogram.counts[0]) == (2.0**-100, 4 * len(powers))
    else:
        check(record, "column", np.repeat(values, 4)[:, None])
    assert record.channels["column"].tolist() == [np.abs(values).max()]


def test_a_tensor_of_zeros(graph: Path) -> None:
    record = measure(graph, images(), [Tap("zero", "scaled", (0, 1))])
    histogram = record.histograms["zero"]
    assert histogram.high > 0
    assert (histogram.counts[0], histogram.counts.sum()) == (TOTAL * 8, TOTAL * 8)
    assert record.ranges["max"]["zero"] == (0, 0)
    assert record.channels["zero"].tolist() == [0]


def test_the_order_of_the_images_and_the_size_of_slices_do_not_matter(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(graph, images())
    assert same(measure(graph, images()[::-1]), whole)
    for size in (1, WIDTH, 3 * WIDTH):  # less than a row, one, and three of eight rows at a time
        monkeypatch.setattr(module, "_SLICE", size)
        assert same(measure(graph, images()), whole)
    assert not same(measure(graph, images(seed=1)), whole)


def test_any_number_of_crops_an_image(graph: Path) -> None:
    taken = images(batch=3)
    single = [crop[None] for crops in taken for crop in crops]
    one, other = measure(graph, single), measure(graph, taken)
    assert one.total == 3 * other.total
    assert same(dataclasses.replace(one, done=TOTAL, total=TOTAL), other)


# Interruptions


class KilledError(Exception):
    """Ends a run at the place of its number."""


@dataclasses.dataclass
class Run:
    """One attempt after another at the same calibration."""

    graph: Path
    path: Path
    inputs_left: int = 1000
    saves_left: int = 1000
    written_first: bool = True
    saved: list[int] = dataclasses.field(default_factory=list)

    def __call__(self, save_every: float) -> Record:
        record = find_record(self.path, KEY) or Record(KEY, 0, TOTAL)
        inputs = self._inputs(images()[record.done :])
        return collect(self.graph, TAPS, inputs, record, self._save, threads=1, save_every=save_every)

    def _inputs(self, taken: Sequence[Pixels]) -> Iterator[Pixels]:
        for image in taken:
            if not self.inputs_left:
                raise KilledError
            self.inputs_left -= 1
            yield image

    def _save(self, record: Record) -> None:
        self.saves_left -= 1
        if self.saves_left >= 0 or self.written_first:
            write_record(self.path, record)
            self.saved.append(record.done)
        if self.saves_left < 0:
            raise KilledError


@pytest.mark.parametrize("images_first", range(TOTAL))
def test_killed_between_images(graph: Path, tmp_path: Path, images_first: int) -> None:
    run = Run(graph, tmp_path / "record", inputs_left=images_first)
    with pytest.raises(KilledError):
        run(0.0)
    run.inputs_left = 1000
    assert same(run(0.0), measure(graph, images()))
    assert run.saved == list(range(1, TOTAL + 1))


@pytest.mark.parametrize("written_first", [True, False])
@pytest.mark.parametrize("saves_first", range(TOTAL))
def test_killed_while_saving(graph: Path, tmp_path: Path, saves_first: int, written_first: bool) -> None:
    run = Run(graph, tmp_path / "record", saves_left=saves_first, written_first=written_first)
    with pytest.raises(KilledError):
        run(0.0)
    run.saves_left = 1000
    assert same(run(0.0), measure(graph, images()))
    assert run.saved == list(range(1, TOTAL + 1))


def test_killed_after_every_image(graph: Path, tmp_path: Path) -> None:
    run = Run(graph, tmp_path / "record")
    for _ in range(TOTAL):
        run.saves_left = 0
        with pytest.raises(KilledError):
            run(0.0)
    assert same(run(0.0), measure(graph, images()))  # nothing was left to do
    found = find_record(run.path, KEY)
    assert found is not None
    assert same(found, measure(graph, images()))


def test_it_saves_now_and_then_and_at_the_end(graph: Path, tmp_path: Path) -> None:
    run = Run(graph, tmp_path / "record")
    record = run(1000.0)
    assert run.saved == [TOTAL]
    found = find_record(run.path, KEY)
    assert found is not None
    assert same(found, record)


def test_a_saved_record_does_not_change_any_more(graph: Path) -> None:
    saved: list[Record] = []
    collect(graph, TAPS, iter(images()), Record(KEY, 0, TOTAL), saved.append, threads=1, save_every=0.0)
    for record in saved:
        until = measure(graph, images()[: record.done])
        assert same(dataclasses.replace(record, total=record.done), until)


def test_every_image_ticks(graph: Path) -> None:
    ticks: list[int] = []
    measure(graph, images(), tick=ticks.append)
    assert ticks == [1] * TOTAL


def test_a_complete_record_needs_nothing(graph: Path, tmp_path: Path) -> None:
    record = measure(graph, images())
    assert same(collect(tmp_path / "none", TAPS, iter([]), record, pytest.fail), record)


def test_ranges_of_fewer_images_are_dropped(graph: Path) -> None:
    saved: list[Record] = []
    collect(graph, TAPS, iter(images()), Record(KEY, 0, TOTAL), saved.append, threads=1, save_every=0.0)
    early = dataclasses.replace(saved[2], ranges={**saved[2].ranges, "mse": {"scaled": (-1.0, 1.0)}})
    record = collect(graph, TAPS, iter(images()[3:]), early, lambda _: None, threads=1)
    assert same(record, saved[-1])


@pytest.mark.parametrize(
    "change",
    [
        lambda record: {"histograms": {n: h for n, h in record.histograms.items() if n != "one"}},
        lambda record: {"channels": {n: c for n, c in record.channels.items() if n != "one"}},
        lambda record: {"histograms": {**record.histograms, "one": Histogram(0.0, 4.0, np.zeros(16, np.int64))}},
        lambda record: {"histograms": {**record.histograms, "one": Histogram(0.0, 3.0, np.zeros(BINS, np.int64))}},
        lambda record: {"histograms": {**record.histograms, "one": Histogram(-4.0, 4.0, np.zeros(BINS, np.int64))}},
    ],
    ids=["no histogram", "no channels", "16 bins", "no power of two", "signed"],
)
def test_another_record_is_not_continued(graph: Path, change: Any) -> None:
    record = dataclasses.replace(measure(graph, images()), total=TOTAL + 1)
    collect(graph, TAPS, iter(images(count=1)), record, lambda _: None, threads=1)  # as it is, it is
    with pytest.raises(UsageError, match="cannot be continued"):
        collect(graph, TAPS, iter(images()), dataclasses.replace(record, **change(record)), pytest.fail, threads=1)


def test_a_tensor_of_another_width_than_before(graph: Path) -> None:
    record = dataclasses.replace(measure(graph, images(), [Tap("a", "scaled", (0, 4))]), total=TOTAL + 1)
    with pytest.raises(InputError, match="image 7 of 7: a has 6 channels, it had 4"):
        collect(graph, [Tap("a", "scaled")], iter(images()), record, pytest.fail, threads=1)


# What cannot be used


def test_too_few_images(graph: Path) -> None:
    with pytest.raises(InputError, match="4 of 6 images"):
        collect(graph, TAPS, iter(images()[:4]), Record(KEY, 0, TOTAL), lambda _: None, threads=1)


@pytest.mark.parametrize(("tensor", "value"), [("log", 0), ("root", 1)])
def test_nan_and_infinity_are_refused(graph: Path, tensor: str, value: int) -> None:
    """Row 27: the tensor and the image are named, and what was saved before is as it was."""
    taken = images()
    taps = [Tap("fine", "rows"), Tap("odd", tensor)]
    measure(graph, taken, taps)  # without the value there is nothing to refuse
    taken[3][1, 3, 5] = value
    saved: list[Record] = []
    with pytest.raises(InputError, match=f"image 4 of 6: {tensor} holds NaN or infinity"):
        collect(graph, taps, iter(taken), Record(KEY, 0, TOTAL), saved.append, threads=1, save_every=0.0)
    assert [record.done for record in saved] == [1, 2, 3]
    assert same(dataclasses.replace(saved[-1], total=3), measure(graph, taken[:3], taps))
    measure(graph, taken, [Tap("left", tensor, (0, 5))])  # it is in a column that nobody measures


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 4, 5), np.uint8),
        np.zeros((4, WIDTH), np.uint8),
        np.zeros((1, 4, WIDTH), np.float32),
        np.zeros((0, 4, WIDTH), np.uint8),
        np.array([[None]]),
    ],
    ids=["width", "rank", "float", "empty", "objects"],
)
def test_an_image_that_does_not_fit_the_graph_is_named(graph: Path, image: Any) -> None:
    with pytest.raises(InputError, match="image 2 of 6"):
        measure(graph, [images()[0], image, *images()[2:]])


@pytest.mark.parametrize(
    "taps",
    [
        [],
        [Tap("a", "rows"), Tap("a", "scaled")],
        [Tap("a", "rows", (2, 2))],
        [Tap("a", "rows", (-1, 2))],
        [Tap("a", "rows", (3, 2))],
        [Tap("a", "rows", (0, WIDTH + 1))],
    ],
    ids=["none", "one name twice", "no columns", "negative", "upside down", "beyond"],
)
def test_taps_that_do_not_fit(graph: Path, taps: list[Tap]) -> None:
    with pytest.raises(UsageError):
        measure(graph, images(), taps)


def test_no_threads(graph: Path) -> None:
    with pytest.raises(UsageError, match="0 threads"):
        collect(graph, TAPS, iter(images()), Record(KEY, 0, TOTAL), pytest.fail, threads=0)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ("nothing", "no tensor 'nothing' \\(1 of 2"),
        ("int64", "image 1 of 6: int64 is int64 "),
        ("cube", r"image 1 of 6: cube is float32 \[2, 4, 6\]"),
    ],
)
def test_tensors_that_cannot_be_measured(graph: Path, tensor: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        measure(graph, images(), [Tap("fine", "rows"), Tap("bad", tensor)])


def test_graphs_that_are_none(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=r"bad\.onnx"):
        measure(tmp_path / "bad.onnx", images())
    (tmp_path / "alone.onnx").write_bytes(graph.read_bytes())  # its weights are elsewhere
    with pytest.raises(InputError, match=r"alone\.onnx"):
        measure(tmp_path / "alone.onnx", images())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone.onnx", "bad.onnx"]


def test_a_folder_in_which_nothing_can_be_written(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    with pytest.raises(OutputError, match="Read-only file system"):
        measure(graph, images())


# A real graph


def test_a_gamma_graph() -> None:
    """Tensors of an exported graph, fetched crop by crop from the fixed batch that it has."""
    from gamma_export.layers.taps import open_tapped

    bundle = tiny_export.exported(precision="fp32")
    before = sorted(p.name for p in bundle.iterdir())
    graph = bundle / tiny_export.graph(bundle)["onnx"]
    names = ["blocks.0/ln_1", "blocks.1/ln_2", "blocks.1/moae/quick_gelu", "blocks.1/moae/gated_rows"]
    numbers = np.random.default_rng(0)
    taken = [numbers.integers(0, 256, (5, 1, 224, 224, 3), np.uint8) for _ in range(2)]
    taps = [*(Tap(name, name) for name in names), Tap("expert", names[-1], (256, 512))]
    record = measure(graph, taken, taps)
    with open_tapped("onnxruntime", graph, names, 1) as tapped:
        found = [tapped.run({"crops": crop[None]}) for crops in taken for crop in crops]
    for name in names:
        values = np.concatenate([tensors[name] for tensors in found])
        assert values.shape == (10 * 197, 64 if "ln" in name else 1024)
        check(record, name, values)
    check(record, "expert", np.concatenate([tensors[names[-1]][:, 256:512] for tensors in found]))
    assert sorted(p.name for p in bundle.iterdir()) == before
