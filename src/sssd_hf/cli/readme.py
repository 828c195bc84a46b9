"""Keeps parts of README.md and docs/*.md true: the table of options, line counts of the files to
read first, tables that lie in files, and the main lines of those with results.
`python -m sssd_hf.cli.readme` rewrites them; a test compares them."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from .arguments import SCRIPTS
from .study_tables import accuracy_interval, accuracy_text, area_text, runs_text

ROOT = Path(__file__).parents[3]
RESULTS = "recipes/results"


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def options_table() -> str:
    """Markdown: every option once, in the order of the groups, with its scripts and default."""
    rows: dict[str, dict] = {}
    for script, classes in SCRIPTS.items():
        for group in classes:
            for f in dataclasses.fields(group):
                factory = f.default_factory is not dataclasses.MISSING
                default = f.default_factory() if factory else f.default
                row = rows.setdefault(f.name, {"helps": {}, "defaults": {}})
                row["helps"].setdefault(f.metadata["help"], []).append(script)
                row["defaults"][script] = default
    lines = ["| option | scripts | default | meaning |", "| --- | --- | --- | --- |"]
    for name, row in rows.items():
        shown = {script: _shown(default) for script, default in row["defaults"].items()}
        default = shown[next(iter(shown))]
        if len(set(shown.values())) > 1:  # by script, those with one default together
            default = "<br>".join(
                f"{', '.join(s for s in shown if shown[s] == one)}: {one or 'none'}"
                for one in dict.fromkeys(shown.values())
            )
        scripts = ", ".join(row["defaults"])
        meaning = "<br>".join(  # it may mean something else to another script
            text if len(row["helps"]) == 1 else f"{', '.join(where)}: {text}"
            for text, where in row["helps"].items()
        )
        lines.append(f"| `--{name}` | {scripts} | {default} | {meaning} |")
    return "\n".join(lines)


def _shown(default: Any) -> str:
    if default is None or default == []:
        return ""
    return f"`{' '.join(map(str, default)) if isinstance(default, list) else default}`"


def count_lines(root: Path, text: str) -> str:
    """`text` with the number in every "[path](path), N lines" set to the file's length."""

    def count(match: re.Match) -> str:
        return f"{match[1]}{len((root / match[2]).read_text().splitlines())} lines"

    return re.sub(r"(\[`[^`]+`\]\(([^)]+\.py)\), )\d+ lines", count, text)


def insert_files(root: Path, text: str) -> str:
    """`text` with the content of PATH after each "<!-- file PATH -->"."""

    def insert(match: re.Match) -> str:
        return f"{match[1]}\n{(root / match[2]).read_text(encoding='utf-8')}{match[3]}"

    return re.sub(r"(<!-- file (\S+) -->)\n.*?(<!-- end of file -->)", insert, text, flags=re.S)


def between(text: str, name: str, content: str) -> str:
    """`text` with `content` between "<!-- NAME -->" and "<!-- end of NAME -->", if it has them."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in text:
        return text
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def main_results(root: Path) -> str:
    """Markdown: of each study and protocol, the methods' accuracy and AUC, from the figures that
    reproduce.py wrote. Left out: ablations, protocols without some test images, the file facts."""
    lines = [
        "| data, split | recipe | method | runs | accuracy % ± SD (range) | 95 % interval | AUC ± SD |",  # noqa: E501
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((root / RESULTS).glob("*.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        for protocol in summary["protocols"]:
            if protocol["num_left_out"] or "ablation" in summary["study"]:
                continue
            head = [f"{summary['data']}, {protocol['title']}", f"`{summary['study']}`"]
            for row in protocol["rows"]:
                if row["baseline"] != "file_facts":
                    cells = [*head, row["title"], runs_text(row), accuracy_text(row)]
                    cells += [accuracy_interval(row), area_text(row)]
                    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def updated(text: str, root: Path) -> str:
    """A page's `text` as it should be."""
    text = insert_files(root, text)
    text = between(text, "options", options_table())
    text = between(text, "main results", main_results(root))
    return count_lines(root, text)


if __name__ == "__main__":
    for page in pages():
        page.write_text(updated(page.read_text(), ROOT))
