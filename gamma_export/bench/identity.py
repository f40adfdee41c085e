"""What a result says of the bundle that was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gamma_runtime.bundle import Bundle

__all__ = ["identify_bundle"]


def identify_bundle(bundle: Bundle, scene: str, precision: str) -> dict[str, Any]:
    """Digests, precision, size and fidelity of a bundle's graph.

    Returns:
        Among others ``bytes``, of the graph's ONNX file and weights, and ``parity``: the largest ``max_abs`` and
        ``mean_abs``, in score units, of the manifest's comparisons with PyTorch for this scene and precision; None
        where it has none.

    Raises:
        InputError: no graph for that scene and precision.
    """
    graph = bundle.graph(scene, precision)
    rows = [row for row in bundle.manifest.parity if (row.scene, row.precision) == (scene, precision)]
    sizes = {entry.name: entry.size for entry in bundle.manifest.files}
    return {
        "name": bundle.folder.name,
        "sha256": bundle.sha256,
        "checkpoint_sha256": bundle.manifest.checkpoint.sha256,
        "label": bundle.manifest.checkpoint.label,
        "precision": precision,
        "bytes": sum(sizes[name] for name in {graph.onnx, graph.weights}),
        "parity": {
            "max_abs": max(row.max_abs for row in rows),
            "mean_abs": max(row.mean_abs for row in rows),
        }
        if rows
        else None,
    }
