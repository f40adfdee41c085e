"""Facts as text."""

from __future__ import annotations

from collections.abc import Sequence

from gamma_runtime.cli import printable
from gamma_runtime.doctor.bundles import BundleFacts
from gamma_runtime.doctor.facts import Facts
from gamma_runtime.doctor.findings import Finding, Level

__all__ = ["render"]

_WORST_FIRST: tuple[Level, ...] = ("fault", "warning", "note", "ok")


def render(facts: Facts) -> str:
    """The facts as plain text in sections, and the findings, worst first in each group."""
    cpu = facts.cpu
    lines = [
        "System",
        f"  gamma-edge   {facts.gamma_edge}",
        f"  Python       {facts.python}",
        f"  OS           {facts.os}",
        f"  CPU          {cpu['model']}, {cpu['cores']} cores, {' '.join(cpu['flags']) or 'no known vector extension'}",
        f"  memory       {facts.memory_free_mib} of {facts.memory_total_mib} MiB free",
        "Libraries",
        *(f"  {name:<32} {version or '-'}" for name, version in facts.libraries.items()),
        "Backends",
        *(f"  {name:<14} {state}" for name, state in facts.backends.items()),
        "CUDA",
        f"  {facts.cuda.detail}",
        *(
            f"  GPU {gpu.index}: {gpu.name}, compute capability {gpu.compute_capability}, {gpu.total_memory >> 20} MiB"
            for gpu in facts.cuda.devices
        ),
    ]
    for bundle in facts.bundles:
        lines += _render_bundle(bundle)
    lines += _render_findings(facts.findings)
    return "\n".join(printable(line) for entry in lines for line in entry.split("\n"))


def _render_findings(found: Sequence[Finding]) -> list[str]:
    """One group an area; what is to be done stands below the sentence."""
    lines = ["Findings"]
    for area in dict.fromkeys(finding.area for finding in found):
        lines.append(f"  {area}")
        for finding in sorted((f for f in found if f.area == area), key=lambda f: _WORST_FIRST.index(f.level)):
            lines.append(f"    {finding.level:<8} {finding.what}")
            lines += [f"             -> {finding.do}"] if finding.do else []
    return lines


def _render_bundle(bundle: BundleFacts) -> list[str]:
    lines = [f"Bundle {bundle.path}", f"  {'valid' if bundle.valid else 'NOT VALID: ' + str(bundle.error)}"]
    if bundle.scenes:
        lines += [f"  scenes       {', '.join(bundle.scenes)}", f"  precisions   {', '.join(bundle.precisions)}"]
    if bundle.label:
        lines.append(f"  checkpoint   {bundle.label}")
    for engine in bundle.engines:
        verdict = "fits" if engine.fits else f"{'BROKEN' if engine.broken else 'does not fit'}: {engine.why}"
        lines.append(f"  engine       {engine.file}: {verdict}")
    if bundle.valid and not bundle.engines:
        lines.append("  engine       none built")
    return lines
