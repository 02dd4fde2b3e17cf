"""split: the command writes what the library draws, once, and the two parts as COCO files."""

import json

import pytest

from jobs.split import run
from pipeline.data.coco import load_coco, load_images
from pipeline.errors import InputError
from tests.jobs.toys import write_coco


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_second_class(source, image_ids):
    """Every second object of these images is of another class; a third class has none."""
    values = json.loads(source.read_text())
    values["categories"] += [{"id": 7, "name": "disc"}, {"id": 9, "name": "star"}]
    for entry in values["annotations"]:
        if entry["image_id"] in image_ids and entry["id"] % 2 == 0:
            entry["category_id"] = 7
    values["annotations"][0]["iscrowd"] = 1
    source.write_text(json.dumps(values))


def test_a_draw_is_written_and_told_and_done_only_once(tmp_path, capsys):
    source, out = write_coco(tmp_path / "data", 10), tmp_path / "split"
    run(source, out=out, percent=30, seed=2)
    written = json.loads((out / "split.json").read_text())
    assert (len(written["labelled"]), len(written["unlabelled"]), written["seed"]) == (3, 7, 2)
    assert sorted(written["labelled"] + written["unlabelled"]) == list(range(10, 20))
    assert "3 labelled, 7 unlabelled" in capsys.readouterr().out
    before = content(out)
    assert set(before) == {"split.json", "labelled.json", "unlabelled.json"}
    run(source, out=out, percent=30, seed=2)
    assert content(out) == before


def test_the_parts_are_coco_files_and_the_unlabelled_one_tells_nothing(tmp_path):
    source, out = write_coco(tmp_path / "data", 10), tmp_path / "split"
    run(source, out=out, percent=30, seed=2)
    written = json.loads((out / "split.json").read_text())
    whole = load_coco(source, source.parent)
    labelled = load_coco(out / "labelled.json", source.parent)
    unlabelled = load_images(out / "unlabelled.json", source.parent)
    assert sorted(labelled.by_id) == written["labelled"]
    assert sorted(unlabelled.by_id) == written["unlabelled"]
    for image_id, entries in labelled.annotations.items():
        assert [(e.category_id, e.rle) for e in entries] == [
            (e.category_id, e.rle) for e in whole.annotations[image_id]
        ]
    assert unlabelled.num_annotations == 0
    assert json.loads((out / "unlabelled.json").read_text())["annotations"] == []


def test_another_draw_is_refused_and_the_first_stays(tmp_path):
    source, out = write_coco(tmp_path / "data", 10), tmp_path / "split"
    run(source, out=out, percent=30)
    before = content(out)
    for other in ({"percent": 40}, {"percent": 30, "seed": 1}):
        with pytest.raises(InputError, match="never redrawn"):
            run(source, out=out, **other)
    assert content(out) == before


def test_after_a_correction_the_split_stays_and_the_labelled_part_follows(tmp_path):
    source, out = write_coco(tmp_path / "data", 4), tmp_path / "split"
    run(source, out=out, percent=100)
    before = content(out)
    source.write_text(source.read_text().replace("[[4, 4, 12, 4", "[[4, 4, 11, 4"))
    run(source, out=out, percent=100)
    assert content(out)["split.json"] == before["split.json"]
    assert content(out)["labelled.json"] != before["labelled.json"]


def test_classes_are_counted_and_the_ones_without_a_label_are_named(tmp_path, capsys):
    source, names = write_coco(tmp_path / "data", 5), tmp_path / "names.txt"
    with_second_class(source, {10, 13})
    names.write_text("00.png\n01.png\n")
    run(source, out=tmp_path / "split", names=names)
    out = capsys.readouterr().out.splitlines()
    # Image 10 has a crowd, which does not count, and a disc; image 11 has two boxes; 12 and 14 two each, 13 one.
    assert [line.split() for line in out[1:4]] == [
        ["box", "2", "of", "7", "objects", "labelled"],
        ["disc", "1", "of", "2", "objects", "labelled"],
        ["star", "0", "of", "0", "objects", "labelled"],
    ]
    assert out[4] == "warning: 1 classes have no labelled object, nothing can learn them: star"


def test_a_published_list_is_read(tmp_path):
    source, names = write_coco(tmp_path / "data", 5), tmp_path / "names.txt"
    names.write_text("03.png\n01.png\n")
    run(source, out=tmp_path / "split", names=names)
    assert json.loads((tmp_path / "split" / "split.json").read_text())["labelled"] == [11, 13]


def test_files_of_somebody_else_are_not_overwritten(tmp_path):
    source, out = write_coco(tmp_path / "data", 5), tmp_path / "split"
    out.mkdir()
    (out / "labelled.json").write_text("precious")
    with pytest.raises(InputError, match="no split wrote"):
        run(source, out=out, percent=20)
    assert content(out) == {"labelled.json": b"precious"}


@pytest.mark.parametrize("percent", [0, -1, 100.5, float("nan")])
def test_a_percent_out_of_range_writes_nothing(percent, tmp_path):
    source = write_coco(tmp_path / "data", 5)
    with pytest.raises(InputError, match=r"percent is out of range\n  where:    --percent[\s\S]*next:"):
        run(source, out=tmp_path / "split", percent=percent)
    assert not (tmp_path / "split").exists()


def test_missing_files_are_said_plainly(tmp_path):
    source = write_coco(tmp_path / "data", 2)
    with pytest.raises(InputError, match="annotations not found"):
        run(tmp_path / "no.json", out=tmp_path / "split", percent=10)
    with pytest.raises(InputError, match="list of image names cannot be read"):
        run(source, out=tmp_path / "split", names=tmp_path / "no.txt")
    with pytest.raises(InputError, match="image folder not found"):
        run(source, out=tmp_path / "split", percent=10, image_root=tmp_path / "no")
    with pytest.raises(InputError, match="a folder of three files"):
        run(source, out=tmp_path / "split.json", percent=10)
    assert not (tmp_path / "split").exists()
