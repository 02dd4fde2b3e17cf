"""split: the command writes what the library draws, once."""

import json

import pytest

from jobs.split import run
from pipeline.errors import InputError
from tests.jobs.toys import write_coco


def test_a_draw_is_written_and_told(tmp_path, capsys):
    source, out = write_coco(tmp_path / "data", 10), tmp_path / "split.json"
    run(source, out=out, percent=30, seed=2)
    written = json.loads(out.read_text())
    assert (len(written["labelled"]), len(written["unlabelled"]), written["seed"]) == (3, 7, 2)
    assert sorted(written["labelled"] + written["unlabelled"]) == list(range(10, 20))
    assert "3 labelled, 7 unlabelled" in capsys.readouterr().out
    before = out.read_bytes()
    run(source, out=out, percent=30, seed=2)
    assert out.read_bytes() == before


def test_another_draw_is_refused_and_the_first_stays(tmp_path):
    source, out = write_coco(tmp_path / "data", 10), tmp_path / "split.json"
    run(source, out=out, percent=30)
    before = out.read_bytes()
    with pytest.raises(InputError, match="never redrawn"):
        run(source, out=out, percent=40)
    assert out.read_bytes() == before


def test_a_published_list_is_read(tmp_path):
    source, names = write_coco(tmp_path / "data", 5), tmp_path / "names.txt"
    names.write_text("03.png\n01.png\n")
    run(source, out=tmp_path / "split.json", names=names)
    assert json.loads((tmp_path / "split.json").read_text())["labelled"] == [11, 13]


def test_missing_files_are_said_plainly(tmp_path):
    with pytest.raises(InputError, match="annotations not found"):
        run(tmp_path / "no.json", out=tmp_path / "split.json", percent=10)
