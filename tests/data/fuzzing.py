"""Mutated image files: valid ones with bits flipped, ends cut, parts spliced and headers that lie.

Run as a script it prints a table of what became of them: `python tests/data/fuzzing.py 5000`.
"""

import copy
import io
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from medical_files import ct_values, dicom, encode
from PIL import Image
from pydicom import dcmread
from pydicom.uid import RLELossless

from sssd_hf.data.images import ImageError
from sssd_hf.data.isolation import decode_all
from sssd_hf.data.preparation import Preparation
from sssd_hf.data.windows import NAMED_WINDOWS

FORMATS = ("PNG", "JPEG", "TIFF", "DICOM")
OUTCOMES = ("decoded", "refused", "timed out", "worker died")


def seeds():
    """{format: valid files, as bytes}."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (40, 31), dtype=np.uint8)
    smooth = np.add.outer(np.arange(40) * 3, np.arange(31) * 4).astype(np.uint8)
    colour = rng.integers(0, 256, (23, 34, 3), dtype=np.uint8)
    deep = rng.integers(0, 65536, (25, 33), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6

    def save(array, fmt, **options):
        stream = io.BytesIO()
        image = array if isinstance(array, Image.Image) else Image.fromarray(array)
        image.save(stream, fmt, **options)
        return stream.getvalue()

    palette = Image.fromarray(smooth).convert("P")
    pages = {"save_all": True, "append_images": [Image.fromarray(grey)]}
    files = {
        "PNG": [save(a, "PNG") for a in (grey, colour, deep, palette)]
        + [save(smooth, "PNG", exif=exif), save(Image.fromarray(smooth).convert("1"), "PNG")],
        "JPEG": [save(a, "JPEG", quality=q) for a in (smooth, colour) for q in (50, 95)]
        + [save(colour, "JPEG", progressive=True), save(smooth, "JPEG", exif=exif)]
        + [save(Image.fromarray(colour).convert("CMYK"), "JPEG")],
        "TIFF": [save(a, "TIFF") for a in (grey, colour, deep, deep.astype(np.float32))]
        + [
            save(a, "TIFF", compression=c)
            for a in (smooth, colour)
            for c in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ]
        + [
            save(smooth, "TIFF", **pages),
            save(Image.fromarray(grey).convert("1"), "TIFF", compression="group4"),
        ],
    }
    signed = ct_values(30, 26)
    rescaled = {"RescaleSlope": 1, "RescaleIntercept": -1024, "PixelPaddingValue": -1000}
    plain = [
        dicom(signed, **rescaled),
        dicom(signed, WindowCenter=[40, -600], WindowWidth=[400, 1500]),
        dicom(grey, PhotometricInterpretation="MONOCHROME1"),
        dicom(colour),
        dicom(np.stack([signed] * 4)[:1], **rescaled),
    ]
    compressed = dicom(signed, **rescaled)
    compressed.compress(RLELossless, generate_instance_uid=False)
    files["DICOM"] = [encode(dataset) for dataset in (*plain, compressed)]
    files["DICOM"] += [
        by_gdcm(plain[0], name)
        for name in ("JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless")
    ]
    files["DICOM"] += [by_gdcm(plain[2], "JPEGBaselineProcess1")]
    return files


def by_gdcm(dataset, syntax):
    """The file in another transfer syntax, encoded by GDCM."""
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        before, after = (str(Path(folder, name)) for name in ("before.dcm", "after.dcm"))
        dataset.save_as(before, enforce_file_format=True)
        reader, writer = gdcm.ImageReader(), gdcm.ImageWriter()
        change = gdcm.ImageChangeTransferSyntax()
        reader.SetFileName(before)
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(after)
        assert writer.Write()
        compressed = dcmread(after)
    # GDCM writes new UIDs each time: its pixels alone are taken over
    result = copy.deepcopy(dataset)
    result.file_meta.TransferSyntaxUID = compressed.file_meta.TransferSyntaxUID
    result.PixelData = compressed.PixelData
    result["PixelData"].VR = "OB"
    result["PixelData"].is_undefined_length = True
    return encode(result)


# ---- mutations: (bytes, another valid file's bytes, generator) -> bytes

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 30000)


def flip_bits(data, other, rng):
    data = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 12)):
        data[place] ^= 1 << rng.integers(8)
    return bytes(data)


def flip_header_bits(data, other, rng):
    size = min(len(data), 1200 if data[128:132] == b"DICM" else 200)
    return flip_bits(data[:size], other, rng) + data[size:]


def flip_pixel_bits(data, other, rng):
    """Headers stay whole, so that the codec sees it."""
    half = len(data) // 2
    return data[:half] + flip_bits(data[half:] or b"\0", other, rng)


def set_number(data, other, rng):
    """A number that lies, of 1, 2 or 4 bytes, either way round."""
    value = INTERESTING[rng.integers(len(INTERESTING))]
    width = (1, 2, 4)[rng.integers(3)]
    number = (value % 256**width).to_bytes(width, ("little", "big")[rng.integers(2)])
    place = rng.integers(0, max(1, min(len(data), 1500) - width))
    return data[:place] + number + data[place + width :]


def cut(data, other, rng):
    return data[: rng.integers(1, len(data))]


def take_out(data, other, rng):
    start, stop = sorted(rng.integers(0, len(data), 2))
    return data[:start] + data[min(stop, start + 400) :]


def repeat(data, other, rng):
    start, stop = sorted(rng.integers(0, len(data), 2))
    return data[:stop] + data[start:stop] * int(rng.integers(1, 6)) + data[stop:]


def splice(data, other, rng):
    """The head of one file and the rest of another."""
    return data[: rng.integers(1, len(data))] + other[rng.integers(0, len(other)) :]


def noise(data, other, rng):
    start = rng.integers(0, len(data))
    length = rng.integers(1, 300)
    return data[:start] + rng.bytes(length) + data[start + length :]


def lie(data, other, rng):
    """Sizes, numbers of frames and types that are not the file's, with checksums kept right."""
    big = int(rng.choice([0, 1, 2, 255, 4097, 9999, 30000, 65535]))
    if data[:4] == b"\x89PNG":
        fields = list(struct.unpack(">IIBBBBB", data[16:29]))
        which = rng.integers(len(fields))
        fields[which] = int(rng.choice([big, big * 30000])) if which < 2 else int(rng.integers(20))
        header = b"IHDR" + struct.pack(">IIBBBBB", *fields)
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    if data[:2] == b"\xff\xd8":
        frame = max(data.find(mark) for mark in (b"\xff\xc0", b"\xff\xc2"))
        place = frame + int(rng.choice([5, 7]))
        return data[:place] + struct.pack(">H", big) + data[place + 2 :]
    if data[:2] in (b"II", b"MM"):
        order = "<" if data[:2] == b"II" else ">"
        start = struct.unpack(order + "I", data[4:8])[0]
        count = struct.unpack(order + "H", data[start : start + 2])[0]
        entry = start + 2 + 12 * int(rng.integers(count))
        place = entry + int(rng.choice([2, 4, 8]))  # type, count or value
        return data[:place] + struct.pack(order + "I", big) + data[place + 4 :]
    names = {
        b"\x28\0\x10\0US": 8,
        b"\x28\0\x11\0US": 8,
        b"\x28\0\0\x01US": 8,
        b"\x28\0\x01\x01US": 8,
        b"\x28\0\x02\0US": 8,
        b"\x28\0\x03\x01US": 8,
    }
    tag = list(names)[rng.integers(len(names))]
    place = data.find(tag)
    if place < 0 or rng.random() < 0.3:  # a number of frames, or another text
        texts = [
            (b"MONOCHROME2", b"YBR_FULL   "),
            (b"MONOCHROME2", b"PALETTE COL"),
            (b"MONOCHROME1", b"RGB        "),
            (b"-1024", b"1e999"),
            (b"1500", b" nan"),
            (b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.5"),
            (b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.80"),
        ]
        for old, new in [texts[i] for i in rng.permutation(len(texts))]:
            if old in data:
                return data.replace(old, new)
    return data[: place + 8] + struct.pack("<H", big) + data[place + 10 :]


def png_chunks(data):
    """(kind, content) of each chunk, as far as their lengths go."""
    place = 8
    while place + 12 <= len(data):
        length = struct.unpack(">I", data[place : place + 4])[0]
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length


def to_png(chunks):
    """With lengths and checksums that are right, else decoders would see nothing else."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        parts += [struct.pack(">I", len(content)), kind, content, checksum]
    return b"".join(parts)


def change_png_rows(data, other, rng):
    """The rows under a PNG's compression: filters that do not exist, too few or too many bytes."""
    if data[:4] != b"\x89PNG":
        return flip_pixel_bits(data, other, rng)
    chunks = list(png_chunks(data))
    try:
        rows = zlib.decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"))
    except zlib.error:
        return flip_bits(data, other, rng)
    change = (flip_bits, flip_bits, noise, cut, repeat)[rng.integers(5)]
    packed = zlib.compress(change(rows, rows, rng)) if rows else b""
    kept = [chunk for chunk in chunks if chunk[0] not in (b"IDAT", b"IEND")]
    return to_png([*kept, (b"IDAT", packed), (b"IEND", b"")])


MUTATIONS = (
    flip_bits,
    flip_header_bits,
    flip_pixel_bits,
    change_png_rows,
    change_png_rows,
    set_number,
    cut,
    take_out,
    repeat,
    splice,
    noise,
    lie,
    lie,
)


def mutated(count, seed=0):
    """`count` (format, bytes), the formats in turn; a pure function of the seed and the place."""
    valid = seeds()
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        name = FORMATS[i % len(FORMATS)]
        files = valid[name]
        data = files[rng.integers(len(files))]
        for _ in range(rng.integers(1, 3)):
            pool = valid[FORMATS[rng.integers(len(FORMATS))]] if rng.random() < 0.2 else files
            mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
            try:
                data = mutation(data, pool[rng.integers(len(pool))], rng) or b"\0"
            except (struct.error, IndexError, ValueError):  # too mangled for this one
                data = flip_bits(data, data, rng)
        if data[:4] == b"\x89PNG" and rng.random() < 0.7:
            data = to_png(png_chunks(data))
        yield name, data


def outcome_of(result, shape):
    """One of OUTCOMES; AssertionError for what is neither an array of the shape nor an error."""
    if isinstance(result, ImageError):
        text = str(result)
        if "not read within" in text:
            return "timed out"
        return "worker died" if "the process that read it" in text else "refused"
    assert isinstance(result, np.ndarray)
    assert result.shape == shape
    assert result.dtype == np.uint8
    return "decoded"


def run(count, seed=0, workers=None, time_limit=20.0):
    """Counter of (format, outcome), and the files with a rare outcome: (format, bytes, text)."""
    table, rare = Counter(), []
    windows = tuple(NAMED_WINDOWS.values())
    preparations = [Preparation((16, 12)), Preparation((16, 12), 3, "letterbox", windows)]
    files = list(mutated(count, seed))
    for part, preparation in enumerate(preparations):
        chosen = files[part * count // 2 : (part + 1) * count // 2]
        sources = [{"path": f"{part}-{i}", "bytes": data} for i, (_, data) in enumerate(chosen)]
        shape = (preparation.num_channels, *preparation.size)
        seen = 0
        results = decode_all(sources, preparation, workers, time_limit=time_limit)
        for i, result in results:
            assert i == seen
            seen += 1
            outcome = outcome_of(result, shape)
            table[chosen[i][0], outcome] += 1
            if outcome in OUTCOMES[2:]:
                rare.append((*chosen[i], str(result)))
        assert seen == len(chosen)
    return table, rare


def as_text(table):
    lines = [f"{'format':8s}" + "".join(f"{outcome:>13s}" for outcome in OUTCOMES)]
    for name in FORMATS:
        lines.append(f"{name:8s}" + "".join(f"{table[name, outcome]:13d}" for outcome in OUTCOMES))
    return "\n".join(lines)


if __name__ == "__main__":
    start = time.monotonic()
    found, rare_files = run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(as_text(found))
    for name, data, text in rare_files:
        print(name, len(data), text)
    print(f"{sum(found.values())} files in {time.monotonic() - start:.0f} s")
