"""The series that a PromQL expression reads and the labels of its result, checked against the metric families.

A misspelt name or label is not an error in Prometheus: the expression just never finds anything.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import promql_parser
from promql_parser import (
    AggModifierType,
    AggregateExpr,
    BinaryExpr,
    Call,
    Expr,
    LabelModifierType,
    MatrixSelector,
    NumberLiteral,
    ParenExpr,
    StringLiteral,
    SubqueryExpr,
    UnaryExpr,
    VectorMatchCardinality,
    VectorSelector,
)

from jobmetrics.families import BUILT_IN, HISTOGRAM, REGISTERED
from jobmetrics.integration import known_names

SCRAPED = frozenset({"job", "instance"})  # added by Prometheus to every scrape
_COMPARISONS = ("==", "!=", ">", ">=", "<", "<=")
_SETS = ("and", "or", "unless")

Labels = frozenset[str]


class Mistake(Exception):
    """An expression that can never find anything."""


def known_series() -> dict[str, Labels]:
    """The labels of every series that Prometheus has of an exporter, by the series' name."""
    known = {"up": SCRAPED}
    for family in BUILT_IN:
        labels = SCRAPED | frozenset(family.labels)
        if family.type == HISTOGRAM:
            known |= {f"{family.name}_count": labels, f"{family.name}_sum": labels}
            known[f"{family.name}_bucket"] = labels | {"le"}
        else:
            known[family.name] = labels
    return known


@functools.cache
def known_values() -> dict[str, dict[str, tuple[str, ...]]]:
    """The values of labels with a fixed set, by the family's name."""
    systems = known_names()
    return {
        family.name: {label: systems if values == REGISTERED else values for label, values in family.closed}
        for family in BUILT_IN
    }


@dataclass(frozen=True)
class Checker:
    """Find the labels of an expression's result. known: the labels of each series by name."""

    known: Mapping[str, Labels]

    def labels(self, expression: str) -> Labels:
        """The labels of an expression's result.

        Raises:
            ValueError: if it does not parse.
            Mistake: for an unknown series, label or label value, and for sides that never match.
        """
        found = self._of(promql_parser.parse(expression))
        return frozenset() if found is None else found

    def _of(self, expr: Expr) -> Labels | None:
        """None for a scalar."""
        match expr:
            case VectorSelector():
                return self._of_selector(expr)
            case MatrixSelector():
                return self._of_selector(expr.vector_selector)
            case SubqueryExpr() | ParenExpr() | UnaryExpr():
                return self._of(expr.expr)
            case AggregateExpr():
                return self._of_aggregation(expr)
            case BinaryExpr():
                return self._of_sides(expr)
            case Call():
                return self._of_call(expr)
            case NumberLiteral() | StringLiteral():
                return None
        raise Mistake(f"{type(expr).__name__} is not expected in a rule")

    def _of_selector(self, selector: VectorSelector) -> Labels:
        name = selector.name or ""
        if name not in self.known:
            raise Mistake(f"there is no series {name!r}")
        labels = self.known[name]
        values = known_values().get(name, {})
        for matcher in selector.matchers.matchers:
            _require({matcher.name}, labels, name)
            for value in matcher.value.split("|"):
                if matcher.name in values and value not in values[matcher.name]:
                    raise Mistake(f"{name}: {matcher.name} is never {value!r}")
        return labels

    def _of_aggregation(self, expr: AggregateExpr) -> Labels:
        inner = self._of(expr.expr) or frozenset()
        if expr.modifier is None:
            return frozenset()
        named = frozenset(expr.modifier.labels)
        _require(named, inner, expr.prettify())
        return named if expr.modifier.type == AggModifierType.By else inner - named

    def _of_sides(self, expr: BinaryExpr) -> Labels | None:
        left, right = self._of(expr.lhs), self._of(expr.rhs)
        if left is None or right is None:
            return right if left is None else left
        modifier = expr.modifier
        matching = modifier.matching if modifier is not None else None
        if matching is None:
            if left != right:
                raise Mistake(f"{expr.prettify()}: {sorted(left)} never match {sorted(right)}")
            return left
        assert matching.type == LabelModifierType.Include, "ignoring() does not list the labels matched"
        on = frozenset(matching.labels)
        _require(on, left & right, expr.prettify())
        keeps = str(expr.op) in (*_SETS, *_COMPARISONS)
        many = modifier is not None and modifier.card == VectorMatchCardinality.ManyToOne
        return left if keeps or many else on

    def _of_call(self, expr: Call) -> Labels | None:
        vectors = [labels for labels in map(self._of, expr.args) if labels is not None]
        if not vectors:
            return None
        if expr.func.name == "absent":
            return frozenset()
        if expr.func.name == "histogram_quantile":
            _require({"le"}, vectors[0], expr.prettify())
            return vectors[0] - {"le"}
        return vectors[0]


def _require(wanted: Labels | set[str], there: Labels, where: str) -> None:
    for label in sorted(wanted - there):
        raise Mistake(f"{where}: there is no label {label!r} among {sorted(there)}")


def parts(expression: str) -> Iterator[str]:
    """The operands of comparisons in an expression, without the conditions: each has to find something.

    Of `a > 1 and b == 0` these are a and b, of `a unless b` a and b, of `absent(a)` a, of `a / b` itself.
    """
    yield from _parts(promql_parser.parse(expression))


def _parts(expr: Any) -> Iterator[str]:
    if isinstance(expr, ParenExpr) or (isinstance(expr, AggregateExpr) and _is_condition(expr.expr)):
        yield from _parts(expr.expr)
    elif isinstance(expr, Call) and expr.func.name == "absent":
        yield from _parts(expr.args[0])
    elif isinstance(expr, BinaryExpr) and str(expr.op) in (*_COMPARISONS, *_SETS):
        for side in (expr.lhs, expr.rhs):
            if any(_names(side)):
                yield from _parts(side)
    else:
        yield expr.prettify()


def _is_condition(expr: Any) -> bool:
    return isinstance(expr, BinaryExpr) and str(expr.op) in (*_COMPARISONS, "unless")


def _names(expr: Expr) -> set[str]:
    found: set[str] = set()

    def visit(node: Expr) -> bool:
        if isinstance(node, VectorSelector):
            found.add(node.name or "")
        return True

    promql_parser.walk(expr, visit)
    return found
