"""Which groups may stay in 8 bits: each measured alone, then the worst ones sent back until the gate holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gamma_calib.qdq import Recipe
from gamma_calib.ranges import METHODS
from gamma_calib.smooth import smoothed_ranges

if TYPE_CHECKING:
    from gamma_calib.compare import Gate
    from gamma_calib.products import Attention, Product
    from gamma_calib.record import Record
    from gamma_calib.trials import Outcome, Trials

__all__ = ["Point", "Search", "Sensitivity", "best_method", "search", "sensitivity", "with_ranges_of"]

ALONE_CROPS = 16  # a group alone is measured on so many: what is wanted is an order, not a proof


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """One group alone in 8 bits."""

    group: str
    macs: int
    outcome: Outcome

    @property
    def cost(self) -> float:
        """What its speed costs: squared mean |shift| for each multiply-add; errors of groups add up as squares."""
        return self.outcome.mean_abs**2 / self.macs


@dataclasses.dataclass(frozen=True)
class Point:
    """One recipe of the search: what it sent back, how much stayed in 8 bits, and what that did to the scores."""

    kept: tuple[str, ...]
    int8_share: float
    outcome: Outcome
    passed: bool


@dataclasses.dataclass(frozen=True)
class Search:
    """The recipe found, or the last one tried where ``passed`` is False; every point on the way."""

    recipe: Recipe
    points: tuple[Point, ...]
    alone: tuple[Sensitivity, ...]

    @property
    def passed(self) -> bool:
        """Whether the gate holds."""
        return self.points[-1].passed


def best_method(
    trials: Trials, record: Record, base: Recipe, methods: Sequence[str] = METHODS
) -> tuple[str, dict[str, float]]:
    """The calibrator whose ranges shift the scores least with all groups of ``base``; mean |shift| by method.

    Raises:
        GammaError: as `Trials.measure`.
    """
    found = {}
    for method in methods:
        recipe = with_ranges_of(base, record, method)
        found[method] = trials.measure(recipe, f"all in {base.kind}, {method}").mean_abs
    return min(found, key=lambda method: found[method]), found


def with_ranges_of(base: Recipe, record: Record, method: str) -> Recipe:
    """The recipe with a method's ranges, by tap; those that the record does not know stay."""
    known = {tap: high for tap, (_, high) in record.ranges[method].items()}
    return dataclasses.replace(base, ranges=dict(base.ranges) | smoothed_ranges(known, record, base.smooth))


def sensitivity(
    trials: Trials, products: Sequence[Product | Attention], base: Recipe, count: int | None = ALONE_CROPS
) -> list[Sensitivity]:
    """Each group alone in 8 bits, the most sensitive one first.

    Args:
        trials: that score.
        products: the groups.
        base: kind and ranges; its groups do not matter.
        count: of the inputs to score; all when None.

    Raises:
        GammaError: as `Trials.measure`.
    """
    count = None if count is None or count >= len(trials.inputs) else count
    found = []
    for index, product in enumerate(products):
        recipe = dataclasses.replace(base, groups=frozenset([product.group]))
        label = f"{product.group} alone in {base.kind} ({index + 1} of {len(products)})"
        found.append(Sensitivity(product.group, product.macs, trials.measure(recipe, label, count)))
    return sorted(found, key=lambda row: row.cost, reverse=True)


def search(
    trials: Trials, products: Sequence[Product | Attention], base: Recipe, gate: Gate, total_macs: int
) -> Search:
    """Start with every group in 8 bits; while the gate does not hold, send back the one that costs most.

    Args:
        trials: that score; a trial done before, also in a run that was killed, is not done again.
        products: the groups to begin with.
        base: kind and ranges, and which groups are of 4-bit weights; its groups do not matter.
        gate: what must hold, in every scene.
        total_macs: of the whole graph, for the shares.

    Raises:
        GammaError: as `Trials.measure`.
    """
    remaining = list(products)
    points: list[Point] = []
    alone: list[Sensitivity] = []
    while True:
        recipe = dataclasses.replace(base, groups=frozenset(product.group for product in remaining))
        kept = tuple(p.group for p in products if p.group not in recipe.groups)
        outcome, passed = trials.everywhere(recipe, f"{len(remaining)} of {len(products)} groups in {base.kind}", gate)
        share = sum(product.macs for product in remaining if product.group not in base.int4) / total_macs
        points.append(Point(kept, share, outcome, passed))
        if passed or len(remaining) == 1:
            return Search(recipe, tuple(points), tuple(alone))
        alone = alone or sensitivity(trials, products, base)
        worst = next(row.group for row in alone if row.group in recipe.groups)
        remaining = [product for product in remaining if product.group != worst]
