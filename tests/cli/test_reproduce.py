"""A study's runs and their records."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score
from tiny_study import changed, start

from sssd_hf.cli import reproduce
from sssd_hf.cli.parsing import as_dict, parse
from sssd_hf.cli.protocol import read_options
from sssd_hf.cli.study_records import digest, draw_of, read_records

RECIPES = Path(__file__).parents[2] / "recipes"
pytestmark = pytest.mark.usefixtures("no_figures")


def test_each_run_leaves_a_record(study):
    records = read_records(study / "results", "tiny")
    places = {("draw_0", 0), ("draw_1", 0)}
    assert {variant: set(found) for variant, found in records.items()} == {
        "stable": places,
        "scratch": places,
        "external": places,
    }
    scratch = records["scratch"]["draw_0", 0]
    assert set(scratch["minutes"]) == {"finetune"}
    assert set(scratch["options"]) == {"finetune", "evaluate", "cross_validate"}
    assert records["external"]["draw_0", 0]["external"] == ["other"]
    assert records["stable"]["draw_0", 0]["options"]["pretrain"]["max_train_steps"] == 3
    assert records["stable"]["draw_1", 0]["options"]["finetune"]["group_column_name"] == "patient"


def test_a_record_is_what_the_model_said(study):
    record = read_records(study / "results", "tiny")["stable"]["draw_1", 0]
    place = study / "runs/stable/draw_1-seed_0/draw_1/evaluate/predictions.csv"
    with open(place, newline="") as file:
        rows = {digest("TINY", row["file_name"]): row for row in csv.DictReader(file)}
    found = draw_of(record)
    assert set(found.file_names) == set(rows)
    for name, label, probability, group in zip(
        found.file_names, found.labels, found.probabilities, found.groups
    ):
        assert rows[name]["label"] == record["labels"][label]
        assert float(rows[name]["probability_up"]) == pytest.approx(probability[1], abs=1e-5)
        assert digest("TINY", rows[name]["group"]) == group
    assert record["metrics"]["roc_auc"] == pytest.approx(
        roc_auc_score(found.labels, found.probabilities[:, 1])
    )


def test_a_record_names_nobody(study, study_images):
    for path in (study / "results").rglob("*.json"):
        text = path.read_text()
        for private in ("Smith", "scan_", str(study_images), str(study)):
            assert private not in text


@pytest.mark.parametrize("report", [None, "false"])
def test_each_run_has_its_report(report, study_recipe, tmp_path):
    """Folds of a cross-validation have none unless it is asked for."""
    given = [] if report is None else ["--report", report]
    (arguments,) = parse("reproduce", "", ["--output_dir", str(tmp_path), *given])
    run = reproduce.list_runs(reproduce.read_plan(str(study_recipe)), arguments)[0]
    options = read_options("", reproduce.protocol_words(run, arguments, str(study_recipe)))
    assert "report" in options.given("evaluate")
    assert as_dict(*options.parsed["evaluate"])["report"] is (report is None)


def test_what_is_there_is_not_run_again(study, study_recipe, study_images, monkeypatch):
    def refuse(*args):
        raise AssertionError("a run was started")

    monkeypatch.setattr(reproduce.cross_validate, "main", refuse)
    start(study_recipe, study_images, study)
    path = study / "results/tiny/stable/draw_0-seed_0.json"
    text = path.read_text()
    path.unlink()
    start(study_recipe, study_images, study, "--tables_only", "true")
    assert "| ours | 1 of 2 |" in (study / "results/tiny.md").read_text()
    path.write_text(text)


@pytest.mark.parametrize(
    ("where", "option"),
    [
        (("reproduce", "variants", "stable"), {"pretrain_on_all": True}),
        (("cross_validate",), {"pretrain_on_all": True}),
        (("cross_validate",), {"cross_validation": 5}),
    ],
)
def test_a_study_runs_splits_that_are_named(
    where, option, study_recipe, study_images, tmp_path, no_run
):
    def change(content):
        for name in where:
            content = content.setdefault(name, {})
        content |= option

    with pytest.raises(ValueError, match="leave out pretrain_on_all and cross_validation"):
        start(changed(study_recipe, tmp_path, change), study_images, tmp_path)


@pytest.fixture
def no_run(monkeypatch):
    """Nothing is trained."""

    def refuse(*args):
        raise AssertionError("a run was started")

    for script in (reproduce.cross_validate, reproduce.pretrain):
        monkeypatch.setattr(script, "main", refuse)


def rate(content):
    content["finetune"]["learning_rate"] = 0.01


def train_split(content):
    content["reproduce"]["protocols"]["random"]["train_split"] = "train,test"


def pretraining(content):
    content["pretrain"]["max_train_steps"] = 4


def other_sets(content):
    content["reproduce"]["variants"]["external"]["external"] = ["other", "more"]


def checkpoint(content):
    content["reproduce"]["variants"]["scratch"]["model_name_or_path"] = "somebody/encoder"


def no_pretraining(content):
    content["reproduce"]["variants"]["stable"]["skip_pretraining"] = True


def baseline(content):
    content["reproduce"]["variants"]["scratch"] = {"baseline": "resnet18"}


def data_set(content):
    content["reproduce"]["data"] = "OTHER"


def validation(content):
    content["cross_validate"] = {"split_seed": 5}


@pytest.mark.parametrize("tables_only", ["true", "false"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rate, r"learning_rate \(finetune\): None -> 0.01"),
        (train_split, r"train_split \(cross_validate.*\): train -> train,test"),
        (pretraining, r"max_train_steps \(pretrain\): 3 -> 4"),
        (other_sets, r"external: \['other'\] -> \['other', 'more'\]"),
        (checkpoint, r"started_from: {} -> {'finetune': '\w{12}'}"),
        (no_pretraining, "pretrain: done -> not done"),
        (data_set, "data: TINY -> OTHER"),
        (baseline, "baseline: not done -> done"),
        (validation, r"split_seed \(cross_validate\): 0 -> 5"),
    ],
)
def test_records_of_other_options_are_refused(
    change, message, tables_only, study, study_recipe, study_images, tmp_path, no_run
):
    """Also where a run is missing, which would be done with the new options."""
    shutil.copytree(study / "results", tmp_path / "results")
    for path in (tmp_path / "results").rglob("draw_1-seed_0.json"):
        path.unlink()
    other = changed(study_recipe, tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        start(other, study_images, tmp_path, "--tables_only", tables_only)
    assert "draw_0-seed_0.json" in str(error.value)
    assert "delete these" in str(error.value)


def test_options_that_change_no_result_are_no_others(
    study, study_recipe, study_images, tmp_path, no_run
):
    def change(content):
        content["common"]["logging_steps"] = 7
        content["evaluate"]["num_resamples"] = 30

    start(changed(study_recipe, tmp_path, change), study_images, study)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_sets, r"external: \['other'\] -> \['other', 'more'\]"),
        (pretraining, r"max_train_steps \(pretrain\): 3 -> 4"),
    ],
)
def test_a_run_goes_on_only_as_it_began(
    change, message, study, study_recipe, study_images, tmp_path, no_run
):
    """Without its record, only its folder tells how an encoder was pretrained."""
    other = changed(study_recipe, tmp_path, change)
    with pytest.raises(ValueError, match=message):
        start(
            other,
            study_images,
            study,
            "--variants",
            "external",
            "--results_dir",
            tmp_path / "results",
        )
    assert not list((tmp_path / "results").rglob("*.json"))


def test_an_encoder_of_unknown_sets_is_refused(study, study_recipe, study_images, tmp_path, no_run):
    place = tmp_path / "runs/external/draw_0-seed_0"
    shutil.copytree(study / "runs/external/draw_0-seed_0/pretrain", place / "pretrain")
    with pytest.raises(ValueError, match=r"no run.json .* which sets it was pretrained on"):
        start(study_recipe, study_images, tmp_path, "--variants", "external")
    (place / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        start(study_recipe, study_images, tmp_path, "--variants", "external")


def test_two_protocols_of_one_record_must_agree(
    study, study_recipe, study_images, tmp_path, no_run
):
    def again(content, **options):
        protocols = content["reproduce"]["protocols"]
        protocols["again"] = {**protocols["random"], "columns": ["draw_1"], **options}

    other = changed(
        study_recipe, tmp_path, lambda content: again(content, train_split="train,test")
    )
    with pytest.raises(ValueError, match=r"protocols random and again both have draw_1.*train_spl"):
        start(other, study_images, tmp_path)
    other = changed(study_recipe, tmp_path, lambda content: again(content, title="once more"))
    start(other, study_images, study)
    assert "**TINY, once more**" in (study / "results/tiny.md").read_text()


def scratch_only(content, *columns):
    content["reproduce"]["protocols"]["random"]["columns"] = list(columns)
    content["reproduce"]["variants"] = {"from scratch": {"skip_pretraining": True}}


@pytest.fixture
def renamed(study_images, tmp_path):
    """The images, their two draws in columns with names that are no folders' names."""
    copy = tmp_path / "renamed" / "target"
    shutil.copytree(study_images, copy)
    table = copy / "metadata.csv"
    table.write_text(table.read_text().replace("draw_0,draw_1", "paper split 0,by/patient"))
    return copy


def test_columns_of_any_name_are_run_and_found_again(study_recipe, renamed, tmp_path, monkeypatch):
    columns = ("paper split 0", "by/patient")
    other = changed(study_recipe, tmp_path, lambda content: scratch_only(content, *columns))
    start(other, renamed, tmp_path)
    files = sorted(p.relative_to(tmp_path) for p in (tmp_path / "results").glob("tiny/*/*.json"))
    folder = Path("results/tiny/from_scratch")
    assert files == [folder / "by_patient-seed_0.json", folder / "paper_split_0-seed_0.json"]
    found = read_records(tmp_path / "results", "tiny")["from scratch"]
    assert set(found) == {(column, 0) for column in columns}
    assert "| from scratch | 2 |" in (tmp_path / "results/tiny.md").read_text()
    monkeypatch.setattr(reproduce.cross_validate, "main", None)  # would be called
    start(other, renamed, tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [(["a b", "a_b"], "rename one"), (["a,b"], "'a,b'; rename it"), ([" a"], "' a'; rename it")],
)
def test_columns_that_cannot_be_told_apart(
    columns, message, study_recipe, study_images, tmp_path, no_run
):
    other = changed(study_recipe, tmp_path, lambda content: scratch_only(content, *columns))
    with pytest.raises(ValueError, match=message):
        start(other, study_images, tmp_path)


def test_a_record_has_the_revision_the_run_began_with(
    study_recipe, study_images, tmp_path, monkeypatch
):
    """Another one at its end, or when it goes on after an interruption, is named too."""
    other = changed(
        study_recipe, tmp_path, lambda content: scratch_only(content, "draw_0", "draw_1")
    )
    now = iter(["a1", "a1", "a1", "b2", "b2", "b2"])
    monkeypatch.setattr(reproduce, "revision", lambda: next(now))
    run = reproduce.cross_validate.main

    def stop_at_the_second(words):
        if "draw_1" in words:
            raise KeyboardInterrupt
        return run(words)

    with monkeypatch.context() as patch:
        patch.setattr(reproduce.cross_validate, "main", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            start(other, study_images, tmp_path)
    next(now)  # the code is changed
    start(other, study_images, tmp_path)
    records = read_records(tmp_path / "results", "tiny")["from scratch"]
    assert records["draw_0", 0]["revision"] == "a1"
    assert records["draw_1", 0]["revision"] == "a1, then b2"
    line = "Revisions of the code: a1 (1 run); a1, then b2 (1 run)."
    assert line in (tmp_path / "results/tiny.md").read_text().splitlines()


def test_a_recipe_changed_during_a_run_leaves_no_record(
    study_recipe, study_images, tmp_path, monkeypatch
):
    other = changed(study_recipe, tmp_path, lambda content: scratch_only(content, "draw_0"))
    run = reproduce.cross_validate.main

    def change_first(words):
        changed(other, tmp_path, rate)
        return run(words)

    monkeypatch.setattr(reproduce.cross_validate, "main", change_first)
    with pytest.raises(ValueError, match=r"learning_rate \(finetune\): None -> 0.01"):
        start(other, study_images, tmp_path)
    assert not list((tmp_path / "results").rglob("*.json"))


def test_an_option_newer_than_a_record_has_its_default(
    study, study_recipe, study_images, tmp_path, no_run
):
    shutil.copytree(study / "results", tmp_path / "results")
    for path in (tmp_path / "results").glob("tiny/*/*.json"):
        record = json.loads(path.read_text())
        del record["options"]["finetune"]["positive_label"]
        path.write_text(json.dumps(record))
    start(study_recipe, study_images, tmp_path, "--tables_only", "true")

    def change(content):
        content["common"]["positive_label"] = "down"

    with pytest.raises(ValueError, match=r"positive_label \(.*finetune.*\): None -> down"):
        start(
            changed(study_recipe, tmp_path, change), study_images, tmp_path, "--tables_only", "true"
        )


def test_what_a_run_needs_is_looked_for_before_the_first_run_begins(
    study_recipe, study_images, tmp_path
):
    def starts_elsewhere(content):
        content["reproduce"]["variants"]["scratch"]["model_name_or_path"] = str(tmp_path / "none")

    def other_sets(content):
        content["reproduce"]["variants"]["external"]["external"] = ["gone"]

    def pretraining_starts_elsewhere(content):
        content["pretrain"]["model_name_or_path"] = "nobody/gone"

    for change, named in (
        (starts_elsewhere, "the variant scratch starts from .*none"),
        (pretraining_starts_elsewhere, "the variant stable starts from nobody/gone"),
        (other_sets, "the variant external is pretrained on .*gone too, which is no folder"),
    ):
        with pytest.raises(ValueError, match=named):
            start(changed(study_recipe, tmp_path, change), study_images, tmp_path / "out")
        assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variants", "best"], "the plan has stable"),
        (["--protocols", "official"], "the plan has random"),
    ],
)
def test_unknown_names(options, message, study_recipe, study_images, tmp_path):
    with pytest.raises(ValueError, match=message):
        start(study_recipe, study_images, tmp_path, *options)


def test_values_of_a_plan_stay_as_they_are():
    options = {
        "positive_label": "CT_COVID",
        "skip_pretraining": True,
        "images": ["A", "b"],
        "x": None,
    }
    assert reproduce._words(options) == [
        "--positive_label", "CT_COVID", "--skip_pretraining", "true", "--images", "A", "b",
    ]  # fmt: skip


def test_a_recipe_without_a_plan(tmp_path, study_images):
    path = tmp_path / "plain.yaml"
    path.write_text("common: {seed: 1}")
    with pytest.raises(ValueError, match="section reproduce"):
        start(path, study_images, tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        start(tmp_path / "absent.yaml", study_images, tmp_path)


def test_a_broken_record_is_named(study, tmp_path):
    folder = tmp_path / "tiny" / "stable"
    folder.mkdir(parents=True)
    (folder / "draw_0-seed_0.json").write_text(json.dumps({"split": "draw_0"}))
    with pytest.raises(ValueError, match="no record"):
        read_records(tmp_path, "tiny")
