"""The page: what lies where, and what happens when a file is dropped or a control is moved."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ...data.preparation import Preparation
from ...evaluation.aggregation import METHODS as AGGREGATIONS
from ...evaluation.explanations import DEFAULT_METHOD
from ...evaluation.explanations import METHODS as EXPLANATIONS
from . import markup
from .answers import (
    NamedClassifier,
    Reconstructor,
    answer,
    answer_each,
    choose_shown,
    heat_maps,
    pack,
    reconstructions,
    unpack,
)
from .intake import Intake, Limits, Place, Refused, in_natural_order, take_in

logger = logging.getLogger("sssd_hf")
CSS = Path(__file__).with_name("page.css")
# what the page calls them -> what they are
EXPLANATION_NAMES = {
    "leave one patch out": "leave_out",
    "attention and gradients": "gradient_attention",
    "Grad-CAM": "grad_cam",
    "occlusion": "occlusion",
    "attention rollout (knows no class)": "attention_rollout",
}
AGGREGATION_NAMES = {"mean": "mean", "maximum": "max", "noisy-or": "noisy_or"}
assert set(EXPLANATION_NAMES.values()) == set(EXPLANATIONS)
assert set(AGGREGATION_NAMES.values()) == set(AGGREGATIONS)
EMPTY = '<div class="sssd-empty">The answer appears here.</div>'
WAIT = '<p class="sssd-hint">Being drawn.</p>'
NO_CASE = '<p class="sssd-hint">Choose an image or a series above.</p>'
DELETED = "Deleted from this computer: what was uploaded. The pictures are in your browser alone."


@dataclass(frozen=True)
class Demo:
    """What the page needs.

    Args:
        models: at least one.
        reconstructor: None: the page has no reconstructions.
        uploads: folder where uploads arrive.
    """

    models: list[NamedClassifier]
    reconstructor: Reconstructor | None
    uploads: Path
    limits: Limits

    @property
    def preparations(self) -> list[Preparation]:
        """Of each model, and last of the reconstructor. One page lists slices along one axis, that
        of the models."""
        own = [each.classifier.preparation for each in self.models]
        if self.reconstructor is not None:
            own.append(replace(self.reconstructor.preparation, slice_axis=own[0].slice_axis))
        return own


# ---------------------------------------------------------------------- what happens


def answer_case(
    demo: Demo, uploads: list[str] | None, aggregation: str
) -> tuple[str, str, str, str]:
    """(the answer, what the browser keeps of the case, as JSON: "" for nothing, and two times what
    stands in place of the last case's pictures until there are new ones)."""
    uploads = in_natural_order(uploads or [])
    taken = take_in(uploads, demo.uploads, demo.preparations, demo.limits)
    problems = markup.problem_list(taken.problems, taken.count)
    if not taken.places:
        return problems, "", NO_CASE, NO_CASE
    method = AGGREGATION_NAMES[aggregation]
    cards, kept_classes = [], []
    shown: list[int] = []
    for model in demo.models:
        found = answer(model.classifier, taken.pixels[model.classifier.preparation], method)
        shown = shown or choose_shown(found.probabilities, found.followed)
        cards.append(markup.answer_card(model.name, found, taken.places, method))
        kept_classes.append(found.whole_decided)
    kept = {
        "places": [[taken.places[i].file, taken.places[i].frame] for i in shown],
        "classes": kept_classes,
        "total": len(taken.places),
        "pixels": [pack(taken.pixels[each][shown]) for each in demo.preparations],
    }
    text = f'<div class="sssd-cards">{"".join(cards)}</div>'
    result = problems + text + f'<p class="sssd-good">{DELETED}</p>'
    return result, json.dumps(kept), WAIT, WAIT


def read_kept(demo: Demo, kept: str) -> tuple[list[Place], list[int], list[np.ndarray], int]:
    """(places, class that each model answered, pixels for each of `demo.preparations`, images of
    the case) of what `answer_case` gave to the browser.

    Raises:
        Refused: anything else.
    """
    try:
        values = json.loads(kept)
        places = [
            Place(int(file), None if frame is None else int(frame))
            for file, frame in values["places"]
        ]
        classes = [int(number) for number in values["classes"]]
        preparations = demo.preparations
        pixels = [unpack(text, each) for text, each in zip(values["pixels"], preparations)]
        of_models = zip(classes, demo.models, strict=True)
        fits = (
            len(pixels) == len(preparations)
            and all(len(each) == len(places) for each in pixels)
            and all(0 <= c < len(model.classifier.label_names) for c, model in of_models)
        )
        if not fits:
            raise ValueError
        return places, classes, pixels, int(values["total"])
    except (ValueError, TypeError, KeyError) as error:
        raise Refused("This case can't be read any more: choose its files again.") from error


def explain_case(demo: Demo, kept: str, explanation: str) -> str:
    """The heat maps of the class that each model answered."""
    if not kept:
        return NO_CASE
    places, classes, pixels, total = read_kept(demo, kept)
    method = EXPLANATION_NAMES[explanation]
    parts = []
    for model, target, images in zip(demo.models, classes, pixels):
        found = answer(model.classifier, images, "mean")
        maps = heat_maps(model.classifier, images, method, target)
        label, shares = found.labels[target], found.probabilities[:, target]
        parts.append(
            f"<section><h3>{escape(model.name)}: what speaks for {escape(label)}</h3>"
            f"{markup.overlays(images, maps, places, label, shares)}</section>"
        )
    note = ""
    if total > len(places):
        note = (
            f'<p class="sssd-hint">{len(places)} of {total} slices: those with the highest '
            "probability.</p>"
        )
    sections = f'<div class="sssd-models">{"".join(parts)}</div>'
    return f'<div class="sssd-pictures">{note}{sections}{markup.LEGEND}</div>'


def reconstruct_case(demo: Demo, kept: str, mask_ratio: float, seed: float) -> str:
    """What the masked autoencoder makes of the first shown images."""
    if not kept:
        return NO_CASE
    places, _, pixels, _ = read_kept(demo, kept)
    few = places[:2]
    pictures, visible, patches = reconstructions(
        demo.reconstructor, pixels[-1][: len(few)], float(mask_ratio), int(seed)
    )
    rows = markup.reconstruction_rows(pictures, few)
    hint = (
        f'<p class="sssd-hint">{visible} of {patches} patches are visible. The decoder learns the '
        "hidden ones alone: in the visible ones the third picture means nothing.</p>"
    )
    return f'<div class="sssd-pictures">{hint}{rows}</div>'


def answer_batch(demo: Demo, uploads: list[str] | None, aggregation: str, with_names: bool) -> str:
    """A table of all files, and the link that saves it."""
    uploads = in_natural_order(uploads or [])
    names = [Path(upload).name for upload in dict.fromkeys(uploads)]
    taken = take_in(uploads, demo.uploads, demo.preparations, demo.limits)
    sizes = sizes_of(taken)
    method = AGGREGATION_NAMES[aggregation]
    groups = [place.file for place in taken.places]
    answers = {}
    if groups:
        for model in demo.models:
            pixels = taken.pixels[model.classifier.preparation]
            answers[model.name] = answer_each(model.classifier, pixels, groups, method)
    rows = markup.batch_rows(answers, taken.problems, sizes, names if with_names else None)
    bad = len(taken.problems)
    summary = f"{markup.plural(taken.count, 'file')}, {markup.plural(len(groups), 'image')}" + (
        f", {bad} with a problem" if bad else ""
    )
    save = markup.download(markup.csv_text(rows), "predictions.csv", "Save as CSV")
    return (
        f'<p class="sssd-of">{summary}</p>{save}{markup.table(rows)}'
        f'<p class="sssd-good">{DELETED}</p>'
    )


def sizes_of(taken: Intake) -> dict[int, int]:
    """Number of a file -> how many of its images could be read."""
    sizes: dict[int, int] = {}
    for place in taken.places:
        sizes[place.file] = sizes.get(place.file, 0) + 1
    return sizes


def about(demo: Demo) -> str:
    """What the models are, and what happens to what is uploaded."""
    sections = []
    for model in demo.models:
        classifier = model.classifier
        preparation, calibration = classifier.preparation, classifier.calibration
        height, width = preparation.size
        seen = f"{width} x {height} pixels, {'grey' if preparation.num_channels == 1 else 'colour'}"
        windows = preparation.windows or ()
        hu = ", ".join(f"{centre:g}/{span:g}" for centre, span in windows)
        facts = {
            "classes": ", ".join(classifier.label_names),
            "images are made": f"{seen} ({preparation.resize_mode})",
            "CT window": f"{hu} HU (centre/width)" if hu else "the file's own",
            "volumes are cut": preparation.slice_axis,
            "temperature": f"{calibration['temperature']:.3f}" if calibration else "none",
            "threshold": f"{calibration['threshold']:.3f} ({calibration['rule']})"
            if calibration and calibration["threshold"] is not None
            else "none: the most probable class",
            "networks averaged": str(len(classifier.models)),
        }
        rows = "".join(
            f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()
        )
        sections.append(
            f'<section class="sssd-card"><h3>{escape(model.name)}</h3><dl class="sssd-facts">{rows}'
            "</dl></section>"
        )
    limits = demo.limits
    text = f"""<p>Files are read by their content, whatever their names: PNG, JPEG, TIFF, BMP, WebP,
DICOM, NIfTI; up to {limits.files} files of {limits.file_bytes / 2**20:.0f} MB and {limits.images}
slices at once. They are opened in separate processes with a limit on time and memory. They are
deleted from the computer that runs this page before the answer is shown, files never asked about
after ten minutes; no header is shown or written down, and files are numbered, for their names may
name patients. The pictures of a case, as small as the models see them, are in your browser until
you leave.</p>
<p>Where this page runs on another computer than yours, what you drop is sent there: no image of a
patient belongs on a public one.</p>
<p>An explanation shows what moves the model's answer. It is no outline of a lesion, and a wrong
answer has one as well. A calibrated probability holds for images like those it was fitted on.
</p>"""
    return f'<div class="sssd-cards">{"".join(sections)}</div><div class="sssd-about">{text}</div>'


# ---------------------------------------------------------------------- what lies where


def told(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """`function` so that a refusal is its first result, and another error leaves no trace of the
    file in the log: a traceback would quote it."""

    @wraps(function)
    def guarded(*values: Any) -> Any:
        try:
            return function(*values)
        except Refused as error:
            text = str(error)
        except Exception as error:
            logger.error("a question was not answered (%s)", type(error).__name__)
            logger.debug("", exc_info=True)
            text = "This could not be answered. The log of the demo names the kind of error."
        first = markup.message(text)
        return first if count == 1 else (first, *[""] * (count - 1))

    return guarded


def build(demo: Demo, title: str) -> Any:
    """The `gradio.Blocks` of the page."""
    import gradio as gr

    with gr.Blocks(
        title=title, analytics_enabled=False, delete_cache=(60, 600), fill_width=False
    ) as blocks:
        gr.HTML(markup.BANNER, elem_classes="sssd-top", padding=False)
        gr.HTML(
            f'<div class="sssd-title"><h1>{escape(title)}</h1><p>Class probabilities, what they '
            "rest on, and what the model makes of the rest.</p></div>",
            padding=False,
        )
        with gr.Tabs():
            with gr.Tab("One case"):
                _case_tab(gr, demo)
            with gr.Tab("Many files"):
                _batch_tab(gr, demo)
            with gr.Tab("About"):
                gr.HTML(about(demo), padding=False)
    # one question at a time: a case can take a gigabyte while it is decoded
    blocks.queue(max_size=20, default_concurrency_limit=1, api_open=False)
    return blocks


def _file_box(gr: Any, **options: Any) -> Any:
    """A `gradio.File` that gives paths of what was uploaded, and nothing else. Changed in place:
    Gradio writes a file beside the module that defines a subclass."""
    box = gr.File(file_count="multiple", height=190, **options)
    move = box.async_move_resource_to_block_cache

    async def move_if_local(place: Any) -> str | None:
        # else the "file" of a forged request is fetched, from any public host
        return await move(place) if place is not None and Path(place).is_absolute() else None

    def paths(payload: Any) -> list[str]:  # else an empty temporary file is left for each
        return [file.path for file in payload.root] if payload else []

    box.async_move_resource_to_block_cache, box.preprocess = move_if_local, paths
    return box


def _case_tab(gr: Any, demo: Demo) -> None:
    hidden = {"api_visibility": "private", "concurrency_id": "models"}
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            files = _file_box(
                gr, label="An image, or all files of one series", elem_id="case-files"
            )
            aggregation = gr.Radio(
                list(AGGREGATION_NAMES),
                value="mean",
                label="Several slices become one answer by their",
                info="Set this first: a series is answered as soon as it is there.",
            )
        with gr.Column(scale=3, min_width=300):
            result = gr.HTML(EMPTY, elem_id="case-answer", padding=False)
    kept = gr.Textbox(visible=False)
    gr.HTML('<p class="sssd-heading">What the answer rests on</p>', padding=False)
    explanation = gr.Dropdown(
        list(EXPLANATION_NAMES),
        value=next(n for n, method in EXPLANATION_NAMES.items() if method == DEFAULT_METHOD),
        label="Method",
        elem_id="case-method",
        filterable=False,
    )
    overlay = gr.HTML(NO_CASE, elem_id="case-overlay", padding=False)
    with gr.Column(visible=demo.reconstructor is not None):
        ratio, seed, again, rebuilt = _reconstruction_controls(gr, demo)
    done = files.upload(
        told(lambda *values: answer_case(demo, *values), 4),
        [files, aggregation],
        [result, kept, overlay, rebuilt],
        show_progress_on=result,
        **hidden,
    )
    # the box is emptied: its files are deleted
    done.then(lambda: None, None, files, show_progress="hidden", api_visibility="private")
    explain = told(lambda *values: explain_case(demo, *values), 1)
    done.then(explain, [kept, explanation], overlay, **hidden)
    explanation.change(explain, [kept, explanation], overlay, **hidden)
    if demo.reconstructor is not None:
        rebuild = told(lambda *values: reconstruct_case(demo, *values), 1)
        inputs = [kept, ratio, seed]
        done.then(rebuild, inputs, rebuilt, **hidden)
        ratio.release(rebuild, inputs, rebuilt, **hidden)
        other = again.click(
            lambda number: (int(number) + 1) % 1000, seed, seed, api_visibility="private"
        )
        other.then(rebuild, inputs, rebuilt, **hidden)


def _reconstruction_controls(gr: Any, demo: Demo) -> tuple[Any, Any, Any, Any]:
    """(mask ratio, seed, button for another one, where the pictures go)."""
    own = demo.reconstructor.model.config.mask_ratio if demo.reconstructor else 0.75
    gr.HTML(
        '<p class="sssd-heading">What a masked autoencoder makes of it</p><p class="sssd-hint">The '
        "encoder sees some patches, the decoder fills in the others.</p>",
        padding=False,
    )
    with gr.Row():
        ratio = gr.Slider(
            0.1,
            0.95,
            value=round(own, 2),
            step=0.05,
            label="Share of the patches that is hidden",
            elem_id="case-ratio",
            scale=4,
        )
        again = gr.Button("Hide others", scale=1, min_width=160, elem_id="case-again")
    seed = gr.Number(value=0, visible=False)
    rebuilt = gr.HTML(NO_CASE, elem_id="case-reconstruction", padding=False)
    return ratio, seed, again, rebuilt


def _batch_tab(gr: Any, demo: Demo) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            files = _file_box(
                gr,
                label="Images, DICOM files or volumes, each a case of its own",
                elem_id="batch-files",
            )
        with gr.Column(scale=3, min_width=300):
            aggregation = gr.Radio(
                list(AGGREGATION_NAMES),
                value="mean",
                label="Slices of a volume become one answer by their",
            )
            with_names = gr.Checkbox(
                label="File names in the table",
                info="Off, files are numbered by their names' order: names may name patients.",
            )
    result = gr.HTML(EMPTY, elem_id="batch-answer", padding=False)
    done = files.upload(
        told(lambda *values: answer_batch(demo, *values), 1),
        [files, aggregation, with_names],
        result,
        show_progress_on=result,
        api_visibility="private",
        concurrency_id="models",
    )
    done.then(lambda: None, None, files, show_progress="hidden", api_visibility="private")
