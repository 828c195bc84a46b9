"""Folders of DICOM and NIfTI files as rows."""

import numpy as np
import pytest
from medical_files import LUNG, ct_values, dicom, encode, save_nifti
from PIL import Image

from sssd_hf.data.images import ImageError
from sssd_hf.data.isolation import decode_all
from sssd_hf.data.preparation import Preparation, prepare_image
from sssd_hf.data.sources import image_sources, load_images, require_labels
from sssd_hf.data.splits import make_splits

VOLUME = np.random.default_rng(0).integers(-1200, 2500, (7, 9, 5)).astype(np.int16)


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def series(folder, patient, count, suffix=".dcm"):
    for i in range(count):
        write(folder / f"slice{i}{suffix}", encode(dicom(ct_values(seed=i), PatientID=patient)))


@pytest.fixture
def folder(tmp_path):
    """ill: two series of one patient and one of another; well: a volume, frames, a PNG."""
    series(tmp_path / "ill/scan1", "A", 3)
    series(tmp_path / "ill/scan2", "A", 2, "")  # no suffix
    series(tmp_path / "ill/1.2.840.113", "B", 2, ".99")  # named by a UID
    (tmp_path / "well").mkdir()
    save_nifti(tmp_path / "well/volume.nii.gz", VOLUME)
    frames = np.stack([ct_values(seed=i) for i in range(4)])
    write(tmp_path / "well/run.DICOM", encode(dicom(frames, PatientID="C")))
    Image.new("L", (9, 9), 77).save(tmp_path / "well/plain.png")
    (tmp_path / "ill/notes").write_text("no image")
    return tmp_path


def test_rows_labels_frames_and_patients(folder):
    dataset = load_images(folder, group_column_name="patient_id")
    rows = {row["file_name"]: row for row in dataset}
    assert len(rows) == len(dataset) == 7 + 5 + 4 + 1
    names = require_labels(dataset)
    assert {name for name in rows if names[rows[name]["label"]] == "well"} == {
        "well/plain.png",
        *(f"well/volume.nii.gz#{k}" for k in range(5)),
        *(f"well/run.DICOM#{k}" for k in range(4)),
    }
    assert rows["well/volume.nii.gz#3"]["frame"] == 3
    assert rows["well/plain.png"]["frame"] is rows["ill/scan1/slice0.dcm"]["frame"] is None
    groups = {}
    for name, row in rows.items():
        groups.setdefault(row["patient_id"], set()).add(name.split("#")[0].rsplit("/", 1)[0])
    assert sorted(groups.values(), key=str) == sorted(
        [{"ill/scan1", "ill/scan2"}, {"ill/1.2.840.113"}, {"well"}, {"well"}, {"well"}], key=str
    )
    assert not {"A", "B", "C"} & set(groups)  # no plain ID
    splits = make_splits(
        dataset, group_column_name="patient_id", train_test_split=0.4, train_val_split=0, seed=0
    )
    of = dataset["patient_id"][:]
    parts = [{of[i] for i in rows} for rows in splits.values()]
    assert not parts[0] & parts[-1]


def test_every_row_decodes_to_its_own_slice(folder, caplog):
    dataset = load_images(folder)
    assert "--group_column_name patient_id" in caplog.text
    preparation = Preparation((9, 7), windows=LUNG)
    sources = image_sources(dataset)
    results = [pixels for _, pixels in decode_all(sources, preparation, 2)]
    for name, frame, pixels in zip(dataset["file_name"][:], dataset["frame"][:], results):
        path = folder / name.split("#")[0]
        expected = prepare_image({"path": str(path), "frame": frame}, preparation)
        np.testing.assert_array_equal(pixels, expected)
        if "volume" in name:
            values = VOLUME[:, :, frame].T[::-1, ::-1]
            window = ((values + 600.0) / 1500 + 0.5).clip(0, 1) * 255
            np.testing.assert_allclose(pixels[0], window, atol=0.5 + 1e-6)


def test_slices_along_another_axis(folder):
    dataset = load_images(folder, slice_axis="sagittal")
    assert sum("volume" in name for name in dataset["file_name"][:]) == 7
    with pytest.raises(ValueError, match=r"--slice_axis.*'x'"):
        load_images(folder, slice_axis="x")


@pytest.mark.parametrize("own_patients", [False, True])
def test_a_table_gives_its_row_to_all_slices(folder, own_patients):
    rows = ["file_name,label,split,frame" + ",patient_id" * own_patients]
    rows += ["well/volume.nii.gz,x,test,7" + ",P1" * own_patients]
    rows += ["ill/scan2/slice1,y,train,8" + ",P2" * own_patients]
    rows += ["well/plain.png,y,train,9" + ",P3" * own_patients]
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    dataset = load_images(folder, group_column_name="patient_id")
    assert dataset["split"][:] == ["test"] * 5 + ["train"] * 2
    assert dataset["frame"][:] == [0, 1, 2, 3, 4, None, None]
    assert dataset["metadata_frame"][:] == ["7"] * 5 + ["8", "9"]
    groups = dataset["patient_id"][:]
    if own_patients:
        assert groups == ["P1"] * 5 + ["P2", "P3"]
    else:
        assert groups[:5] == ["file:well/volume.nii.gz"] * 5
        assert len({*groups}) == 3


def test_ordinary_folders_get_no_new_columns(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (9, 9)).save(tmp_path / name / "1.png")
    dataset = load_images(tmp_path)
    assert sorted(dataset.column_names) == ["file_name", "image", "label"]
    assert image_sources(dataset) == dataset["image"][:]
    # a table's own column of this name says nothing about slices
    (tmp_path / "metadata.csv").write_text("file_name,frame\na/1.png,3\nb/1.png,4\n")
    dataset = load_images(tmp_path)
    assert dataset["metadata_frame"][:] == ["3", "4"]
    assert image_sources(dataset) == dataset["image"][:]


def test_what_holds_no_image_is_left_out_and_what_is_broken_stays(folder, caplog):
    report = dicom(ct_values())
    del report.Rows, report.Columns, report.PixelData
    write(folder / "ill/DICOMDIR", encode(report))
    write(folder / "ill/broken.nii.gz", (folder / "well/volume.nii.gz").read_bytes()[:50])
    write(folder / "ill/empty.dcm", b"")
    write(folder / "well/cut.dcm", encode(dicom(ct_values()))[:-200])
    nameless = dicom(ct_values(), PatientID="", StudyInstanceUID="1.2.3")
    write(folder / "ill/nameless.dcm", encode(nameless))
    dataset = load_images(folder, group_column_name="patient_id")
    names = dataset["file_name"][:]
    assert "ill/DICOMDIR" not in names
    results = decode_all(image_sources(dataset), Preparation((8, 8)))
    bad = {names[i] for i, result in results if isinstance(result, ImageError)}
    assert bad == {"ill/broken.nii.gz", "ill/empty.dcm", "well/cut.dcm"}
    for message in (
        "1 files cannot be read, such as ill/empty.dcm",
        "1 files hold no image and are left out, such as ill/DICOMDIR",
        "1 files have no PatientID, their study takes its place, such as ill/nameless.dcm",
    ):
        assert message in caplog.text
    assert "Secret" not in caplog.text
    write(folder / "only/a/DICOMDIR", encode(report))
    with pytest.raises(ValueError, match="none of its 1 files holds an image"):
        load_images(folder / "only")
