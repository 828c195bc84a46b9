"""A study in small: its runs, their records, and the tables made of these."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.metrics import roc_auc_score
from tiny_runs import SIZES

from sssd_hf.cli import reproduce
from sssd_hf.cli.external import write_external_table
from sssd_hf.cli.parsing import as_dict, parse
from sssd_hf.cli.protocol import read_options
from sssd_hf.cli.study_records import digest, draw_of, read_records
from sssd_hf.cli.study_summary import summarise_study
from sssd_hf.cli.study_tables import tables
from sssd_hf.data import duplicates

RECIPES = Path(__file__).parents[2] / "recipes"
pytestmark = pytest.mark.usefixtures("no_figures")


def draw(path, light, seed):
    pixels = np.random.default_rng(seed).uniform(0, 90, (20, 20))
    pixels[10 * light :][:10] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """24 images of 12 patients with two draws of a split, and beside them another set, of which
    two images are copies of images of the first."""
    root = tmp_path_factory.mktemp("study")
    rows = []
    for i in range(24):
        draw(root / "target" / f"scan_{i:02d}.png", i // 2 % 2, i)
        parts = ["test" if i // 2 % 3 == k else "train" for k in range(2)]
        rows.append([f"scan_{i:02d}.png", ["up", "down"][i // 2 % 2], f"Smith{i // 2}", *parts])
    with open(root / "target" / "metadata.csv", "w", newline="") as file:
        head = ["file_name", "label", "patient", "draw_0", "draw_1"]
        csv.writer(file).writerows([head, *rows])
    for i in range(6):
        draw(root / "other" / f"{i}.png", 0, 100 + i)
    for i, name in ((0, "copy_of_test"), (4, "copy_of_train")):
        source = root / "target" / f"scan_{i:02d}.png"
        (root / "other" / f"{name}.png").write_bytes(source.read_bytes())
    return root / "target"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    shape = {"image_size": 16, "patch_size": 8, "config_overrides": SIZES}
    content = {
        "common": {
            "group_column_name": "patient",
            "train_split": "train",
            "train_val_split": 0,
            **shape,
        },
        "pretrain": {"max_train_steps": 3, "per_device_train_batch_size": 4},
        "finetune": {"max_train_steps": 3, "metric_for_best_model": "last"},
        "evaluate": {"num_resamples": 20},
        "reproduce": {
            "data": "TINY",
            "protocols": {
                "random": {"title": "draws", "columns": ["draw_0", "draw_1"], "seeds": [0]}
            },
            "variants": {
                "stable": {"title": "ours"},
                "scratch": {"title": "random weights", "skip_pretraining": True},
                "external": {"external": ["other"]},
            },
        },
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def tables_of(results, plan):
    return tables(summarise_study(results, "tiny", plan))


def start(recipe, images, root, *options):
    argv = ["--recipe", recipe, "--data_dir", images, "--output_dir", root / "runs"]
    argv += ["--results_dir", root / "results", "--cards_dir", root / "cards"]
    argv += ["--report", "false", *options]
    assert reproduce.main([str(word) for word in argv]) == 0


@pytest.fixture(scope="module")
def study(recipe, images, tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    start(recipe, images, root)
    return root


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


def test_a_record_names_nobody(study, images):
    for path in (study / "results").rglob("*.json"):
        text = path.read_text()
        for private in ("Smith", "scan_", str(images), str(study)):
            assert private not in text


def test_tables_are_of_the_records(study):
    text = (study / "results/tiny.md").read_text()
    records = read_records(study / "results", "tiny")
    for variant, title in (("stable", "ours"), ("scratch", "random weights")):
        values = [100 * record["metrics"]["accuracy"] for record in records[variant].values()]
        row = next(line for line in text.splitlines() if line.startswith(f"| {title} "))
        mean, spread = re.search(r"\| 2 \| ([\d.]+) ± ([\d.]+)", row).groups()
        assert float(mean) == pytest.approx(np.mean(values), abs=0.051)
        assert float(spread) == pytest.approx(np.std(values, ddof=1), abs=0.051)
    difference = np.mean([
        records["stable"][place]["metrics"]["accuracy"]
        - records["scratch"][place]["metrics"]["accuracy"]
        for place in records["stable"]
    ])  # fmt: skip
    row = next(line for line in text.splitlines() if line.startswith("| stable - scratch | 2 "))
    assert float(row.split("|")[3]) == pytest.approx(100 * difference, abs=0.051)


@pytest.mark.parametrize("report", [None, "false"])
def test_each_run_has_its_report(report, recipe, tmp_path):
    """Folds of a cross-validation have none unless it is asked for."""
    given = [] if report is None else ["--report", report]
    (arguments,) = parse("reproduce", "", ["--output_dir", str(tmp_path), *given])
    run = reproduce.list_runs(reproduce.read_plan(str(recipe)), arguments)[0]
    options = read_options("", reproduce.protocol_words(run, arguments, str(recipe)))
    assert "report" in options.given("evaluate")
    assert as_dict(*options.parsed["evaluate"])["report"] is (report is None)


def test_what_is_there_is_not_run_again(study, recipe, images, monkeypatch):
    def refuse(*args):
        raise AssertionError("a run was started")

    monkeypatch.setattr(reproduce.cross_validate, "main", refuse)
    start(recipe, images, study)
    path = study / "results/tiny/stable/draw_0-seed_0.json"
    text = path.read_text()
    path.unlink()
    start(recipe, images, study, "--tables_only", "true")
    assert "| ours | 1 of 2 |" in (study / "results/tiny.md").read_text()
    path.write_text(text)


def test_images_can_be_left_out_of_a_table(study, recipe, images):
    records = read_records(study / "results", "tiny")
    plan = yaml.safe_load(recipe.read_text())["reproduce"]
    protocol = plan["protocols"]["random"] | {"columns": ["draw_0"]}

    def table(names):
        changed = protocol | {"without": names}
        return tables_of(study / "results", plan | {"protocols": {"one": changed}})

    record = records["stable"]["draw_0", 0]
    left_out = sorted(p.name for p in images.glob("*.png"))[:2]
    kept = [i for i, name in enumerate(record["images"]) if name not in map_digests(left_out)]
    assert len(kept) == len(record["images"]) - 2
    truth = np.array(record["truth"])[kept]
    right = np.array(record["probabilities"])[kept].argmax(1) == truth
    assert f"| ours | 1 | {100 * right.mean():.1f} |" in table(left_out)
    assert table([]) == tables_of(study / "results", plan | {"protocols": {"one": protocol}})
    with pytest.raises(ValueError, match="is no test image of stable"):
        table(["scan_02.png"])


def map_digests(names):
    return {digest("TINY", name) for name in names}


@pytest.mark.parametrize(
    ("where", "option"),
    [
        (("reproduce", "variants", "stable"), {"pretrain_on_all": True}),
        (("cross_validate",), {"pretrain_on_all": True}),
        (("cross_validate",), {"cross_validation": 5}),
    ],
)
def test_a_study_runs_splits_that_are_named(where, option, recipe, images, tmp_path, no_run):
    def change(content):
        for name in where:
            content = content.setdefault(name, {})
        content |= option

    with pytest.raises(ValueError, match="leave out pretrain_on_all and cross_validation"):
        start(changed(recipe, tmp_path, change), images, tmp_path)


def changed(recipe, folder, change):
    """A recipe of the same name, with other content."""
    content = yaml.safe_load(recipe.read_text())
    change(content)
    path = folder / recipe.name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


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
    change, message, tables_only, study, recipe, images, tmp_path, no_run
):
    """Also where a run is missing, which would be done with the new options."""
    shutil.copytree(study / "results", tmp_path / "results")
    for path in (tmp_path / "results").rglob("draw_1-seed_0.json"):
        path.unlink()
    other = changed(recipe, tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        start(other, images, tmp_path, "--tables_only", tables_only)
    assert "draw_0-seed_0.json" in str(error.value)
    assert "delete these" in str(error.value)


def test_options_that_change_no_result_are_no_others(study, recipe, images, tmp_path, no_run):
    def change(content):
        content["common"]["logging_steps"] = 7
        content["evaluate"]["num_resamples"] = 30

    start(changed(recipe, tmp_path, change), images, study)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_sets, r"external: \['other'\] -> \['other', 'more'\]"),
        (pretraining, r"max_train_steps \(pretrain\): 3 -> 4"),
    ],
)
def test_a_run_goes_on_only_as_it_began(change, message, study, recipe, images, tmp_path, no_run):
    """Without its record, only its folder tells how an encoder was pretrained."""
    other = changed(recipe, tmp_path, change)
    with pytest.raises(ValueError, match=message):
        start(other, images, study, "--variants", "external", "--results_dir", tmp_path / "results")
    assert not list((tmp_path / "results").rglob("*.json"))


def test_an_encoder_of_unknown_sets_is_refused(study, recipe, images, tmp_path, no_run):
    place = tmp_path / "runs/external/draw_0-seed_0"
    shutil.copytree(study / "runs/external/draw_0-seed_0/pretrain", place / "pretrain")
    with pytest.raises(ValueError, match=r"no run.json .* which sets it was pretrained on"):
        start(recipe, images, tmp_path, "--variants", "external")
    (place / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        start(recipe, images, tmp_path, "--variants", "external")


def test_two_protocols_of_one_record_must_agree(study, recipe, images, tmp_path, no_run):
    def again(content, **options):
        protocols = content["reproduce"]["protocols"]
        protocols["again"] = {**protocols["random"], "columns": ["draw_1"], **options}

    other = changed(recipe, tmp_path, lambda content: again(content, train_split="train,test"))
    with pytest.raises(ValueError, match=r"protocols random and again both have draw_1.*train_spl"):
        start(other, images, tmp_path)
    other = changed(recipe, tmp_path, lambda content: again(content, title="once more"))
    start(other, images, study)
    assert "**TINY, once more**" in (study / "results/tiny.md").read_text()


def scratch_only(content, *columns):
    content["reproduce"]["protocols"]["random"]["columns"] = list(columns)
    content["reproduce"]["variants"] = {"from scratch": {"skip_pretraining": True}}


@pytest.fixture
def renamed(images, tmp_path):
    """The images, their two draws in columns with names that are no folders' names."""
    copy = tmp_path / "renamed" / "target"
    shutil.copytree(images, copy)
    table = copy / "metadata.csv"
    table.write_text(table.read_text().replace("draw_0,draw_1", "paper split 0,by/patient"))
    return copy


def test_columns_of_any_name_are_run_and_found_again(recipe, renamed, tmp_path, monkeypatch):
    columns = ("paper split 0", "by/patient")
    other = changed(recipe, tmp_path, lambda content: scratch_only(content, *columns))
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
def test_columns_that_cannot_be_told_apart(columns, message, recipe, images, tmp_path, no_run):
    other = changed(recipe, tmp_path, lambda content: scratch_only(content, *columns))
    with pytest.raises(ValueError, match=message):
        start(other, images, tmp_path)


def test_a_record_has_the_revision_the_run_began_with(recipe, images, tmp_path, monkeypatch):
    """Another one at its end, or when it goes on after an interruption, is named too."""
    other = changed(recipe, tmp_path, lambda content: scratch_only(content, "draw_0", "draw_1"))
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
            start(other, images, tmp_path)
    next(now)  # the code is changed
    start(other, images, tmp_path)
    records = read_records(tmp_path / "results", "tiny")["from scratch"]
    assert records["draw_0", 0]["revision"] == "a1"
    assert records["draw_1", 0]["revision"] == "a1, then b2"
    line = "Revisions of the code: a1 (1 run); a1, then b2 (1 run)."
    assert line in (tmp_path / "results/tiny.md").read_text().splitlines()


def test_a_recipe_changed_during_a_run_leaves_no_record(recipe, images, tmp_path, monkeypatch):
    other = changed(recipe, tmp_path, lambda content: scratch_only(content, "draw_0"))
    run = reproduce.cross_validate.main

    def change_first(words):
        changed(other, tmp_path, rate)
        return run(words)

    monkeypatch.setattr(reproduce.cross_validate, "main", change_first)
    with pytest.raises(ValueError, match=r"learning_rate \(finetune\): None -> 0.01"):
        start(other, images, tmp_path)
    assert not list((tmp_path / "results").rglob("*.json"))


def test_a_row_is_of_records_of_one_kind(study, recipe, tmp_path):
    """From the records alone, whatever the recipe has."""
    shutil.copytree(study / "results", tmp_path / "results")
    path = tmp_path / "results/tiny/stable/draw_1-seed_0.json"
    record = json.loads(path.read_text())
    plan = yaml.safe_load(recipe.read_text())["reproduce"]
    assert "Revisions of the code" not in tables_of(tmp_path / "results", plan)
    path.write_text(json.dumps({**record, "revision": "another"}))
    text = tables_of(tmp_path / "results", plan)
    (line,) = (x for x in text.splitlines() if x.startswith("Revisions of the code: "))
    named = line.removeprefix("Revisions of the code: ").removesuffix(".").split("; ")
    assert set(named) == {"another (1 run)", f"{record['revision']} (5 runs)"}
    record["options"]["finetune"]["weight_decay"] = 0.5
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"stable: .*weight_decay \(finetune\): 0.05 -> 0.5"):
        tables_of(tmp_path / "results", plan)


def test_an_option_newer_than_a_record_has_its_default(study, recipe, images, tmp_path, no_run):
    shutil.copytree(study / "results", tmp_path / "results")
    for path in (tmp_path / "results").glob("tiny/*/*.json"):
        record = json.loads(path.read_text())
        del record["options"]["finetune"]["positive_label"]
        path.write_text(json.dumps(record))
    start(recipe, images, tmp_path, "--tables_only", "true")

    def change(content):
        content["common"]["positive_label"] = "down"

    with pytest.raises(ValueError, match=r"positive_label \(.*finetune.*\): None -> down"):
        start(changed(recipe, tmp_path, change), images, tmp_path, "--tables_only", "true")


def test_data_that_changed_between_runs_make_no_row(study, recipe, tmp_path):
    shutil.copytree(study / "results", tmp_path / "results")
    path = tmp_path / "results/tiny/scratch/draw_1-seed_0.json"
    record = json.loads(path.read_text())
    record["truth"][0] = 1 - record["truth"][0]
    path.write_text(json.dumps(record))
    plan = yaml.safe_load(recipe.read_text())["reproduce"]
    with pytest.raises(ValueError, match=r"draw_1: the records of .*, seed 0 are of other images"):
        tables_of(tmp_path / "results", plan)


def test_an_interval_that_is_not_known_is_a_dash(study, recipe, tmp_path):
    """All images of a class are of one patient."""
    shutil.copytree(study / "results", tmp_path / "results")
    for path in (tmp_path / "results").glob("tiny/*/*.json"):
        record = json.loads(path.read_text())
        record["groups"] = [
            "one" if label else group for group, label in zip(record["groups"], record["truth"])
        ]
        path.write_text(json.dumps(record))
    text = tables_of(tmp_path / "results", yaml.safe_load(recipe.read_text())["reproduce"])
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ours")]
    assert " to " in rows[0][4]
    assert rows[0][6] == " - "
    areas = text[text.index("difference in AUC") :]
    assert re.search(r"^\| stable - scratch \| 2 \| [+-][\d.]+ \| - \| ", areas, re.M)
    assert "nan" not in text


def test_copies_of_test_images_are_not_pretrained_on(images, tmp_path):
    path = tmp_path / "table" / "images.csv"
    counts = write_external_table(path, images, "draw_0", "train", [images.parent / "other"])
    assert counts == {"target": 16, "other": 7, "other, copies left out": 1}
    with open(path, newline="") as file:
        names = [row["file_name"].rsplit("/", 1)[1] for row in csv.DictReader(file)]
    assert "copy_of_test.png" not in names
    assert "copy_of_train.png" in names
    assert "scan_00.png" not in names  # a test image itself


def test_what_a_run_needs_is_looked_for_before_the_first_run_begins(recipe, images, tmp_path):
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
            start(changed(recipe, tmp_path, change), images, tmp_path / "out")
        assert not (tmp_path / "out" / "runs").exists()


def test_copies_that_cannot_be_left_out_are_refused(images, tmp_path, monkeypatch):
    import nibabel

    folder = tmp_path / "volumes"
    folder.mkdir()
    volume = np.random.default_rng(0).uniform(0, 200, (20, 20, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "scan.nii")
    with pytest.raises(ValueError, match="volumes or files of several frames"):
        write_external_table(tmp_path / "a.csv", images, "draw_0", "train", [folder])
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 0)
    with pytest.raises(ValueError, match="more near copies than can be listed"):
        write_external_table(
            tmp_path / "b.csv", images, "draw_0", "train", [images.parent / "other"]
        )


def test_the_protocols_own_training_part_is_pretrained_on(recipe, images, tmp_path, monkeypatch):
    """Wherever the recipe names it: with another part, test images would be pretrained on."""

    def turn_round(content):
        content["cross_validate"] = {"train_split": "test", "test_split": "train"}

    def stop(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce.pretrain, "main", stop)
    with pytest.raises(KeyboardInterrupt):
        start(changed(recipe, tmp_path, turn_round), images, tmp_path, "--variants", "external")
    with open(tmp_path / "runs/external/draw_0-seed_0/external/images.csv", newline="") as file:
        names = [Path(row["file_name"]) for row in csv.DictReader(file)]
    own = {int(name.stem[-2:]) for name in names if name.parent == images}
    assert own == {i for i in range(24) if i // 2 % 3 == 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variants", "best"], "the plan has stable"),
        (["--protocols", "official"], "the plan has random"),
    ],
)
def test_unknown_names(options, message, recipe, images, tmp_path):
    with pytest.raises(ValueError, match=message):
        start(recipe, images, tmp_path, *options)


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


def test_a_recipe_without_a_plan(tmp_path, images):
    path = tmp_path / "plain.yaml"
    path.write_text("common: {seed: 1}")
    with pytest.raises(ValueError, match="section reproduce"):
        start(path, images, tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        start(tmp_path / "absent.yaml", images, tmp_path)


def test_a_broken_record_is_named(study, tmp_path):
    folder = tmp_path / "tiny" / "stable"
    folder.mkdir(parents=True)
    (folder / "draw_0-seed_0.json").write_text(json.dumps({"split": "draw_0"}))
    with pytest.raises(ValueError, match="no record"):
        read_records(tmp_path, "tiny")
