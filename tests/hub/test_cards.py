"""Cards, by the Hub's documented rules, by the client's own parser, and against hostile text."""

import json
from urllib.parse import urlsplit

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from sssd_hf.hub.card_rules import check_card, metadata_problems
from sssd_hf.hub.card_text import fenced, markdown
from sssd_hf.hub.cards import MARK, CardOptions, unfinished_card, write_card

HOSTILE = "a|b `x` **c** <script>alert(1)</script>\n---\n[l](http://evil.example) {{ 7*7 }} ![i](u)"
CONFIG = {
    "architectures": ["SSSDForImageClassification"], "model_type": "sssd", "image_size": 64,
    "num_channels": 1, "num_hidden_layers": 6, "hidden_size": 128,
    "id2label": {"0": "no", "1": "yes"},
    "calibration": {"temperature": 1.7, "threshold": 0.42, "rule": "sensitivity>=0.9",
                    "fitted_on": "118 validation images"},
}  # fmt: skip
RECIPE = {"finetune": {
    "data_dir": "/home/erika/patients", "model_name_or_path": "runs/pre", "seed": 3,
    "group_column_name": "patient_id", "split_column": "official_split", "train_split": "train,val",
    "learning_rate": 5e-4, "num_train_epochs": 40.0,
}}  # fmt: skip
TRAINED = {
    "train_runtime": 7200.0, "train_steps": 560, "num_train_images": 543, "chosen_by": "last",
    "hardware": {"device": "cpu", "name": "A Processor", "processes": 2, "threads": 3},
    "versions": {"torch": "2.13.0"},
}  # fmt: skip
METRICS = {"accuracy": 0.714, "roc_auc": 0.801, "recall": 0.5, "specificity": None, "ece": 0.05}
EVALUATED = {
    **METRICS, "intervals": {"accuracy": [0.641, 0.783], "roc_auc": [0.712, 0.878],
                             "recall": [0.4, 0.6], "specificity": [None, None]},
    "interval_method": "95 % percentile bootstrap of groups (patient_id)",
    "num_test_images": 203, "num_test_groups": 95, "labels": ["no", "yes"],
    "positive_label": "yes", "confusion_matrix": [[80, 25], [33, 65]],
    "calibration": {"used": True, "uncalibrated": {"log_loss": 0.7, "brier": 0.25, "ece": 0.09},
                    "calibrated": {"log_loss": 0.6, "brier": 0.21, "ece": 0.03}},
    "operating_point": {"threshold": 0.42, "rule": "sensitivity>=0.9", "fitted_on": "validation",
                        "metrics": {"recall": 0.91, "specificity": 0.33},
                        "intervals": {"recall": [0.85, 0.96], "specificity": [0.2, 0.5]}},
    "aggregated": {"method": "mean", "count": 95, "metrics": {"accuracy": 0.74},
                   "intervals": {"accuracy": [0.65, 0.83]}},
    "subgroups": {"sex": {"subgroups": {
        "f": {"num_images": 100, "num_groups": 40, "small": False,
              "metrics": {"balanced_accuracy": 0.7},
              "intervals": {"balanced_accuracy": [0.6, 0.8]}},
        "patient 77 alone": {"num_images": 2, "num_groups": 1, "small": True, "metrics": {}},
    }, "worst": None}},
    "split_column": "official_split", "test_split": "test", "times_test_was_read": 3,
    "command": "/home/erika/.venv/bin/python scripts/evaluate.py --data_dir '/data/my patients' "
               "--model_name_or_path runs/fine --num_resamples 2000",
}  # fmt: skip
AUDIT = {"findings": [{
    "kind": "leakage", "severity": "critical", "advice": "Move them.", "numbers": {},
    "text": "2 of 203 test images equal one in training (/home/erika/patients/p1.png).",
    "examples": ["p1.png (test)"],
}]}  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    """A fine-tuned model's folder, its evaluation and an audit."""
    model, evaluation = tmp_path / "fine", tmp_path / "eval"
    model.mkdir()
    evaluation.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    (model / "all_results.json").write_text(json.dumps(TRAINED))
    (model / "finetune_recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (evaluation / "all_results.json").write_text(json.dumps(EVALUATED))
    (tmp_path / "audit.json").write_text(json.dumps(AUDIT))
    return model, evaluation, tmp_path / "audit.json"


def body(path):
    """What follows the metadata."""
    return path.read_text().split("\n---\n", 1)[1]


def full_card(folders, **options):
    model, evaluation, audit = folders
    return write_card(
        model, evaluation, audit_file=audit, options=CardOptions("me/model", **options)
    )


def test_the_figures_are_those_measured_with_interval_and_protocol(folders):
    card = ModelCard.load(full_card(folders, license="cc-by-4.0", dataset_title="COVID-CT"))
    found = {result.metric_type: result for result in card.data.eval_results}
    assert {key: found[key].metric_value for key in found} == {
        key: value for key, value in METRICS.items() if value is not None
    }
    assert found["recall"].metric_name == "Sensitivity (recall): yes found"
    accuracy = found["accuracy"]
    assert accuracy.metric_args["interval"] == [0.641, 0.783]
    assert accuracy.metric_args["num_test_groups"] == 95
    assert "bootstrap of groups" in accuracy.metric_args["interval_method"]
    assert "'test' of the column 'official_split'" in accuracy.dataset_args["protocol"]
    assert (accuracy.dataset_name, accuracy.dataset_split) == ("COVID-CT", "test")
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license == "cc-by-4.0"
    text = card.text
    assert "| Accuracy | 71.4 % | 64.1 to 78.3 % |" in text
    assert "| Specificity: no found | undefined | none |" in text
    assert "| **yes** | 33 | 65 |" in text
    assert "| calibrated | 0.600 | 0.210 | 0.030 |" in text
    at_the_threshold = "| Sensitivity (recall): yes found | 91.0 % | 85.0 to 96.0 % |"
    assert at_the_threshold in text
    assert "temperature 1.700" in text
    assert "read this test split 3 times" in text
    assert "mean, 95 of them): Accuracy 74.0 % (95 % interval 65.0 to 83.0 %)" in text
    assert "| f | 100 | 40 | 70.0 % | 60.0 to 80.0 % |" in text
    # energy: 2 hours, 2 processes of 3 threads of 10 W
    assert "about 0.12 kWh (not measured: time x 60 W, an assumption of 10 W a thread)" in text
    assert "not a medical device" in text
    assert "Not evaluated" not in text.split("## Limits")[0]


@pytest.mark.parametrize(
    ("shared", "column", "kept"),
    [(0, "official_split", "images with the same patient"), (None, None, "not checked of images"),
     (5, "official_split", "not images with the same"), (None, "cut", "not checked of images")],
)  # fmt: skip
def test_what_a_split_column_keeps_together_is_not_taken_on_trust(folders, shared, column, kept):
    model, evaluation, _ = folders
    options = {**RECIPE["finetune"], "group_column_name": "patient", "split_column": column}
    (model / "finetune_recipe.yaml").write_text(yaml.safe_dump({"finetune": options}))
    found = {**EVALUATED, "num_groups_shared_with_training": shared}
    (evaluation / "all_results.json").write_text(json.dumps(found))
    assert f"- Kept together in a split: {kept}" in body(full_card(folders))


def test_what_was_not_chosen_on_validation_is_not_said_to_be(folders):
    (folders[0] / "all_results.json").write_text(json.dumps({**TRAINED, "chosen_by": "roc_auc"}))
    assert "chosen on validation images." in body(full_card(folders))
    (folders[0] / "all_results.json").write_text(json.dumps({**TRAINED, "chosen_by": "last"}))
    assert "nothing was chosen on the way" in body(full_card(folders))


def test_nothing_of_the_machine_or_of_single_patients_is_told(folders):
    text = full_card(folders).read_text()
    for secret in ("erika", "/home", "my patients", "p1.png", "runs/pre\n", "patient 77"):
        assert secret not in text, secret
    assert "--data_dir <data_dir> --model_name_or_path <model_name_or_path>" in text
    assert "--recipe finetune_recipe.yaml" in text
    assert "1 smaller subgroups are left out" in text
    assert "2 of 203 test images equal one in training" in text


def test_a_card_without_evaluation_says_so_in_its_first_line(folders):
    path = write_card(folders[0])
    assert body(path).strip().startswith("**Not evaluated: ")
    assert "model-index" not in path.read_text()
    assert "No audit of the data was given" in body(path)
    first = body(full_card(folders)).strip().split("\n")[0]
    assert first.startswith("# ")


def evaluated_card(folders, **changed):
    """(text, metadata) of a card whose evaluation differs so."""
    (folders[1] / "all_results.json").write_text(json.dumps({**EVALUATED, **changed}))
    path = full_card(folders, dataset_title="COVID-CT")
    card = ModelCard.load(path)
    return body(path), card.data


ALL = {"test_split": "all", "split_column": None, "split_source": "all images of the data"}
ELSEWHERE = "Whether the tested images are of another hospital or device than those of the training"
NOWHERE = "No evaluation on images of another hospital or device was given"


def test_images_of_the_training_are_said_first_and_give_no_metadata(folders):
    text, data = evaluated_card(
        folders, **ALL, num_test_images_seen=203, num_groups_shared_with_training=95
    )
    first, second = text.strip().split("\n\n")[:2]
    assert first.startswith("**Not a test: 203 of the 203 images were, by their file names, used")
    assert second.startswith("**Not a test on new patients or groups: 95 of the 95 have images in")
    assert text.strip().split("\n\n")[2].startswith("# ")
    # whoever reads the table or the section alone learns it too
    assert "| on 203 images of 95 patients or groups, 203 of them not new to the model |" in text
    section = text.split("## Evaluation\n")[1].strip()
    assert section.startswith("Not a test: 203 of the 203 images")
    assert "model-index" not in folders[0].joinpath("README.md").read_text()
    assert (data.eval_results, data.metrics) == (None, None)


def test_patients_of_the_training_are_said_first_and_counted_in_the_metadata(folders):
    text, data = evaluated_card(folders, num_test_images_seen=0, num_groups_shared_with_training=7)
    assert text.strip().startswith("**Not a test on new patients or groups: 7 of the 95 have")
    assert "Not a test:" not in text
    told = data.eval_results[0].dataset_args
    assert told["num_test_images_seen"] == 0
    assert told["num_groups_shared_with_training"] == 7
    assert told["protocol"].startswith("Not a test on new patients or groups: 7 of the 95")


def test_all_images_of_other_data_are_no_test_split_of_the_trainings(folders):
    text, data = evaluated_card(
        folders, **ALL, num_test_images_seen=0, num_groups_shared_with_training=0
    )
    assert text.strip().startswith("# ")
    assert "Test images: all images of the data that were given, not a split of them" in text
    assert "Test split" not in text
    assert "read these images 3 times" in text
    assert ELSEWHERE in text
    assert NOWHERE not in text
    result = data.eval_results[0]
    assert result.dataset_name == "data that no record names"
    assert result.dataset_split == "all"
    assert result.dataset_args["num_test_images_seen"] == 0


def test_a_split_of_other_data_is_not_called_the_trainings(folders):
    text, data = evaluated_card(folders, other_data=True, num_test_images_seen=None)
    assert "said to be of another data set than the training's" in text
    assert NOWHERE not in text
    assert ELSEWHERE not in text
    assert data.eval_results[0].dataset_name == "data that no record names"


@pytest.mark.parametrize(
    ("source", "column", "told"),
    [
        ("the column part", "part", "'test' of the column part;"),
        ("the column split", None, "'test' of the column split;"),
        ("the file 'St Mary/x' (cut by chance; seed 3)", None,
         "'test', known from the file &lt;path&gt; (cut by chance; seed 3);"),
        (None, None, "'test'; how its images were assigned is not recorded;"),
    ],
)  # fmt: skip
def test_whence_the_test_split_is_known(folders, source, column, told):
    text, _ = evaluated_card(folders, split_source=source, split_column=column)
    assert f"Test split: {told}" in text
    assert NOWHERE in text
    assert ELSEWHERE not in text


def test_what_is_not_known_of_the_training_is_a_limit(folders):
    images, patients = (
        f"Whether the training had some of the tested {what} is not recorded."
        for what in ("images", "patients")
    )
    text, data = evaluated_card(folders)
    assert images in text
    assert patients in text
    assert set(data.eval_results[0].dataset_args) == {"protocol"}
    text, _ = evaluated_card(folders, num_test_images_seen=0, num_groups_shared_with_training=0)
    assert images not in text
    assert patients not in text


def test_a_folder_with_a_config_alone_gets_a_card(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["SSSDModel"]}))
    text = write_card(tmp_path).read_text()
    assert "No record of the training was found" in text
    assert ModelCard(text).data.pipeline_tag == "image-feature-extraction"


def test_hostile_text_is_shown_and_does_nothing(folders):
    model, evaluation, audit = folders
    config = {**CONFIG, "id2label": {"0": HOSTILE, "1": "```\n# big"}}
    (model / "config.json").write_text(json.dumps(config))
    results = {**EVALUATED, "labels": [HOSTILE, "b"], "interval_method": HOSTILE,
               "test_split": HOSTILE, "command": "python x.py '```' " + HOSTILE}  # fmt: skip
    results |= {"split_source": HOSTILE, "num_groups_shared_with_training": HOSTILE}
    results["subgroups"] = {HOSTILE: EVALUATED["subgroups"]["sex"]}
    (evaluation / "all_results.json").write_text(json.dumps(results))
    audit.write_text(json.dumps({"findings": [{"severity": "note", "kind": "x", "text": HOSTILE}]}))
    path = full_card(folders, dataset_title=HOSTILE)
    card = ModelCard.load(path)  # the metadata are read back, as they were
    assert card.data.eval_results[0].dataset_name == " ".join(HOSTILE.split())
    tokens = parse_markdown(card.text)
    marks = [t.content for t in tokens if t.type in ("html_block", "html_inline")]
    assert marks == [f"<!-- {MARK} -->"]
    links = [t.attrs["href"] for t in tokens if t.type == "link_open"]
    assert {urlsplit(link).hostname for link in links} == {"doi.org", "arxiv.org"}
    assert not [t for t in tokens if t.type == "image"]
    headings = [t.content for t, before in zip(tokens[1:], tokens) if before.type == "heading_open"]
    assert "big" not in headings
    assert len(headings) == 12
    # as it was written, on one line, wherever it stands; {{ 7*7 }} was not worked out
    shown = [t.content for t in tokens if t.type == "text"]
    assert sum("{{ 7" in text for text in shown) >= 4
    code = [t.content for t in tokens if t.type == "fence"]
    assert "7*7" in " ".join(code)
    # no cell broke its table
    width = cells = 0
    for token in tokens:
        if token.type == "tr_open":
            cells = 0
        elif token.type in ("th_open", "td_open"):
            cells += 1
        elif token.type == "tr_close":
            width = width or cells
            assert cells == width
        elif token.type == "table_close":
            width = 0


def parse_markdown(text):
    """All tokens, inline ones too, as GitHub's and the Hub's Markdown has them."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    return [t for token in tokens for t in (token, *(token.children or []))]


def test_markdown_is_escaped_as_commonmark_reads_it():
    assert markdown("a_b*c*") == r"a\_b\*c\*"
    assert markdown("1. x") == r"1\. x"
    assert markdown("0.05") == "0.05"
    assert markdown("x\ny\x00z") == "x yz"
    assert markdown("<b> & |") == r"&lt;b&gt; &amp; \|"
    assert markdown("- x") == r"\- x"
    assert fenced("a ```` b", "sh").startswith("`````sh\n")


def test_an_evaluation_of_another_model_is_refused(folders, tmp_path):
    model, evaluation, _ = folders
    other = tmp_path / "other"
    other.mkdir()
    results = {**EVALUATED, "model_name_or_path": str(other)}
    (evaluation / "all_results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"its figures are of .*other, not of"):
        write_card(model, evaluation)
    write_card(model, evaluation, training_dir=other)  # an export of it


def test_an_export_is_told_of_as_the_model_it_was_made_from(folders, tmp_path):
    model, evaluation, _ = folders
    vit = tmp_path / "vit"
    vit.mkdir()
    config = {**CONFIG, "model_type": "vit", "architectures": ["ViTForImageClassification"]}
    (vit / "config.json").write_text(json.dumps(config))
    made_of = {"export": "vit", "model_name_or_path": str(model)}
    (vit / "all_results.json").write_text(json.dumps(made_of))
    (vit / "README.md").write_text("---\na: b\n---\nold card\n\n## This form\n\nExported.\n")
    results = {**EVALUATED, "model_name_or_path": str(model)}
    (evaluation / "all_results.json").write_text(json.dumps(results))
    for _ in range(2):
        text = write_card(vit, evaluation).read_text()
        assert "120.0 minutes" in text  # of the training
        assert "trust_remote_code" not in text
        assert "old card" not in text
        assert text.count("## This form\n\nExported.") == 1


def test_somebody_elses_readme_is_not_overwritten(folders):
    (folders[0] / "README.md").write_text("my own words")
    with pytest.raises(ValueError, match="was not written by this package"):
        write_card(folders[0])
    assert (folders[0] / "README.md").read_text() == "my own words"


def test_a_card_of_a_training_under_way():
    text = unfinished_card(CONFIG, "Training, step 5 of 10")
    assert "**Not evaluated, and not finished: Training, step 5 of 10.**" in text
    assert ModelCard(text).data.pipeline_tag == "image-classification"


def test_the_cards_commands_exist(folders):
    from sssd_hf.cli.arguments import SCRIPTS

    text = full_card(folders).read_text()
    for line in text.split("\n"):
        if line.startswith("python scripts/"):
            assert line.split()[1].removeprefix("scripts/").removesuffix(".py") in SCRIPTS


INDEX = [{"name": "m", "results": [{
    "task": {"type": "image-classification"}, "dataset": {"type": "imagefolder", "name": "d"},
    "metrics": [{"type": "accuracy", "value": 0.5}],
}]}]  # fmt: skip
GOOD = {
    "license": "apache-2.0", "pipeline_tag": "image-classification", "library_name": "transformers",
    "datasets": ["owner/set", "mnist"], "base_model": "facebook/vit-mae-base", "tags": ["a"],
    "model-index": INDEX,
}  # fmt: skip


def without(path):
    """INDEX without what lies at `path`."""
    index = json.loads(json.dumps(INDEX))
    place = index[0]
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return index


WRONG = {
    "license": ["apache 2", "Apache-2.0", "other", 5, None],
    "pipeline_tag": ["image_classification", "classification", ["image-classification"]],
    "datasets": [[None], ["librispeech 960h"], ["a/b/c"], "../data", []],
    "base_model": ["runs/x/y", "/abs", "a--b"],
    "tags": [[""], [1]],
    "model-index": [
        {}, [], [{"name": "m"}], [{"results": INDEX[0]["results"]}],
        *(without(p) for p in (
            ["results"], ["results", 0, "task"], ["results", 0, "task", "type"],
            ["results", 0, "dataset"], ["results", 0, "dataset", "type"],
            ["results", 0, "dataset", "name"], ["results", 0, "metrics"],
            ["results", 0, "metrics", 0, "type"], ["results", 0, "metrics", 0, "value"],
        )),
    ],
}  # fmt: skip


def test_metadata_that_the_rules_allow():
    assert metadata_problems(GOOD) == []
    assert metadata_problems({"license": "other", "license_name": "my-terms-1.0"}) == []
    name, results = model_index_to_eval_results(INDEX)  # the client reads it too
    assert (name, results[0].metric_value) == ("m", 0.5)


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_metadata_that_the_rules_forbid(key, value):
    (problem, *_) = metadata_problems({**GOOD, key: value})
    assert key.split("-")[0] in problem
    with pytest.raises(ValueError, match="would be refused"):
        check_card("---\n" + yaml.safe_dump({**GOOD, key: value}) + "---\n# x\n")


@pytest.mark.parametrize("text", ["# no metadata", "---\n- a list\n---\n", "---\na: [\n---\n"])
def test_a_card_without_readable_metadata(text):
    with pytest.raises(ValueError, match="metadata"):
        check_card(text)
