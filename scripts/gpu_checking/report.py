"""Results for people: a line on the screen for each fact, and a table in Markdown."""

from __future__ import annotations

from .results import Report, Result, Verdict

_ORDER = {"T": 0, "F": 1}


def line(result: Result) -> str:
    """Return what the screen shows of a fact."""
    shown = f"{result.fact:4}{result.verdict:19}{result.seconds:6.1f} s  {result.statement}"
    return "\n".join([shown, *(f"{'':32}{note}" for note in result.notes)])


def table(report: Report) -> str:
    """Return the whole report as Markdown."""
    results = sorted(report.results.values(), key=lambda one: (_ORDER.get(one.fact[0], 2), _number(one.fact)))
    counts = ", ".join(f"{sum(one.verdict is verdict for one in results)} {verdict}" for verdict in Verdict)
    lines = [
        "# What GPU pools rest on, tried on one machine", "",
        f"{len(results)} facts: {counts}.", "",
        "| condition | |", "|---|---|",
        *(f"| {_cell(name)} | {_cell(value)} |" for name, value in report.conditions.items()), "",
        "| fact | result | statement | what differs or was not tried | s |", "|---|---|---|---|---|",
        *(
            f"| {one.fact} | {one.verdict} | {_cell(one.statement)} | {_cell('; '.join(one.notes))} "
            f"| {one.seconds:g} |"
            for one in results
        ),
    ]  # fmt: skip
    for one in results:
        lines += ["", f"## {one.fact}: {one.statement}", ""]
        lines += [
            f"- {claim.verdict}: {claim.text}" + (f" ({claim.seen})" if claim.seen else "") for claim in one.claims
        ]
        if one.broken:
            lines.append(f"- broken off: {one.broken}")
        if one.figures:
            lines += ["", "| figure | |", "|---|---|"]
            lines += [f"| {_cell(name)} | {_figure(value)} |" for name, value in one.figures.items()]
    return "\n".join(lines) + "\n"


def _figure(value: float | str) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else _cell(value)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _number(fact: str) -> int:
    digits = "".join(one for one in fact if one.isdigit())
    return int(digits) if digits else 0
