"""Labelled photos for training and evaluation: the paper's twelve sets, tables of one's own, synthetic distortions."""

from gamma_training.data.distortions import Distortion, apply
from gamma_training.data.opening import open_data
from gamma_training.data.pixels import read_pixels
from gamma_training.data.samples import Dataset, DataSpec, Sample
from gamma_training.data.specs import spec_from_mapping

__all__ = ["DataSpec", "Dataset", "Distortion", "Sample", "apply", "open_data", "read_pixels", "spec_from_mapping"]
