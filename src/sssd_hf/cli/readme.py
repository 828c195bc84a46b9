"""Keeps parts of README.md true: the table of options, the line counts of the files to read first,
and tables that lie in files. `python -m sssd_hf.cli.readme` rewrites them; a test compares them."""

import dataclasses
import re
from pathlib import Path

from .arguments import SCRIPTS

README = Path(__file__).parents[3] / "README.md"


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


def updated(text: str, root: Path) -> str:
    """README's `text` as it should be."""
    text = insert_files(root, text)
    begin, end = "<!-- options -->", "<!-- end of options -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return count_lines(root, f"{before}{begin}\n{options_table()}\n{end}{after}")


if __name__ == "__main__":
    README.write_text(updated(README.read_text(), README.parent))
