"""The tables of a study are of its records."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml

from sssd_hf.cli.study_records import digest, read_records
from sssd_hf.cli.study_summary import summarise_study
from sssd_hf.cli.study_tables import tables


def tables_of(results, plan):
    return tables(summarise_study(results, "tiny", plan))


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


def test_images_can_be_left_out_of_a_table(study, study_recipe, study_images):
    records = read_records(study / "results", "tiny")
    plan = yaml.safe_load(study_recipe.read_text())["reproduce"]
    protocol = plan["protocols"]["random"] | {"columns": ["draw_0"]}

    def table(names):
        changed = protocol | {"without": names}
        return tables_of(study / "results", plan | {"protocols": {"one": changed}})

    record = records["stable"]["draw_0", 0]
    left_out = sorted(p.name for p in study_images.glob("*.png"))[:2]
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


def test_a_row_is_of_records_of_one_kind(study, study_recipe, tmp_path):
    """From the records alone, whatever the recipe has."""
    shutil.copytree(study / "results", tmp_path / "results")
    path = tmp_path / "results/tiny/stable/draw_1-seed_0.json"
    record = json.loads(path.read_text())
    plan = yaml.safe_load(study_recipe.read_text())["reproduce"]
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


def test_data_that_changed_between_runs_make_no_row(study, study_recipe, tmp_path):
    shutil.copytree(study / "results", tmp_path / "results")
    path = tmp_path / "results/tiny/scratch/draw_1-seed_0.json"
    record = json.loads(path.read_text())
    record["truth"][0] = 1 - record["truth"][0]
    path.write_text(json.dumps(record))
    plan = yaml.safe_load(study_recipe.read_text())["reproduce"]
    with pytest.raises(ValueError, match=r"draw_1: the records of .*, seed 0 are of other images"):
        tables_of(tmp_path / "results", plan)


def test_an_interval_that_is_not_known_is_a_dash(study, study_recipe, tmp_path):
    """All images of a class are of one patient."""
    shutil.copytree(study / "results", tmp_path / "results")
    for path in (tmp_path / "results").glob("tiny/*/*.json"):
        record = json.loads(path.read_text())
        record["groups"] = [
            "one" if label else group for group, label in zip(record["groups"], record["truth"])
        ]
        path.write_text(json.dumps(record))
    text = tables_of(tmp_path / "results", yaml.safe_load(study_recipe.read_text())["reproduce"])
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ours")]
    assert " to " in rows[0][4]
    assert rows[0][6] == " - "
    areas = text[text.index("difference in AUC") :]
    assert re.search(r"^\| stable - scratch \| 2 \| [+-][\d.]+ \| - \| ", areas, re.M)
    assert "nan" not in text
