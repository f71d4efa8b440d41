"""What methods may be compared on: the cases that all of them were given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from methods import rank
from table import Row

Where = tuple[str, str]
"""Placement and amount."""


@dataclass(frozen=True)
class Scope:
    """Cases that several methods were given: what they may be compared on.

    Attributes:
        rows: of these cases and methods.
        methods: in the order of the tables.
    """

    rows: tuple[Row, ...]
    methods: tuple[str, ...]

    @property
    def volumes(self) -> list[str]:
        """Names, sorted."""
        return sorted({row.volume for row in self.rows})

    @cached_property
    def places(self) -> list[Where]:
        """Placements and amounts, in the order of a reader."""
        found = {(row.placement, row.amount) for row in self.rows}
        return sorted(found, key=lambda where: (where[0] != "ends", where[0], float(where[1].rstrip("%"))))

    def at(self, where: Where, method: str) -> list[Row]:
        """The rows of one method at one place."""
        return [row for row in self.rows if (row.placement, row.amount) == where and row.method == method]

    def mean(self, where: Where, method: str, measure: str) -> float | None:
        """Mean over the volumes; None unless the method has a result for every one of them."""
        rows = self.at(where, method)
        values = [getattr(row, measure) for row in rows if row.ok]
        return fmean(values) if len(values) == len(rows) and rows and None not in values else None


def scopes(rows: Iterable[Row]) -> list[Scope]:
    """The largest set of cases first; a method that was given fewer cases opens a scope with all that had these."""
    tried = [row for row in rows if not row.skipped]
    cases: dict[str, set[Any]] = {}
    for row in tried:
        cases.setdefault(row.method, set()).add(row.case)
    sets = sorted({frozenset(of) for of in cases.values()}, key=len, reverse=True)
    found = []
    for common_cases in sets:
        methods = sorted((name for name, of in cases.items() if of >= common_cases), key=rank)
        within = tuple(row for row in tried if row.case in common_cases and row.method in methods)
        found.append(Scope(within, tuple(methods)))
    return found
