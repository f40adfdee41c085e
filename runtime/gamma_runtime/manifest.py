"""What a bundle says about itself: manifest.json and engines.json as pydantic models (design.md section 4).

The manifest is written last and never changes afterwards; engines.json is what one device built. Importing this module
imports pydantic (0.2 s), so callers import it inside functions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

__all__ = [
    "MAX_BATCH",
    "SCHEMA_VERSION",
    "CheckpointInfo",
    "EngineEntry",
    "Engines",
    "FileEntry",
    "Golden",
    "GraphEntry",
    "LabelCheck",
    "Manifest",
    "Parity",
    "Quantisation",
    "SceneEntry",
    "Trial",
]

SCHEMA_VERSION = 1
MAX_BATCH = 256

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# One path component, no separators, no leading dot or dash, no control characters: nothing can leave the bundle.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$")]
SceneName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
# One line that is shown to people: no control characters, so that no bundle writes to a terminal what it likes.
Line = Annotated[str, StringConstraints(pattern=r"^\P{C}*$", max_length=500)]
Capability = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}\.[0-9]\+?$")]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]


def _range(batch: tuple[int, int, int]) -> tuple[int, int, int]:
    if not 1 <= batch[0] <= batch[1] <= batch[2] <= MAX_BATCH:
        raise ValueError(f"not 1 <= least <= optimal <= most <= {MAX_BATCH}")
    return batch


def _levels(levels: list[float]) -> list[float]:
    if not min(levels) < max(levels):
        raise ValueError("all levels are equal")
    return levels


Batch = Annotated[tuple[int, int, int], AfterValidator(_range)]  # least, optimal, most; equal when it is static


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class FileEntry(_Strict):
    """One file of the bundle; the name carries the first eight hex digits of the digest."""

    name: FileName
    size: int = Field(ge=0)
    sha256: Sha256


class CheckpointInfo(_Strict):
    """Where the weights came from. ``label`` is shown wherever a score appears, e.g. ``untrained``."""

    sha256: Sha256
    file: Line
    kind: Literal["authors", "safetensors", "base-clip"]
    prompts: Literal["sdp", "plain"]
    prompts_assumed: bool
    label: Line | None = None
    licence: Line | None = None
    parameters: int = Field(ge=0)
    score_levels: Annotated[list[float], Field(min_length=2), AfterValidator(_levels)]
    dims: dict[str, Any]
    moae_scales: dict[str, float] = {}  # by block, e.g. "blocks.6"; INT8 takes them out of the merged second products


class SceneEntry(_Strict):
    """A scene: five prompts from bad to perfect, and the working short side its photos are reduced to."""

    name: SceneName
    prompts: list[str] = Field(min_length=5, max_length=5)
    kind: Literal["sdp", "plain", "user"]


class GraphEntry(_Strict):
    """One ONNX graph. ``name`` is the scene's, or ``joint``; ``files`` are the graph and its external data.

    An int8 graph is there twice: for the CPU backends, what is not 8 bits in fp32, and for TensorRT, there in fp16.
    """

    name: SceneName
    scenes: list[SceneName] = Field(min_length=1)
    precision: Precision
    target: Literal["any", "cpu", "tensorrt"] = "any"
    int8_share: float | None = Field(None, ge=0, le=1)  # of the multiply-adds in 8 bits, int8 or fp8
    attention: Literal["decomposed", "op"]
    opset: int
    moae: Literal["exact"]
    onnx: FileName
    weights: FileName
    crops: int = Field(ge=1, le=64)
    batch: Batch
    inputs: dict[str, tuple[str, list[int | str]]]
    outputs: dict[str, tuple[str, list[int | str]]]


class Parity(_Strict):
    """Graph against the PyTorch module on the same crops; differences in score units."""

    graph: SceneName
    scene: SceneName
    precision: Precision
    target: Literal["any", "cpu", "tensorrt"] = "any"
    backend: Line
    backend_version: Line
    crops: int
    max_abs: float
    mean_abs: float
    p99_abs: float | None = None
    score_std: float
    srcc: float | None  # None below 16 crops or where all scores are equal
    order_flips: float | None  # share of pairs whose order differs
    gate_max: float
    gate_mean: float | None = None
    passed: bool
    worst: dict[Line, float] = {}  # the images with the largest |difference|
    note: Line | None = None


class LabelCheck(_Strict):
    """Labelled photos ranked by the bundle and by PyTorch: correlations with the labels, and their drop.

    Intervals are of 95 %, by a bootstrap that draws both together; None where a correlation does not exist.
    """

    name: Line  # of the set
    photos: int = Field(ge=1)
    precision: Precision
    backend: Line
    srcc: float | None
    srcc_drop: float | None  # PyTorch's minus the bundle's
    srcc_interval: tuple[float, float] | None
    plcc: float | None
    plcc_drop: float | None
    plcc_interval: tuple[float, float] | None
    gate_srcc: float
    passed: bool


class Trial(_Strict):
    """One recipe of the search for 8 bits: groups sent back, what stayed, and the worst scene's scores."""

    kept: list[Line]
    kept_last: Line | None = None  # the group that this trial sent back
    int8_share: float
    max_abs: float
    mean_abs: float  # over all scenes
    srcc: float | None
    milliseconds: float | None = None  # a crop, in the search's own process
    passed: bool


class Quantisation(_Strict):
    """The recipe of the int8 or fp8 graphs; with it an export replays them without photos."""

    kind: Literal["int8", "fp8"] = "int8"
    groups: list[Line]
    int4: list[Line] = []  # of the groups, those of which only the weights are rounded, to 4 bits
    kept: list[Line]  # what was sent back to floating point
    ranges: dict[Line, float]  # by activation: the largest |value| that is represented
    smooth: dict[Line, list[float]] = {}  # by LayerNorm: what its channels are divided by
    method: Line
    methods: dict[Line, float] = {}  # mean |shift| with everything in 8 bits, by calibrator
    images: int = Field(ge=0)  # of the calibration
    images_sha256: Sha256 | None = None
    int8_share: float = Field(ge=0, le=1)  # of the multiply-adds
    trials: list[Trial] = []
    sensitivity: dict[Line, float] = {}  # mean |shift| of each group alone in 8 bits


class Golden(_Strict):
    """A small image whose crops and scores are known: the boot-time self-test."""

    file: FileName
    licence: Line
    crops_sha256: dict[SceneName, Sha256]  # of the uint8 crops of that scene's contract
    scores: dict[SceneName, float]  # by the PyTorch module in fp32


class Manifest(_Strict):
    """The whole bundle. Every file it needs is in ``files``; readers open nothing else."""

    schema_version: int = Field(ge=1, le=SCHEMA_VERSION)
    manifest_sha256: Sha256 | None = None  # of manifest.json itself, with zeros in this place
    created: Line
    tool: Line
    checkpoint: CheckpointInfo
    scenes: list[SceneEntry] = Field(min_length=1)
    default_scene: SceneName
    contract: dict[str, Any]
    contract_sha256: Sha256
    graphs: list[GraphEntry] = Field(min_length=1)
    parity: list[Parity]
    labels: list[LabelCheck] = []
    golden: list[Golden]
    files: list[FileEntry]
    quantisation: Quantisation | None = None
    libraries: dict[str, str]
    options: dict[str, Any]
    warnings: list[str] = []


class EngineEntry(_Strict):
    """One TensorRT plan that this device, or another one, built from a graph of the bundle."""

    file: FileName
    size: int = Field(ge=1)
    sha256: Sha256
    flavour: Literal["tensorrt", "tensorrt-rtx"]
    version: Line
    compute_capabilities: list[Capability]  # e.g. ["8.6", "8.9"]; what the plan was compiled for
    graph: SceneName
    scenes: list[SceneName]
    precision: Precision
    onnx_sha256: Sha256
    weights_sha256: Sha256
    batch: Batch
    options: dict[str, Any]
    log: FileName
    seconds: float
    created: Line
    os: Line
    peak_rss: int | None = None  # bytes; the build process's peak of resident memory
    proof: dict[str, Any] = {}  # types counted in the parsed network, and in the engine where one could be loaded
    warnings: list[Line] = []


class Engines(_Strict):
    """engines.json: replaced last, like the manifest, and never part of it."""

    schema_version: int = Field(ge=1, le=SCHEMA_VERSION)
    engines: list[EngineEntry]
    timing_caches: list[FileEntry] = []
