"""Planted problems are found, each with its exact count; a clean set has none of them."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from planted_images import COUNTS, clean_folder, planted_folder

from sssd_hf.data import duplicates
from sssd_hf.data.audit import (
    audit_images,
    audit_summary,
    catalogue_of,
    file_digests,
    find_class_imbalance,
    find_shared_groups,
    inspect_images,
)
from sssd_hf.data.copies import Copies, Pair, copies_by_pixels, find_leaks
from sssd_hf.data.facts import check_facts
from sssd_hf.data.findings import SEVERITIES, Catalogue
from sssd_hf.data.isolation import inspect_all
from sssd_hf.data.preparation import Preparation, prepare_image
from sssd_hf.data.sources import image_sources, load_images
from sssd_hf.data.splits import make_splits


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return planted_folder(tmp_path_factory.mktemp("planted"))


def audited(root):
    dataset = load_images(root, group_column_name="patient_id")
    splits = make_splits(dataset, check=False)
    catalogue = catalogue_of(dataset, splits, "patient_id")
    rows = [row for part in splits.values() for row in part]
    inspection = inspect_images(image_sources(dataset.select(rows)), workers=1)
    return catalogue, inspection, *audit_images(inspection, catalogue)


@pytest.fixture(scope="module")
def result(planted):
    return audited(planted)


def of_kind(findings, kind):
    return [one for one in findings if one.kind == kind]


def test_leaks_are_counted_exactly(result):
    _, _, findings, _ = result
    leaks = {(one.numbers["part"], one.numbers["by"]): one for one in of_kind(findings, "leakage")}
    assert {key: one.numbers["images"] for key, one in leaks.items()} == COUNTS
    assert all(one.severity == "critical" for one in leaks.values())
    assert leaks["test", "group"].numbers["groups"] == 1
    assert "p0025.png (test" in leaks["test", "group"].examples[0]
    assert "p0008.png (train" in leaks["test", "group"].examples[0]
    exact = " ".join(leaks["test", "exact"].examples)
    for name in ("same_bytes.png", "same_pixels.bmp", "other_label.png"):
        assert name in exact
    near = " ".join(leaks["test", "near"].examples)
    assert "compressed.jpg" in near
    assert "trimmed.png" in near
    assert "brighter.png" in leaks["validation", "near"].examples[0]
    # patients 19 to 25 and five copies
    assert "3 of 12 (25.0%)" in leaks["test", "exact"].text


def test_label_conflicts_are_counted_exactly(result):
    _, _, findings, pairs = result
    conflicts = of_kind(findings, "label_conflict")
    found = {
        (one.numbers["exact"], one.numbers["across"]): (one.numbers["pairs"], one.severity)
        for one in conflicts
    }
    assert found == {(True, True): (1, "critical"), (False, False): (1, "warning")}
    names = result[0].names
    first = {names[pairs[0].first], names[pairs[0].second]}
    assert first == {"images/p0006.png", "images/other_label.png"}


def test_bad_files_and_blank_images(result):
    catalogue, inspection, findings, _ = result
    bad, blank = of_kind(findings, "unreadable")
    assert bad.numbers == {"images": 2}
    assert {catalogue.names[i] for i in inspection.errors} == {
        "images/cut_short.png",
        "images/empty.png",
    }
    assert blank.numbers == {"blank_images": 2}  # and they are no copies of each other
    assert not any(
        "blank" in text for one in of_kind(findings, "duplicates") for text in one.examples
    )


def test_copies_within_a_split(result):
    (near,) = of_kind(result[2], "duplicates")
    assert near.numbers == {"by": "near", "pairs": 1, "complete": True}
    assert ", 0 of them of one group" in near.text


def test_the_worst_comes_first(result):
    order = [SEVERITIES.index(one.severity) for one in result[2]]
    assert order == sorted(order)


def test_different_patients_give_no_finding_but_small_counts(tmp_path):
    clean_folder(tmp_path / "clean", 40)
    _, inspection, findings, pairs = audited(tmp_path / "clean")
    assert len(inspection.facts) == 40
    assert {one.kind for one in findings} <= {"class_balance"}
    assert not pairs


def test_summary_finds_what_bytes_tell(planted):
    dataset = load_images(planted, group_column_name="patient_id")
    splits = make_splits(dataset, check=False)
    leaks = of_kind(audit_summary(dataset, splits, "patient_id"), "leakage")
    found = {(one.numbers["part"], one.numbers["by"]): one.numbers["images"] for one in leaks}
    assert found == {("test", "group"): 1, ("test", "exact"): 1}  # not what was saved anew
    leaks = of_kind(audit_summary(dataset, splits, max_bytes=-1), "leakage")
    assert not leaks


def test_summary_finds_label_conflicts(tmp_path):
    root = tmp_path / "images"
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        Image.fromarray(
            np.random.default_rng(ord(label)).integers(0, 256, (20, 20), np.uint8)
        ).save(root / label / "own.png")
    shutil.copy(root / "a" / "own.png", root / "b" / "same.png")
    dataset = load_images(root)
    rows = {name: i for i, name in enumerate(dataset["file_name"][:])}
    splits = {"train": [rows["a/own.png"], rows["b/own.png"]], "test": [rows["b/same.png"]]}
    (conflict,) = of_kind(audit_summary(dataset, splits), "label_conflict")
    assert conflict.examples == ["a/own.png (train, a) and b/same.png (test, b)"]


def test_one_stands_for_many_copies_in_the_pairs(tmp_path):
    """50 equal files in training, 20 of another label, 3 in test: three kinds, three pairs."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8))
    picture.save(tmp_path / "one.png")
    path = str(tmp_path / "one.png")
    parts = ["train"] * 70 + ["test"] * 3
    labels = ["a"] * 50 + ["b"] * 20 + ["a"] * 3
    catalogue = Catalogue([str(i) for i in range(73)], parts, labels)
    findings, pairs = audit_images(inspect_images([path] * 73, workers=1), catalogue)
    assert len(pairs) == 3
    (leak,) = of_kind(findings, "leakage")
    assert leak.numbers["images"] == 3
    conflicts = of_kind(findings, "label_conflict")
    found = {(one.numbers["across"], one.severity, one.numbers["pairs"]) for one in conflicts}
    assert found == {(True, "critical", 1), (False, "critical", 1)}
    (repeat,) = of_kind(findings, "duplicates")
    assert repeat.numbers["images"] == 69 + 2


def test_an_exact_copy_is_not_counted_as_a_near_one_again():
    catalogue = Catalogue(["a", "b", "c", "d"], ["train", "test", "train", "test"])
    pairs = [Pair(0, 1, True), Pair(0, 2, False), Pair(2, 3, False)]
    copies = Copies([[0, 1], [2], [3]], {0: {1}, 1: {0, 2}, 2: {1}}, pairs)
    found = [(one.numbers["by"], one.numbers["images"]) for one in find_leaks(copies, catalogue)]
    assert found == [("exact", 1), ("near", 1)]


def test_leaks_are_counted_though_training_has_too_many_alike_images(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 30)
    rng = np.random.default_rng(0)
    shapes = [Image.fromarray(rng.integers(0, 256, (6, 6), np.uint8)) for _ in range(11)]
    large = [np.asarray(shape.resize((64, 64), Image.Resampling.BICUBIC)) for shape in shapes]
    alike = [large[0].clip(0, 240) + np.uint8(i) for i in range(12)]  # of one another only
    test = [image.clip(0, 240) + np.uint8(5) for image in large[1:]]
    thumbnails = np.stack([*alike, *large[1:], *test])
    parts = ["train"] * 22 + ["test"] * 10
    catalogue = Catalogue([str(i) for i in range(32)], parts)
    copies = copies_by_pixels(np.arange(32), list(catalogue.names), thumbnails, catalogue, 0.95, 6)
    assert not copies.complete
    (leak,) = find_leaks(copies, catalogue)
    assert (leak.numbers["images"], leak.numbers["complete"]) == (10, True)
    assert leak.text.startswith("10 of 10")
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 3)
    copies = copies_by_pixels(np.arange(32), list(catalogue.names), thumbnails, catalogue, 0.95, 6)
    (leak,) = find_leaks(copies, catalogue)
    assert leak.text.startswith("At least 3 of 10")


def test_groups_against_sets():
    rng = np.random.default_rng(3)
    parts = rng.choice(["train", "validation", "test"], 300).tolist()
    groups = [str(g) for g in rng.integers(0, 150, 300)]
    catalogue = Catalogue([str(i) for i in range(300)], parts, None, groups)
    found = {one.numbers["part"]: one.numbers for one in find_shared_groups(catalogue)}
    seen = {part: {g for g, p in zip(groups, parts) if p == part} for part in set(parts)}
    before = {"validation": seen["train"], "test": seen["train"] | seen["validation"]}
    for part, earlier in before.items():
        assert found[part]["groups"] == len(seen[part] & earlier)
        images = sum(p == part and g in earlier for g, p in zip(groups, parts))
        assert found[part]["images"] == images


def balance(**parts):
    """Findings for counts such as train={"a": 3}."""
    where = [part for part, counts in parts.items() for n in counts.values() for _ in range(n)]
    labels = [name for counts in parts.values() for name, n in counts.items() for _ in range(n)]
    findings = find_class_imbalance(Catalogue([""] * len(where), where, labels))
    return [(one.severity, one.numbers.get("part"), one.numbers.get("class")) for one in findings]


def test_class_balance():
    assert balance(train={"a": 50, "b": 50}, test={"a": 20, "b": 20}) == []
    assert balance(train={"a": 50}, test={"a": 20}) == [("critical", None, None)]
    assert ("critical", "train", "b") in balance(train={"a": 50}, test={"a": 20, "b": 20})
    assert ("warning", "test", "b") in balance(train={"a": 50, "b": 50}, test={"a": 20})
    assert balance(train={"a": 50, "b": 50}, test={"a": 12, "b": 9}) == [("warning", "test", "b")]
    assert balance(train={"a": 95, "b": 5}, test={"a": 190, "b": 10}) == [("note", "train", "b")]
    assert balance(train={"a": 50, "b": 50}, test={"a": 70, "b": 30}) == [
        ("note", "test", "a"),
        ("note", "test", "b"),
    ]
    assert find_class_imbalance(Catalogue(["x"], ["train"])) == []


def test_facts_are_what_pillow_and_hashlib_say(tmp_path):
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 256, (30, 50), np.uint8)
    grey = Image.fromarray(pixels)
    files = {"grey.png": grey, "colour.bmp": grey.convert("RGB"), "alpha.png": grey.convert("RGBA")}
    for name, image in files.items():
        image.save(tmp_path / name)
    grey.save(tmp_path / "jpeg.png", format="JPEG")  # the suffix says nothing
    Image.fromarray(rng.integers(0, 60000, (9, 9)).astype(np.uint16)).save(tmp_path / "deep.png")
    paths = [str(tmp_path / name) for name in (*files, "jpeg.png", "deep.png")]
    preparation = Preparation((16, 16))
    answers = [answer for _, answer in inspect_all(paths, preparation, 1)]
    for path, (facts, thumbnail) in zip(paths, answers, strict=True):
        with Image.open(path) as image:
            assert (facts["width"], facts["height"]) == image.size
            assert (facts["mode"], facts["format"]) == (image.mode, image.format)
        data = Path(path).read_bytes()
        assert facts["num_bytes"] == len(data)
        assert facts["file_digest"] == hashlib.sha256(data).hexdigest()
        np.testing.assert_array_equal(thumbnail, prepare_image(path, preparation))
    digests = [facts["pixel_digest"] for facts, _ in answers]
    assert len({*digests[:3]}) == 1  # grey, colour and alpha of the same picture
    assert len({*digests}) == 3


def test_answers_of_another_form_are_not_believed():
    good = {"width": 3, "height": 4, "num_bytes": 9, "mode": "L", "format": "PNG"}
    good |= {"pixel_digest": "0", "file_digest": None}
    assert check_facts({**good, "more": 1}) == good
    bad = [{"width": -1}, {"width": "3"}, {"height": True}, {"mode": "x" * 65}, {"file_digest": 3}]
    for wrong in bad:
        with pytest.raises(ValueError, match="another form"):
            check_facts({**good, **wrong})
    with pytest.raises(ValueError, match="another form"):
        check_facts(None)


def test_file_digests_of_every_kind_of_source(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    sources = [path, {"path": str(path)}, {"path": None, "bytes": b"abc"}]
    assert file_digests(sources) == [digest] * 3
    others = [{"path": str(path), "frame": 1}, {"path": str(tmp_path)}, {"path": "/no/such"}]
    assert file_digests(others) == [None] * 3
    assert file_digests(sources, max_bytes=5) == [digest, digest, None]
