"""Proposal libraries out and in again: round trips, refusals, resuming, and what trainings make of an imported one."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_schemas.manifest import ImageKey
from jobs import cli, export_proposals, import_proposals
from jobs.exchange import sources
from jobs.exchange.formats import NO_POINT, NO_STABILITY
from jobs.exchange.json_stream import item_at, items
from jobs.exchange.sources import CocoResults
from jobs.precompute_sam import precompute
from jobs.settings import PrecomputeSettings, SamSettings, SimilaritySettings
from jobs.store_checks import image_keys
from jobs.training.checks import _check_store
from pipeline.data.coco import load_images
from pipeline.errors import AnnotationError, InputError, StoreDamagedError, StoreMismatchError
from pipeline.masks import rle
from pipeline.refine.build import build_refiner
from pipeline.refine.interface import TeacherMasks
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.stores.proposal_store import ProposalStore, commit_proposals
from pipeline.stores.verify import verify
from tests.jobs.toys import fake_sam, store_files, write_coco

FORMS = ["coco-results", "sa1b"]
HEIGHT, WIDTH = 24, 32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven images, ids 10 to 16."""
    return write_coco(tmp_path_factory.mktemp("data"), 7)


@pytest.fixture(scope="module")
def store(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("made") / "store"
    settings = PrecomputeSettings(
        images=str(data),
        store=str(folder),
        sam=SamSettings("fake"),
        targets=("proposals",),
        proposals=GeneratorSettings(points_per_side=6),
        images_per_shard=3,
    )
    precompute(settings, make_backend=fake_sam)
    return str(folder)


def content(store):
    library = ProposalStore.open(store)
    return {image_id: library.read(image_id) for image_id in library.image_ids()}


def export(store, folder, form, **options):
    out = folder / ("out.json" if form == "coco-results" else "out")
    export_proposals.run(store, out, format=form, **options)
    return out


def files_of(out):
    return {path.name: path.read_bytes() for path in ([out] if out.is_file() else sorted(out.iterdir()))}


@pytest.mark.parametrize("form", FORMS)
def test_a_library_survives_the_way_out_and_in(store, data, tmp_path, form):
    out = export(store, tmp_path, form)
    import_proposals.run(out, str(tmp_path / "store"), images=data)
    before, after = content(store), content(tmp_path / "store")
    assert sum(map(len, before.values())) > 15
    if form == "coco-results":
        before = {
            i: [replace(p, stability_score=NO_STABILITY, point_xy=NO_POINT) for p in found]
            for i, found in before.items()
        }
    assert after == before  # in the same order
    assert verify(tmp_path / "store") == []
    again = export(str(tmp_path / "store"), tmp_path / "again", form)
    assert files_of(again) == files_of(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["store", "again", out.name])


def test_a_results_list_is_one_that_coco_tools_read(store, data, tmp_path):
    from pycocotools.coco import COCO

    entries = json.loads(export(store, tmp_path, "coco-results", category_id=1).read_text())
    assert list(entries[0]) == ["image_id", "category_id", "segmentation", "score", "bbox", "area"]
    assert [e["image_id"] for e in entries] == sorted(e["image_id"] for e in entries)
    loaded = COCO(str(data)).loadRes(str(tmp_path / "out.json"))
    assert len(loaded.anns) == len(entries)
    for read, written in zip(loaded.anns.values(), entries, strict=True):
        mask = loaded.annToMask(read)
        assert mask.shape == (HEIGHT, WIDTH)
        assert mask.sum() == written["area"]  # loadRes takes the box's for the area


def test_a_folder_is_in_the_form_of_sa1b(store, tmp_path):
    out = export(store, tmp_path, "sa1b")
    assert sorted(path.name for path in out.iterdir()) == [f"{i:02}.json" for i in range(7)]
    documents = [json.loads(path.read_text()) for path in sorted(out.iterdir())]
    assert documents[0]["image"] == {"image_id": 10, "width": 32, "height": 24, "file_name": "00.png"}
    annotations = [entry for document in documents for entry in document["annotations"]]
    assert [entry["id"] for entry in annotations] == list(range(1, len(annotations) + 1))
    names = ["id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords"]
    assert all(list(entry) == names for entry in annotations)
    first = ProposalStore.open(store).read(10)[0]
    assert annotations[0]["segmentation"] == {"size": [24, 32], "counts": first.rle_counts}
    assert annotations[0]["point_coords"] == [list(first.point_xy)]


def test_images_that_would_share_a_name_keep_their_endings(tmp_path, data):
    values = json.loads(data.read_text())
    for image, name in zip(values["images"], ["a/x.png", "a/x.jpg", "b/x.png"], strict=False):
        image["file_name"] = name
    values["images"], values["annotations"] = values["images"][:3], []
    renamed = tmp_path / "renamed.json"
    renamed.write_text(json.dumps(values))
    source = write_results(tmp_path, [entry(10), entry(12)])
    import_proposals.run(source, str(tmp_path / "store"), images=renamed)
    out = export(str(tmp_path / "store"), tmp_path, "sa1b")
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.json")) == [
        "a/x.jpg.json",
        "a/x.png.json",
        "b/x.json",
    ]
    import_proposals.run(out, str(tmp_path / "again"), images=renamed)
    assert [len(found) for found in content(tmp_path / "again").values()] == [1, 0, 1]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_overwritten_unasked_and_nothing_half_written(store, data, tmp_path, form, monkeypatch):
    out = export(store, tmp_path, form)
    before = files_of(out)
    with pytest.raises(InputError, match="would be overwritten"):
        export(store, tmp_path, form)

    def damaged(self, image_id):
        if image_id == 13:
            raise StoreDamagedError("rotten")
        return real(self, image_id)

    real = ProposalStore.read
    with monkeypatch.context() as rotten:
        rotten.setattr(ProposalStore, "read", damaged)
        with pytest.raises(StoreDamagedError):
            export(store, tmp_path, form, overwrite=True)
    assert files_of(out) == before
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    if form == "sa1b":
        (out / "stale.json").write_text("{}")
    export(store, tmp_path, form, overwrite=True)
    assert files_of(out) == before
    with pytest.raises(InputError, match="the other"):
        export_proposals.run(store, out, format=FORMS[1 - FORMS.index(form)], overwrite=True)
    if form == "sa1b":
        (out / "photo.jpg").write_bytes(b"precious")
        with pytest.raises(InputError, match=r"photo\.jpg"):
            export(store, tmp_path, form, overwrite=True)


def test_an_unfinished_library_is_not_exported(store, tmp_path):
    import shutil

    part = tmp_path / "part"
    shutil.copytree(store, part)
    next(iter(sorted((part / "records").iterdir()))).unlink()
    shutil.rmtree(part / "index")
    with pytest.raises(InputError, match="not finished"):
        export(str(part), tmp_path, "sa1b")


def box_code(x0=4, y0=4, x1=12, y1=10):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return dict(rle.encode(mask))


def entry(image_id=10, **changes):
    """A result: 48 pixels in the box 4, 4, 8, 6."""
    return {"image_id": image_id, "category_id": 3, "segmentation": box_code(), "score": 0.5, **changes}


def write_results(folder, entries):
    path = folder / "results.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return path


def document(name="00.png", annotations=None, **changes):
    given = [annotation()] if annotations is None else annotations
    about = {"image_id": 77, "width": WIDTH, "height": HEIGHT, "file_name": name, **changes}
    return {"image": about, "annotations": given}


def write_folder(folder, documents):
    (folder / "masks").mkdir()
    for place, text in enumerate(documents):
        file = folder / "masks" / f"sa_{place}.json"
        file.write_text(text if isinstance(text, str) else json.dumps(text))
    return folder / "masks"


WHOLE = json.dumps([entry(), entry(11)])
WRONG_RESULTS = {
    "cut off": (WHOLE[:-40], r"item 1 of the list is cut off[\s\S]*results\.json, byte"),
    "cut after an item": (WHOLE[:-1], "the end of the file"),
    "not JSON": ('[{"image_id": 10, oops}]', "item 0 of the list is not JSON"),
    "not a list": (json.dumps({"images": []}), "not a list of objects"),
    "a list of lists": ("[[1]]", "not a list of objects"),
    "a number": ("[1]", "not a list of objects"),
    "nothing": ("", "not a list of objects"),
    "more behind": (WHOLE + "[]", "something follows"),
    "no comma": ("[" + json.dumps(entry()) * 2 + "]", "a comma or the end"),
    "empty list": ("[]", "there is no mask in it"),
    "only empty masks": ([entry(segmentation=box_code(0, 0, 0, 0))], "there is no mask in it"),
    "another size": ([entry(segmentation={**box_code(), "size": [32, 24]})], "size of an RLE differs[\\s\\S]*result 0"),
    "bad run lengths": ([entry(segmentation={"size": [24, 32], "counts": "zz"})], "result 0"),
    "too few pixels": ([entry(segmentation={"size": [24, 32], "counts": "05"})], "result 0"),
    "no mask": ([{"image_id": 10, "score": 0.5}], "result 0"),
    "unknown image": ([entry(5), entry(), entry(99)], r"5, 99 \(2 in all\)"),
    "image id of text": ([entry("10")], r"'10' \(1 in all\)"),
    "image id of a list": ([entry([10])], r"\[10\] \(1 in all\)"),
    "NaN": ([entry(score=float("nan"))], "score is not a score[\\s\\S]*nan"),
    "infinite": ([entry(score=float("inf"))], "score is not a score"),
    "above 1": ([entry(score=1.01)], "got: +1.01"),
    "negative": ([entry(score=-0.1)], "a number from 0 to 1"),
    "score of text": ([entry(score="0.5")], "score is not a score"),
    "no score": ([{"image_id": 10, "segmentation": box_code()}], "no score"),
    "twice": ([entry(), entry(11), entry()], "a mask is there twice[\\s\\S]*image 10"),
    "several": ([entry(score=2), entry(11, score=3)], "2 problems[\\s\\S]*result 0[\\s\\S]*result 1"),
}


@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_a_wrong_results_list_is_one_error_and_no_store(data, tmp_path, name):
    text, words = WRONG_RESULTS[name]
    refused(write_results(tmp_path, text), data, tmp_path, words)


def annotation(**changes):
    return {"segmentation": box_code(), "predicted_iou": 0.9, **changes}


def with_annotations(*annotations):
    return [document(annotations=list(annotations))]


WRONG_FOLDERS = {
    "no file": ([], "no masks here"),
    "cut off": ([json.dumps(document())[:-20]], r"not JSON[\s\S]*sa_0\.json"),
    "a list": (["[]"], "not a file of SA-1B"),
    "no annotations": ([{"image": document()["image"]}], "not a file of SA-1B"),
    "only empty masks": (with_annotations(annotation(segmentation=box_code(0, 0, 0, 0))), "there is no mask in it"),
    "other size": ([document(height=32)], r"another size[\s\S]*32 x 32"),
    "unknown image": ([document(), document("zz.png")], r"'zz.png' \(1 in all\)"),
    "image twice": ([document(), document()], r"sa_1\.json[\s\S]*sa_0\.json"),
    "id twice": (with_annotations(annotation(id=1), annotation(id=1, predicted_iou=0.8)), "id is given twice"),
    "mask twice": (with_annotations(annotation(id=1), annotation(id=2)), "is there twice"),
    "bad mask": (with_annotations(annotation(segmentation={"size": [24, 32], "counts": "z"})), "annotation 0"),
    "NaN": (with_annotations(annotation(predicted_iou=float("nan"))), "predicted_iou is not"),
    "far above 1": (with_annotations(annotation(predicted_iou=1.2)), "predicted_iou is not"),
    "bad stability": (with_annotations(annotation(stability_score=1.05)), "stability_score"),
    "bad point": (with_annotations(annotation(point_coords=[[1]])), "point_coords"),
}


@pytest.mark.parametrize("name", WRONG_FOLDERS)
def test_a_wrong_folder_is_one_error_and_no_store(data, tmp_path, name):
    documents, words = WRONG_FOLDERS[name]
    refused(write_folder(tmp_path, documents), data, tmp_path, words)


def refused(source, data, tmp_path, words):
    with pytest.raises(InputError, match=words) as caught:
        import_proposals.run(source, str(tmp_path / "store"), images=data)
    assert caught.value.exit_code == 3
    assert str(source) in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_what_is_stated_beside_the_mask_is_worked_out_again_and_told(data, tmp_path, capsys):
    entries = [
        entry(bbox=[4, 4, 7, 5], area=48),  # SAM's boxes end at the last pixel
        entry(11, bbox=[0, 0, 20, 20], area=50),
        entry(12, segmentation={"size": [24, 32], "counts": [0, 24, 744]}),  # runs as a list
        entry(12, segmentation=box_code(0, 0, 0, 0)),
    ]
    import_proposals.run(write_results(tmp_path, entries), str(tmp_path / "store"), images=data)
    out = capsys.readouterr().out
    assert "3 masks in 3 images" in out
    assert "1 stated areas differ" in out
    assert "1 stated boxes differ" in out
    assert "1 masks without a pixel were left out" in out
    assert "4 images without masks" in out
    found = content(tmp_path / "store")
    assert [len(found[i]) for i in range(10, 17)] == [1, 1, 1, 0, 0, 0, 0]
    assert (found[11][0].area, found[11][0].bbox_xywh) == (48, (4.0, 4.0, 8.0, 6.0))
    assert (found[12][0].area, found[12][0].bbox_xywh) == (24, (0.0, 0.0, 1.0, 24.0))


def test_files_of_sa1b_are_told_by_name_and_may_know_less_or_exceed_one(data, tmp_path, capsys):
    given = [{"predicted_iou": 1.02, "segmentation": box_code(), "point_coords": [[5, 6]], "stability_score": 1}]
    source = write_folder(tmp_path, [document("03.png", given), document("01.png"), document("05.png", [])])
    import_proposals.run(source, str(tmp_path / "store"), images=data)
    found = content(tmp_path / "store")
    assert {i: len(proposals) for i, proposals in found.items() if proposals} == {11: 1, 13: 1}
    assert (found[13][0].predicted_iou, found[13][0].stability_score, found[13][0].point_xy) == (1.0, 1.0, (5.0, 6.0))
    assert (found[11][0].stability_score, found[11][0].point_xy) == (NO_STABILITY, NO_POINT)
    assert "1 scores a little above 1 were taken as 1" in capsys.readouterr().out


def amg_entry(**changes):
    """As SAM 1's scripts/amg.py --convert-to-rle writes it."""
    known = {"segmentation": box_code(), "area": 48, "bbox": [4, 4, 7, 5], "predicted_iou": 1.01}
    known |= {"point_coords": [[5.5, 6.5]], "stability_score": 0.96875, "crop_box": [0, 0, WIDTH, HEIGHT]}
    return known | changes


def write_lists(folder, lists):
    for name, entries in lists.items():
        file = folder / "amg" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(entries))
    return folder / "amg"


def test_the_lists_of_sam_1_are_told_by_the_names_of_their_files(data, tmp_path):
    box = box_code(0, 0, 5, 5)
    lists = {"03": [amg_entry(), amg_entry(segmentation=box, area=25, bbox=[0, 0, 4, 4])], "05": []}
    import_proposals.run(write_lists(tmp_path, lists), str(tmp_path / "store"), images=data)
    found = content(tmp_path / "store")
    assert {i: len(proposals) for i, proposals in found.items() if proposals} == {13: 2}
    first = found[13][0]
    assert (first.predicted_iou, first.stability_score, first.point_xy, first.area) == (1.0, 0.96875, (5.5, 6.5), 48)
    assert verify(tmp_path / "store") == []


def test_lists_of_images_in_folders(data, tmp_path):
    values = json.loads(data.read_text())
    for image, name in zip(values["images"], ["a/x.png", "b/x.png", "b/y.v2.png"], strict=False):
        image["file_name"] = name
    values["images"], values["annotations"] = values["images"][:3], []
    renamed = tmp_path / "renamed.json"
    renamed.write_text(json.dumps(values))
    source = write_lists(tmp_path, {"b/x": [amg_entry()], "y.v2": [amg_entry()]})
    import_proposals.run(source, str(tmp_path / "store"), images=renamed)
    assert [len(found) for found in content(tmp_path / "store").values()] == [0, 1, 1]
    write_lists(tmp_path, {"x": [amg_entry()]})
    with pytest.raises(AnnotationError, match=r"(?s)not clear of which image.*x\.json for a/x\.png and b/x\.png"):
        import_proposals.run(source, str(tmp_path / "again"), images=renamed)


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"03": [amg_entry()], "zz": [amg_entry()]}, r"(?s)nor named after an image.*zz\.json"),
        ({"03": [amg_entry()], "a/03": [amg_entry()]}, "a second file of one image"),
        ({"03": [amg_entry(segmentation={**box_code(), "size": [32, 24]})]}, "size of an RLE differs"),
        ({"03": [1]}, "or a list of annotations"),
        ({"03": [amg_entry(), amg_entry()]}, "is there twice"),
    ],
)
def test_wrong_lists_are_one_error_and_no_store(data, tmp_path, lists, words):
    refused(write_lists(tmp_path, lists), data, tmp_path, words)


def test_the_pictures_of_sam_1_are_not_masks_yet(data, tmp_path):
    (tmp_path / "amg/03").mkdir(parents=True)
    (tmp_path / "amg/03/0.png").write_bytes(b"")
    refused(tmp_path / "amg", data, tmp_path, r"(?s)no masks here.*amg\.py --convert-to-rle")


def test_where_a_library_comes_from_is_its_identity(data, tmp_path, capsys):
    source = write_results(tmp_path, [entry()])
    store = str(tmp_path / "store")
    import_proposals.run(source, store, images=data)
    identity = ProposalStore.open(store).identity
    assert identity.sam_name == "import:results.json"
    assert len(identity.sam_sha256) == 64
    before = store_files(Path(store))
    capsys.readouterr()
    import_proposals.run(source, store, images=data)
    assert "all 7 images are imported" in capsys.readouterr().out
    assert store_files(Path(store)) == before
    write_results(tmp_path, [entry(11)])
    with pytest.raises(StoreMismatchError, match="sam_sha256"):
        import_proposals.run(source, store, images=data)
    write_results(tmp_path, "[")
    with pytest.raises(AnnotationError):
        import_proposals.run(source, store, images=data, overwrite=True)
    assert store_files(Path(store)) == before  # nothing is removed for a source that is not sound
    write_results(tmp_path, [entry(11)])
    import_proposals.run(source, store, images=data, overwrite=True)
    assert [i for i, found in content(store).items() if found] == [11]


def test_overwrite_removes_no_library_that_could_not_be_replaced(data, tmp_path):
    """Similarity targets of a SAM stay in the store, and an imported library is of no SAM."""
    store = tmp_path / "store"
    settings = PrecomputeSettings(
        images=str(data),
        store=str(store),
        sam=SamSettings("fake"),
        similarity=SimilaritySettings(num_inside=4, num_uniform=4, rows_per_chunk=4),
        proposals=GeneratorSettings(points_per_side=4),
    )
    precompute(settings, make_backend=fake_sam)
    before = store_files(store)
    with pytest.raises(StoreMismatchError, match="sam_sha256"):
        import_proposals.run(write_results(tmp_path, [entry()]), str(store), images=data, overwrite=True)
    assert store_files(store) == before


@pytest.mark.parametrize("form", FORMS)
def test_more_masks_than_a_library_holds_are_refused_before_anything_is_removed(data, tmp_path, form, monkeypatch):
    store = str(tmp_path / "store")
    import_proposals.run(write_results(tmp_path, [entry(12)]), store, images=data)
    before = store_files(Path(store))
    monkeypatch.setattr(sources, "MAX_ROWS", 2)
    boxes = [box_code(x1=x) for x in (9, 10, 11)]
    if form == "coco-results":
        source = write_results(tmp_path, [entry(10), *(entry(11, segmentation=code) for code in boxes)])
    else:
        given = [{"predicted_iou": 0.9, "segmentation": code} for code in boxes]
        source = write_folder(tmp_path, [document("00.png"), document("01.png", given)])
    with pytest.raises(InputError, match="more masks of one image") as caught:
        import_proposals.run(source, store, images=data, overwrite=True)
    assert str(source) in str(caught.value.where)
    assert caught.value.got.endswith(": 3 (1 images in all)")
    assert caught.value.fix is not None
    assert store_files(Path(store)) == before


def test_an_interrupted_import_is_gone_on_with(data, tmp_path, monkeypatch, capsys):
    source = write_results(tmp_path, [entry(i) for i in (16, 10, 13)])
    monkeypatch.setattr(import_proposals, "IMAGES_PER_SHARD", 2)
    import_proposals.run(source, str(tmp_path / "whole"), images=data)
    left = 2

    def interrupted(task, proposals):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return commit_proposals(task, proposals)

    with monkeypatch.context() as context:
        context.setattr(import_proposals, "commit_proposals", interrupted)
        with pytest.raises(KeyboardInterrupt):
            import_proposals.run(source, str(tmp_path / "cut"), images=data)
    capsys.readouterr()
    import_proposals.run(source, str(tmp_path / "cut"), images=data)
    assert "proposals: skipped 2, redo 0, new 2" in capsys.readouterr().out
    assert store_files(tmp_path / "cut") == store_files(tmp_path / "whole")


def test_a_training_takes_an_imported_library(data, tmp_path):
    uri = str(tmp_path / "store")
    import_proposals.run(write_results(tmp_path, [entry()]), uri, images=data)
    _check_store(uri, "proposals", load_images(data, data.parent))
    refiner = build_refiner("iom", proposals=ProposalStore.open(uri))
    piece = np.zeros((1, HEIGHT, WIDTH), np.float32)
    piece[0, 4:10, 5:12] = 1
    masks = TeacherMasks(piece, np.ones((HEIGHT, WIDTH), bool), np.zeros(1, np.int64), np.ones(1, np.float32))
    image, rng = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.random.default_rng(0)
    refined = refiner.refine(10, image, masks, rng)
    assert (list(refined.outcomes), refined.masks.sum()) == (["matched"], 48)
    assert list(refiner.refine(11, image, masks, rng).outcomes) == ["kept"]


def test_images_may_be_a_folder(data, tmp_path):
    source = write_results(tmp_path, [entry(2)])
    import_proposals.run(source, str(tmp_path / "store"), images=data.parent)
    assert [len(found) for found in content(tmp_path / "store").values()] == [0, 1, 0, 0, 0, 0, 0]
    with pytest.raises(InputError, match="images not found"):
        import_proposals.run(source, str(tmp_path / "other"), images=tmp_path / "nowhere")


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_a_list_is_read_alike_whatever_is_read_at_once(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("jobs.exchange.json_stream._CHUNK_BYTES", chunk)
    values = [{"a": [1.5e-3, True, None, 'x]},{\\" \u00e9']}, {}, {"b": {"c": -12345.678}}]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
    found = list(items(path))
    assert [item.value for item in found] == values
    data = path.read_bytes()
    assert [json.loads(data[item.start : item.end]) for item in found] == values
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(AnnotationError):
            list(items(path))


def test_a_long_list_is_never_in_memory(data, tmp_path):
    keys = image_keys(load_images(data, data.parent).images)
    path, number = tmp_path / "long.json", 1_000
    with path.open("w") as file:
        lines = (json.dumps(entry(10 + i % 7, score=i / number, note="x" * 30_000)) for i in range(number))
        file.write("[" + ",".join(lines) + "]")
    source = CocoResults(path, keys)
    tracemalloc.start()
    source.check(lambda _: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.tally.masks == number
    assert path.stat().st_size > 30_000_000
    assert peak < 8_000_000
    assert [round(p.predicted_iou * number) for p in source.read(keys[3])] == list(range(3, number, 7))


def run_cli(*words):
    with pytest.raises(SystemExit) as caught:
        cli.main([str(word) for word in words])
    return caught.value.code


def test_the_commands_have_the_documented_exit_codes(store, data, tmp_path, capsys):
    out, new = tmp_path / "out.json", tmp_path / "store"
    assert run_cli("export-proposals", store, out, "--format", "coco-results", "--category-id", 4) == 0
    assert json.loads(out.read_text())[0]["category_id"] == 4
    assert run_cli("import-proposals", out, new, "--images", data) == 0
    assert content(new).keys() == content(store).keys()
    assert run_cli("export-proposals", store, out) == 2
    assert run_cli("export-proposals", store, out, "--format", "voc") == 2
    assert run_cli("import-proposals", out, new) == 2
    assert run_cli("export-proposals", store, out, "--format", "coco-results") == 3
    assert run_cli("export-proposals", tmp_path / "none", tmp_path / "x.json", "--format", "coco-results") == 3
    capsys.readouterr()
    assert run_cli("import-proposals", tmp_path / "none", new, "--images", data) == 3
    err = capsys.readouterr().err
    assert err.startswith("error: no masks to import")
    record = sorted((new / "records").iterdir())[0]
    record.write_bytes(b"{}")
    (new / "index/proposals.arrows").unlink()  # it has a sound copy of the record
    assert run_cli("export-proposals", new, tmp_path / "x.json", "--format", "coco-results") == 5


def test_names_in_another_encoding_are_nobodys_business(tmp_path):
    """Checked and read again by the same rule: otherwise the old library was gone before the second failed."""
    path = tmp_path / "odd.json"
    path.write_bytes(b'[{"name": "caf\xe9", "score": 0.5}]')
    (item,) = items(path)
    assert item_at(path, item.start, item.end)["score"] == 0.5


def test_no_two_images_share_a_file():
    images = [ImageKey(i, name, 4, 4) for i, name in enumerate(["x.jpg", "x.png", "x.jpg.jpg", "y.jpg"], start=1)]
    names = export_proposals._file_names(images)
    assert names == {1: "x.jpg.1.json", 2: "x.png.json", 3: "x.jpg.3.json", 4: "y.json"}
