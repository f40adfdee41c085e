"""Gamma checkpoints: the authors' layout, a base CLIP/UniQA state dict, and our own safetensors with a JSON config."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gamma_runtime.errors import InputError, IntegrityError, OutputError, UsageError
from gamma_runtime.files import hash_file, sync_directory, temporary_beside, write_atomically
from gamma_training.config import FORMAT, SHA256, check_config_dims, checked_config, read_config
from gamma_training.dims import GammaDims, dims_of
from gamma_training.intake import (
    check_file,
    clean_tensors,
    is_safetensors,
    odd_tensors,
    read_safetensors,
    read_torch,
    shown,
)

if TYPE_CHECKING:
    from torch import Tensor

    from gamma_training.model import Gamma

__all__ = ["Checkpoint", "build_model", "read_checkpoint", "read_tensors", "write_authors", "write_safetensors"]

Prompts = Literal["sdp", "plain"]
Kind = Literal["authors", "safetensors", "base-clip"]
Dtype = Literal["float32", "float16"]
_NOTE_KEY = "gamma_edge"  # beside `params` in a .pth that we wrote: {"label": "untrained", ...}
_WRAPPERS = ("params", "params_ema", "state_dict")
_MODULE = "module."  # DataParallel's prefix
_BASE_MARK = "visual.conv1.weight"  # a base CLIP's names have no `clip_model.`
_BASE_ONLY = frozenset({"input_resolution", "context_length", "vocab_size"})
_LISTED = 10


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights as float32 tensors in the authors' names, and what is known about them.

    ``fresh`` names the tensors that were initialised and not learned, when a base without them was imported: a
    training has to train these too (`dims.is_trained` are the authors' own).
    """

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
    fresh: frozenset[str] = frozenset()

    @property
    def parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(tensor.numel() for tensor in self.state.values())

    @property
    def doubts(self) -> tuple[str, ...]:
        """What its user should know: odd tensors, and prompts that nobody named."""
        said = "the checkpoint does not say which prompts it was trained with: sdp assumed (else: prompts plain)"
        return (*self.warnings, said) if self.prompts_assumed else self.warnings


def read_checkpoint(
    path: Path | str, *, prompts: Prompts | None = None, licence: str | None = None, expect_sha256: str | None = None
) -> Checkpoint:
    """Read a checkpoint of any of the three kinds; the kind is decided by content.

    Args:
        path: the authors' ``.pth``, a base CLIP state dict (experts are copied from its MLPs), or our ``.safetensors``.
        prompts: which prompts it was trained with. The authors' files do not say; ``None`` takes what our own config
            says, else assumes ``sdp`` and records that it was assumed.
        licence: recorded in the manifest; our own config's by default.
        expect_sha256: 64 hex digits; any other file is refused before it is parsed.

    Raises:
        InputError: not a usable checkpoint. IntegrityError: holds code, or not the file that was expected.
        UsageError: ``expect_sha256`` is not a digest.

    Example:
        >>> checkpoint = read_checkpoint("gamma_weight.pth", prompts="sdp")
        >>> checkpoint.dims.vision.experts
        3
    """
    path = Path(path)
    safetensors = is_safetensors(path, check_file(path))
    config = read_config(path) if safetensors else {}
    digest = _checked_digest(path, expect_sha256, config)
    warnings: list[str] = []
    if safetensors:
        raw: dict[str, Any] = dict(read_safetensors(path))
    else:
        raw, config = _unwrap(path, read_torch(path))
    raw = _plain_names(raw, warnings)
    tensors = clean_tensors(path, raw)
    kind: Kind = "safetensors" if safetensors else "authors"
    if _BASE_MARK in tensors:
        from gamma_training.initialise import drawn_for_clip, gamma_from_clip

        tensors, kind = gamma_from_clip(path, tensors), "base-clip"
        config = {**config, "fresh": drawn_for_clip(tensors)}
    dims = _checked_dims(path, tensors, config)
    said = config.get("prompts")
    return Checkpoint(
        path=path,
        sha256=digest,
        kind=kind,
        dims=dims,
        state=tensors,
        prompts=prompts or said or "sdp",
        prompts_assumed=not (prompts or said),
        label="untrained experts and adapter" if kind == "base-clip" else config.get("label"),
        licence=licence or config.get("licence"),
        warnings=(*warnings, *odd_tensors(tensors)),
        fresh=_fresh(path, tensors, config),
    )


def _fresh(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> frozenset[str]:
    named = frozenset(config.get("fresh") or ())
    if odd := sorted(named - set(tensors)):
        raise InputError(
            f"{path}: its config calls tensors fresh that it lacks: {_names(odd)}", hint="correct it there"
        )
    return named


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The plain float32 tensors of a torch file, whatever model they are of, with plain names.

    Raises:
        InputError: as `read_checkpoint`. IntegrityError: it holds code.
    """
    return clean_tensors(path, _plain_names(_unwrap(path, read_torch(path))[0], []))


def build_model(checkpoint: Checkpoint) -> Gamma:
    """The PyTorch module in float32, eval mode, sharing the checkpoint's tensors."""
    import torch

    from gamma_training.model import Gamma

    with torch.device("meta"):
        model = Gamma(checkpoint.dims)
    model.load_state_dict(checkpoint.state, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def _unwrap(path: Path, loaded: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state dict inside a .pth, and our note when we wrote it."""
    hint = "expected {'params': state_dict} or a bare state dict"
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: holds a {type(loaded).__name__}, not named tensors", hint=hint)
    inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
    if odd := [key for key in inner if not isinstance(key, str)]:
        raise InputError(f"{path}: {len(odd)} keys are not names, such as {shown(repr(odd[0]))}", hint=hint)
    note = loaded.get(_NOTE_KEY, {})
    if not isinstance(note, Mapping):
        raise InputError(
            f"{path}: {_NOTE_KEY} is a {type(note).__name__}, expected a mapping", hint=f"take {_NOTE_KEY} out"
        )
    return dict(inner), checked_config(path, {key: note.get(key) for key in ("label", "licence", "prompts")})


def _plain_names(raw: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """Without DataParallel's prefix, when every name carries it, and without a base CLIP's three plain numbers."""
    if raw and all(name.startswith(_MODULE) for name in raw):
        raw = {name.removeprefix(_MODULE): value for name, value in raw.items()}
        warnings.append(f"the prefix {_MODULE!r} was dropped from every tensor's name")
    if _BASE_MARK in raw:
        return {name: value for name, value in raw.items() if name not in _BASE_ONLY}
    return raw


def _checked_digest(path: Path, expected: str | None, config: Mapping[str, Any]) -> str:
    """SHA-256 of the file, compared before any parser sees it."""
    if expected is not None and not SHA256.fullmatch(expected):
        raise UsageError(
            f"{shown(expected)!r} is not a SHA-256 digest", hint="64 hexadecimal digits, as sha256sum prints"
        )
    try:
        digest = hash_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", hint="check the disk") from error
    for source, wanted in (("--expect-sha256", expected), ("its config", config.get("weights_sha256"))):
        if wanted and wanted.lower() != digest:
            raise IntegrityError(
                f"{path}: sha256 {digest[:16]}… is not {wanted[:16]}… given by {source}", hint="fetch the file again"
            )
    return digest


def _checked_dims(path: Path, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> GammaDims:
    """Dimensions from the shapes; then every name and shape must be exactly those of such a model."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        dims = dims_of(shapes, config.get("dims"))
        check_config_dims(dims, config)
        _check_shapes(dims, shapes)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint or "is it a Gamma of another kind?") from error
    return dims


def _check_shapes(dims: GammaDims, shapes: Mapping[str, tuple[int, ...]]) -> None:
    from gamma_training.model import expected_shapes

    expected = expected_shapes(dims)
    like = (
        f"by its shapes vision {dims.vision.width}x{dims.vision.layers}, text {dims.text.width}x{dims.text.layers},"
        f" {dims.vision.experts} experts from block {dims.vision.first_moae} on"
    )
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    if missing or unexpected:
        parts = [
            f"{len(names)} {what}: {_names(names)}"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise InputError(f"other tensors than a Gamma has; {'; '.join(parts)}", hint=f"it looks like a Gamma, {like}")
    if wrong := [name for name, shape in expected.items() if shapes[name] != shape]:
        name = wrong[0]
        raise InputError(
            f"{name} has shape {list(shapes[name])}, expected {list(expected[name])} ({len(wrong)} tensors differ)",
            hint=f"it looks like a Gamma, {like}",
        )


def _names(names: list[str]) -> str:
    return ", ".join(shown(name) for name in names[:_LISTED]) + (", …" if len(names) > _LISTED else "")


def _ordered(state: Mapping[str, Tensor], said: GammaDims | None = None) -> tuple[GammaDims, OrderedDict[str, Tensor]]:
    """Float32 CPU tensors in the authors' order, each with a storage of its own size.

    ``said`` is for what shapes cannot say; without it that is CLIP's.
    """
    from gamma_training.model import expected_shapes

    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    dims = dims_of(shapes, said.to_json() if said else None)
    if said and dims != said:
        raise InputError("the tensors are not those of a model of the dimensions given")
    _check_shapes(dims, shapes)
    made: OrderedDict[str, Tensor] = OrderedDict()
    for name in expected_shapes(dims):
        tensor = state[name].detach().float().cpu().contiguous()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        made[name] = tensor if whole else tensor.clone()  # a slice would drag its whole storage into the file
    return dims, made


def _halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in float16; vectors and numbers weigh nothing and stay as they are."""
    import torch

    made = {name: tensor.half() if tensor.dim() > 1 else tensor for name, tensor in tensors.items()}
    if lost := [name for name, tensor in made.items() if not bool(torch.isfinite(tensor).all())]:
        raise InputError(f"float16 ends at 65504, which values of {_names(lost)} are beyond", hint="write float32")
    return made


def write_authors(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    label: str | None = None,
    prompts: Prompts | None = None,
    licence: str | None = None,
) -> None:
    """Write the authors' layout: a dict with one key `params` -> ordered dict of float32 CPU tensors, in their order.

    What is known of ``label`` (such as ``untrained``), ``prompts`` and ``licence`` goes beside it under ``gamma_edge``;
    the authors' loader ignores that key.

    Raises:
        InputError: ``state`` is not a whole Gamma. OutputError: the file cannot be written; an old one is untouched.
    """
    import torch

    content: dict[str, Any] = {"params": _ordered(state)[1]}
    note = {"label": label, "prompts": prompts, "licence": licence}
    if any(note.values()):
        content[_NOTE_KEY] = checked_config(path, {key: value for key, value in note.items() if value})
    try:
        with temporary_beside(path) as temporary:
            with temporary.open("wb") as stream:  # torch refuses hidden file names
                torch.save(content, stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        sync_directory(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        raise OutputError(
            f"{path}: cannot be written ({error})", hint="check the free space and the permissions"
        ) from error


def write_safetensors(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    prompts: Prompts,
    label: str | None = None,
    licence: str | None = None,
    dims: GammaDims | None = None,
    fresh: Collection[str] = (),
    dtype: Dtype = "float32",
) -> None:
    """Write our own layout: ``NAME.safetensors`` and ``NAME.json`` (dimensions, prompts, label, licence, digest).

    Args:
        path: of the weights.
        state: a whole Gamma.
        prompts: which it was trained with.
        label: such as ``untrained``.
        licence: of the weights.
        dims: those of the checkpoint that it came from; CLIP's activation, epsilon, mean and std when left out.
        fresh: `Checkpoint.fresh`.
        dtype: of the matrices in the file; reading widens them to float32.

    Raises:
        InputError: ``state`` is not a whole Gamma, or float16 cannot hold it. OutputError: cannot be written. The
            config is replaced last, and its digest tells a torn pair.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    dims, tensors = _ordered(state, dims)
    content = _halved(tensors) if dtype == "float16" else tensors
    config = {
        "format": FORMAT,
        "version": 1,
        "dims": dims.to_json(),
        "prompts": prompts,
        "label": label,
        "licence": licence,
        "fresh": sorted(fresh),
    }
    _fresh(path, tensors, config)
    checked_config(path.with_suffix(".json"), config)
    try:
        with temporary_beside(path) as temporary:
            save_file(content, temporary)
            temporary.chmod(0o644)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            config["weights_sha256"] = hash_file(temporary)
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path}: cannot be written ({error})", hint="check the free space and the permissions"
        ) from error
    write_atomically(path.with_suffix(".json"), (json.dumps(config, indent=1) + "\n").encode())
