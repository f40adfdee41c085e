"""Gamma checkpoints: the authors' layout, a base CLIP/UniQA state dict, and our own safetensors with a JSON config."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gamma_runtime.errors import InputError, IntegrityError, OutputError
from gamma_runtime.files import hash_file, temporary_beside, write_atomically
from gamma_training.dims import GammaDims, dims_of
from gamma_training.intake import clean_tensors, odd_tensors, read_safetensors, read_torch

if TYPE_CHECKING:
    from torch import Tensor

    from gamma_training.model import Gamma

__all__ = ["Checkpoint", "build_model", "read_checkpoint", "write_authors", "write_safetensors"]

Prompts = Literal["sdp", "plain"]
Kind = Literal["authors", "safetensors", "base-clip"]
_FORMAT = "gamma-edge checkpoint"
_LABEL_KEY = "gamma_edge"  # beside `params` in a .pth that we wrote: {"label": "untrained", ...}
_WRAPPERS = ("params", "params_ema", "state_dict")
_BASE_ONLY = frozenset({"input_resolution", "context_length", "vocab_size"})
_LISTED = 10


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights as float32 tensors in the authors' names, and what is known about them."""

    path: Path
    sha256: str
    kind: Kind
    dims: GammaDims
    state: dict[str, Tensor]
    prompts: Prompts
    prompts_assumed: bool
    label: str | None
    licence: str | None
    warnings: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(tensor.numel() for tensor in self.state.values())


def read_checkpoint(
    path: Path | str, *, prompts: Prompts | None = None, licence: str | None = None, expect_sha256: str | None = None
) -> Checkpoint:
    """Read a checkpoint of any of the three kinds; the kind is decided by content.

    Args:
        path: the authors' ``.pth``, a base CLIP state dict (experts are copied from its MLPs), or our ``.safetensors``.
        prompts: which prompts it was trained with. The authors' files do not say; ``None`` takes what our own config
            says, else assumes ``sdp`` and records that it was assumed.
        licence: recorded in the manifest; our own config's by default.
        expect_sha256: refuse any other file.

    Raises:
        InputError: not a usable checkpoint. IntegrityError: holds code, or not the file that was expected.

    Example:
        >>> checkpoint = read_checkpoint("gamma_weight.pth", prompts="sdp")
        >>> checkpoint.dims.vision.experts
        3
    """
    path = Path(path)
    config: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        raw: dict[str, Any] = dict(read_safetensors(path))
        config = _read_config(path)
    else:
        raw, config = _unwrap(path, read_torch(path))
    digest = hash_file(path)
    _check_digest(path, digest, expect_sha256, config)
    raw = _strip_module(raw)
    tensors = clean_tensors(path, raw, skip=_BASE_ONLY)
    kind: Kind = "safetensors" if path.suffix == ".safetensors" else "authors"
    if "visual.conv1.weight" in tensors:
        from gamma_training.initialise import gamma_from_clip

        tensors, kind = gamma_from_clip(path, tensors), "base-clip"
    dims = _checked_dims(path, tensors, config)
    return Checkpoint(
        path=path,
        sha256=digest,
        kind=kind,
        dims=dims,
        state=tensors,
        prompts=prompts or config.get("prompts", "sdp"),
        prompts_assumed=prompts is None and "prompts" not in config,
        label="untrained experts and adapter" if kind == "base-clip" else config.get("label"),
        licence=licence or config.get("licence"),
        warnings=tuple(odd_tensors(tensors)),
    )


def build_model(checkpoint: Checkpoint) -> Gamma:
    """The PyTorch module in float32, eval mode, sharing the checkpoint's tensors."""
    import torch

    from gamma_training.model import Gamma

    with torch.device("meta"):
        model = Gamma(checkpoint.dims)
    model.load_state_dict(checkpoint.state, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def _unwrap(path: Path, loaded: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state dict inside a .pth, and our label when we wrote it."""
    config: dict[str, Any] = {}
    if isinstance(loaded, Mapping):
        found = loaded.get(_LABEL_KEY)
        config = dict(found) if isinstance(found, Mapping) else {}
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
        if all(isinstance(key, str) for key in inner):
            return dict(inner), config
    raise InputError(
        f"{path}: holds a {type(loaded).__name__}, not named tensors",
        hint="expected {'params': state_dict} or a bare state dict",
    )


def _strip_module(raw: dict[str, Any]) -> dict[str, Any]:
    """DataParallel's prefix, when every name carries it."""
    if raw and all(name.startswith("module.") for name in raw):
        return {name.removeprefix("module."): value for name, value in raw.items()}
    return raw


def _check_digest(path: Path, digest: str, expected: str | None, config: Mapping[str, Any]) -> None:
    for source, wanted in (("--expect-sha256", expected), ("its config", config.get("weights_sha256"))):
        if wanted and wanted.lower() != digest:
            raise IntegrityError(
                f"{path}: sha256 {digest[:16]}… is not {wanted[:16]}… given by {source}", hint="fetch the file again"
            )


def _checked_dims(path: Path, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> GammaDims:
    """Dimensions from the shapes; then every name and shape must be exactly those of such a model."""
    from gamma_training.model import expected_shapes

    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        dims = dims_of(shapes)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from error
    if "dims" in config and GammaDims.from_json(config["dims"]) != dims:
        raise InputError(
            f"{path}: looks like {dims}, its config says {config['dims']}",
            hint="config and weights belong to different models",
        )
    expected = expected_shapes(dims)
    if missing := [name for name in expected if name not in shapes]:
        raise InputError(f"{path}: {len(missing)} tensors missing: {_names(missing)}")
    if unexpected := [name for name in shapes if name not in expected]:
        raise InputError(f"{path}: {len(unexpected)} unexpected tensors: {_names(unexpected)}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise InputError(f"{path}: {name} has shape {list(shapes[name])}, expected {list(shape)}")
    return dims


def _names(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")


def _read_config(path: Path) -> dict[str, Any]:
    config = path.with_suffix(".json")
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{config}: the config beside the weights cannot be read ({error})") from error
    if not isinstance(data, dict) or data.get("format") != _FORMAT or data.get("version") != 1:
        raise InputError(f"{config}: not a '{_FORMAT}' config of version 1")
    if data.get("prompts") not in ("sdp", "plain"):
        raise InputError(f"{config}: prompts is {data.get('prompts')!r}, expected 'sdp' or 'plain'")
    return data


def write_authors(
    path: Path, state: Mapping[str, Tensor], *, label: str | None = None, prompts: Prompts = "sdp"
) -> None:
    """Write the authors' layout: a dict with one key `params` -> ordered dict of float32 CPU tensors, in their order.

    A ``label`` such as ``untrained`` goes beside it under ``gamma_edge``; the authors' loader ignores that key.

    Raises:
        OutputError: the file cannot be written; an old one is untouched.
    """
    import torch

    from gamma_training.model import expected_shapes

    order = expected_shapes(dims_of({name: tuple(t.shape) for name, t in state.items()}))
    content: dict[str, Any] = {"params": OrderedDict((name, state[name].detach().float().cpu()) for name in order)}
    if label:
        content[_LABEL_KEY] = {"label": label, "prompts": prompts}
    try:
        with temporary_beside(path) as temporary:
            with temporary.open("wb") as stream:  # torch refuses hidden file names
                torch.save(content, stream)
            temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        raise OutputError(f"{path}: cannot be written ({error})") from error


def write_safetensors(
    path: Path, state: Mapping[str, Tensor], *, prompts: Prompts, label: str | None = None, licence: str | None = None
) -> None:
    """Write our own layout: ``NAME.safetensors`` and ``NAME.json`` (dimensions, prompts, label, licence, digest).

    Raises:
        OutputError: cannot be written. The config is replaced last, and its digest tells a torn pair.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    try:
        with temporary_beside(path) as temporary:
            save_file(tensors, temporary)
            temporary.replace(path)
    except Exception as error:  # safetensors raises its own class for I/O errors
        raise OutputError(f"{path}: cannot be written ({error})") from error
    config = {
        "format": _FORMAT,
        "version": 1,
        "dims": dims_of({name: tuple(t.shape) for name, t in state.items()}).to_json(),
        "prompts": prompts,
        "label": label,
        "licence": licence,
        "weights_sha256": hash_file(path),
    }
    write_atomically(path.with_suffix(".json"), (json.dumps(config, indent=1) + "\n").encode())
