"""The tables of a study, in Markdown, from its figures (`study_summary.summarise_study`)."""

from typing import Any

HEAD = (
    "| | runs | accuracy % ± SD (range) | 95 % interval | AUC ± SD | 95 % interval | min |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def interval(low: float | None, high: float | None, form: str, scale: float = 1) -> str:
    """ "2.6 to 10.9"; "-" for what is not known."""
    return "-" if low is None else f"{scale * low:{form}} to {scale * high:{form}}"


def runs_text(row: dict[str, Any]) -> str:
    """ "5", or "3 of 5" where runs are missing."""
    return f"{row['runs']}" + (f" of {row['planned']}" if row["runs"] < row["planned"] else "")


def accuracy_text(row: dict[str, Any]) -> str:
    """Mean, spread and range in %."""
    found = row["metrics"]["accuracy"]
    mean = percent(found["mean"])
    if row["seeds_agree"]:
        return f"{mean} (with every seed)"
    if found["std"] is None:
        return mean
    ends = f"({percent(found['min'])} to {percent(found['max'])})"
    return f"{mean} ± {percent(found['std'])} {ends}"


def accuracy_interval(row: dict[str, Any]) -> str:
    found = row["metrics"]["accuracy"]
    return interval(found["low"], found["high"], ".1f", 100)


def area_text(row: dict[str, Any]) -> str:
    """Mean and spread of the AUC."""
    found = row["metrics"]["roc_auc"]
    if found["mean"] is None:
        return "-"
    spread = "" if row["seeds_agree"] or found["std"] is None else f" ± {found['std']:.3f}"
    return f"{found['mean']:.3f}{spread}"


def count_range(ends: list[float]) -> str:
    """ "5", or "5 to 7"."""
    low, high = (f"{value:.0f}" for value in ends)
    return low if low == high else f"{low} to {high}"


def minutes_text(row: dict[str, Any]) -> str:
    """Minutes of all of a run's trainings, from least to most, whatever they were trained on."""
    ends = [
        [sum(each[side] for each in part["minutes"].values()) for side in (0, 1)]
        for part in row["trainings"]
    ]
    return count_range([min(low for low, _ in ends), max(high for _, high in ends)])


def summary_line(row: dict[str, Any]) -> str:
    area = row["metrics"]["roc_auc"]
    cells = [
        row["title"], runs_text(row), accuracy_text(row), accuracy_interval(row), area_text(row),
        interval(area["low"], area["high"], ".3f"), minutes_text(row),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def difference_line(row: dict[str, Any], metric: str) -> str:
    scale, digits = (100, 1) if metric == "accuracy" else (1, 3)
    found, form = row[metric], f"+.{digits}f"
    cells = ["-", "-"]
    for number, part in enumerate((found["bootstrap"], found["resampled_t"])):
        if part is not None and part["low"] is not None:
            ends = interval(part["low"], part["high"], form, scale)
            cells[number] = f"{ends}, p {part['p_holm']:.2g}"
    mean = "-"
    if found["mean"] is not None:
        mean = f"{round(scale * found['mean'], digits) + 0.0:{form}}"  # not "-0.0"
    names = f"{row['first']} - {row['second']}"
    return f"| {names} | {row['pairs']} | {mean} | {cells[0]} | {cells[1]} |"


def revisions_lines(revisions: dict[str, int]) -> list[str]:
    """Where runs of a table were done with several revisions of the code, how many with which."""
    if len(revisions) < 2 and not any(", then " in name for name in revisions):
        return []
    listed = "; ".join(
        f"{name} ({count} run{'s' if count > 1 else ''})" for name, count in revisions.items()
    )
    return ["", f"Revisions of the code: {listed}."]


def tables(summary: dict[str, Any]) -> str:
    """All tables of a study: of each protocol the methods, and what the main one differs by."""
    lines = []
    for protocol in summary["protocols"]:
        lines += [f"**{summary['data']}, {protocol['title']}**", "", *HEAD]
        lines += [summary_line(row) for row in protocol["rows"]]
        if protocol["differences"]:
            for metric, unit in (("accuracy", "points of accuracy"), ("roc_auc", "AUC")):
                lines += [
                    "",
                    f"| difference in {unit} | pairs | mean | bootstrap of groups: interval, p "
                    "(Holm) | corrected t over draws: interval, p (Holm) |",
                    "| --- | --- | --- | --- | --- |",
                    *(difference_line(row, metric) for row in protocol["differences"]),
                ]
        lines += [*revisions_lines(protocol["revisions"]), ""]
    return "\n".join(lines).rstrip() + "\n"
