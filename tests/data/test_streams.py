"""Streams against the list of what is in their shards: each image once an epoch, the same after any
stop, and shuffled."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from sssd_hf.data.images import ImageError
from sssd_hf.data.preparation import Preparation
from sssd_hf.data.streams import ImageStream, open_stream

PREPARATION = Preparation((4, 4), 1)
SHARDS, PER_SHARD = 4, 15
TOTAL = SHARDS * PER_SHARD


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(value):
    stream = io.BytesIO()
    Image.new("L", (5, 3), value).save(stream, "png")
    return stream.getvalue()


def write_tars(folder, images, shards):
    """`images`: one (bytes, label) each; an image's grey value is its number."""
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:02d}.tar", "w") as tar:
            for i in range(shard, len(images), shards):
                data, label = images[i]
                for suffix, content in (("png", data), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_parquets(folder, images, shards):
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for shard in range(shards):
        rows = [
            {"image": {"bytes": data, "path": None}, "label": label}
            for data, label in images[shard::shards]
        ]
        part = datasets.Dataset.from_list(rows, features=features)
        part.to_parquet(folder / f"{shard:02d}.parquet", batch_size=4)  # several row groups


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("streams")
    images = [(png(i), i % 7) for i in range(TOTAL)]
    write_tars(root / "tar", images, SHARDS)
    write_parquets(root / "parquet", images, SHARDS)
    return root


@pytest.fixture(params=["tar", "parquet"])
def folder(request, folders):
    return folders / request.param


def stream(folder, **options):
    options = {"buffer_size": 8, **options}
    return ImageStream(open_stream(str(folder)), PREPARATION, **options)


def values(batch):
    """The number of each image, from its pixels."""
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.shape[1:] == (1, 4, 4)
    return [int(image.unique()) for image in batch.pixels]


def records(batch):
    return list(
        zip(batch.epochs.tolist(), batch.positions.tolist(), values(batch), batch.labels.tolist())
    )


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_each_epoch_is_the_whole_set_once(folder, world):
    """Two and four processes divide the shards, three take every third image."""
    shares = []
    for rank in range(world):
        own = stream(folder, rank=rank, world=world)
        shares.append(records(own.read(TOTAL // world + TOTAL // world)))
    for epoch in (0, 1):
        seen = [record for share in shares for record in share if record[0] == epoch]
        assert sorted(value for _, _, value, _ in seen) == list(range(TOTAL))
        assert len({position for _, position, _, _ in seen}) == TOTAL
        assert all(label == value % 7 for _, _, value, label in seen)
    for rank, share in enumerate(shares):
        assert {position % world for _, position, _, _ in share} == {rank}


def test_a_position_names_an_image_and_not_its_turn(folder):
    """Whatever the block size and the turn, the same position of an epoch is the same image."""
    by_buffer = []
    for buffer_size in (1, 7, 1000):
        seen = records(stream(folder, buffer_size=buffer_size).read(2 * TOTAL))
        by_buffer.append(sorted(seen))
    assert by_buffer[0] == by_buffer[1] == by_buffer[2]


def test_shuffled_in_blocks_anew_each_epoch(folder):
    own = stream(folder, buffer_size=20)
    batch = own.read(2 * TOTAL)
    positions = batch.positions.view(2, 3, 20)
    for block in range(3):
        expected = torch.arange(20 * block, 20 * block + 20)
        assert all(torch.equal(epoch[block].sort().values, expected) for epoch in positions)
        assert not torch.equal(positions[0, block], expected)
        assert not torch.equal(positions[0, block], positions[1, block])
    assert not torch.equal(positions[0, 0], positions[0, 1] - 20)
    # the shards come in another order too: position alone does not tell the image
    shown = np.array(values(batch)).reshape(2, TOTAL)
    order = np.argsort(batch.positions.view(2, TOTAL).numpy(), axis=1)
    assert (np.take_along_axis(shown, order, 1)[0] != np.take_along_axis(shown, order, 1)[1]).any()


def test_seeds_differ_and_repeat(folder):
    first, same, other = (stream(folder, seed=seed).read(TOTAL) for seed in (3, 3, 4))
    assert records(first) == records(same)
    assert records(first) != records(other)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_resumed_anywhere_the_rest_is_the_same(folder, world):
    whole = stream(folder, rank=world - 1, world=world)
    length = 2 * TOTAL // world + 5
    expected, states = [], []
    for _ in range(length):
        states.append(json.dumps(whole.state_dict()))
        expected += records(whole.read(1))
    assert {epoch for epoch, *_ in expected} == {0, 1, 2}
    for stop in [*range(0, length, 7), 7, 8, 9, TOTAL // world, length - 1]:
        own = stream(folder, rank=world - 1, world=world)
        own.load_state_dict(json.loads(states[stop]))
        assert json.loads(json.dumps(own.state_dict())) == json.loads(states[stop])
        assert records(own.read(length - stop)) == expected[stop:], stop
        own.close()


def test_resumed_twice_and_after_other_reads(folder):
    own = stream(folder)
    own.read(13)
    state = own.state_dict()
    expected = records(own.read(30))
    for _ in range(2):
        own.load_state_dict(state)
        assert records(own.read(30)) == expected


def test_how_much_is_read_at_a_time_does_not_matter(folder):
    own = stream(folder)
    parts = [record for n in (1, 0, 5, 20, 64) for record in (records(own.read(n)) if n else [])]
    assert parts == records(stream(folder).read(90))
    assert own.read(0).pixels.shape == (0, 1, 4, 4)


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"buffer_size": 9}, {"rank": 0, "world": 2}, {"rank": 1, "world": 3}]
)
def test_a_state_of_other_settings_is_refused(folder, changed):
    own = stream(folder, rank=1, world=2)
    own.read(3)
    other = stream(folder, **{"rank": 1, "world": 2, **changed})
    with pytest.raises(ValueError, match="number of processes"):
        other.load_state_dict(own.state_dict())


@pytest.fixture(params=[write_tars, write_parquets])
def spoiled(request, tmp_path):
    images = [(png(i), 0) for i in range(20)]
    for i in (3, 4, 11):
        images[i] = (images[i][0][:40], 0)
    request.param(tmp_path / "spoiled", images, 1)
    return tmp_path / "spoiled"


def test_unreadable_images_stop_the_run(spoiled):
    with pytest.raises(ImageError, match=r"2 of 8 images in a row.*(?s:.*)image 3 of the stream"):
        stream(spoiled).read(1)


def test_unreadable_images_can_be_left_out(spoiled, caplog):
    whole = stream(spoiled, skip_bad_files=True)
    seen = records(whole.read(17))
    assert sorted(value for _, _, value, _ in seen) == sorted({*range(20)} - {3, 4, 11})
    assert all(position == value for _, position, value, _ in seen)
    whole.read(1)
    assert whole.skipped == 3
    assert "2 of 8 images are left out" in caplog.text
    expected = records(whole.read(20))
    for stop in (0, 3, 8, 13, 17, 18):
        own, rest = (stream(spoiled, skip_bad_files=True) for _ in range(2))
        own.read(stop)
        rest.load_state_dict(own.state_dict())
        rest.read(18 - stop)
        assert records(rest.read(20)) == expected
        assert rest.skipped == whole.skipped


def test_nothing_readable_or_nothing_at_all_ends(tmp_path):
    write_tars(tmp_path / "bad", [(b"no image", 0)] * 5, 1)
    with pytest.raises(ValueError, match="can read none of the 5 images"):
        stream(tmp_path / "bad", skip_bad_files=True).read(1)
    write_tars(tmp_path / "few", [(png(1), 0)] * 2, 1)
    with pytest.raises(ValueError, match="process 3 of 3 can read none of the 0 images"):
        stream(tmp_path / "few", rank=2, world=3).read(1)


def test_an_image_by_address_is_fetched():
    import fsspec

    with fsspec.open("memory://somewhere/a.png", "wb") as file:
        file.write(png(77))
    rows = [{"image": {"path": "memory://somewhere/a.png", "bytes": None}}]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    dataset = datasets.Dataset.from_list(rows, features=features).to_iterable_dataset()
    batch = ImageStream(dataset, PREPARATION).read(2)
    assert values(batch) == [77, 77]
    assert batch.epochs.tolist() == [0, 1]
    assert batch.labels is None
    gone = [*rows, {"image": {"path": "memory://somewhere/gone.png", "bytes": None}}]
    dataset = datasets.Dataset.from_list(gone, features=features).to_iterable_dataset()
    with pytest.raises(FileNotFoundError):
        ImageStream(dataset, PREPARATION, skip_bad_files=True).read(2)


def test_pixels_are_those_of_pillow(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (31, 17), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "png")
    write_tars(tmp_path / "x", [(data.getvalue(), 5)], 1)
    own = ImageStream(open_stream(str(tmp_path / "x")), Preparation((12, 10), 1))
    batch = own.read(1)
    expected = np.asarray(Image.fromarray(noise).resize((10, 12), Image.Resampling.BILINEAR))
    assert np.array_equal(batch.pixels[0, 0].numpy(), expected)
    assert batch.labels.tolist() == [5]


def test_reading_goes_on_in_the_background(folder):
    import time

    own = stream(folder)
    own.read(1)
    deadline = time.monotonic() + 30
    while not own._ahead.done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert own._ahead.result().number == 1


# ---- opening


def test_labels_can_be_left_out(folder):
    dataset = open_stream(str(folder), label_column_name=None)
    assert ImageStream(dataset, PREPARATION).read(3).labels is None


def test_a_data_set_by_name(folders):
    dataset = open_stream(dataset_name=str(folders / "parquet"))
    batch = ImageStream(dataset, PREPARATION).read(TOTAL)
    assert sorted(values(batch)) == list(range(TOTAL))
    with pytest.raises(ValueError, match=r"--dataset_name .* cannot be opened.*'dev'"):
        open_stream(dataset_name=str(folders / "parquet"), split="dev")


def test_wrong_places(tmp_path, folders):
    with pytest.raises(ValueError, match="exactly one of --data_dir and --dataset_name"):
        open_stream()
    with pytest.raises(ValueError, match="is no folder"):
        open_stream(str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"found 0 \.tar, 0 \.parquet files"):
        open_stream(str(tmp_path))
    with pytest.raises(ValueError, match=r"found 4 \.tar, 4 \.parquet files"):
        open_stream(str(folders))
    (tmp_path / "a.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be opened"):
        open_stream(str(tmp_path))


def test_wrong_columns(tmp_path, folders):
    with pytest.raises(ValueError, match=r"--image_column_name scan: found the columns"):
        open_stream(str(folders / "tar"), image_column_name="scan")
    with pytest.raises(ValueError, match=r"--label_column_name kind: found None"):
        open_stream(str(folders / "tar"), label_column_name="kind")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = [{"image": {"bytes": png(1), "path": None}, "label": "ill"}]
    (tmp_path / "x").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "x/0.parquet")
    with pytest.raises(ValueError, match="expected a column of whole numbers"):
        open_stream(str(tmp_path / "x"))
