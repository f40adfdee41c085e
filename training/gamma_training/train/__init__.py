"""Training by the paper's recipe (model.md section 3) and what users expect beside it; `gamma-train CONFIG.yaml`."""

from gamma_training.train.config import CacheSpec, TrainConfig, read_config
from gamma_training.train.loop import train
from gamma_training.train.report import TrainReport

__all__ = ["CacheSpec", "TrainConfig", "TrainReport", "read_config", "train"]
