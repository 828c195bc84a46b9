"""The report: what it says, what it lacks, and that nothing from outside becomes markup."""

import base64
import io
import json
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image
from synthetic_evaluation import write_evaluation, write_json

from sssd_hf.evaluation import checklists, figures
from sssd_hf.evaluation.plain_language import summary_sentences
from sssd_hf.evaluation.report import write_report

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
VOID = {"meta", "img", "br", "line", "circle"}


class Page(HTMLParser):
    """Tags, attributes and texts of a page; fails on tags that do not match."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.texts, self.scripts = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An evaluation with all that a report draws from, the figures small."""
    patch = pytest.MonkeyPatch()
    patch.setattr(figures, "DPI", 30)
    evaluation = write_evaluation(
        tmp_path_factory.mktemp("whole") / "run", num_patients=50, num_resamples=50
    )
    patch.undo()
    return evaluation


@pytest.fixture
def evaluation(whole, tmp_path):
    """A copy of it that a test may change; the model's folder stays where it is."""
    return shutil.copytree(whole, tmp_path / "evaluation")


def results_of(evaluation):
    return json.loads((evaluation / "all_results.json").read_text())


def change(evaluation, **values):
    write_json(evaluation / "all_results.json", results_of(evaluation) | values)


def test_the_page_stands_alone(evaluation):
    page = Page(write_report(evaluation))
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "form", "base"}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value.startswith(("data:image/png;base64,", "#"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    linked = [attributes["href"][1:] for attributes in page.all("a")]
    assert len(linked) > 10
    assert set(linked) <= set(ids)


def test_all_figures_are_embedded_with_alternative_texts(evaluation):
    page = Page(write_report(evaluation))
    images = page.all("img")
    files = list((evaluation / "figures").glob("*.png"))
    assert len(images) == len(files) + 2  # the training's curves, pretraining's reconstructions
    for attributes in images:
        data = base64.b64decode(attributes["src"].split(",", 1)[1], validate=True)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.size == (int(attributes["width"]), int(attributes["height"]))
        assert len(attributes["alt"]) > 20


def test_the_summary_has_the_figures(evaluation):
    results = results_of(evaluation)
    text = Page(write_report(evaluation)).text.replace("\N{NO-BREAK SPACE}", " ")
    low, high = results["intervals"]["accuracy"]
    assert (
        f"right for {100 * results['accuracy']:.1f} % (95 % interval {100 * low:.1f} % to "
        f"{100 * high:.1f} %) of the images"
    ) in text
    assert f"{results['num_test_images']} images of 50 patients" in text
    supports = [row["support"] for row in results["per_class"].values()]
    majority = max(supports) / sum(supports)
    assert (
        f"Always naming the most frequent class would be right for {majority * 100:.1f} %" in text
    )
    difference = 100 * (results["accuracy"] - 0.662)  # the audit's better thumbnail classifier
    side = "above" if difference > 0 else "below"
    assert f"66.2 % (the model is {abs(difference):.1f} points {side})" in text
    assert "6 of 70 (8.6%) groups of test" in text
    assert "Research software, not a medical device" in text
    point = results["operating_point"]
    assert f"threshold {point['threshold']:.3f}" in text
    assert "2 times, this one included" in text
    assert results["command"] in text


def test_text_from_outside_is_escaped(evaluation, tmp_path):
    results = results_of(evaluation)
    worst = {"value": HOSTILE, "metric": "balanced_accuracy", "estimate": 0.5, "low": None,
             "high": None, "overall": 0.7}  # fmt: skip
    part = next(iter(results["subgroups"]["sex"]["subgroups"].values()))
    change(
        evaluation,
        labels=[HOSTILE, "b\0\x1b"],
        positive_label=HOSTILE,
        per_class={HOSTILE: results["per_class"]["covid"]},
        subgroups={HOSTILE: {"subgroups": {HOSTILE: part}, "worst": worst}},
        reasons={"roc_auc": HOSTILE},
        command=HOSTILE,
        compared_with=HOSTILE,
        split_column=HOSTILE,
        test_split=HOSTILE,
        group_column_name=HOSTILE,
        interval_method=HOSTILE,
        model_name_or_path=str(tmp_path),
        versions={HOSTILE: HOSTILE, "finished": HOSTILE},
        explanations={HOSTILE: {"verdict": HOSTILE}},
        operating_point=results["operating_point"] | {"rule": HOSTILE, "fitted_on": HOSTILE},
    )
    write_json(
        evaluation / "figures" / "captions.json",
        [
            {"file": "roc.png", "title": HOSTILE, "caption": HOSTILE, "alt": HOSTILE},
            {"file": None, "title": HOSTILE, "caption": HOSTILE, "alt": ""},
        ],
    )
    shutil.copy(evaluation / "figures" / "roc.png", evaluation / "figures" / '<b>&".png')
    write_json(
        evaluation / "audit.json",
        {
            "findings": [
                {"kind": HOSTILE, "severity": HOSTILE, "text": HOSTILE, "advice": HOSTILE,
                 "examples": [HOSTILE]},
            ],
            "images": {HOSTILE: {HOSTILE: 3}},
            "shortcuts": {"skipped": HOSTILE},
        },
    )  # fmt: skip
    (tmp_path / "finetune_recipe.yaml").write_text(json.dumps({"finetune": {"a": HOSTILE}}))
    write_json(tmp_path / "all_results.json", {"chosen_by": HOSTILE})
    page = Page(write_report(evaluation))
    assert not {"script", "iframe"} & {name for name, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
    assert page.text.count(HOSTILE) > 30
    assert not {"\0", "\x1b"} & set(page.text)


def test_what_is_missing_is_said(evaluation):
    change(
        evaluation, model_name_or_path="someone/else", comparison=None, aggregated=None,
        calibration=None, operating_point=None, subgroups={}, num_test_groups=None,
        group_column_name=None, times_test_was_read=None, command=None, versions=None,
    )  # fmt: skip
    for name in ("audit.json", "predictions.csv"):
        (evaluation / name).unlink()
    shutil.rmtree(evaluation / "figures")
    text = Page(write_report(evaluation)).text
    for sentence in (
        "The model's folder is not at hand",
        "The data were not audited",
        "There are no figures",
        "predictions.csv of the evaluation could not be read",
        "No other model was compared",
        "No figures of whole patients",
        "The probabilities are not calibrated",
        "the most probable class is decided for",
        "No subgroups were compared",
        "the intervals are too narrow",
        "no column of patients was named",
        "not known how often",
        "The command is not known",
        "Versions are not known",
        "How the model was trained is not known",
        "No overlays were made",
        "depend on the model's weights was not checked",
    ):
        assert sentence in text


def test_a_broken_file_does_not_stop_the_report(evaluation, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "all_results.json").write_text("{")
    (model / "finetune_recipe.yaml").write_text(": [")
    (model / "splits.json").write_text("[]")
    (evaluation / "audit.json").write_bytes(b"\xff\xfe")
    (evaluation / "figures" / "roc.png").write_bytes(b"no PNG")
    (evaluation / "figures" / "captions.json").write_text("{}")
    text = Page(write_report(evaluation, model)).text
    assert "figures/roc.png is no PNG" in text
    assert "lacks all_results.json, finetune_recipe.yaml, config.json, splits.json" in text


def test_one_class_and_undefined_figures(evaluation):
    nan = float("nan")
    change(
        evaluation, roc_auc=nan, mcc=nan, reasons={"roc_auc": "the labels hold one class only (x)"},
        intervals={"accuracy": [nan, nan]}, labels=["x", "y"],
    )  # fmt: skip
    text = Page(write_report(evaluation)).text
    assert "There is no ROC AUC: the labels hold one class only (x)" in text
    assert "nan" not in text.lower().split()
    assert "None" not in text


def test_no_evaluation_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"all_results\.json: cannot be read as the result"):
        write_report(tmp_path)
    write_json(tmp_path / "all_results.json", {"loss": 1})
    with pytest.raises(ValueError, match=r"scripts/evaluate\.py"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["all_results.json"]


def test_the_checklists_have_all_items_and_invent_nothing(evaluation):
    assert [item.number for item in checklists.CLAIM] == [str(n) for n in range(1, 45)]
    # CLAIM 2020 had 42 items; 11 (data elements) is in none of the update's
    earlier = sorted(int(i.earlier) for i in checklists.CLAIM if i.earlier != "–")
    assert earlier == [n for n in range(1, 43) if n != 11]
    main = list(dict.fromkeys(item.number.rstrip("abcdefg") for item in checklists.TRIPOD_AI))
    assert main == [str(n) for n in range(1, 28)]
    text = Page(write_report(evaluation)).text
    answered = checklists.fill_in(checklists.CLAIM, {})
    assert {answer for _, answer in answered} == {"not known"}
    # what no file can tell
    for topic in ("funding", "ethics", "annotators", "registration", "external", "use", "dates"):
        assert f'"{topic}"' not in json.dumps(sorted(_answers(evaluation)))
    assert "CLAIM: " in text
    assert "TRIPOD+AI: " in text
    # of the model's config: the window may have been said in pretraining alone
    assert _answers(evaluation)["preparation"].startswith("windows [[-600, 1500]]; resized to")


def _answers(evaluation):
    from sssd_hf.evaluation.run_files import read_run

    return checklists.answers_of(read_run(evaluation))


def test_the_summary_marks_what_is_grave(evaluation):
    results = results_of(evaluation)

    def grave(results, audit=None):
        return {part.heading for part in summary_sentences(results, audit) if part.grave}

    audit = json.loads((evaluation / "audit.json").read_text())
    assert "Data audit" in grave(results)
    assert "Data audit" in grave(results, audit)
    clean = audit | {"findings": []}
    assert "Data audit" not in grave(results, clean)
    results["intervals"]["accuracy"] = [0.5, 0.9]
    assert "Against simple baselines" in grave(results, clean)
    results["intervals"]["accuracy"] = [0.7, 0.9]
    assert "Against simple baselines" not in grave(results, clean)
    # an audit of another split is not compared with
    texts = " ".join(
        part.text for part in summary_sentences(results, clean | {"split_column": "other"})
    )
    assert "another split" in texts
    assert "thumbnails" not in texts
    worst = results["subgroups"]["sex"]["worst"]
    worst |= {"high": worst["overall"] - 0.01}
    assert "Worst subgroup" in grave(results, clean)


def test_numbers_are_not_rounded_into_certainty(evaluation):
    found = results_of(evaluation)["comparison"]
    found["metrics"]["accuracy"]["p"] = 1e-9
    change(evaluation, comparison=found)
    assert "< 0.001" in Page(write_report(evaluation)).text


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (0, "the test images were held out"),
        (7, "7 of 40 test images were used in training"),
        (None, "whether the test images were held out is not known"),
    ],
)
def test_only_images_that_training_left_alone_are_called_held_out(evaluation, seen, told):
    change(evaluation, num_test_images=40, num_test_images_seen=seen)
    answers = _answers(evaluation)
    assert told in answers["goal"]
    assert told in answers["internal"]
    first = summary_sentences(results_of(evaluation))[0]
    assert (first.heading == "Not a test" and first.grave) == bool(seen)
    assert ("7 of the 40 test images were" in Page(write_report(evaluation)).text) == bool(seen)


@pytest.mark.parametrize(
    ("shared", "told"),
    [
        (0, "Yes: no test group of the column patient_id"),
        (3, "NO: 3 of 50 test groups of the column patient_id"),
        (None, "Not known whether groups of the column patient_id"),
    ],
)
def test_groups_were_kept_together_only_where_none_is_shared(evaluation, shared, told):
    change(evaluation, num_groups_shared_with_training=shared)
    text = Page(write_report(evaluation)).text
    assert text.count(told) == 2  # the protocol and CLAIM 20
    assert _answers(evaluation)["disjoint"].startswith(told)
    assert ("3 of the 50 patients of the test" in text) == bool(shared)
    grave = [part.heading for part in summary_sentences(results_of(evaluation)) if part.grave]
    assert ("Shared patients" in grave) == bool(shared)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"split_source": "the file mine.json"}, "Known from the file mine.json."),
        ({"split_source": None, "split_column": "visit"}, "Known from the column visit."),
        ({"split_source": None, "split_column": None}, "How they were assigned is not known."),
    ],
)
def test_the_evaluation_tells_the_splits_not_the_recipe_of_the_training(evaluation, values, told):
    change(evaluation, **values)  # the recipe has official_split
    text = Page(write_report(evaluation)).text
    counts = "Images of the training run: train 1420, validation 240, test 213."
    assert f"{told} {counts}" in text
    assert _answers(evaluation)["partition"] == f"{told} {counts}"


@pytest.mark.parametrize("members", [None, 1, 5])
def test_heat_maps_of_an_ensemble_are_called_those_of_one_member(evaluation, members):
    for name in ("errors.png", "examples.png"):
        shutil.copy(evaluation / "figures" / "roc.png", evaluation / "figures" / name)
    change(evaluation, num_members=members)
    told = "The heat maps are of the first of 5 members."
    wanted = 3 if members == 5 else 0  # both captions and the checklist's item
    texts = Page(write_report(evaluation)).text
    assert texts.count(told) == wanted
    assert "the first of" not in texts.replace(told, "")
    assert (told in _answers(evaluation)["explanations"]) == (members == 5)


def test_the_check_of_explanations_is_the_evaluations_own(evaluation):
    write_json(evaluation / "explanations.json", {"verdict": "left here by something else"})
    change(evaluation, explanations=None)
    assert "left here by something else" not in Page(write_report(evaluation)).text
