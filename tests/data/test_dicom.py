"""DICOM files against pydicom's own lookup tables."""

import logging
import warnings

import numpy as np
import pytest
from medical_files import LUNG, ct_values, dicom, encode, item, lut_item
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing, pixel_array
from pydicom.uid import RLELossless

from sssd_hf.data.images import ImageError
from sssd_hf.data.preparation import Preparation, prepare_image
from sssd_hf.data.volumes import describe
from sssd_hf.data.windows import NAMED_WINDOWS


def read(dataset, channels=1, windows=None, frame=None):
    """(channels, rows, columns), not resized."""
    size = (dataset.Rows, dataset.Columns)
    source = {"path": None, "bytes": encode(dataset), "frame": frame}
    return prepare_image(source, Preparation(size, channels, windows=windows))


def by_pydicom(dataset, **view):
    """0..255 of a file through pydicom's own functions, with the elements of `view` changed."""
    values = apply_modality_lut(pixel_array(dataset), dataset).astype(np.float64)
    shown = item(PhotometricInterpretation="MONOCHROME2", BitsStored=8, PixelRepresentation=0)
    for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
        if keyword in dataset:
            shown[keyword] = dataset[keyword]
    for keyword, value in view.items():
        setattr(shown, keyword, value)
    return apply_windowing(values, shown)


def close(found, expected):
    """Equal but for rounding to whole levels."""
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, expected, atol=0.5 + 1e-6)


@pytest.mark.parametrize("name", NAMED_WINDOWS)
def test_a_window_is_pydicoms_linear_exact(name):
    stored = (ct_values() + 1200).astype(np.uint16)
    dataset = dicom(stored, RescaleSlope=1.5, RescaleIntercept=-1800)
    window = NAMED_WINDOWS[name]
    expected = by_pydicom(
        dataset, WindowCenter=window[0], WindowWidth=window[1], VOILUTFunction="LINEAR_EXACT"
    )
    assert expected.min() == 0
    assert expected.max() == 255
    close(read(dataset, windows=(window,))[0], expected)
    # one window in three channels; three windows, each in its own
    assert (read(dataset, 3, (window,)) == read(dataset, windows=(window,))).all()
    all_windows = tuple(NAMED_WINDOWS.values())
    channels = read(dataset, 3, all_windows)
    close(channels[list(NAMED_WINDOWS).index(name)], expected)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_without_a_window_the_files_own(function, modality):
    dataset = dicom(ct_values(), WindowCenter=[40, -600], WindowWidth=[400, 1500])
    dataset.Modality, dataset.RescaleSlope, dataset.RescaleIntercept = modality, 0.5, 3
    if function:
        dataset.VOILUTFunction = function
    expected = by_pydicom(dataset, WindowCenter=40, WindowWidth=400)
    close(read(dataset)[0], expected)
    # the same, and of the full range that pydicom scales it to
    whole = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = -(2**15) * 0.5 + 3, (2**15 - 1) * 0.5 + 3
    close(read(dataset)[0], (whole - low) / (high - low) * 255)


@pytest.mark.parametrize("first", [0, -300])
def test_own_tables(first):
    stored = (ct_values(seed=1) // 8).astype(np.int16)
    entries = np.sort(np.random.default_rng(0).integers(0, 4096, 500))
    dataset = dicom(stored, VOILUTSequence=[lut_item(first, entries, 12)])
    expected = apply_voi_lut(stored, dataset) / 4095 * 255
    close(read(dataset)[0], expected)
    unsigned = (stored + 200).clip(0).astype(np.uint16)
    dataset = dicom(unsigned, ModalityLUTSequence=[lut_item(0, entries, 16)])
    values = apply_modality_lut(unsigned, dataset)
    dataset.Modality = "CR"
    close(read(dataset)[0], (values - values.min()) / float(values.max() - values.min()) * 255)


@pytest.mark.parametrize(
    ("width", "function", "used"),
    [
        (0, None, False),
        (0.5, None, False),
        (1, None, True),
        (0, "SIGMOID", False),
        (0.5, "LINEAR_EXACT", True),
        ([0, 400], None, False),
    ],
)
def test_a_width_that_is_none_is_no_window(width, function, used):
    values = ct_values()
    dataset = dicom(values, WindowCenter=[0, 0] if isinstance(width, list) else 0)
    dataset.WindowWidth, dataset.Modality = width, "MR"
    if function:
        dataset.VOILUTFunction = function
    full = (values - values.min()) / float(values.max() - values.min()) * 255
    close(read(dataset)[0], by_pydicom(dataset) if used else full)


def test_without_any_window_the_range_of_values():
    stored = ct_values(seed=2)
    values = stored.astype(float)
    expected = (values - values.min()) / (values.max() - values.min()) * 255
    close(read(dicom(stored, Modality="MR"))[0], expected)
    stored[0, :3] = (-3000, 20000, 32767)  # beyond what a CT measures
    values = stored.astype(float).clip(-1024, 3071)
    close(read(dicom(stored))[0], (values + 1024) / 4095 * 255)
    assert not read(dicom(np.full((4, 6), 7, np.int16)))[0].any()


def test_monochrome1_is_inverted():
    stored = ct_values()
    for windows in (None, LUNG):
        plain = read(dicom(stored), windows=windows)
        inverted = read(dicom(stored, PhotometricInterpretation="MONOCHROME1"), windows=windows)
        np.testing.assert_array_equal(inverted, 255 - plain)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(photometric):
    stored = ct_values(seed=3).clip(-1000)
    outside = np.zeros(stored.shape, bool)
    outside[:, :5] = True
    stored[outside] = np.random.default_rng(0).integers(-2010, -1990, outside.sum())
    dataset = dicom(stored, Modality="MR", PhotometricInterpretation=photometric)
    dataset.PixelPaddingValue, dataset.PixelPaddingRangeLimit = -2010, -1990
    shown = read(dataset)[0]
    assert not shown[outside].any()
    inside = stored[~outside].astype(float)
    expected = (inside - inside.min()) / (inside.max() - inside.min()) * 255
    close(shown[~outside], expected if photometric == "MONOCHROME2" else 255 - expected)


def test_padding_written_with_the_other_sign():
    stored = ct_values(seed=3).clip(-1000)
    stored[:3] = -2000
    dataset = dicom(stored)
    dataset.add_new("PixelPaddingValue", "US", 63536)  # the bits of -2000
    assert not read(dataset, windows=((-2000, 10),))[0][:3].any()
    dataset.PixelPaddingValue = 5  # a value that no pixel has
    assert read(dataset, windows=((-2000, 10),))[0][:3].any()


def test_frames():
    stored = np.stack([ct_values(seed=i) for i in range(4)])
    dataset = dicom(stored, RescaleSlope=1, RescaleIntercept=-10)
    assert describe(encode(dataset), "axial")["frames"] == 4
    for k in range(4):
        single = dicom(stored[k], RescaleSlope=1, RescaleIntercept=-10)
        np.testing.assert_array_equal(
            read(dataset, windows=LUNG, frame=k), read(single, windows=LUNG)
        )
    with pytest.raises(ImageError, match="holds 4 frames, expected one"):
        read(dataset)
    for frame in (4, -1):
        with pytest.raises(ImageError, match=r"frame .*no such frame, it holds 4"):
            read(dataset, frame=frame)


def test_frames_with_their_own_rescaling():
    stored = np.stack([ct_values(seed=0)] * 3)
    dataset = dicom(stored)

    def group(slope, center):
        return item(
            PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=0)],
            FrameVOILUTSequence=[item(WindowCenter=center, WindowWidth=500)],
        )

    dataset.SharedFunctionalGroupsSequence = [group(1, 0)]
    dataset.PerFrameFunctionalGroupsSequence = [item(), group(2, 100), group(1, -500)]
    for k, (slope, center) in enumerate([(1, 0), (2, 100), (1, -500)]):
        single = dicom(stored[0], RescaleSlope=slope, RescaleIntercept=0)
        close(read(dataset, frame=k)[0], by_pydicom(single, WindowCenter=center, WindowWidth=500))


def test_colour_files():
    stored = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read(dicom(stored), 3), stored.transpose(2, 0, 1))
    grey = stored @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(read(dicom(stored), 1, LUNG)[0], grey, atol=1)
    index = np.random.default_rng(1).integers(0, 256, (10, 12), dtype=np.uint8)
    palette = np.random.default_rng(2).integers(0, 65536, (3, 256)).astype("<u2")
    dataset = dicom(index, PhotometricInterpretation="PALETTE COLOR")
    for name, entries in zip(("Red", "Green", "Blue"), palette):
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", entries.tobytes())
    np.testing.assert_array_equal(read(dataset, 3), palette[:, index] >> 8)


def compressed_by_gdcm(dataset, syntax, tmp_path):
    """The file in another transfer syntax, written by GDCM."""
    import gdcm

    dataset.save_as(tmp_path / "plain.dcm", enforce_file_format=True)
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(tmp_path / "plain.dcm"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "compressed.dcm"))
    assert writer.Write()
    return tmp_path / "compressed.dcm"


@pytest.mark.parametrize(
    "syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"]
)
def test_compressed_without_loss(syntax, tmp_path):
    dataset = dicom(ct_values(64, 48) + np.int16(1200), RescaleSlope=1, RescaleIntercept=-1200)
    path = compressed_by_gdcm(dataset, syntax, tmp_path)
    preparation = Preparation((64, 48), windows=LUNG)
    expected = prepare_image(encode(dataset), preparation)
    assert expected.std() > 20
    np.testing.assert_array_equal(prepare_image(path, preparation), expected)


def test_damaged_compressed_data():
    dataset = dicom(ct_values())
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([b"\x01\0\0\0" + b"\0" * 60 + b"\x05abc"])
    dataset["PixelData"].VR = "OB"
    with pytest.raises(ImageError, match=r"pixels cannot be decoded.*uncompressed"):
        read(dataset)


def test_lies_of_the_header():
    for keyword, value, message in [
        ("Rows", 60000, "damaged|decoded"),
        ("NumberOfFrames", 20000, "20000 frames, expected 1 to 10,000"),
        ("BitsAllocated", 13, "decoded|damaged"),
        ("RescaleSlope", float("inf"), "NaN or infinite|cannot be read"),
    ]:
        dataset = dicom(ct_values())
        setattr(dataset, keyword, value)
        if keyword == "RescaleSlope":
            dataset.RescaleIntercept = 0
        with pytest.raises(ImageError, match=message):
            prepare_image(encode(dataset), Preparation((8, 8)))
    dataset = dicom(ct_values())
    dataset.Rows = dataset.Columns = 60000
    with pytest.raises(ImageError, match=r"too large, 60000 x 60000.*100,000,000"):
        prepare_image(encode(dataset), Preparation((8, 8)))
    data = encode(dicom(ct_values()))
    for end in (140, 300, len(data) // 2, len(data) - 10):
        with pytest.raises(ImageError):
            prepare_image(data[:end], Preparation((8, 8)))
    report = dicom(ct_values())
    del report.Rows, report.Columns, report.PixelData
    assert describe(encode(report), "axial")["frames"] == 0
    with pytest.raises(ImageError, match="without an image"):
        prepare_image(encode(report), Preparation((8, 8)))


def test_groups_are_hashes_of_the_patient():
    def group(**elements):
        return describe(encode(dicom(ct_values(), **elements)), "axial")

    first, again = group(PatientID="A7"), group(PatientID=" A7 ")
    assert first["group"] == again["group"] != group(PatientID="A8")["group"]
    assert "A7" not in str(first)
    assert first["group_from"] == "PatientID"
    nameless = group(PatientID="", StudyInstanceUID="1.2.3")
    assert nameless["group_from"] == "StudyInstanceUID"
    assert nameless["group"] == group(PatientID="", StudyInstanceUID="1.2.3")["group"]
    assert nameless["group"] != group(PatientID="", StudyInstanceUID="1.2.4")["group"]
    assert group(PatientID="", StudyInstanceUID="")["group"] is None


def test_nothing_of_the_header_is_said(caplog, capfd):
    caplog.set_level(logging.DEBUG)
    dataset = dicom(ct_values(), PatientName="Doe^Jane", PatientBirthDate="19700101")
    data = encode(dataset)
    messages = []
    broken = [
        data[:-100],
        data.replace(b"19700101", b"Jane1970"),
        data.replace(b"MONOCHROME2 ", b"Doe^Jane    "),
        data.replace(b"CT", b"\xff\xfe"),
    ]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for file in broken:
            try:
                describe(file, "axial")
                prepare_image(file, Preparation((8, 8)))
            except ImageError as error:
                messages.append(str(error))
    assert len(messages) >= 2
    said = " ".join(messages + [str(w.message) for w in seen])
    said += " ".join(r.getMessage() for r in caplog.records if not r.name.startswith("pydicom"))
    said += "".join(capfd.readouterr())
    for secret in ("Secret", "Jane", "Doe", "1970"):
        assert secret not in said
