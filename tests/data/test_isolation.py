"""Decoding in child processes: the same pixels, in order, whatever a file does to its decoder."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from medical_files import ct_values, dicom, encode, save_nifti
from PIL import Image

from sssd_hf.data import isolation
from sssd_hf.data.images import ImageError
from sssd_hf.data.isolation import Decoders, decode_all, describe_all
from sssd_hf.data.preparation import Preparation, prepare_image

SMALL = Preparation((8, 6))

# A stand-in for pydicom that does what the file says. The child finds it by PYTHONPATH.
FAKE_PYDICOM = """
import ctypes, os, time
def dcmread(stream, **kwargs):
    order = stream.read()[132:].decode()
    if order == "crash":
        ctypes.string_at(0)
    if order == "leave":
        os._exit(7)
    if order == "hang":
        while True:
            pass
    if order == "fill":
        [bytearray(2**28) for _ in range(2**10)]
    if order == "print":
        os.write(1, b"noise of a codec")
        raise ValueError
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A function that writes a file which does something to the process that opens it."""
    (tmp_path / "fake/pydicom").mkdir(parents=True)
    (tmp_path / "fake/pydicom/__init__.py").write_text(FAKE_PYDICOM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))

    def write(order, name=None):
        path = tmp_path / f"{name or order}.dcm"
        path.write_bytes(b"\0" * 128 + b"DICM" + order.encode())
        return path

    return write


def images(folder, count):
    files = []
    for i in range(count):
        files.append(folder / f"{i}.png")
        Image.new("L", (10 + i % 7, 12), i % 256).save(files[-1])
    return files


@pytest.mark.parametrize("workers", [1, 3, None])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_in_order_and_equal_to_decoding_here(tmp_path, count, workers):
    files = images(tmp_path, count)
    results = list(decode_all(files, SMALL, workers))
    assert [i for i, _ in results] == list(range(count))
    for file, (_, pixels) in zip(files, results):
        np.testing.assert_array_equal(pixels, prepare_image(file, SMALL))
        pixels[:] = 0  # writable


def test_a_small_batch_is_shared_by_all_workers():
    """Slices of a volume stay together, which is read once for all of them."""
    images = [f"{i}.png" for i in range(64)]
    assert [len(run) for run in isolation._runs(images, 32)] == [2] * 32
    assert [len(run) for run in isolation._runs(images * 100, 4)] == [16] * 400
    slices = [{"path": "a.nii", "frame": i} for i in range(40)]
    runs = list(isolation._runs([*images[:3], *slices], 32))
    assert [len(run) for run in runs] == [1, 1, 1, 40]
    assert [i for run in runs for i in run] == list(range(43))


def test_every_kind_of_source(tmp_path):
    file = images(tmp_path, 1)[0]
    volume = save_nifti(
        tmp_path / "a.nii.gz", np.arange(4 * 5 * 40, dtype=np.int16).reshape(4, 5, 40)
    )
    frames = encode(dicom(np.stack([ct_values(seed=i) for i in range(3)])))
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff \n.png"))
    file.rename(odd)
    sources = [
        odd,
        str(odd),
        odd.read_bytes(),
        {"path": str(odd), "bytes": None},
        {"path": "not there", "bytes": odd.read_bytes()},
        *({"path": str(volume), "bytes": None, "frame": k} for k in range(40)),
        *({"path": None, "bytes": frames, "frame": k} for k in range(3)),
    ]
    preparation = Preparation((8, 6), 3, "letterbox", ((0.0, 400.0),), "axial")
    results = [pixels for _, pixels in decode_all(sources, preparation, 2)]
    for source, pixels in zip(sources, results, strict=True):
        np.testing.assert_array_equal(pixels, prepare_image(source, preparation))
    described = [info["frames"] for _, info in describe_all([volume, odd, frames], "coronal", 2)]
    assert described == [5, None, 3]


def test_errors_are_those_of_decoding_here(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    sources = [tmp_path / "empty.png", tmp_path / "text.png", tmp_path / "gone.png", tmp_path, b""]
    sources.append({"path": None, "bytes": None})
    sources.append({"path": str(images(tmp_path, 1)[0]), "frame": 3})
    for source, (_, found) in zip(sources, decode_all(sources, SMALL), strict=True):
        with pytest.raises(ImageError) as error:
            prepare_image(source, SMALL)
        assert isinstance(found, ImageError)
        if source != b"":
            assert str(found) == str(error.value)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("crash", r"died \(SIGSEGV\)"),
        ("leave", "ended .exit status 7"),
        ("hang", "not read within 1 seconds"),
        ("fill", "MemoryError"),
        ("print", "ValueError"),
    ],
)
@pytest.mark.parametrize("ask", ["decode", "describe"])
def test_a_hostile_file_costs_itself_alone(order, message, ask, hostile, tmp_path):
    if order == "fill" and sys.platform != "linux":
        pytest.skip("only Linux limits memory")
    good = images(tmp_path, 40)
    sources = [*good[:20], hostile(order), *good[20:], hostile(order, "again")]
    limits = {"time_limit": 30 if order == "fill" else 1, "memory_limit": 2**29}
    if ask == "decode":
        results = list(decode_all(sources, SMALL, 2, **limits))
    else:
        results = list(describe_all(sources, "axial", 2, **limits))
    assert [i for i, _ in results] == list(range(42))
    bad = [result for _, result in results if isinstance(result, ImageError)]
    assert len(bad) == 2
    for i, name in ((20, f"{order}.dcm"), (41, "again.dcm")):
        assert isinstance(results[i][1], ImageError)
        assert name in str(results[i][1])
    for error in bad:
        assert re.search(message, str(error))


def test_a_volume_that_hangs_is_tried_once(hostile, tmp_path):
    """And not once a slice."""
    path = str(hostile("hang"))
    good = images(tmp_path, 3)
    sources = [*({"path": path, "frame": k} for k in range(50)), *good]
    start = time.monotonic()
    results = [result for _, result in decode_all(sources, SMALL, 2, time_limit=1)]
    assert time.monotonic() - start < 10
    assert all("not read within 1 seconds" in str(result) for result in results[:50])
    assert all(isinstance(result, np.ndarray) for result in results[50:])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")
def test_a_large_image_in_little_memory(tmp_path):
    Image.new("1", (9_900, 9_900)).save(tmp_path / "large.png")
    files = [tmp_path / "large.png", *images(tmp_path, 3)]
    results = list(decode_all(files, Preparation((8, 6), 3), 1, memory_limit=300 * 2**20))
    assert "MemoryError" in str(results[0][1])
    assert [isinstance(r, ImageError) for _, r in results] == [True, False, False, False]
    assert isinstance(next(decode_all(files[:1], Preparation((8, 6), 3)))[1], np.ndarray)


def test_a_child_that_answers_wrongly_is_not_believed(tmp_path, monkeypatch):
    child = tmp_path / "worker.py"
    child.write_text(
        "import sys, struct, json\n"
        "def say(v, d=b'', n=None):\n"
        "    t = json.dumps(v).encode()\n"
        "    sys.stdout.buffer.write(struct.pack('<II', len(t), n or len(d)) + t + d)\n"
        "    sys.stdout.buffer.flush()\n"
        "say({})\n"
        "head = sys.stdin.buffer.read(8)\n"
        "request = sys.stdin.buffer.read(struct.unpack('<II', head)[0]).decode()\n"
        "if '0.png' in request: say({'shape': [1, 8, 6]}, b'short')\n"
        "if '1.png' in request: say({'shape': [1, 80, 60]}, b'x' * 4800)\n"
        "if '2.png' in request: say({'shape': [1, 8, 6]}, n=2**31)\n"
        "if '3.png' in request: say([1])\n"
        "if '4.png' in request: say({})\n"
        "if '5.png' in request: say({'shape': [1, 8, 6]}, bytes(48))\n"
    )
    monkeypatch.setattr(isolation, "__file__", str(tmp_path / "isolation.py"))
    results = [r for _, r in decode_all(images(tmp_path, 6), SMALL, 1)]
    assert all(isinstance(result, ImageError) for result in results[:5])
    assert all("wrong answer" in str(result) for result in results[:5])
    assert results[5].shape == (1, 8, 6)


def test_a_child_that_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    with pytest.raises(OSError, match="no python"):
        list(decode_all(images(tmp_path, 3), SMALL))
    (tmp_path / "false").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "false").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "false"))
    with pytest.raises(OSError, match=r"does not start.*exit status 3"):
        list(decode_all(images(tmp_path, 3), SMALL))


@pytest.fixture(autouse=True)
def others():
    """Children that were there before the test, of streams that earlier tests left open."""
    OTHERS.clear()
    OTHERS.update(all_workers())


OTHERS = set()


def running_workers():
    return [p for p in all_workers() if p not in OTHERS]


def all_workers():
    return workers_of(os.getpid())


def workers_of(pid):
    """Not from /proc/PID/task/*/children: a child moves to another thread when its own ends."""
    found = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.Error):  # ends meanwhile
            if any(word.endswith("worker.py") for word in child.cmdline()):
                found.append(child.pid)
    return found


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
def test_no_child_is_left(tmp_path, hostile):
    files = [hostile("hang"), *images(tmp_path, 60)]
    results = decode_all(files[1:], SMALL, 2)
    next(results)
    assert running_workers()
    results.close()  # the caller stops early
    assert not running_workers()
    start = time.monotonic()
    results = decode_all([*files[1:20], files[0], *files[20:]], SMALL, 2)
    next(results)
    results.close()  # while one hangs
    assert time.monotonic() - start < 10
    assert not running_workers()
    list(decode_all(files[1:], SMALL, 2))
    assert not running_workers()


@linux
def test_kept_children_serve_call_after_call(tmp_path, hostile):
    files, decoders = images(tmp_path, 40), Decoders()

    def decode(sources, size=(8, 6), **options):
        found = list(decode_all(sources, Preparation(size), 2, keep=decoders, **options))
        for source, (_, pixels) in zip(sources, found, strict=True):
            np.testing.assert_array_equal(pixels, prepare_image(source, Preparation(size)))

    decode(files)
    first = set(running_workers())
    assert len(first) == 2
    decode(files, (20, 30))  # another, larger size
    assert set(running_workers()) == first
    results = list(decode_all([hostile("crash"), *files], SMALL, 2, keep=decoders))
    assert [isinstance(r, ImageError) for _, r in results] == [True] + [False] * 40
    decode(files)
    assert len(set(running_workers()) & first) == 1, "the other one died with its file"
    decode(files, time_limit=5)  # told to a child when it starts
    assert not set(running_workers()) & first
    results = decode_all(files, SMALL, 2, keep=decoders)
    next(results)
    results.close()  # the caller stops early: those that may be busy are not kept
    assert not running_workers()
    decode(files)
    decoders.close()
    assert not running_workers()
    decode(files[:1])
    assert not running_workers(), "closed is closed"
    decoders = Decoders()
    decode(files)
    decoders = None  # nobody holds it any more
    gc.collect()
    assert not running_workers()


@linux
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_signals_to_the_group_leave_it_to_the_parent(tmp_path, name):
    """Clusters send the warning of preemption to every process of a job."""
    decoders, files = Decoders(), images(tmp_path, 3)
    for _ in range(2):
        results = [pixels for _, pixels in decode_all(files, SMALL, 1, keep=decoders)]
        np.testing.assert_array_equal(results, [prepare_image(file, SMALL) for file in files])
        (child,) = running_workers()
        os.kill(child, getattr(signal, name))
    assert running_workers() == [child]
    decoders.close()


@linux
def test_two_threads_share_kept_children(tmp_path):
    files, decoders = images(tmp_path, 60), Decoders()
    expected = [prepare_image(file, SMALL) for file in files]

    def decode(_):
        return [pixels for _, pixels in decode_all(files, SMALL, 2, keep=decoders)]

    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(decode, range(9)):
            np.testing.assert_array_equal(found, expected)
    assert len(running_workers()) <= 6
    decoders.close()


FORK = """
import os, signal, sys, time
import numpy as np
from sssd_hf.data.isolation import Decoders, decode_all
from sssd_hf.data.preparation import Preparation, prepare_image
def right(files):
    preparation = Preparation((8, 6))
    found = [pixels for _, pixels in decode_all(files, preparation, 1, keep=decoders)]
    return np.array_equal(found, [prepare_image(file, preparation) for file in files])
if __name__ == "__main__":
    signal.alarm(100)
    decoders, files = Decoders(), sys.argv[1:]
    assert right(files)
    busy = decode_all(files, Preparation((8, 6)), 1, keep=Decoders())
    next(busy)
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        ok = right(files)  # while the parent decodes too
        print("forked", ok, flush=True)
        sys.stdin.read()  # stays, with what it inherited, after its parent
        os._exit(0)
    assert all(right(files) for _ in range(20)) and len(list(busy)) == len(files) - 1
    print("parent", child, flush=True)
    time.sleep(60)
"""


@linux
def test_a_forked_process_starts_its_own(tmp_path):
    """And holds nothing by which its parent's children would outlive the parent."""
    source = str(Path(isolation.__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", FORK, *map(str, images(tmp_path, 40))],
        env={**os.environ, "PYTHONPATH": source},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = sorted(parent.stdout.readline().split() for _ in range(2))
    assert said[0] == ["forked", "True"]
    assert said[1][0] == "parent"
    children = workers_of(parent.pid)
    assert children
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(int(said[1][1])), "the forked process is still there"
    left = [child for child in children if alive(child)]
    parent.stdin.close()  # ends it
    assert not left


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


PARENT = """
import sys
from sssd_hf.data.isolation import decode_all
from sssd_hf.data.preparation import Preparation
if __name__ == "__main__":
    for i, pixels in decode_all(sys.argv[1:], Preparation((8, 6)), 1, time_limit=1):
        print(i, flush=True)
        sys.stdin.read()
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_children_die_with_their_parent(tmp_path, hostile, busy):
    files = [*images(tmp_path, 16), *([hostile("hang")] if busy else [])]
    source = str(Path(isolation.__file__).parents[2])
    path = os.pathsep.join([os.environ["PYTHONPATH"], source])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *map(str, files)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout.readline() == b"0\n"
    (child,) = workers_of(parent.pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 12  # a hanging one: its own clock, 1 + 5 seconds
    stat = Path(f"/proc/{child}/stat")
    while time.monotonic() < deadline:
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child outlived its parent")


def test_a_child_imports_neither_torch_nor_transformers():
    code = (
        "import runpy, sys, io\n"
        "sys.argv = ['worker.py', '5', '0' if sys.platform != 'linux' else str(2**32)]\n"
        f"runpy.run_path({str(Path(isolation.__file__).with_name('worker.py'))!r}, "
        "run_name='__main__')\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules)), "
        "'sssd_hf.data.preparation' in sys.modules, file=sys.stderr)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    assert child.stderr.decode().strip() == "[] True"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_a_child_is_told_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "q8x1z-one")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "q8x1z-two")
    monkeypatch.setenv("SSSD_HARMLESS", "told")
    path = tmp_path / "image.png"
    Image.new("L", (8, 8)).save(path)
    with closing(Decoders()) as decoders:
        list(decode_all([path], Preparation((8, 8), 1), workers=1, keep=decoders))
        (child,) = decoders._idle
        told = Path(f"/proc/{child.process.pid}/environ").read_bytes()
    assert b"told" in told
    assert b"q8x1z" not in told
