"""The parts of the page that show answers, as HTML. Pictures and downloads are inside of it, as
data: the server writes no file of them. All text that comes from outside is escaped."""

import base64
import csv
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from ...evaluation.overlays import blend
from .answers import Answer
from .intake import Place

PICTURE_SIDE = 320  # pixels, at least: pictures the size of the model's input are a stamp
CURVE_WIDTH, CURVE_HEIGHT = 420, 150
# how spreadsheets tell a formula
FORMULA = ("=", "+", "-", "@", "\t", "\r")
BANNER = (
    '<div class="sssd-banner" role="note"><b>Research software. Not a medical device.</b> '
    "Not validated for any clinical use; its answers must not guide care.</div>"
)


def percent(share: float) -> str:
    """0.873 -> "87 %"; what is not quite 0 or 1 is not shown as such."""
    if 0 < share < 0.005:
        return "< 1 %"
    if 0.995 < share < 1:
        return "> 99 %"
    return f"{100 * share:.0f} %"


def plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def png_data(picture: np.ndarray) -> str:
    """A data URI of a PNG. picture: (height, width) or (height, width, 3) in 0..1."""
    image = Image.fromarray(np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8))
    factor = -(-PICTURE_SIDE // max(image.size))
    if factor > 1:
        size = (image.width * factor, image.height * factor)
        image = image.resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def to_picture(pixels: np.ndarray) -> np.ndarray:
    """(channels, height, width) uint8 -> what `png_data` takes."""
    shown = pixels.transpose(1, 2, 0) / 255
    return shown[..., 0] if shown.shape[-1] == 1 else shown


def figure(picture: np.ndarray, text: str, caption: str = "") -> str:
    """text: what a screen reader says."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{png_data(picture)}" alt="{escape(text)}">{below}</figure>'


# ---------------------------------------------------------------------- the answer


def answer_card(name: str, answer: Answer, places: Sequence[Place], method: str) -> str:
    """One model's answer to one case."""
    decided = answer.labels[answer.whole_decided]
    several = len(places) > 1
    rows = "".join(
        f'<div class="sssd-row{" sssd-decided" if i == answer.whole_decided else ""}">'
        f"<span>{escape(label)}</span>"
        f'<div class="sssd-track"><i style="width:{100 * share:.2f}%"></i>{_tick(answer, i)}</div>'
        f"<b>{percent(share)}</b></div>"
        for i, (label, share) in enumerate(zip(answer.labels, answer.whole))
    )
    parts = [
        f'<section class="sssd-card"><h3>{escape(name)}</h3>',
        f'<p class="sssd-answer" data-answer="{escape(decided)}">{escape(decided)}</p>',
        f'<p class="sssd-of">{_of_what(places, method)}</p>',
        f"{rows}<p class='sssd-note'>{escape(rule_of(answer, several))}</p>",
    ]
    if several:
        parts += [curve(answer, places), slice_table(answer, places)]
    return "".join([*parts, "</section>"])


def _of_what(places: Sequence[Place], method: str) -> str:
    if len(places) == 1:
        return "one image"
    words = {"mean": "mean", "max": "maximum", "noisy_or": "noisy-or"}[method]
    return f"one answer for {len(places)} slices: the {words} of their probabilities"


def _tick(answer: Answer, index: int) -> str:
    if index != 1 or answer.threshold is None or len(answer.probabilities) > 1:
        return ""
    place = 100 * min(answer.threshold, 1)
    return f'<em style="left:{place:.2f}%" title="from {percent(answer.threshold)} on"></em>'


def rule_of(answer: Answer, several: bool) -> str:
    """How probabilities and decision came about, in a sentence or two."""
    calibration = answer.calibration
    if calibration is None:
        return "Not calibrated: read the probabilities as an order. The most probable class wins."
    text = f"Calibrated on {calibration['fitted_on']}. "
    if answer.threshold is None:
        return text + "The most probable class wins."
    threshold, rule = percent(answer.threshold), calibration["rule"]
    if several:  # as predict.py --aggregate_by has it
        text += "Of the series the most probable class wins. A slice by itself counts"
    else:
        text += "Counts"
    return (
        f"{text} as {answer.labels[1]} from {threshold} on (rule {rule}, chosen on single images)."
    )


def curve(answer: Answer, places: Sequence[Place]) -> str:
    """The probability of one class along a series, as a drawing that scales."""
    label, values = answer.labels[answer.followed], answer.probabilities[:, answer.followed]
    left, right, top, bottom = 48, 8, 10, 24  # of what is drawn around the plot
    width, height = CURVE_WIDTH - left - right, CURVE_HEIGHT - top - bottom
    xs = left + (np.arange(len(values)) + 0.5) / len(values) * width
    ys = top + (1 - values) * height
    lines = [
        f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        for text, y in (("100 %", top), ("50 %", top + height / 2), ("0 %", top + height))
    ]
    if answer.followed == 1 and answer.threshold is not None:
        y = top + (1 - min(answer.threshold, 1)) * height
        lines.append(
            f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" class="threshold"/>'
        )
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys))
    dots = ""
    if len(values) <= 60:
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"><title>{place.name}: {percent(value)}'
            "</title></circle>"
            for x, y, place, value in zip(xs, ys, places, values)
        )
    ends = (
        f'<text x="{left}" y="{CURVE_HEIGHT - 6}">{places[0].name}</text>'
        f'<text x="{left + width}" y="{CURVE_HEIGHT - 6}" text-anchor="end">{places[-1].name}'
        "</text>"
    )
    return (
        f'<figure class="sssd-curve"><svg viewBox="0 0 {CURVE_WIDTH} {CURVE_HEIGHT}" role="img" '
        f'aria-label="Probability of {escape(label)} along the slices">{"".join(lines)}'
        f'<polyline points="{points}"/>{dots}{ends}</svg><figcaption>Probability of '
        f"{escape(label)} along the slices{_dashed(answer)}</figcaption></figure>"
    )


def _dashed(answer: Answer) -> str:
    drawn = answer.followed == 1 and answer.threshold is not None
    return "; dashed: from here on a slice counts as such" if drawn else ""


def slice_table(answer: Answer, places: Sequence[Place]) -> str:
    head = "".join(f"<th>{escape(label)}</th>" for label in answer.labels)
    rows = "".join(
        f"<tr><td>{place.name}</td><td>{escape(answer.labels[decided])}</td>"
        + "".join(f"<td>{percent(p)}</td>" for p in row)
        + "</tr>"
        for place, decided, row in zip(places, answer.decided, answer.probabilities)
    )
    return (
        f"<details><summary>All {len(places)} slices</summary><div class='sssd-scroll'><table>"
        f"<tr><th>slice</th><th>answer</th>{head}</tr>{rows}</table></div></details>"
    )


# ---------------------------------------------------------------------- pictures


def overlays(
    pixels: np.ndarray,
    maps: np.ndarray,
    places: Sequence[Place],
    label: str,
    shares: Sequence[float],
) -> str:
    """Each image beside its heat map. label, shares: the class that is explained, and its
    probability."""
    pairs = []
    for image, heat, place, share in zip(pixels, maps, places, shares):
        picture = to_picture(image)
        factor = max(1, -(-PICTURE_SIDE // max(picture.shape[:2])))
        large = _enlarged(picture, factor)  # before blending: the map is smooth on it
        both = figure(picture, f"{place.name}, as the model is shown it") + figure(
            blend(large, heat), f"{place.name}, with the explanation over it"
        )
        pairs.append(
            f'<div class="sssd-pair"><div class="sssd-two">{both}</div>'
            f"<p>{place.name}: {escape(label)} {percent(share)}</p></div>"
        )
    return f'<div class="sssd-pairs">{"".join(pairs)}</div>'


def _enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    image = Image.fromarray(np.rint(picture * 255).astype(np.uint8))
    size = (image.width * factor, image.height * factor)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC)) / 255


LEGEND = (
    '<div class="sssd-legend"><span>least</span><i></i><span>most</span>'
    "<span>weight in this picture</span></div>"
)
TITLES = ("image", "what the encoder sees", "reconstruction", "reconstruction around it")


def reconstruction_rows(pictures: Sequence[np.ndarray], places: Sequence[Place]) -> str:
    """pictures: the four of `reconstruct`."""
    rows = []
    for row, place in enumerate(places):
        cells = "".join(
            figure(each[row], f"{place.name}: {title}", title)
            for title, each in zip(TITLES, pictures)
        )
        rows.append(f'<p class="sssd-of">{place.name}</p><div class="sssd-four">{cells}</div>')
    return "".join(rows)


# ---------------------------------------------------------------------- messages and tables


def message(text: str, kind: str = "problem") -> str:
    return f'<div class="sssd-{kind}" role="alert">{escape(text)}</div>'


def problem_list(problems: dict[int, str], count: int) -> str:
    """What could not be read, of `count` files."""
    if not problems:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in problems.values())
    return (
        f'<div class="sssd-problem" role="alert">{len(problems)} of {plural(count, "file")} could '
        f"not be read:<ul>{items}</ul></div>"
    )


def batch_rows(
    answers: dict[str, dict[int, Answer]],
    problems: dict[int, str],
    sizes: dict[int, int],
    names: Sequence[str] | None,
) -> list[list[str]]:
    """The table of a batch: a head, and a line for each file and model.

    Args:
        answers: model -> number of the file -> its answer.
        sizes: number of the file -> images in it.
        names: of the files, in order, where they are asked for.
    """
    labels = list(
        dict.fromkeys(
            label
            for of_model in answers.values()
            for each in of_model.values()
            for label in each.labels
        )
    )
    with_name = ["name"] if names is not None else []
    head = ["file", *with_name, "model", "images", "answer", *labels, "problem"]
    rows = [head]
    for number in sorted({*sizes, *problems}):
        name = [names[number - 1]] if names is not None else []
        for model, of_model in answers.items():
            each = of_model.get(number)
            if each is None:
                continue
            shares = dict(zip(each.labels, each.whole))
            values = [f"{shares[label]:.4f}" if label in shares else "" for label in labels]
            decided = each.labels[each.whole_decided]
            line = [str(number), *name, model, str(sizes[number]), decided, *values]
            rows.append([*line, problems.get(number, "")])
        if number not in sizes:
            rows.append([str(number), *name, "", "0", "", *[""] * len(labels), problems[number]])
    return rows


def csv_text(rows: Sequence[Sequence[str]]) -> str:
    """Comma-separated; names that a spreadsheet would take for a formula get an apostrophe."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    for row in rows:
        writer.writerow([f"'{value}" if value.startswith(FORMULA) else value for value in row])
    return stream.getvalue()


def table(rows: Sequence[Sequence[str]]) -> str:
    """rows: a head and lines; a last column without content is left out."""
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    head, *body = rows
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in body)
    titles = "".join(f"<th>{escape(value)}</th>" for value in head)
    return (
        f'<div class="sssd-scroll"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody>'
        "</table></div>"
    )


def _cell(value: str) -> str:
    return f"<td{' class=long' if len(value) > 40 else ''}>{escape(value)}</td>"


def download(text: str, name: str, label: str) -> str:
    """A link that saves `text`; the browser has it already."""
    data = base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()
    return (
        f'<a class="sssd-button" download="{escape(name)}" '
        f'href="data:text/csv;charset=utf-8;base64,{data}">{escape(label)}</a>'
    )
