"""Labelled photos for training and evaluation: the paper's twelve sets, tables of one's own, synthetic distortions."""

from gamma_training.data.samples import Dataset, DataSpec, Sample

__all__ = ["DataSpec", "Dataset", "Sample"]
