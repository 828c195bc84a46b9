"""Keeps parts of README.md and docs/*.md true: the table of options, line counts of the files to
read first, tables that lie in files, and the main lines of those with results.
`python -m sssd_hf.cli.readme` rewrites them; a test compares them."""

import dataclasses
import re
from pathlib import Path

from .arguments import SCRIPTS

ROOT = Path(__file__).parents[3]
RESULTS = "recipes/results"
LEFT_OUT = ("file facts alone", "without the two test images")  # of the table of main results


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
                row = rows.setdefault(f.name, {"help": f.metadata["help"], "defaults": {}})
                row["defaults"][script] = default
    lines = ["| option | scripts | default | meaning |", "| --- | --- | --- | --- |"]
    for name, row in rows.items():
        shown = {
            script: "" if d in (None, []) else f"`{d}`" for script, d in row["defaults"].items()
        }
        default = " ".join(dict.fromkeys(shown.values()))
        scripts = ", ".join(row["defaults"])
        lines.append(f"| `--{name}` | {scripts} | {default} | {row['help']} |")
    return "\n".join(lines)


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
    """Markdown: of each study and protocol, the methods' accuracy and AUC, from the tables that
    reproduce.py wrote."""
    lines = [
        "| data, split | recipe | method | runs | accuracy % ± SD (range) | 95 % interval | AUC ± SD |",  # noqa: E501
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((root / RESULTS).glob("*.md")):
        title = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if line.startswith("**"):
                title = line.strip("*")
            elif len(cells) == 7 and cells[0] and not line.startswith("| ---"):
                method, runs, accuracy, interval, auc, *_ = cells
                if not any(words in title + method for words in LEFT_OUT):
                    shown = [title, f"`{path.stem}`", method, runs, accuracy, interval, auc]
                    lines.append(f"| {' | '.join(shown)} |")
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
