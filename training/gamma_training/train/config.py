"""The training configuration: a YAML file whose keys are the fields of `TrainConfig`, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from pathlib import Path
from typing import Any, Literal

from gamma_runtime.errors import InputError
from gamma_training.config import LINE, is_line
from gamma_training.data import DataSpec
from gamma_training.data.specs import near, show, specs_of
from gamma_training.yaml_file import read_yaml

__all__ = ["CacheSpec", "TrainConfig", "read_config"]

# They change where, how fast and under which name, not what is learned; a state knows its base by the content.
_PLACE = ("base", "out", "cache_folder", "workers", "threads", "device", "save_every", "label", "licence")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """Activations of the frozen blocks, computed once: ``crops`` fixed views of each photo (every second one mirrored).

    ``dtype`` is what they are stored in: float32 trains exactly as without a cache on the same views.
    """

    crops: int = 4
    dtype: Literal["float32", "float16"] = "float16"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a checkpoint is trained. The defaults are the paper's recipe (model.md section 3).

    Attributes:
        out: folder of the run: best and last checkpoint, state to resume from, report.
        base: a base CLIP, an imported base, or a Gamma checkpoint to fine-tune.
        data: where labelled photos come from.
        prompts: ``sdp`` or ``plain``; a Gamma checkpoint's own when left out, else sdp.
        scene_file: YAML with scenes of your own, as for gamma-export.
        trainable: ``paper`` trains experts, gates, scales, adapter and score levels, and what a base says is fresh;
            ``all`` every tensor.
        freeze_blocks: so many first blocks of the vision tower are frozen; with ``paper`` those without experts are
            anyway. Default: those.
        epochs: passes over the training photos.
        batch: photos of an optimiser's step, over all processes and accumulated parts together.
        accumulate: parts that a process computes a step in; less memory, the same step.
        lr: Adam's learning rate.
        lr_fresh: of tensors that start from scratch; ``lr`` when left out.
        weight_decay: of matrices, decoupled (AdamW); the paper has none.
        schedule: ``cosine`` falls to 0 by epochs as the paper's, ``cosine-steps`` by steps, ``constant`` stays.
        warmup: steps over which the learning rate rises from 0.
        clip: the gradient's largest norm; None leaves it.
        loss: ``mse`` on normalised opinion scores, ``mse+rank`` adds a hinge on the order of pairs of one set.
        rank_weight: of that hinge; its pairs are made within a process and a part.
        amp: products in bf16 or fp16 (fp16 on a GPU only); weights and the head stay fp32.
        ema: decay of an exponential moving average of the weights, which is then what is judged and kept.
        balance: ``none`` shows every photo once an epoch, ``equal`` every set as often as the others, ``sqrt`` between.
        cache: see `CacheSpec`; None cuts new random crops every epoch.
        cache_folder: where the cache lies; ``out`` when left out. Runs one after another with the same photos, seed and
            frozen blocks share one.
        keep_tokens: share of a photo's cached patches that a step sees, drawn anew each epoch (PatchDropout); fewer are
            quicker, and teach not to hang on any of them. 1 shows all.
        validation: share of a set's training photos kept for choosing the best epoch, where its rows name splits and
            none is val. Rows that name no split are divided 7:1:2 into train, val and test.
        validate_every: epochs.
        patience: validations without a better one until training stops; None trains all epochs.
        native: crops from the photos' own pixels instead of the scene's working size.
        seed: of everything random.
        workers: threads that decode.
        threads: CPU threads of PyTorch; its own choice when left out.
        device: ``auto`` takes a GPU where there is one.
        save_every: steps between states to resume from (also at the end of each epoch).
        label: recorded in the checkpoint. licence: likewise.
    """

    out: Path
    base: Path
    data: tuple[DataSpec, ...]
    prompts: Literal["sdp", "plain"] | None = None
    scene_file: Path | None = None
    trainable: Literal["paper", "all"] = "paper"
    freeze_blocks: int | None = None
    epochs: int = 10
    batch: int = 8
    accumulate: int = 1
    lr: float = 2e-5
    lr_fresh: float | None = None
    weight_decay: float = 0.0
    schedule: Literal["cosine", "cosine-steps", "constant"] = "cosine"
    warmup: int = 0
    clip: float | None = None
    loss: Literal["mse", "mse+rank"] = "mse"
    rank_weight: float = 0.1
    amp: Literal["off", "bf16", "fp16"] = "off"
    ema: float | None = None
    balance: Literal["none", "sqrt", "equal"] = "none"
    cache: CacheSpec | None = None
    cache_folder: Path | None = None
    keep_tokens: float = 1.0
    validation: float = 0.1
    validate_every: int = 1
    patience: int | None = None
    native: bool = False
    seed: int = 123
    workers: int = 2
    threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: int = 500
    label: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("data: no set is named", hint="data: [{table: mos.csv, range: [0, 1], scene: …}]")
        if self.keep_tokens != 1 and self.cache is None:
            raise InputError(f"keep_tokens: {self.keep_tokens:g} without cache", hint="cache: {crops: 4}")
        for name in ("label", "licence"):
            if not is_line(getattr(self, name)):
                raise InputError(f"{name}: {show(getattr(self, name))}, expected {LINE}")
        if self.batch % self.accumulate:
            raise InputError(f"batch: {self.batch} is no multiple of accumulate, {self.accumulate}")

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides the result; a run is resumed only with the same one."""
        plain = {key: value for key, value in self.to_json().items() if key not in _PLACE}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        made = dataclasses.asdict(self) | {"data": [spec.to_json() for spec in self.data]}
        return {key: str(value) if isinstance(value, Path) else value for key, value in made.items()}


def read_config(path: Path) -> TrainConfig:
    """Read the YAML file; relative paths in it are relative to it.

    Raises:
        InputError: not readable, an unknown or missing key, or a value out of its range.

    Example:
        >>> read_config(Path("mine.yaml")).epochs
        10
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a mapping with base, data and out; found {type(data).__name__}")
    try:
        return _config(path.parent.resolve(), data)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from error


def _config(folder: Path, data: dict[Any, Any]) -> TrainConfig:
    fields = typing.get_type_hints(TrainConfig)
    _check_keys(data, fields, required=("out", "base", "data"), where="")
    made: dict[str, Any] = {}
    for key, value in data.items():
        if key == "data":
            made[key] = tuple(specs_of(value, folder))
        elif key == "cache" and value is not None:
            made[key] = _cache(value)
        else:
            made[key] = _value(key, value, fields[key], folder)
    return TrainConfig(**made)


def _cache(value: Any) -> CacheSpec:
    if not isinstance(value, dict):
        raise InputError(f"cache: {show(value)}, expected a mapping such as {{crops: 4, dtype: float16}}")
    fields = typing.get_type_hints(CacheSpec)
    _check_keys(value, fields, required=(), where="cache: ")
    return CacheSpec(**{key: _value(key, one, fields[key], Path()) for key, one in value.items()})


def _check_keys(data: dict[Any, Any], fields: dict[str, Any], required: tuple[str, ...], where: str) -> None:
    for key in data:
        if key not in fields:
            raise InputError(f"{where}unknown key {show(key)}", hint=near(str(key), list(fields)))
    if missing := [key for key in required if data.get(key) is None]:
        raise InputError(f"{where}{missing[0]} is missing")


_RANGES: dict[str, tuple[float, float]] = {
    "freeze_blocks": (0, 128),
    "epochs": (1, 100_000),
    "batch": (1, 65_536),
    "accumulate": (1, 65_536),
    "lr": (0, 10),
    "lr_fresh": (0, 10),
    "weight_decay": (0, 10),
    "warmup": (0, 10**7),
    "clip": (1e-9, 1e9),
    "rank_weight": (0, 1000),
    "ema": (0, 0.999999),
    "keep_tokens": (0.05, 1),
    "validation": (0, 0.9),
    "validate_every": (1, 100_000),
    "patience": (1, 100_000),
    "seed": (0, 2**31 - 1),
    "workers": (0, 256),
    "threads": (1, 1024),
    "save_every": (1, 10**7),
    "crops": (1, 64),
}


def _value(key: str, value: Any, hint: Any, folder: Path) -> Any:
    """The value in the field's type; YAML's 1e-4 is a string, which is what people write."""
    options = typing.get_args(hint) if typing.get_origin(hint) is not Literal else (hint,)
    kinds = [kind for kind in options or (hint,) if kind is not type(None)]
    if value is None and len(kinds) < len(options):
        return None
    kind = kinds[0]
    if typing.get_origin(kind) is Literal:
        value = "off" if value is False and "off" in typing.get_args(kind) else value  # YAML 1.1's off
        if value not in typing.get_args(kind):
            raise InputError(f"{key}: {show(value)}", hint=f"one of {', '.join(map(str, typing.get_args(kind)))}")
        return value
    if kind is Path:
        if not isinstance(value, str) or not value:
            raise InputError(f"{key}: {show(value)} is not a path")
        return folder / Path(value).expanduser()
    if kind in (int, float):
        return _number(key, value, kind)
    if not isinstance(value, kind):
        raise InputError(f"{key}: {show(value)}, expected {kind.__name__}")
    return value


def _number(key: str, value: Any, kind: type[int] | type[float]) -> int | float:
    try:
        number = kind(value)
        if isinstance(value, bool) or (kind is int and number != float(value)):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{key}: {show(value)} is not {'a whole number' if kind is int else 'a number'}") from error
    low, high = _RANGES[key]
    if not low <= number <= high:
        raise InputError(f"{key}: {show(value)} is not between {low:g} and {high:g}")
    return number
