"""Looking at a store: images drawn, the figures those of the masks."""

import json
import re

import cv2
import numpy as np
import pytest

from jobs.look_at_store import look
from jobs.precompute_sam import precompute
from jobs.settings import PrecomputeSettings, SamSettings
from pipeline.errors import InputError
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.scenes.dataset import SceneFiles
from pipeline.stores.proposal_store import ProposalStore
from tests.jobs.toys import fake_sam
from tests.toy_scenes import small_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> SceneFiles:
    return small_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=3, num_val=1)


@pytest.fixture(scope="module")
def store(scenes, tmp_path_factory) -> str:
    settings = PrecomputeSettings(
        images=str(scenes.annotations("train")),
        image_root=str(scenes.image_root),
        store=str(tmp_path_factory.mktemp("sam") / "store"),
        sam=SamSettings("fake"),
        targets=("proposals",),
        proposals=GeneratorSettings(points_per_side=4, pred_iou_threshold=0.0, stability_score_threshold=0.0),
    )
    precompute(settings, make_backend=fake_sam)
    return settings.store


def test_the_picture_and_the_figures(scenes, store, tmp_path):
    out = tmp_path / "new" / "look.png"
    text = look(store, scenes.annotations("train"), scenes.image_root, out, num=2, height=96).splitlines()
    library = ProposalStore.open(store)
    num = sum(len(library.read(image_id)) for image_id in library.image_ids())
    assert num > 0
    assert text[0] == f"3 images, {num} proposals, {num / 3:.1f} an image"
    assert re.match(r"\d+ instances: recall \d\.\d{3} at IoU 0\.5", text[1])
    picture = cv2.imread(str(out))
    assert picture.shape == (2 * (96 + 6), 3 * (96 + 6), 3)  # image, instances, proposals
    image, instances, proposals = (picture[:96, k * 102 : k * 102 + 96] for k in range(3))
    assert not np.array_equal(image, instances)
    assert not np.array_equal(image, proposals)


def test_an_image_without_an_object_stands_in_the_same_columns(scenes, store, tmp_path):
    content = json.loads(scenes.annotations("train").read_text())
    empty = content["images"][-1]["id"]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != empty]
    (tmp_path / "train.json").write_text(json.dumps(content))
    look(store, tmp_path / "train.json", scenes.image_root, tmp_path / "look.png", num=3, height=96)
    last = cv2.imread(str(tmp_path / "look.png"))[-102:-6]
    np.testing.assert_array_equal(last[:, :96], last[:, 102:198])
    assert not np.array_equal(last[:, :96], last[:, 204:300])


def test_another_data_set_is_said(scenes, store, tmp_path):
    with pytest.raises(InputError, match="none of these images"):
        look(store, scenes.annotations("val"), scenes.image_root, tmp_path / "a.png", num=1, height=9)


def test_images_without_annotations_have_two_columns(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(2):
        cv2.imwrite(str(folder / f"{k}.png"), np.full((20, 40, 3), 90 * k, np.uint8))
    settings = PrecomputeSettings(
        images=str(folder),
        image_root=str(folder),
        store=str(tmp_path / "store"),
        sam=SamSettings("fake"),
        targets=("proposals",),
        proposals=GeneratorSettings(points_per_side=2),
    )
    precompute(settings, make_backend=fake_sam)
    text = look(settings.store, folder, None, tmp_path / "a.png", num=5, height=50)
    assert "instances" not in text
    assert cv2.imread(str(tmp_path / "a.png")).shape == (2 * 56, 2 * (100 + 6), 3)
