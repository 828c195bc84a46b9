"""Figures of an evaluation: what is drawn, against scikit-learn, and what is left out and why."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve
from synthetic_evaluation import draw_predictions

from sssd_hf.evaluation import diagrams, figures
from sssd_hf.evaluation.calibration import apply_calibration, reliability_curve
from sssd_hf.evaluation.curves import GRID, Curve
from sssd_hf.evaluation.figures import write_figures
from sssd_hf.evaluation.independent import wilson_interval
from sssd_hf.evaluation.subgroups import subgroup_metrics

EVERY = {
    "roc.png", "precision_recall.png", "reliability.png", "scores.png", "confusion.png",
    "confusion_operating_point.png", "coverage.png", "subgroups.png",
}  # fmt: skip
POINT = {"threshold": 0.4, "rule": "youden", "fitted_on": "validation"}


@pytest.fixture
def drawn(monkeypatch):
    """File name -> the matplotlib figure, in place of writing it."""
    found = {}
    from matplotlib.figure import Figure

    def keep(figure, path, **options):
        found[path.name] = figure
        path.write_bytes(b"")

    monkeypatch.setattr(Figure, "savefig", keep)
    return found


def line(figure, label):
    (curve,) = (c for c in figure.axes[0].get_lines() if c.get_label().startswith(label))
    return curve.get_xdata(), curve.get_ydata()


def write(folder, labels, probabilities, results=None, **options):
    return dict(
        write_figures(folder, results or {}, labels, probabilities, num_resamples=20, **options)
    )


def left_out(folder):
    entries = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    return {entry["title"]: entry["caption"] for entry in entries if entry["file"] is None}


def test_two_classes_as_scikit_learn_has_them(tmp_path, drawn):
    labels, probabilities, groups = draw_predictions(40)
    calibrated, decided = apply_calibration(probabilities, {"temperature": 2.0, "threshold": 0.4})
    found = subgroup_metrics(labels, probabilities, groups % 2, groups, num_resamples=20)
    results = {
        "labels": ["normal", "covid"], "operating_point": POINT, "subgroups": {"sex": found},
        "intervals": {"roc_auc": [0.7, 0.9]}, "group_column_name": "patient_id",
        "balanced_accuracy": 0.75,
    }  # fmt: skip
    captions = write(tmp_path, labels, probabilities, results, calibrated=calibrated, groups=groups)
    assert set(captions) == set(drawn) == EVERY
    assert left_out(tmp_path) == {}

    x, y, _ = roc_curve(labels, probabilities[:, 1])
    np.testing.assert_array_equal(line(drawn["roc.png"], "ROC AUC"), (x, y))
    true = confusion_matrix(labels, decided)
    point = np.ravel(line(drawn["roc.png"], "threshold 0.400"))
    np.testing.assert_allclose(point, [true[0, 1] / true[0].sum(), true[1, 1] / true[1].sum()])
    assert "patient_id" in captions["roc.png"]

    precision, recall, _ = precision_recall_curve(labels, probabilities[:, 1])
    x, y = line(drawn["precision_recall.png"], "average precision")
    np.testing.assert_array_equal((x, y), (recall[::-1], precision[::-1]))
    point = np.ravel(line(drawn["precision_recall.png"], "threshold"))
    np.testing.assert_allclose(point, [true[1, 1] / true[1].sum(), true[1, 1] / true[:, 1].sum()])

    boxes = drawn["reliability.png"].axes[0].containers
    for container, scores in zip(boxes, (probabilities, calibrated), strict=True):
        share, mean = calibration_curve(labels, scores[:, 1], n_bins=10)
        np.testing.assert_allclose(container.lines[0].get_data(), (mean, share), atol=1e-12)
    bars = drawn["reliability.png"].axes[1].patches
    assert sum(bar.get_height() for bar in bars) == 2 * len(labels)

    for file, expected in (
        ("confusion.png", confusion_matrix(labels, probabilities.argmax(axis=1))),
        ("confusion_operating_point.png", true),
    ):
        texts = [text.get_text() for text in drawn[file].axes[0].texts]
        assert [int(text.split("\n")[0]) for text in texts] == expected.ravel().tolist()
        shares = expected / expected.sum(axis=1, keepdims=True)
        assert texts[0].endswith(f"\n{shares[0, 0]:.0%}")

    rows = drawn["subgroups.png"].axes[0].get_yticklabels()
    assert rows[0].get_text() == "sex"
    assert len(rows) == 3


def test_reliability_bars_are_wilsons():
    labels, probabilities, _ = draw_predictions(40)
    for index, right, confidence in (
        (None, probabilities.argmax(axis=1) == labels, probabilities.max(axis=1)),
        (1, labels == 1, probabilities[:, 1]),
    ):
        share, mean = calibration_curve(right, confidence, n_bins=10)
        rows = reliability_curve(labels, probabilities, 10, index)
        np.testing.assert_allclose([row["accuracy"] for row in rows], share, atol=1e-12)
        np.testing.assert_allclose([row["confidence"] for row in rows], mean, atol=1e-12)
        for row in rows:
            inside = (confidence > row["low"]) & (confidence <= row["high"])
            expected = wilson_interval(int(right[inside].sum()), int(inside.sum()))
            assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(expected)


def test_more_classes_are_drawn_one_against_the_rest(tmp_path, drawn):
    labels, probabilities, _ = draw_predictions(60, num_classes=4)
    names = ["$a$", "_b", "c" * 99, "d\nd"]
    write(tmp_path, labels, probabilities, {"labels": names})
    assert set(drawn) == EVERY - {"confusion_operating_point.png", "subgroups.png"}
    assert set(left_out(tmp_path)) == {"Confusion matrix at the operating point", "Subgroups"}
    curves = drawn["roc.png"].axes[0].get_lines()[1:]
    assert len(curves) == 4
    for index, curve in enumerate(curves):
        x, y, _ = roc_curve(labels == index, probabilities[:, index])
        np.testing.assert_array_equal(curve.get_data(), (x, y))
    # all four are in the legend, whatever their names
    assert len(drawn["roc.png"].axes[0].get_legend().get_texts()) == 4
    assert len(drawn["scores.png"].axes) == 4


def png_sizes(folder):
    sizes = {}
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            sizes[path.name] = image.size
    return sizes


@pytest.mark.parametrize(
    ("labels", "missing"),
    [
        ([1, 1, 1], {"ROC curve", "Precision-recall curve"}),
        ([0, 1, 1], set()),
        ([0], {"ROC curve", "Precision-recall curve", "Coverage and accuracy"}),
    ],
)
def test_few_images_and_one_class_do_not_fail(tmp_path, monkeypatch, labels, missing):
    monkeypatch.setattr(figures, "DPI", 50)  # a quarter of the time
    scores = np.array([0.0, 1.0, 0.5])[: len(labels)]
    probabilities = np.stack([1 - scores, scores], axis=1)
    stale = tmp_path / "roc.png"
    stale.write_bytes(b"of another evaluation")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captions = write(
            tmp_path, np.array(labels), probabilities, {"operating_point": POINT},
            groups=["a", "b", "b"][: len(labels)],
        )  # fmt: skip
    reasons = left_out(tmp_path)
    assert set(reasons) == missing | {"Subgroups"}
    assert all(reasons.values())
    sizes = png_sizes(tmp_path)
    assert set(sizes) == set(captions)
    assert all(width > 250 for width, _ in sizes.values())
    if not missing:
        assert "No band" in captions["roc.png"]


def test_undefined_subgroups_are_rows_without_a_mark(tmp_path, drawn):
    nan = {"num_images": 1, "num_groups": None, "small": True, "metrics": {}, "intervals": {}}
    part = {
        "num_images": 3,
        "num_groups": 2,
        "small": False,
        "metrics": {"balanced_accuracy": 0.5},
        "intervals": {"balanced_accuracy": [None, None]},
    }
    results = {"subgroups": {"$x": {"subgroups": {"<y>": nan, "z": part}, "worst": None}}}
    write(tmp_path, np.array([0, 1]), np.eye(2), results)
    axes = drawn["subgroups.png"].axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [r"\$x", "<y> (1)", "z (3 of 2)"]
    assert len(axes.get_lines()) == 1  # the square of z: no interval, no overall


def test_bands_are_drawn_for_few_curves_only():
    flat = Curve(
        np.array([0.0, 1.0]), np.array([0.5, 0.5]), np.zeros(len(GRID)), np.ones(len(GRID))
    )
    for count, bands in ((3, 3), (4, 0)):
        axes = diagrams.roc_figure([(str(i), flat) for i in range(count)]).axes[0]
        assert len(axes.collections) == bands


def test_no_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        figures.write_figures(tmp_path, {}, np.empty(0, int), np.empty((0, 2)))
