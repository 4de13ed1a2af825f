"""A reader of PromQL that finds what Prometheus would evaluate to nothing without a word.

It knows the part of the language that our dashboard and alert rules use, and refuses the rest. Of each
expression it works out which labels its result has, and complains about: metrics and labels that do not
exist, counters outside `rate` and `increase`, gauges inside of them, histograms without a suffix, quantiles
without `le`, and two sides of an operator that can never match because one has a label that the other lacks.
"""

import re
from typing import NamedTuple

TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<string>"(?:[^"\\]|\\.)*")
    |(?P<range>\[(?:\d+[smhd]|\$__rate_interval|\$__range)\])
    |(?P<number>\d+(?:\.\d+)?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>=~|!~|!=|==|>=|<=|[-+*/<>=(){},])""",
    re.VERBOSE,
)
OPERATORS = (("or",), ("and", "unless"), ("==", "!=", ">=", "<=", ">", "<"), ("+", "-"), ("*", "/"))
"""Loosest first."""
SETS = ("or", "and", "unless")
AGGREGATIONS = ("sum", "max", "min", "count")
OF_COUNTERS = ("rate", "increase")
OF_GAUGES = ("changes",)
OTHERS = ("histogram_quantile", "absent", "vector", "time")
TARGET = frozenset({"job", "instance"})
"""What Prometheus adds to every series."""


class Metric(NamedTuple):
    """What is known of a metric."""

    kind: str
    labels: frozenset[str] = frozenset()
    values: dict[str, frozenset[str]] = {}
    """Of labels whose values are a closed list."""


Labels = frozenset[str] | None
"""Of a result; None of a plain number."""


def series(metrics: dict[str, Metric]) -> dict[str, Metric]:
    """The names under which metrics are scraped; kinds: counter, gauge, and `bare` for what has no such series."""
    found = {}
    for name, metric in metrics.items():
        if metric.kind == "histogram":
            found[name] = metric._replace(kind="bare")
            found[f"{name}_sum"] = found[f"{name}_count"] = metric._replace(kind="counter")
            found[f"{name}_bucket"] = metric._replace(kind="counter", labels=metric.labels | {"le"})
        else:
            found[name] = metric
    return found


class Reading:
    """One expression, read."""

    def __init__(self, text: str, metrics: dict[str, Metric]) -> None:
        self.complaints: list[str] = []
        self.used: set[str] = set()
        """The metrics that it names, as scraped."""
        self._series = series(metrics)
        self._tokens = self._split(text)
        self._at = 0
        self.labels = self._binary(0)
        if self._at < len(self._tokens) and not self.complaints:
            self.complaints.append(f"cannot read on at {self._peek()!r}")

    def _split(self, text: str) -> list[str]:
        tokens, at = [], 0
        while at < len(text):
            found = TOKEN.match(text, at)
            if found is None:
                self.complaints.append(f"cannot read {text[at : at + 20]!r}")
                return []
            if found.lastgroup != "space":
                tokens.append(found[0])
            at = found.end()
        return tokens

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, wanted: str | None = None) -> str:
        token = self._peek()
        if wanted is not None and token != wanted:
            self.complaints.append(f"expected {wanted!r}, not {token!r}")
            self._at = len(self._tokens)
        self._at += 1
        return token

    def _names(self) -> frozenset[str]:
        """A list of labels in parentheses."""
        names = set()
        self._take("(")
        while self._peek() not in (")", ""):
            names.add(self._take())
            if self._peek() != ")":
                self._take(",")
        self._take(")")
        return frozenset(names)

    # Operators.

    def _binary(self, level: int) -> Labels:
        if level == len(OPERATORS):
            return self._one("")
        left = self._binary(level + 1)
        while self._peek() in OPERATORS[level]:
            operator = self._take()
            how, named, extra = self._matching()
            left = self._joined(operator, how, named, extra, left, self._binary(level + 1))
        return left

    def _matching(self) -> tuple[str, frozenset[str], frozenset[str] | None]:
        how, named, extra = "", frozenset(), None
        if self._peek() in ("on", "ignoring"):
            how, named = self._take(), self._names()
            if self._peek() == "group_left":
                self._take()
                extra = self._names()
        return how, named, extra

    def _joined(
        self,
        operator: str,
        how: str,
        named: frozenset[str],
        extra: frozenset[str] | None,
        left: Labels,
        right: Labels,
    ) -> Labels:
        if left is None or right is None:
            if operator in SETS or how:
                self.complaints.append(f"{operator} {how} with a plain number")
            return left if right is None else right
        missing = named - (left & right if how == "on" else left | right)
        if missing:
            self.complaints.append(f"{how} ({', '.join(sorted(missing))}): no such label there")
        matched = [named & side if how == "on" else side - named for side in (left, right)]
        if matched[0] != matched[1] and extra is None:
            odd = ", ".join(sorted(matched[0] ^ matched[1]))
            self.complaints.append(f"the sides of {operator} never match: {odd}")
        if operator == "or":
            return left & right
        if operator in SETS:
            return left
        return left | extra if extra is not None else matched[0]

    # What stands between them.

    def _one(self, caller: str) -> Labels:
        token = self._peek()
        if token == "(":
            self._take()
            labels = self._binary(0)
            self._take(")")
        elif token[:1].isdigit():
            self._take()
            labels = None
        elif not re.match(r"[A-Za-z_]", token):
            self._take()
            self.complaints.append(f"expected an expression, not {token!r}")
            self._at = len(self._tokens)
            labels = frozenset()
        elif token in AGGREGATIONS:
            labels = self._aggregation()
        elif self._tokens[self._at + 1 : self._at + 2] == ["("]:
            labels = self._call()
        else:
            labels = self._selector(caller)
        return labels

    def _aggregation(self) -> Labels:
        self._take()
        by = frozenset()
        if self._peek() == "by":
            self._take()
            by = self._names()
        self._take("(")
        inner = self._binary(0)
        self._take(")")
        if inner is None:
            self.complaints.append("an aggregation of a plain number")
        elif missing := by - inner:
            self.complaints.append(f"by ({', '.join(sorted(missing))}): no such label there")
        return by

    def _call(self) -> Labels:
        name = self._take()
        if name not in (*OF_COUNTERS, *OF_GAUGES, *OTHERS):
            self.complaints.append(f"{name}: unknown function")
        self._take("(")
        arguments: list[Labels] = []
        while self._peek() not in (")", ""):
            ranged = name in (*OF_COUNTERS, *OF_GAUGES)
            arguments.append(self._one(name) if ranged else self._binary(0))
            if self._peek() != ")":
                self._take(",")
        self._take(")")
        if name == "histogram_quantile":
            inner = arguments[-1] or frozenset()
            if "le" not in inner:
                self.complaints.append("a quantile without le")
            return inner - {"le"}
        if name in ("absent", "vector"):
            return frozenset()
        return arguments[0] if arguments else None

    def _selector(self, caller: str) -> Labels:
        name = self._take()
        metric = self._series.get(name)
        if metric is None:
            self.complaints.append(f"{name}: no such metric")
            metric = Metric("unknown")
        self.used.add(name)
        if self._peek() == "{":
            self._matchers(name, metric)
        ranged = self._peek().startswith("[")
        if ranged:
            self._take()
        if metric.kind == "bare":
            self.complaints.append(f"{name}: a histogram needs _bucket, _sum or _count")
        if metric.kind == "counter" and caller not in OF_COUNTERS:
            self.complaints.append(f"{name}: a counter outside rate and increase")
        if metric.kind == "gauge" and caller in OF_COUNTERS:
            self.complaints.append(f"{name}: a gauge inside {caller}")
        if ranged != bool(caller):
            self.complaints.append(f"{name}: a range belongs inside a function, and only there")
        return metric.labels | TARGET

    def _matchers(self, name: str, metric: Metric) -> None:
        self._take("{")
        while self._peek() not in ("}", ""):
            label, operator, value = self._take(), self._take(), self._take().strip('"')
            if operator not in ("=", "!=", "=~", "!~"):
                self.complaints.append(f"{label}{operator}: no matcher")
            if metric.kind != "unknown" and label not in metric.labels | TARGET:
                self.complaints.append(f"{name}: no label {label}")
            if label in metric.values and not value.startswith("$"):
                wanted = value.split("|") if operator.endswith("~") else [value]
                strange = {each for each in wanted if each and each not in metric.values[label]}
                if strange:
                    self.complaints.append(f"{name}: {label} is never {', '.join(sorted(strange))}")
            if self._peek() != "}":
                self._take(",")
        self._take("}")
