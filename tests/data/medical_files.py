"""Small DICOM and NIfTI files, made by pydicom and nibabel."""

import io

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

LUNG = ((-600.0, 1500.0),)


def ct_values(rows=24, columns=20, seed=0):
    """HU of air to bone, int16."""
    return np.random.default_rng(seed).integers(-1200, 2500, (rows, columns)).astype(np.int16)


def dicom(stored, **elements):
    """A Dataset of `stored` (rows, columns), (frames, rows, columns) or (rows, columns, 3)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[stored.tobytes().hex()])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "CT"
    dataset.PatientID = "Secret^42"
    dataset.PatientName = "Doe^Jane"
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    colour = stored.ndim == 3 and stored.shape[-1] == 3
    if stored.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(stored)
    dataset.Rows, dataset.Columns = stored.shape[:2] if colour else stored.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * stored.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    data = stored.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if stored.dtype.itemsize == 2 else "OB"
    return dataset


def encode(dataset):
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def item(**elements):
    result = Dataset()
    for keyword, value in elements.items():
        setattr(result, keyword, value)
    return result


def lut_item(first, entries, bits):
    """An item of a VOI or modality table."""
    result = item(LUTDescriptor=[len(entries), first, bits])
    result.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    result["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    return result


def save_nifti(path, values, affine=None, slope=None, intercept=0.0, version=1):
    import nibabel

    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(values, np.eye(4) if affine is None else affine)
    if slope is not None:
        image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, path)
    return path
