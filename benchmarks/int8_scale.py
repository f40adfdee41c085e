"""Why the second product of a MoAE block is two products in INT8: three ways to round it, on real activations.

    python benchmarks/int8_scale.py BUNDLE

A block's output is shared + scale * adaptive, and a trained scale is near -0.012 (its authors' plot). Merged into one
product with one activation scale and one weight scale for each output channel, either side of the product may carry it:

* on the gate: the experts' hidden values become a hundredth of the shared expert's and round to code 0;
* in the weights: the experts' rows become a hundredth of the shared expert's and round to codes within a few steps;
* apart, the scale behind the adaptive product: both are rounded as finely as the shared expert.

BUNDLE has an fp32 graph. Writes results/int8_scale.json. Rounding is computed in numpy; nothing is timed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, machine_facts
from numpy.typing import NDArray

from gamma_runtime.cli import CommonOptions, option, out, run_command

SCALE = -0.0117
PHOTOS = 4
Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleOptions(CommonOptions):
    """Flags."""

    bundle: Path = option(help="with an fp32 graph", positional=True)
    scale: float = option(SCALE, "of every block, instead of the checkpoint's own")
    write: bool = option(False, "write the result file")


def rounded(values: Floats, step: Floats | float) -> tuple[Floats, NDArray[np.int8]]:
    """Through int8 codes and back."""
    codes = np.clip(np.rint(values / step), -127, 127)
    return (codes * step).astype(np.float32), codes.astype(np.int8)


def errors(
    shared: Floats, adaptive: Floats, weights: tuple[Floats, Floats], scale: float
) -> dict[str, dict[str, float]]:
    """What rounding does to the adaptive branch's output, as a share of it, in each way.

    Args:
        shared: hidden values of the shared expert [M, H].
        adaptive: of the adaptive ones times the softmax gates [M, E*H].
        weights: of both second products, without the scale, [H, D] and [E*H, D].
        scale: of the block.
    """
    wanted = scale * (adaptive @ weights[1])
    peak, tops = float(np.abs(shared).max()), [np.abs(w).max(axis=0) for w in weights]

    def way(values: Floats, step: float, weight: Floats, steps: Floats, factor: float) -> dict[str, float]:
        x, x_codes = rounded(values, step)
        w, w_codes = rounded(weight, steps)
        gap = factor * (x @ w) - wanted
        return {
            "error": float(np.linalg.norm(gap) / np.linalg.norm(wanted)),
            "activations_at_0": float(np.mean(x_codes == 0)),
            "largest_weight_code": int(np.abs(w_codes).max()),
        }

    own = float(np.abs(adaptive).max())
    merged = np.maximum(tops[0], tops[1]) / 127
    scaled = np.maximum(tops[0], np.abs(scale) * tops[1]) / 127
    return {
        "on the gate": way(scale * adaptive, max(peak, abs(scale) * own) / 127, weights[1], merged, 1.0),
        "in the weights": way(adaptive, max(peak, own) / 127, scale * weights[1], scaled, 1.0),
        "apart": way(adaptive, own / 127, weights[1], tops[1] / 127, scale),
    }


def blocks(bundle: Path) -> dict[str, tuple[Floats, Floats, tuple[Floats, Floats]]]:
    """Hidden values of a few packaged photos, and weights, of every MoAE block."""
    import onnx
    import onnxruntime as ort

    from gamma_calib.products import find_products
    from gamma_calib.qdq import Source
    from gamma_export.photos import packaged_photos
    from gamma_runtime.bundle import open_bundle
    from gamma_runtime.crops import prepare

    opened = open_bundle(bundle)
    entry = next(g for g in opened.manifest.graphs if g.precision == "fp32")
    model = onnx.load(opened.graph_file(entry), load_external_data=False)
    source = Source(model, opened.folder, opened.manifest.checkpoint.moae_scales)
    outs = [p for p in find_products(model) if p.node.endswith("moae/out")]
    names = list(dict.fromkeys(p.tap.tensor for p in outs))
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(opened.folder))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    contract, scene = opened.contract(), entry.scenes[0]
    crops = [prepare(photo, contract, scene).crops[None] for photo in packaged_photos()[:PHOTOS]]
    runs = [dict(zip(names, session.run(names, {"crops": c}), strict=True)) for c in crops]
    found = {}
    for shared, adaptive in zip(outs[::2], outs[1::2], strict=True):
        values = np.concatenate([run[shared.tap.tensor] for run in runs])
        hidden = values[:, slice(*shared.rows)], values[:, slice(*adaptive.rows)]
        found[shared.node.partition("/")[0]] = (*hidden, (source.part(shared), source.part(adaptive)))
    return found


def measure(options: ScaleOptions) -> int:
    """Round each block in the three ways."""
    found: dict[str, Any] = {}
    for name, (shared, adaptive, weights) in blocks(options.bundle).items():
        found[name] = errors(shared, adaptive, weights, options.scale)
        said = ", ".join(
            f"{way}: error {r['error']:.1%}, {r['activations_at_0']:.1%} of activations at 0, codes up to "
            f"{r['largest_weight_code']}" for way, r in found[name].items()
        )  # fmt: skip
        out(f"{name}: {said}")
    if options.write:
        manifest = json.loads((options.bundle / "manifest.json").read_text())
        label = manifest["checkpoint"]["label"] or "trained"
        result = {"machine": machine_facts(), "checkpoint": label, "scale": options.scale, "blocks": found}
        (RESULTS / "int8_scale.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("int8_scale", measure, ScaleOptions))
