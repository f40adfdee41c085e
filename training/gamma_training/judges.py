"""Who scores crops: a checkpoint in PyTorch, or a bundle's graph on any backend; evaluation does not know which.

A judge takes crops one by one, whatever the number that a bundle's graph takes of one image: so every crop policy can
be tried with every source.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.contract import Contract, CropPolicy
from gamma_runtime.errors import EnvironmentFault, GammaError, InputError, UsageError
from gamma_runtime.threads import BUDGET, inference_threads
from gamma_training.scenes import SCENES, Scene, encode_scenes, scenes_of

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from gamma_runtime.bundle import Bundle
    from gamma_training.checkpoint import Checkpoint
    from gamma_training.dims import GammaDims
    from gamma_training.model import Gamma

__all__ = ["CROPS_AT_ONCE", "BundleJudge", "Judge", "JudgeOptions", "TorchJudge", "open_judge"]

Crops: TypeAlias = NDArray[np.uint8]
Scores: TypeAlias = NDArray[np.float64]

CROPS_AT_ONCE = 64  # in PyTorch: some 2 GB of activations at full size
_MEAN_TOLERANCE = 1e-5  # float32 mean of up to 64 crops
_PLAIN = "plain"  # what a model knows that was trained with the naive prompts, whatever the photos


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """How a source is opened.

    Attributes:
        backend: for a bundle: auto, onnxruntime, openvino, tensorrt or tensorrt-rtx.
        precision: of a bundle's graph; its first one when None.
        device: for a checkpoint: cpu, cuda or cuda:N. Always float32, without TF32 and AMP.
        batch: images that a bundle's graph takes together, within its range; PyTorch takes as many crops at once.
        threads: CPU threads; one for each physical core when None.
        engine_dir: where a bundle's engines lie; in the bundle when None.
        user_scenes: more scenes than the built-in ones, for a checkpoint.
        prompts: that a checkpoint was trained with; what it says itself when None.
        unsaid: the same where it says nothing; sdp when None.
    """

    backend: str = "auto"
    precision: str | None = None
    device: str = "cpu"
    batch: int = 8
    threads: int | None = None
    engine_dir: Path | None = None
    user_scenes: tuple[Scene, ...] = ()
    prompts: Literal["sdp", "plain"] | None = None
    unsaid: Literal["sdp", "plain"] | None = None


class Judge(abc.ABC):
    """One model with its scenes; also a context manager.

    Attributes:
        facts: for the record: file, sha256, what runs it.
        label: the checkpoint's own, such as ``untrained``.
        scenes: names it can score in.
        contract: how photos become crops: a bundle's own rules, or the working sizes of a checkpoint's scenes.
        fixed: the contract came with the source: evaluation obeys it as a device would.

    Example:
        >>> with open_judge(Path("gamma.pth"), ("face-quality",)) as judge:
        ...     judge.score(crops, "face-quality")
    """

    facts: dict[str, Any]
    label: str | None
    scenes: tuple[str, ...]
    contract: Contract
    fixed: bool

    @property
    @abc.abstractmethod
    def dims(self) -> GammaDims:
        """The model's."""

    def scene_for(self, scene: str) -> str:
        """The scene that photos of ``scene`` are scored in: itself, or ``plain`` where the model knows nothing else.

        Raises:
            UsageError: the model has other scenes.
        """
        if scene in self.scenes:
            return scene
        if self.scenes == (_PLAIN,) and scene in SCENES:
            return _PLAIN
        raise UsageError(
            f"{self.facts['file']} has no scene {scene!r}",
            hint=f"it has {', '.join(self.scenes)}; the photos' scene stands in their data",
        )

    def score(self, crops: Crops, scene: str) -> Scores:
        """Score crops [P, 224, 224, 3] uint8 RGB one by one: [P], in the checkpoint's own units.

        Raises:
            UsageError: a scene it does not have. InputError: a score is not finite. EnvironmentFault: out of memory.
        """
        if scene not in self.scenes:
            raise UsageError(f"{self.facts['file']} has no scene {scene!r}", hint=f"it has {', '.join(self.scenes)}")
        found = self._score(crops, scene)
        if bad := int((~np.isfinite(found)).sum()):
            raise InputError(
                f"{self.facts['file']}: {bad} of {len(found)} scores in {scene} are not finite",
                hint="check its weights",
            )
        return found

    @abc.abstractmethod
    def _score(self, crops: Crops, scene: str) -> Scores:
        """The same, of a scene that exists."""

    def close(self) -> None:  # noqa: B027 - nothing to free in PyTorch
        """Free what is open; calling it twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TorchJudge(Judge):
    """The PyTorch module in float32. Each scene's text is encoded once, when it is first asked for.

    The features are those of the weights as they are then: a model that trains on needs a new judge.
    """

    fixed = False

    def __init__(
        self,
        model: Gamma,
        scenes: Sequence[Scene],
        options: JudgeOptions | None = None,
        facts: dict[str, Any] | None = None,
        label: str | None = None,
    ) -> None:
        options = options or JudgeOptions()
        self._device = torch_device(options.device)
        self._model = model.to(self._device).eval()
        self._batch = min(options.batch, CROPS_AT_ONCE)
        self._threads = inference_threads(options.threads)
        self._known = {scene.name: scene for scene in scenes}
        self._texts: dict[str, Tensor] = {}
        self.facts = {"file": "model", **(facts or {}), "run_by": f"PyTorch fp32 on {self._device}"}
        self.label, self.scenes = label, tuple(self._known)
        self.contract = Contract(short_sides={scene.name: scene.short_side for scene in scenes}, crop=CropPolicy())

    @classmethod
    def of(cls, checkpoint: Checkpoint, options: JudgeOptions) -> TorchJudge:
        """A checkpoint that was read, with the scenes of its prompts and those of the user."""
        from gamma_training.checkpoint import build_model

        scenes = [*scenes_of(checkpoint.prompts), *options.user_scenes]
        facts = {"file": checkpoint.path.name, "sha256": checkpoint.sha256, "kind": checkpoint.kind}
        if checkpoint.doubts:
            facts["note"] = "; ".join(checkpoint.doubts)
        return cls(build_model(checkpoint), scenes, options, facts, checkpoint.label)

    @property
    def dims(self) -> GammaDims:
        """The model's."""
        return self._model.dims

    def _score(self, crops: Crops, scene: str) -> Scores:
        import torch

        threads = self._threads if self._device == "cpu" else 0
        with BUDGET.hold(threads), _plain_torch(self._device, threads):
            text = self._text(scene)
            parts = [torch.from_numpy(crops[at : at + self._batch]) for at in range(0, len(crops), self._batch)]
            found = [self._model.score(part.to(self._device), text)[:, 0].cpu().numpy() for part in parts]
        return np.concatenate(found).astype(np.float64)

    def _text(self, scene: str) -> Tensor:
        if scene not in self._texts:
            self._texts[scene] = encode_scenes(self._model, [self._known[scene]])
        return self._texts[scene]


def torch_device(name: str) -> str:
    """Check a device's name and that it is there.

    Raises:
        UsageError: neither cpu nor cuda. EnvironmentFault: no such GPU.
    """
    import torch

    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", name)
    if match is None:
        raise UsageError(f"unknown device {name!r}", hint="cpu, cuda or cuda:N")
    if name != "cpu" and int(match[1] or 0) >= (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        raise EnvironmentFault(f"device {name}: PyTorch finds no such GPU", hint="--device cpu")
    return name


@contextlib.contextmanager
def _plain_torch(device: str, threads: int) -> Iterator[None]:
    """Inference mode and true float32 for a while, with so many CPU threads (0: as they are).

    Raises:
        EnvironmentFault: the GPU's memory is too small.
    """
    import torch

    before, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(threads or before)
    torch.backends.cudnn.allow_tf32 = False  # on by default: the patches' convolution would lose 13 bits
    try:
        with torch.inference_mode(), torch.autocast(device.partition(":")[0], enabled=False):
            yield
    except torch.OutOfMemoryError as error:
        raise EnvironmentFault(f"out of memory on {device}", hint="a smaller --batch") from error
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
        torch.set_num_threads(before)


class BundleJudge(Judge):
    """A bundle's graphs, opened as the runtime opens them: files checked, one joint graph for several scenes.

    Args:
        bundle: opened.
        scenes: that will be asked for (of the photos: a bundle of the naive prompts scores all in ``plain``); the
            bundle's default one when empty.
        options: how to open it.
    """

    fixed = True

    def __init__(self, bundle: Bundle, scenes: Sequence[str], options: JudgeOptions) -> None:
        from gamma_runtime.backends import CPU
        from gamma_runtime.engines.use import EngineUse
        from gamma_runtime.graphs import open_graphs

        info = bundle.manifest.checkpoint
        self.facts = {"file": bundle.folder.name, "sha256": bundle.sha256, "checkpoint_sha256": info.sha256}
        self.label, self._dims = info.label, info.dims
        self.scenes = tuple(scene.name for scene in bundle.manifest.scenes)
        self.contract = bundle.contract()
        if self.contract.crop.frame:
            raise UsageError(
                f"{bundle.folder}: its graph takes frames and cuts the crops itself", hint="take another bundle"
            )
        wanted = list(dict.fromkeys(map(self.scene_for, scenes or (bundle.manifest.default_scene,))))
        use = EngineUse(engine_dir=options.engine_dir)
        self._graphs = open_graphs(bundle, wanted, options.precision, options.backend, options.threads, use)
        self._batch = options.batch
        self.scenes = tuple(wanted)
        ran = dict.fromkeys(f"{graph.backend.name} {graph.backend.version}" for graph in self._graphs)
        precision = self._graphs[0].entry.precision
        self.facts["run_by"] = f"{', '.join(ran)}, {precision}"
        if precision not in ("fp32", "int8") and any(graph.backend.name in CPU for graph in self._graphs):
            self.facts["note"] = f"emulated: a CPU computes the {precision} graph partly in fp32"

    @property
    def dims(self) -> GammaDims:
        """The model's."""
        from gamma_training.dims import GammaDims

        return GammaDims.from_json(self._dims)

    def _score(self, crops: Crops, scene: str) -> Scores:
        graph = next(graph for graph in self._graphs if scene in graph.entry.scenes)
        column, each = graph.column(scene), graph.backend.io.crops
        padded = np.concatenate([crops, np.repeat(crops[-1:], -len(crops) % each, axis=0)])
        images = list(padded.reshape(-1, each, *crops.shape[1:]))
        made = []
        for row in graph.run(images, self._batch):
            if isinstance(row, GammaError):
                raise row
            if abs(float(row[0][column]) - float(row[1][:, column].mean())) > _MEAN_TOLERANCE:
                raise InputError(f"{graph.backend.graph}: score is not the mean of crop_scores")
            made.append(row[1][:, column])
        return np.concatenate(made)[: len(crops)].astype(np.float64)

    def close(self) -> None:
        """Free the graphs."""
        for graph in self._graphs:
            graph.backend.close()


def open_judge(source: Path, scenes: Sequence[str] = (), options: JudgeOptions | None = None) -> Judge:
    """A bundle (a folder), or a checkpoint (a file).

    Args:
        source: what to open.
        scenes: of the photos to come; needed for a bundle, whose graphs are opened for them.
        options: how.

    Raises:
        GammaError: it cannot be used, or has none of these scenes.
    """
    options = options or JudgeOptions()
    if options.batch < 1:
        raise UsageError(f"a batch of {options.batch}; at least 1 is needed")
    if source.is_dir():
        from gamma_runtime.bundle import open_bundle

        if options.device != "cpu":
            raise UsageError("--device is for checkpoints; a bundle runs on its backend")
        if options.prompts is not None:
            raise UsageError("--prompts is for checkpoints; a bundle has its scenes' texts inside")
        return BundleJudge(open_bundle(source), scenes, options)
    from gamma_training.checkpoint import read_checkpoint

    for name, value, default in (("backend", options.backend, "auto"), ("precision", options.precision, None)):
        if value != default:
            raise UsageError(f"--{name} is for bundles; a checkpoint is scored by PyTorch in fp32")
    checkpoint = read_checkpoint(source, prompts=options.prompts)
    if checkpoint.prompts_assumed and options.unsaid is not None:
        checkpoint = dataclasses.replace(checkpoint, prompts=options.unsaid, prompts_assumed=False)
    judge = TorchJudge.of(checkpoint, options)
    for scene in scenes:
        judge.scene_for(scene)
    return judge
