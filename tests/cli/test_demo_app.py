"""The demo's parts without its page: what is taken in, answered, drawn and served."""

import asyncio
import base64
import csv
import html.parser
import io
import json
import logging
import os

import numpy as np
import pytest
import torch
from demo_server import CALIBRATION, noise, save_files, save_models
from PIL import Image

from sssd_hf import SSSDForImageClassification
from sssd_hf.cli.app import answers, intake, markup, page, serving
from sssd_hf.cli.app.intake import Limits, Place, Refused
from sssd_hf.data.preparation import Preparation
from sssd_hf.evaluation.calibration import apply_calibration
from sssd_hf.evaluation.explanations import METHODS


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_files(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def demo(models, tmp_path_factory):
    names = [str(models / "calibrated"), str(models / "plain")]
    return page.Demo(
        answers.load_all(names),
        answers.load_reconstructor(str(models / "pretrained")),
        tmp_path_factory.mktemp("uploads"),
        Limits(workers=1),
    )


def uploaded(root, name, content=b"x"):
    """A file as Gradio lays it down: in a folder of its own."""
    folder = root / f"{len(list(root.iterdir())):064x}"
    folder.mkdir()
    (folder / name).write_bytes(content)
    return str(folder / name)


# ---------------------------------------------------------------------- taking in


def test_files_of_a_series_are_in_the_order_that_people_count():
    names = ["a/IM10", "b/IM9", "c/im1.dcm", "d/IM100", "e/x", "f/²"]
    found = intake.in_natural_order(names)
    assert [n[0] for n in found if n[0] in "abcd"] == ["c", "b", "a", "d"]
    assert sorted(found) == names


def test_an_upload_is_moved_numbered_and_deleted(tmp_path):
    uploads = [uploaded(tmp_path, "jane_d.png", b"1"), uploaded(tmp_path, "b.png", b"2")]
    with intake.taken([*uploads, uploads[0]], tmp_path) as files:
        assert [file.name for file in files] == ["file 1", "file 2"]
        assert [file.read_bytes() for file in files] == [b"1", b"2"]
        assert not any("jane" in str(path) for path in tmp_path.rglob("*"))
    assert list(tmp_path.iterdir()) == []


def test_an_upload_is_deleted_when_answering_fails(tmp_path):
    upload = uploaded(tmp_path, "a.png")
    with pytest.raises(ZeroDivisionError), intake.taken([upload], tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_is_gone_is_refused_and_the_others_go_too(tmp_path):
    gone, here = uploaded(tmp_path, "a.png"), uploaded(tmp_path, "b.png")
    os.unlink(gone)
    with pytest.raises(Refused, match="Choose them again"), intake.taken([gone, here], tmp_path):
        pass
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("how", ["outside", "upwards", "link"])
def test_a_file_elsewhere_is_not_touched(tmp_path, how):
    root, secret = tmp_path / "uploads", tmp_path / "secret.png"
    root.mkdir()
    secret.write_bytes(b"kept")
    path = {"outside": secret, "upwards": root / ".." / "secret.png", "link": root / "link"}[how]
    if how == "link":
        path.symlink_to(secret)
    with pytest.raises(ValueError, match="not touched"), intake.taken([str(path)], root):
        pass
    assert secret.read_bytes() == b"kept"


def test_what_is_too_much_is_refused_before_it_is_read(tmp_path):
    files = [tmp_path / f"{i}" for i in range(3)]
    for file in files:
        file.write_bytes(bytes(2 * 2**20))
    with pytest.raises(Refused, match="Choose an image"):
        intake.check_sizes([], Limits())
    with pytest.raises(Refused, match=r"3 files.*takes 2"):
        intake.check_sizes(files, Limits(files=2))
    with pytest.raises(Refused, match=r"file 1 has 2 MB.*up to 1 MB"):
        intake.check_sizes(files, Limits(file_bytes=2**20))


def test_files_are_read_by_their_content_and_problems_name_nobody(tmp_path, source):
    root = tmp_path / "uploads"
    root.mkdir()
    names = ["jane_d.png", "frames.dcm", "volume.nii.gz", "text.png", "cut.dcm", "bomb.png"]
    # suffixes that lie, or none
    shown = ["jane_d.txt", "jane_a", "jane_b.png", "jane_c.png", "jane_d.dcm", "jane_e.png"]
    uploads = [uploaded(root, s, (source / n).read_bytes()) for n, s in zip(names, shown)]
    preparations = [Preparation((32, 32)), Preparation((16, 20), 3)]
    taken = intake.take_in(uploads, root, preparations, Limits(workers=1))
    assert taken.count == 6
    expected = [Place(1), *(Place(2, k) for k in range(3)), *(Place(3, k) for k in range(9))]
    assert taken.places == expected
    assert [taken.pixels[p].shape for p in preparations] == [(13, 1, 32, 32), (13, 3, 16, 20)]
    with Image.open(source / "jane_d.png") as image:
        wanted = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(taken.pixels[preparations[0]][0, 0], wanted)
    assert list(taken.problems) == [4, 5, 6]
    assert "not a readable" in taken.problems[4]
    assert "too large" in taken.problems[6]
    for number, text in taken.problems.items():
        assert text.startswith(f"file {number}")
        for secret in ("jane", "Jane", "Secret", "uploads"):
            assert secret not in text
    assert list(root.iterdir()) == []


def test_too_many_slices_are_refused(source):
    files = [source / "volume.nii.gz", source / "jane_d.png"]
    with pytest.raises(Refused, match=r"10 slices.*takes 9"):
        intake.list_places(files, "axial", Limits(images=9, workers=1))


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["runs/a"], ["a"]),
        (["runs/1/finetuned", "runs/2/finetuned"], ["1/finetuned", "2/finetuned"]),
        (["me/x", "me/x"], ["me/x (1)", "me/x (2)"]),
    ],
)
def test_models_are_named_shortly_and_differently(names, shown):
    assert answers.short_names(names) == shown


def softmax_of(model_folder, pixels, temperature):
    """By the model itself, from pixels (images, 1, 32, 32)."""
    model = SSSDForImageClassification.from_pretrained(model_folder).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels / 255 * 2 - 1).float()).logits.double()
    return (logits / temperature).softmax(-1).numpy()


@pytest.mark.parametrize("method", ["mean", "max"])
def test_a_series_gets_one_calibrated_answer(demo, models, method):
    pixels = noise(5, 1, 32, 32, seed=4)
    found = answers.answer(demo.models[0].classifier, pixels, method)
    each = softmax_of(models / "calibrated", pixels, CALIBRATION["temperature"])
    np.testing.assert_allclose(found.probabilities, each, atol=1e-5)
    np.testing.assert_array_equal(found.decided, each[:, 1] >= CALIBRATION["threshold"])
    whole = each[:, 1].mean() if method == "mean" else each[:, 1].max()
    np.testing.assert_allclose(found.whole, [1 - whole, whole], atol=1e-5)
    assert found.whole_decided == (whole > 0.5)
    plain = answers.answer(demo.models[1].classifier, pixels, "mean")
    np.testing.assert_allclose(plain.probabilities, softmax_of(models / "plain", pixels, 1), 1e-4)
    assert plain.threshold is None


@pytest.mark.parametrize(("count", "answer"), [(1, 1), (2, 0)])
def test_the_threshold_decides_of_single_images_alone(demo, count, answer, tmp_path):
    """As predict.py has it, with and without --aggregate_by."""
    classifier = demo.models[0].classifier
    probabilities = np.array([[0.65, 0.35], [0.65, 0.35]])[:count]
    decided = apply_calibration(probabilities, {**CALIBRATION, "temperature": 1.0})[1]
    found = answers.of_whole(classifier, probabilities, decided, "mean")
    assert decided.tolist() == [1] * count, "the threshold is below"
    assert found.whole_decided == answer
    text = markup.rule_of(found, count > 1)
    assert ("most probable class wins" in text) == (count > 1)


def test_the_most_probable_slices_are_shown_in_their_order():
    positive = np.array([0.1, 0.9, 0.3, 0.8])
    assert answers.choose_shown(np.stack([1 - positive, positive], 1), 1, 2) == [1, 3]


@pytest.mark.parametrize("method", METHODS)
def test_heat_maps_are_scaled_to_their_peaks(demo, method):
    pixels = noise(2, 1, 32, 32)
    maps = answers.heat_maps(demo.models[0].classifier, pixels, method, 1)
    assert maps.shape == (2, 4, 4)
    assert maps.min() >= 0
    peaks = maps.max(axis=(1, 2))
    assert np.all(np.isclose(peaks, 1) | (peaks == 0))


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 4), (0.5, 8), (0.1, 14), (0.95, 1)])
def test_the_mask_ratio_is_what_the_slider_says(demo, ratio, visible):
    pixels = noise(2, 1, 32, 32)
    own = demo.reconstructor.model.config.mask_ratio
    pictures, shown, patches = answers.reconstructions(demo.reconstructor, pixels, ratio, 3)
    assert (shown, patches) == (visible, 16)
    assert demo.reconstructor.model.config.mask_ratio == own
    image, masked, _, pasted = pictures
    np.testing.assert_allclose(image, pixels[:, 0] / 255, atol=1e-6)
    # patches of 8 pixels: as they were where visible, in both pictures
    same = [(np.abs(image - x) < 1e-6).reshape(2, 4, 8, 4, 8).all((2, 4)) for x in (masked, pasted)]
    assert same[0].sum((1, 2)).tolist() == [visible] * 2
    np.testing.assert_array_equal(*same)
    other = answers.reconstructions(demo.reconstructor, pixels, ratio, 4)[0][1]
    assert not np.array_equal(masked, other)


def test_pixels_come_back_from_the_browser():
    preparation, pixels = Preparation((4, 6), 3), noise(5, 3, 4, 6)
    np.testing.assert_array_equal(answers.unpack(answers.pack(pixels), preparation), pixels)


@pytest.mark.parametrize(
    "text",
    [
        None, 3, "", "no base64", base64.b64encode(b"no zlib").decode(),
        answers.pack(noise(7, 1, 4, 4)), answers.pack(noise(1, 1, 4, 3)),
        answers.pack(np.zeros(50_000_000, np.uint8)), answers.pack(noise(0, 1, 4, 4)),
    ],
    ids=range(9),
)  # fmt: skip
def test_other_pixels_are_refused(text):
    with pytest.raises(ValueError, match="not the pixels"):
        answers.unpack(text, Preparation((4, 4)))


# ---------------------------------------------------------------------- the page's functions


@pytest.fixture(scope="module")
def case(demo, source):
    """(answer, what the browser keeps) of a DICOM file of three frames."""
    upload = uploaded(demo.uploads, "jane.dcm", (source / "frames.dcm").read_bytes())
    result, kept, *_ = page.answer_case(demo, [upload], "mean")
    assert list(demo.uploads.iterdir()) == []
    return result, kept


class Pictures(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            data = dict(attributes)["src"].removeprefix("data:image/png;base64,")
            self.found.append(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_case_is_answered_explained_and_rebuilt(demo, case):
    result, kept = case
    assert result.count("sssd-card") >= 2
    assert "calibrated" in result
    assert "plain" in result
    assert "3 slices" in result
    explained = Pictures(page.explain_case(demo, kept, "Grad-CAM")).found
    assert len(explained) == 2 * 3 * 2
    assert {image.size for image in explained} == {(320, 320)}
    assert len(Pictures(page.reconstruct_case(demo, kept, 0.5, 0)).found) == 2 * 4
    for secret in ("jane", "Jane", "Secret"):
        assert secret not in result + kept


def test_nothing_is_shown_where_nothing_was_asked(demo):
    assert "Choose an image" in page.explain_case(demo, "", "Grad-CAM")
    assert "Choose an image" in page.reconstruct_case(demo, "", 0.5, 0)
    with pytest.raises(Refused, match="Choose an image"):
        page.answer_case(demo, None, "mean")


@pytest.mark.parametrize(
    "change",
    [
        {"classes": [7, 0]}, {"classes": [0]}, {"pixels": ["", "", ""]}, {"pixels": []},
        {"places": [[1, 0]]}, {"places": "x"}, {"total": None},
    ],
)  # fmt: skip
def test_a_forged_case_is_refused(demo, case, change):
    forged = json.dumps({**json.loads(case[1]), **change})
    with pytest.raises(Refused, match="again"):
        page.explain_case(demo, forged, "Grad-CAM")


def test_a_batch_is_a_table_that_can_be_saved(demo, source):
    names = ["volume.nii.gz", "jane_d.png", "text.png"]
    uploads = [uploaded(demo.uploads, name, (source / name).read_bytes()) for name in names]
    text = page.answer_batch(demo, uploads, "mean", False)
    assert "jane" not in text
    data = text.split("base64,")[1].split('"')[0]
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(data).decode())))
    assert [(row["file"], row["model"], row["images"]) for row in rows] == [
        ("1", "calibrated", "1"), ("1", "plain", "1"), ("2", "", "0"),
        ("3", "calibrated", "9"), ("3", "plain", "9"),
    ]  # fmt: skip
    for row in rows:
        if row["model"]:
            assert float(row["clear"]) + float(row["opacity"]) == pytest.approx(1, abs=2e-4)
    assert "not a readable" in rows[2]["problem"]
    upload = uploaded(demo.uploads, "jane_d.png", (source / "jane_d.png").read_bytes())
    assert "<td>jane_d.png</td>" in page.answer_batch(demo, [upload], "mean", True)


def test_an_error_tells_the_log_its_kind_alone(caplog):
    def fail(*_):
        raise OSError("/tmp/jane_d.png")

    with caplog.at_level(logging.INFO):
        shown = page.told(fail, 2)(1)
    assert "jane" not in caplog.text + shown[0]
    assert "OSError" in caplog.text
    assert shown[1] == ""


# ---------------------------------------------------------------------- markup


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.001, "< 1 %"), (0.5, "50 %"), (0.9999, "> 99 %"), (1, "100 %")],
)
def test_percentages_claim_no_certainty(share, text):
    assert markup.percent(share) == text


def test_names_from_outside_stay_text():
    label = "<img src=x onerror=alert(1)>"
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4]])
    answer = answers.Answer(
        ["ok", label], probabilities, np.array([1, 0]), probabilities[0], 1, None
    )
    text = markup.answer_card(label, answer, [Place(1), Place(2)], "mean")
    assert "<img" not in text
    assert "<img" not in markup.message(label) + markup.problem_list({1: label}, 1)
    assert "<img" not in markup.table([[label], [label]])


def test_a_name_is_no_formula_of_a_spreadsheet():
    text = markup.csv_text([["name"], ["=HYPERLINK(1)"], ["a,b"]])
    assert list(csv.reader(io.StringIO(text))) == [["name"], ["'=HYPERLINK(1)"], ["a,b"]]


# ---------------------------------------------------------------------- serving


def asked(path, server="127.0.0.1", **told):
    """(status, headers) of a request for `path` to the middleware before an app that has all."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    headers = {"host": "127.0.0.1:7860", **told}
    scope = {
        "type": "http", "path": path, "root_path": "", "server": (server, 7860),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    asyncio.run(serving.OnlyThePage(app)(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/proxy=http://x.y/",
        "/gradio_api/file=http://x.y/", "/assets/../../etc/passwd", "/assets//etc/passwd/..",
        "/gradio_api/runs", "/monitoring/summary", "/docs", "/gradio_api/deep_link", "/x",
    ],
)  # fmt: skip
def test_what_the_page_does_not_need_is_not_served(path):
    assert asked(path)[0] == 404


@pytest.mark.parametrize("path", ["/", "/assets/index-1a.js", "/theme.css", "/gradio_api/upload"])
def test_the_page_is_served_and_may_ask_no_other_host(path):
    status, headers = asked(path)
    assert status == 200
    assert b"default-src 'self'" in headers[b"content-security-policy"]


@pytest.mark.parametrize(
    ("server", "told", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("127.0.0.1", {"origin": "http://127.0.0.1:7860"}, 200),
        ("127.0.0.1", {"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ("::1", {"host": "[::1]:7860", "origin": "http://[::1]:7860"}, 200),
        ("127.0.0.1", {"origin": "https://evil.example"}, 403),
        ("127.0.0.1", {"origin": "http://127.0.0.1:8888"}, 403),  # another program's page
        ("127.0.0.1", {"origin": "null"}, 403),  # a page in a sandbox
        ("127.0.0.1", {"host": "evil.example", "origin": "http://evil.example"}, 403),
        ("127.0.0.1", {"host": "evil.example:7860"}, 403),
        ("10.0.0.5", {"host": "ward-pc:7860", "origin": "http://ward-pc:7860"}, 200),
        ("10.0.0.5", {"host": "ward-pc:7860", "origin": "https://evil.example"}, 403),
    ],
)
def test_pages_of_others_are_not_answered(server, told, status):
    """Of another site in the same browser; of a name that was made to point here."""
    assert asked("/gradio_api/upload", server, **told)[0] == status
