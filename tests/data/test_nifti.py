"""NIfTI volumes against nibabel's own arrays."""

import itertools

import nibabel
import numpy as np
import pytest
from medical_files import LUNG, ct_values, save_nifti

from sssd_hf.data.images import ImageError
from sssd_hf.data.nifti import SLICE_AXES
from sssd_hf.data.preparation import Preparation, prepare_image
from sssd_hf.data.volumes import describe

VOLUME = np.random.default_rng(0).integers(-1200, 2500, (7, 9, 5)).astype(np.int16)
# every way three stored axes can lie in a patient
ORIENTATIONS = [
    codes
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for codes in itertools.product(*axes)
]


def expected_slice(image, axis, k):
    """Scaled values of slice k, by nibabel, with its rows and columns as they are looked at."""
    values = nibabel.as_closest_canonical(image).get_fdata()
    plane = values.take(k, SLICE_AXES[axis])
    return plane.T[::-1, ::-1]


def windowed(values, center, width):
    return np.clip((values - center) / width + 0.5, 0, 1) * 255


@pytest.mark.parametrize("codes", ORIENTATIONS[::5], ids="".join)
@pytest.mark.parametrize("axis", SLICE_AXES)
def test_slices_in_every_orientation(codes, axis, tmp_path):
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for stored, code in enumerate(codes):  # which way the stored axis runs in the patient
        patient = [code in pair for pair in ("LR", "PA", "IS")].index(True)
        affine[patient, stored] = 2.5 if code in "RAS" else -2.5
    assert nibabel.aff2axcodes(affine) == codes
    path = save_nifti(tmp_path / "a.nii.gz", VOLUME, affine)
    image = nibabel.load(path)
    frames = nibabel.as_closest_canonical(image).shape[SLICE_AXES[axis]]
    assert describe(path, axis)["frames"] == frames
    for k in range(frames):
        expected = expected_slice(image, axis, k)
        preparation = Preparation(expected.shape, windows=LUNG, slice_axis=axis)
        found = prepare_image({"path": str(path), "frame": k}, preparation)
        np.testing.assert_allclose(found[0], windowed(expected, *LUNG[0]), atol=0.5 + 1e-6)


def test_axial_slices_lie_as_radiologists_see_them(tmp_path):
    """A mark at the patient's right front is at the picture's top left."""
    values = np.zeros((6, 8, 3), np.uint8)
    values[5, 7, 1] = 255  # of a volume whose axes run to the right, the front and the head
    path = save_nifti(tmp_path / "a.nii", values)
    found = prepare_image({"path": str(path), "frame": 1}, Preparation((8, 6)))
    assert np.argwhere(found[0]).tolist() == [[0, 0]]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "no suffix"])
def test_types_scaling_and_the_volumes_range(name, dtype, version, tmp_path):
    values = (VOLUME - VOLUME.min()).clip(0, np.iinfo(dtype).max if dtype == np.uint8 else None)
    path = save_nifti(
        tmp_path / "b.nii.gz" if "gz" in name else tmp_path / "b.nii",
        values.astype(dtype),
        slope=-0.5,
        intercept=20,
        version=version,
    )
    scaled = nibabel.load(path).get_fdata()
    if np.issubdtype(dtype, np.integer):
        assert scaled.min() < 0  # nibabel does scale it
    path = path.rename(tmp_path / name)
    middle, span = (scaled.min() + scaled.max()) / 2, np.ptp(scaled)
    for k in (0, 3):
        expected = scaled[:, :, k].T[::-1, ::-1]
        found = prepare_image({"path": str(path), "frame": k}, Preparation(expected.shape))
        np.testing.assert_allclose(found[0], windowed(expected, middle, span), atol=0.5 + 1e-6)


def test_from_bytes_and_a_changed_file(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", VOLUME)
    preparation = Preparation((9, 7), windows=LUNG)
    first = prepare_image({"path": str(path), "frame": 2}, preparation)
    source = {"path": "elsewhere", "bytes": path.read_bytes(), "frame": 2}
    np.testing.assert_array_equal(prepare_image(source, preparation), first)
    save_nifti(path, VOLUME[:, :, ::-1].copy())
    second = prepare_image({"path": str(path), "frame": 2}, preparation)
    assert (second == first).all()  # the middle slice
    third = prepare_image({"path": str(path), "frame": 0}, preparation)
    source["frame"] = 4
    np.testing.assert_array_equal(third, prepare_image(source, preparation))


def test_windows_as_channels(tmp_path):
    path = save_nifti(tmp_path / "a.nii", VOLUME)
    windows = ((-600.0, 1500.0), (50.0, 350.0), (400.0, 1800.0))
    source = {"path": str(path), "frame": 1}
    found = prepare_image(source, Preparation((9, 7), 3, windows=windows))
    values = VOLUME[:, :, 1].T[::-1, ::-1].astype(float)
    for channel, window in zip(found, windows):
        np.testing.assert_allclose(channel, windowed(values, *window), atol=0.5 + 1e-6)


def test_what_is_not_finite_is_black(tmp_path):
    values = VOLUME.astype(np.float32)
    values[0, 0, 0], values[1, 0, 0], values[2, 0, 0] = np.nan, np.inf, -np.inf
    finite = values[np.isfinite(values)]
    path = save_nifti(tmp_path / "a.nii", values)
    found = prepare_image({"path": str(path), "frame": 0}, Preparation((9, 7)))[0]
    turned = found[::-1, ::-1].T
    assert not turned[:3, 0].any()
    expected = windowed(values[3:, :, 0], (finite.min() + finite.max()) / 2, np.ptp(finite))
    np.testing.assert_allclose(turned[3:], expected, atol=0.5 + 1e-4)
    path = save_nifti(tmp_path / "b.nii", np.full((4, 5, 2), np.nan, np.float32))
    assert not prepare_image({"path": str(path), "frame": 0}, Preparation((5, 4))).any()


def test_other_shapes(tmp_path):
    flat = save_nifti(tmp_path / "flat.nii", ct_values(6, 4))
    assert describe(flat, "axial")["frames"] == 1
    assert prepare_image(flat, Preparation((4, 6))).shape == (1, 4, 6)
    extra = save_nifti(tmp_path / "extra.nii", VOLUME[..., None])
    assert describe(extra, "sagittal")["frames"] == 7
    refusals = {
        "series": (np.zeros((3, 4, 5, 2), np.int16), r"\(3, 4, 5, 2\).*one volume at a time"),
        "complex": (np.zeros((3, 4, 5), np.complex64), "whole or real numbers"),
    }
    for name, (values, message) in refusals.items():
        path = save_nifti(tmp_path / f"{name}.nii", values)
        for ask in (
            lambda path=path: describe(path, "axial"),
            lambda path=path: prepare_image({"path": str(path), "frame": 0}, Preparation((4, 4))),
        ):
            with pytest.raises(ImageError, match=message):
                ask()
    path = save_nifti(tmp_path / "a.nii", VOLUME)
    with pytest.raises(ImageError, match="holds 5 slices, expected one"):
        prepare_image(path, Preparation((4, 4)))
    with pytest.raises(ImageError, match=r"frame 6.*no such slice.*5 along the axial.*slice_axis"):
        prepare_image({"path": str(path), "frame": 6}, Preparation((4, 4)))


def test_lies_of_the_header(tmp_path):
    path = save_nifti(tmp_path / "a.nii", VOLUME)
    plain = path.read_bytes()

    def lie(place, values):
        data = bytearray(plain)
        data[place : place + len(values)] = values
        return {"path": None, "bytes": bytes(data), "frame": 0}

    huge = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    wide = np.array([3, 20000, 3, 5], "<i2").tobytes()
    large = np.array([3, 300, 300, 300], "<i2").tobytes()
    negative = np.array([3, -7, 9, 5], "<i2").tobytes()
    none = np.array([3, 0, 9, 5], "<i2").tobytes()
    for dim in (huge, wide, large, negative, none):
        with pytest.raises(ImageError, match=r"too large|damaged|found the shape"):
            prepare_image(lie(40, dim), Preparation((4, 4)))
    nowhere = np.array([np.nan] * 12, "<f4").tobytes()
    source = lie(280, nowhere)  # the affine: the volume is then taken as it is stored
    assert prepare_image(source, Preparation((4, 4))).shape == (1, 4, 4)
    for end in (100, 349, 400, len(plain) - 1):
        source = {"path": None, "bytes": plain[:end], "frame": 4}
        with pytest.raises(ImageError):
            prepare_image(source, Preparation((4, 4)))
