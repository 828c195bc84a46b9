"""What an audit is given about each image, and what it says: findings, each a plain sentence."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

KINDS = ("leakage", "label_conflict", "unreadable", "class_balance", "shortcut", "duplicates")
SEVERITIES = ("critical", "warning", "note")
# what a part must not share with what was seen before it
SEEN = {"validation": ("train",), "test": ("train", "validation")}
LEAK_SHARE = 0.02  # of a part's images, from which a leak bends its figures more than chance does
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """One thing found: a sentence with its numbers, files it shows on, and what to do."""

    kind: str  # of KINDS
    severity: str  # of SEVERITIES
    text: str
    advice: str
    examples: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Catalogue:
    """What is known of each image: its file name, "train", "validation" or "test", the name of its
    class, its patient; sequences of one length. Positions in the findings are positions here."""

    names: Sequence[str]
    parts: Sequence[str]
    labels: Sequence[str] | None = None
    groups: Sequence[str] | None = None

    def describe(self, position: int) -> str:
        label = "" if self.labels is None else f", {self.labels[position]}"
        return f"{self.names[position]} ({self.parts[position]}{label})"

    def in_part(self, part: str) -> list[int]:
        return [position for position, where in enumerate(self.parts) if where == part]


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """By severity, then by kind, the worst first."""
    return sorted(findings, key=lambda one: (SEVERITIES.index(one.severity), KINDS.index(one.kind)))


def leak_severity(count: int, total: int) -> str:
    return "critical" if count >= LEAK_SHARE * total else "warning"


def share_text(count: int, total: int) -> str:
    return f"{count} of {total} ({count / total:.1%})"
