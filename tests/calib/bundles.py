"""A tiny Gamma's fp32 and fp16 graphs, with ranges measured on its own photos, to put Q/DQ pairs into."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from gamma_calib.collect import collect
from gamma_calib.external import WeightsFile, write_external
from gamma_calib.products import Product, find_products, taps_of
from gamma_calib.qdq import Recipe, Source, entries, packed, place
from gamma_calib.ranges import with_ranges
from gamma_calib.record import Record
from gamma_runtime.bundle import Bundle, open_bundle
from tests import tiny_export
from tests.calib.records import KEY

BOTH = "fp32,fp16"


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A published bundle, its joint graphs, the groups, and what a calibration on its crops found."""

    bundle: Bundle
    source: Source
    half: onnx.ModelProto
    crops: NDArray[np.uint8]
    record: Record

    @property
    def products(self) -> list[Product]:
        return [product for product in find_products(self.source.model) if product.by_default]

    def recipe(self, *groups: str, method: str = "max") -> Recipe:
        """The named groups; all of them when none is named."""
        chosen = groups or [product.group for product in self.products]
        return Recipe(frozenset(chosen), {tap: high for tap, (_, high) in self.record.ranges[method].items()})

    def placed(self, folder: Path, recipe: Recipe, form: str = "cpu") -> Path:
        """The graph as published, with its weights beside it."""
        file = self.weights(folder, recipe)
        model, rest = (self.source.model, "fp32") if form == "cpu" else (self.half, "fp16")
        path = folder / f"{form}.onnx"
        path.write_bytes(place(model, self.source, recipe, file, rest).SerializeToString())
        return path

    def weights(self, folder: Path, recipe: Recipe) -> WeightsFile:
        return write_external(folder, "weights-int8", packed(self.half, self.source, recipe))

    def tried(self, recipe: Recipe) -> tuple[onnx.ModelProto, WeightsFile]:
        """The fp32 graph beside its own weights, only the 8-bit ones in a file of their own."""
        file = write_external(self.bundle.folder, "trial", entries(self.source, recipe, "fp32"))
        return place(self.source.model, self.source, recipe, file, "fp32"), file


@functools.cache
def tiny() -> Tiny:
    """Made once a session; nobody writes into its folder."""
    from gamma_export.parity import photos_in, verification_crops

    bundle = open_bundle(tiny_export.exported(precision=BOTH))
    paths = {e.precision: bundle.folder / e.onnx for e in bundle.manifest.graphs if e.name == "joint"}
    models = {precision: onnx.load(path, load_external_data=False) for precision, path in paths.items()}
    source = Source(models["fp32"], bundle.folder, bundle.manifest.checkpoint.moae_scales)
    crops = verification_crops(photos_in(tiny_export.photos()))
    taps = taps_of(find_products(source.model))
    empty = Record(KEY, 0, len(crops))
    record = collect(paths["fp32"], taps, (crop[None, None] for crop in crops), empty, lambda _: None, threads=1)
    return Tiny(bundle, source, models["fp16"], crops, with_ranges(record, ("max", "percentile", "mse")))
