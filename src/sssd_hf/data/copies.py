"""Copies of images among the splits: what leaks, what contradicts itself, what repeats."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from .duplicates import MAX_PAIRS, exact_sets, is_blank, near_pairs
from .findings import MAX_EXAMPLES, SEEN, Catalogue, Finding, leak_severity, share_text

NEAR = "a near copy (recompressed, brightened, trimmed a little, or the next slice)"

CHANCE = (
    "Look at them first (audit.py draws them into pairs.png): about two in a million pairs of "
    "unrelated chests match. "
)


@dataclass(frozen=True)
class Pair:
    """Two images that are copies, by position."""

    first: int
    second: int
    exact: bool
    correlation: float = 1.0
    distance: int = 0

    def describe(self, catalogue: Catalogue) -> str:
        how = "" if self.exact else f" [correlation {self.correlation:.3f}, {self.distance} bits]"
        return f"{catalogue.describe(self.first)} and {catalogue.describe(self.second)}{how}"


@dataclass(frozen=True)
class Copies:
    """Sets of equal images (of one where there is no copy), by position, and which are near."""

    sets: list[list[int]]
    neighbours: dict[int, set[int]]  # of a set: the sets that are near copies of it
    pairs: list[Pair]  # of many copies of one image, one of each part and label stands for all
    complete: bool = True  # False: there are too many near copies within parts to name all
    complete_across: bool = True  # the same of near copies across parts


def copies_by_digest(digests: Sequence[str | None], catalogue: Catalogue) -> Copies:
    """Exact copies alone, of images with the same digest; None is like no other."""
    known = [position for position, digest in enumerate(digests) if digest is not None]
    sets = exact_sets([digests[position] for position in known])
    sets = [[known[i] for i in members] for members in sets]
    return Copies(sets, {}, _exact_pairs(sets, catalogue))


def copies_by_pixels(
    positions: np.ndarray,
    digests: Sequence[str],
    thumbnails: np.ndarray,
    catalogue: Catalogue,
    min_correlation: float,
    max_distance: int,
) -> Copies:
    """Exact copies by the digests of the decoded pixels, near ones by `near_pairs`.

    Blank images are left out: all are alike, and reported by themselves.

    Args:
        positions: of each image in the catalogue; int64 (images,).
        thumbnails: uint8 (images, 64, 64).
    """
    shown = np.flatnonzero(~is_blank(thumbnails))
    sets = [shown[members] for members in exact_sets([digests[i] for i in shown])]
    alike = thumbnails[[members[0] for members in sets]]
    sets = [positions[members].tolist() for members in sets]
    near = near_pairs(alike, min_correlation, max_distance, _parts_of(sets, catalogue))
    pairs, neighbours = _exact_pairs(sets, catalogue), {}
    for a, b, correlation, distance in zip(
        near.first.tolist(), near.second.tolist(), near.correlation.tolist(), near.distance.tolist()
    ):
        neighbours.setdefault(a, set()).add(b)
        neighbours.setdefault(b, set()).add(a)
        for first, second in product(_typical(sets[a], catalogue), _typical(sets[b], catalogue)):
            pairs.append(Pair(first, second, False, correlation, distance))
    return Copies(sets, neighbours, pairs, near.complete, near.complete_across)


def _parts_of(sets, catalogue):
    """A number for the part that each set's images are in; one of its own where they are in
    several, so that its pairs count as such across parts."""
    number = {part: n for n, part in enumerate(sorted(set(catalogue.parts)))}
    inside = [{number[catalogue.parts[i]] for i in members} for members in sets]
    own = enumerate(inside, len(number))
    return np.array([min(parts) if len(parts) == 1 else n for n, parts in own], np.int64)


def _exact_pairs(sets, catalogue):
    pairs = []
    for members in sets:
        if len(members) > 1:
            typical = _typical(members, catalogue)
            shown = typical if len(typical) > 1 else members[:2]
            pairs += [Pair(first, second, True) for first, second in combinations(shown, 2)]
    return pairs


def _typical(members, catalogue):
    """One image of a set for each part and label."""
    kinds = {}
    for i in members:
        kinds.setdefault((catalogue.parts[i], catalogue.labels and catalogue.labels[i]), i)
    return list(kinds.values())


def find_leaks(copies: Copies, catalogue: Catalogue) -> list[Finding]:
    """Images that have a copy in what was seen before their part; exact copies are not counted as
    near ones again."""
    findings = []
    parts = catalogue.parts
    for part, earlier in SEEN.items():
        total = len(catalogue.in_part(part))
        before = {n for n, members in enumerate(copies.sets) if _any_in(members, parts, earlier)}
        exact, near = [], []
        for index, members in enumerate(copies.sets):
            inside = [i for i in members if parts[i] == part]
            if index in before:
                exact += inside
            elif not before.isdisjoint(copies.neighbours.get(index, ())):
                near += inside
        for images, what in ((exact, "an exact copy"), (near, NEAR)):
            if not images:
                continue
            least = "" if images is exact or copies.complete_across else "At least "
            examples = [
                pair
                for pair in copies.pairs
                if pair.exact == (images is exact)
                and part in (parts[pair.first], parts[pair.second])
                and _any_in((pair.first, pair.second), parts, earlier)
            ]
            findings.append(
                Finding(
                    "leakage",
                    leak_severity(len(images), total),
                    f"{least}{share_text(len(images), total)} images of {part} have {what} in "
                    f"{' or '.join(p for p in earlier if p in parts)}.",
                    f"{'' if images is exact else CHANCE}Take these images out of {part}, or keep "
                    "all copies in one part: give them one value in a column, and split anew with "
                    "it as --group_column_name.",
                    _describe(examples, catalogue),
                    {
                        "part": part,
                        "by": "exact" if images is exact else "near",
                        "images": len(images),
                        "share": len(images) / total,
                        "complete": not least,
                    },
                )
            )
    return findings


def find_conflicts(copies: Copies, catalogue: Catalogue) -> list[Finding]:
    """Copies with different labels."""
    labels, parts = catalogue.labels, catalogue.parts
    if labels is None:
        return []
    findings = []
    for exact, across in product((True, False), repeat=2):
        pairs = [
            pair
            for pair in copies.pairs
            if labels[pair.first] != labels[pair.second]
            and pair.exact == exact
            and (parts[pair.first] != parts[pair.second]) == across
        ]
        if not pairs:
            continue
        images = len({i for pair in pairs for i in (pair.first, pair.second)})
        where = "different splits" if across else "the same split"
        alike = "are equal pixel by pixel" if exact else "are near copies"
        findings.append(
            Finding(
                "label_conflict",
                "critical" if exact or across else "warning",
                f"{_count(len(pairs), 'pair')} of images in {where} {alike} and have different "
                f"labels ({images} images).",
                "Look at them (audit.py draws them into pairs.png): correct the wrong label, or "
                "remove both. A model that is right on one is wrong on the other.",
                _describe(pairs, catalogue),
                {"pairs": len(pairs), "images": images, "exact": exact, "across": across},
            )
        )
    return findings


def find_repeats(copies: Copies, catalogue: Catalogue) -> list[Finding]:
    """Copies within one part."""
    parts, groups = catalogue.parts, catalogue.groups
    findings = []
    within = [pair for pair in copies.pairs if parts[pair.first] == parts[pair.second]]
    again = sum(len(members) - len({parts[i] for i in members}) for members in copies.sets)
    if again:
        findings.append(
            Finding(
                "duplicates",
                "note",
                f"{_count(again, 'image')} repeat another of the same split exactly.",
                "Keep one of each: copies count several times in the loss, and make intervals too "
                "narrow.",
                _describe([pair for pair in within if pair.exact], catalogue),
                {"by": "exact", "images": again},
            )
        )
    near = [pair for pair in within if not pair.exact]
    if near:
        same = ""
        if groups is not None:
            count = sum(groups[pair.first] == groups[pair.second] for pair in near)
            same = f", {count} of them of one group"
        more = "" if copies.complete else f"; the search ended after {MAX_PAIRS:,} pairs"
        findings.append(
            Finding(
                "duplicates",
                "note",
                f"{_count(len(near), 'pair')} of images of the same split are near copies{same}"
                f"{more}.",
                "Of one patient this is natural; others may be the same patient under two names. "
                "Intervals over groups allow for it.",
                _describe(near, catalogue),
                {"by": "near", "pairs": len(near), "complete": copies.complete},
            )
        )
    return findings


def sort_pairs(pairs: Sequence[Pair], catalogue: Catalogue) -> list[Pair]:
    """Different labels first, then different parts, then exact ones, then the most alike."""
    labels, parts = catalogue.labels, catalogue.parts

    def order(pair):
        return (
            labels is None or labels[pair.first] == labels[pair.second],
            parts[pair.first] == parts[pair.second],
            not pair.exact,
            -pair.correlation,
        )

    return sorted(pairs, key=order)


def _any_in(positions, parts, wanted):
    return any(parts[i] in wanted for i in positions)


def _describe(pairs, catalogue):
    return [pair.describe(catalogue) for pair in sort_pairs(pairs, catalogue)[:MAX_EXAMPLES]]


def _count(number, noun):
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
