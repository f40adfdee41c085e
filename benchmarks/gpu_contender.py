"""The contenders of against that need a GPU, but for the runtime's own backends. None of this has run yet.

Written without a GPU, after the libraries' documentation; `against` skips them with the reason where there is none.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.errors import EnvironmentFault

if TYPE_CHECKING:
    import torch

    from gamma_runtime.bundle import Bundle
    from gamma_runtime.manifest import GraphEntry
    from gamma_training.model import Gamma

PROVIDERS = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}
_JETSON = "/usr/src/tensorrt/bin/trtexec"  # where JetPack and the Debian packages put it
_LAST_LINES = 4

Call = Callable[[], NDArray[np.float32]]  # crop scores [C]


def autocast(
    model: Gamma, tokens: torch.Tensor, facts: dict[str, Any], crops: NDArray[np.uint8]
) -> tuple[Call, dict[str, Any]]:
    """Eager PyTorch on CUDA, fp16 by autocast, without text tower; the crops are copied there on each call.

    Raises:
        EnvironmentFault: this PyTorch has no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentFault(f"PyTorch {torch.__version__} sees no GPU")
    model = model.cuda()
    with torch.inference_mode():
        text = model.text_features(tokens.cuda())

    def call() -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            found = model.score(torch.from_numpy(crops).cuda(), text)
        scores: NDArray[np.float32] = found[:, 0].float().cpu().numpy()  # waits for the GPU
        return scores

    return call, {**facts, "device": torch.cuda.get_device_name()}


def _entry(bundle: Bundle, scene: str, precision: str, *, tensorrt: bool) -> GraphEntry:
    """The scene's graph; of the two int8 ones the one for TensorRT, or the one for CPUs."""
    entries = [g for g in bundle.manifest.graphs if (g.target == "tensorrt") == (tensorrt and precision == "int8")]
    fitting = [g for g in entries if scene in g.scenes and g.precision == precision]
    if not fitting:
        raise EnvironmentFault(f"the bundle has no {precision} graph of {scene} for this")
    return min(fitting, key=lambda g: (len(g.scenes), g.attention != "decomposed"))


def _graph(folder: Path, scene: str, precision: str, *, tensorrt: bool) -> tuple[Path, GraphEntry]:
    """The ONNX file, its hash and its weights' checked, and its entry."""
    from gamma_runtime.bundle import open_bundle

    bundle = open_bundle(folder)
    entry = _entry(bundle, scene, precision, tensorrt=tensorrt)
    return bundle.graph_file(entry).absolute(), entry


def _of_scene(crop_scores: NDArray[np.float32], entry: GraphEntry, scene: str) -> NDArray[np.float32]:
    """[C] of one scene, of [1, C] or [1, C, K]."""
    return crop_scores.reshape(1, entry.crops, -1)[0, :, entry.scenes.index(scene)].astype(np.float32)


def provider(
    name: str, folder: Path, scene: str, precision: str, crops: NDArray[np.uint8], work: Path
) -> tuple[Call, dict[str, Any]]:
    """ONNX Runtime on one of its GPU providers, whatever is not for it on the next ones.

    Raises:
        EnvironmentFault: this ONNX Runtime has not got it, or silently chose another one.
    """
    import onnxruntime as ort

    wanted = PROVIDERS[name]
    if wanted not in ort.get_available_providers():
        raise EnvironmentFault(f"onnxruntime {ort.__version__} has no {wanted}")
    onnx, entry = _graph(folder, scene, precision, tensorrt=name == "onnxruntime-tensorrt")
    cache = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str((work / "ort-engines").absolute())}
    chain: list[Any] = [(wanted, cache), "CUDAExecutionProvider"] if name == "onnxruntime-tensorrt" else [wanted]
    session = ort.InferenceSession(str(onnx), providers=[*chain, "CPUExecutionProvider"])
    if session.get_providers()[0] != wanted:  # it only warns when a provider's library does not load
        raise EnvironmentFault(f"onnxruntime {ort.__version__} chose {session.get_providers()[0]}, not {wanted}")

    def call() -> NDArray[np.float32]:
        (found,) = session.run(["crop_scores"], {"crops": crops[None]})
        return _of_scene(found, entry, scene)

    return call, {"version": ort.__version__, "providers": session.get_providers()}


def _trtexec(program: str, arguments: Sequence[str]) -> str:
    """What it printed.

    Raises:
        EnvironmentFault: it failed, with its last lines.
    """
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        tail = " | ".join((done.stdout + done.stderr).strip().splitlines()[-_LAST_LINES:])
        raise EnvironmentFault(f"trtexec ended with {done.returncode}: {tail}")
    return done.stdout + done.stderr


def exported_scores(content: str) -> NDArray[np.float32]:
    """``crop_scores`` of a file of --exportOutput, flat.

    Raises:
        EnvironmentFault: it has no such output.
    """
    for tensor in json.loads(content):
        if tensor.get("name") == "crop_scores":
            return np.array(tensor["values"], np.float32)
    raise EnvironmentFault("trtexec --exportOutput wrote no crop_scores")


def trtexec(folder: Path, scene: str, precision: str, crops: NDArray[np.uint8], work: Path) -> dict[str, Any]:
    """trtexec on the same ONNX and crops, the engine built once; its time is copies and compute, without the host.

    Raises:
        EnvironmentFault: there is no trtexec, it failed, or its version is unknown.
    """
    from gamma_export.bench.trtexec import matched_flags, parse_times, version_of

    program = shutil.which("trtexec") or shutil.which(_JETSON)
    if program is None:
        raise EnvironmentFault(f"there is no trtexec on PATH, nor {_JETSON}")
    version = version_of(_trtexec(program, ["--help"]))
    if version is None:
        raise EnvironmentFault("trtexec --help does not say of which version of TensorRT it is")
    onnx, entry = _graph(folder, scene, precision, tensorrt=True)
    plan = work / f"trtexec-{version}-{onnx.stem}.plan"
    given, times, outputs = (work / f"trtexec-{name}" for name in ("crops.bin", "times.json", "outputs.json"))
    given.write_bytes(np.ascontiguousarray(crops[None]).tobytes())
    flags = matched_flags(version, times=str(times))
    if not plan.is_file():
        _trtexec(program, [f"--onnx={onnx}", f"--saveEngine={plan}", "--stronglyTyped", "--skipInference"])
    more = [f"--loadEngine={plan}", f"--loadInputs=crops:{given}", f"--exportOutput={outputs}"]
    _trtexec(program, [*more, *flags.arguments])
    queries = [query.latency for query in parse_times(times.read_text())]  # the warm-up's too; the median bears that
    scores = _of_scene(exported_scores(outputs.read_text()), entry, scene)
    return {
        "version": version,
        "flags": [flag for flag in flags.arguments if not flag.startswith("--exportTimes")],  # that is a place here
        "queries": len(queries),
        "seconds": [statistics.median(queries) / 1e3],
        "score": float(scores.mean()),
        "crop_scores": scores.tolist(),
    }
