"""What a report says in words, of results that were written here by hand."""

import re

import pytest

from sssd_hf.evaluation.plain_language import audit_fits, key_figures, summary_sentences

LABELS = ["well", "ill"]


def results(by_class=(40, 40), groups=True, **others):
    counts = dict(zip(LABELS, by_class))
    figures = {"accuracy": 0.8, "roc_auc": 0.9, "recall": 0.7, "specificity": 0.9}
    whole = {
        "labels": LABELS, "num_test_images": 2 * sum(by_class), **figures,
        "per_class": {name: {"support": 2 * count} for name, count in counts.items()},
        "intervals": {name: (value - 0.1, value + 0.1) for name, value in figures.items()},
        "num_test_images_seen": 0, "num_test_images_pretrained_on": 0,
        "group_column_name": "patient", "num_test_groups": sum(by_class),
        "num_test_groups_by_class": counts, "test_images_digest": "abc",
    }  # fmt: skip
    if not groups:
        whole |= {"num_test_groups": None, "num_test_groups_by_class": None}
    return {**whole, **others}


def said(found, title, audit=None):
    texts = [part for part in summary_sentences(found, audit) if part.heading == title]
    return (texts[0].text, texts[0].grave) if texts else (None, False)


TITLE = "What the intervals mean"


def test_the_intervals_of_a_large_test_are_95_percent():
    text, grave = said(results(), TITLE)
    assert "about 95 of 100" in text
    assert not grave


@pytest.mark.parametrize(("groups", "unit"), [(True, "patients"), (False, "images")])
def test_few_of_a_class_are_said_whatever_the_others_are(groups, unit):
    """A bootstrap of three sick patients has half the coverage that it claims."""
    text, grave = said(results((200, 3), groups), TITLE)
    assert f"Only {3 if groups else 6} {unit} are of ill" in text
    assert "95 of 100" not in text
    assert grave


def test_a_perfect_test_has_no_interval_of_no_width():
    """Seven patients, all right: Wilson's lower end would be 65 %."""
    figures = {"accuracy": 1.0, "roc_auc": 1.0, "recall": 1.0, "specificity": 1.0}
    found = results((4, 3), **figures, intervals=dict.fromkeys(figures, (1.0, 1.0)))
    text = " ".join(part.text for part in summary_sentences(found))
    assert "100.0\N{NO-BREAK SPACE}% to 100" not in text
    for name, number, most in (
        ("Accuracy", 7, 43),
        ("Specificity", 4, 75),
        ("Sensitivity", 3, 100),
    ):
        assert re.search(rf"{name} of 0 .* in {number} may still happen in up to {most}\b", text)
    assert all(not interval for _, _, interval in key_figures(found))


def test_several_classes_have_means():
    names = [name for name, *_ in key_figures({**results(), "labels": ["a", "b", "c"]})]
    assert "Sensitivity, mean over the classes" in names
    assert "Sensitivity" in [name for name, *_ in key_figures(results())]


def test_an_unknown_start_is_said():
    text, _ = said(results(num_test_images_pretrained_on=None), "Seen before")
    assert "is not known" in text
    assert said(results(), "Seen before") == (None, False)


@pytest.mark.parametrize(
    ("seen", "before"), [(0, True), (4, False), (None, False)], ids=["new", "some", "unknown"]
)
def test_a_threshold_is_of_before_the_test_where_images_are_new(seen, before):
    metrics = {"recall": 0.7, "specificity": 0.9, "precision": 0.8}
    point = {"threshold": 0.3, "rule": "youden", "fitted_on": "40 images", "metrics": metrics}
    point |= {"positive_label": "ill", "intervals": {}}
    text, _ = said(results(num_test_images_seen=seen, operating_point=point), "At the threshold")
    assert ("before the test" in text) == before


@pytest.mark.parametrize(("method", "named"), [("mean", False), ("max", True), ("noisy_or", True)])
def test_which_class_is_looked_for(method, named):
    whole = {"count": 7, "method": method, "metrics": {"accuracy": 0.8}, "intervals": {}}
    text, _ = said(results(aggregated=whole), "By patients")
    assert ("of their probabilities of ill)" in text) == named


@pytest.mark.parametrize(("digest", "fits"), [("abc", True), ("abd", False), (None, True)])
def test_an_audit_of_other_test_images_is_not_compared_with(digest, fits):
    audit = {"split_column": None, "shortcuts": {"part": "test"}, "test_images_digest": digest}
    assert audit_fits(results(), audit) == fits
