"""Streams are functions of their position: whatever the order, the interruption and the number of workers."""

import json
import random
import shutil
from itertools import islice

import numpy as np

import pipeline.models.mmcv_ops  # noqa: F401  isort: skip  (before mmdet)
import pytest
import torch
from mmcv.transforms import RandomResize
from mmdet.datasets.transforms import RandomCrop, RandomFlip, Resize
from mmengine.dataset.utils import pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from pipeline.data.instance_dataset import (
    CheckedDataset,
    InstanceDataset,
    PairedStream,
    StreamDataset,
    StreamSampler,
    seeded,
)
from pipeline.data.transforms import DropSmallInstances, HideGroundTruth, PackSample
from pipeline.errors import ConfigError, InputError, TooManyQuarantinedError
from pipeline.images import read_image
from pipeline.masks import rle
from tests.toy_scenes import small_scenes

SIZE = 64
GEOMETRY = [
    {
        "type": RandomResize,
        "scale": (SIZE, SIZE),
        "ratio_range": (0.8, 1.25),
        "keep_ratio": True,
        "resize_type": Resize,
    },
    {"type": RandomCrop, "crop_size": (SIZE, SIZE), "crop_type": "absolute", "allow_negative_crop": True},
    {"type": RandomFlip, "prob": 0.5},
]


@pytest.fixture(scope="module", autouse=True)
def scope():
    init_default_scope("mmdet")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("data") / "scenes", num_train=7, percent=45)


def images(scenes, part="all", pipeline=(), **changes):
    return {
        "type": InstanceDataset,
        "annotation_file": str(scenes.annotations("train")),
        "image_root": str(scenes.image_root),
        "split_file": str(scenes.root / "split.json"),
        "part": part,
        "pipeline": list(pipeline),
        **changes,
    }


def plain(scenes, part="all", pipeline=(), **changes):
    config = images(scenes, part, pipeline, **changes)
    config.pop("type")
    return InstanceDataset(**config)


def stream(scenes, *, name="labelled", seed=0, part="all", pipeline=None):
    inner = images(scenes, part, [*GEOMETRY, {"type": PackSample}] if pipeline is None else pipeline)
    return {"type": StreamDataset, "seed": seed, "name": name, "dataset": inner}


def build(config):
    kind = config["type"]
    return kind(**{key: value for key, value in config.items() if key != "type"})


def content(sample):
    """Everything of a packed sample that could differ, as bytes."""
    data = sample["data_samples"]
    return (
        sample["inputs"].numpy().tobytes(),
        data.img_id,
        np.asarray(data.homography_matrix).tobytes(),
        data.gt_instances.masks.masks.tobytes(),
        data.gt_instances.labels.numpy().tobytes(),
    )


def test_a_record_is_the_canonical_image_with_its_objects(scenes):
    data = plain(scenes)
    coco = data.coco
    for index in range(len(data)):
        record, image = data.record(index), coco.images[index]
        assert np.array_equal(record["img"], read_image(coco.path_of(image)))
        assert np.array_equal(record["homography_matrix"], np.eye(3))
        objects = coco.annotations[image.image_id]
        assert np.array_equal(record["gt_masks"].masks, [rle.decode(o.rle) for o in objects])
        assert record["gt_bboxes_labels"].tolist() == [coco.labels[o.category_id] for o in objects]
        for box, mask in zip(record["gt_bboxes"].numpy(), record["gt_masks"].masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_crowds_are_no_objects(scenes):
    data = plain(scenes)
    image = data.coco.images[0]
    objects = data.coco.annotations[image.image_id]
    crowd = type(objects[0])(**{**vars(objects[0]), "iscrowd": True})
    data.coco = type(data.coco)(
        **{
            **{f: getattr(data.coco, f) for f in data.coco.__dataclass_fields__},
            "annotations": {**data.coco.annotations, image.image_id: (crowd, *objects[1:])},
        }
    )
    assert len(data.annotations(0)["gt_masks"]) == len(objects) - 1


def test_parts_are_those_of_the_split_and_disjoint(scenes):
    ids = {part: [i.image_id for i in plain(scenes, part).coco.images] for part in ("all", "labelled", "unlabelled")}
    assert len(ids["labelled"]) == 3
    assert not set(ids["labelled"]) & set(ids["unlabelled"])
    assert set(ids["labelled"]) | set(ids["unlabelled"]) == set(ids["all"])


def test_without_masks_nothing_of_the_annotations_is_in_the_record(scenes):
    record = plain(scenes, "unlabelled", with_masks=False).record(0)
    assert not [key for key in record if key.startswith("gt_")]


@pytest.mark.parametrize(("part", "changes"), [("some", {}), ("labelled", {"split_file": None})])
def test_a_part_that_is_none_is_refused(scenes, part, changes):
    with pytest.raises(ConfigError, match="which images"):
        plain(scenes, part, **changes)


def test_an_image_of_another_size_is_refused(scenes):
    data = plain(scenes)
    image = data.coco.images[0]
    wrong = type(image)(**{**vars(image), "height": image.height + 1})
    data.coco = type(data.coco)(
        **{
            **{f: getattr(data.coco, f) for f in data.coco.__dataclass_fields__},
            "images": (wrong, *data.coco.images[1:]),
        }
    )
    with pytest.raises(InputError, match="size differs"):
        data.record(0)


def test_a_position_is_one_sample_in_any_order_and_after_any_other(scenes):
    forward = build(stream(scenes))
    expected = {position: content(forward[position]) for position in range(20)}
    assert len({c[0] for c in expected.values()}) == 20  # no two alike: every pass has its own augmentation
    backward = build(stream(scenes))
    np.random.seed(99)
    for position in reversed(range(20)):
        np.random.random()
        assert content(backward[position]) == expected[position]


def test_every_pass_is_a_permutation_of_its_own(scenes):
    data = build(stream(scenes))
    passes = [tuple(data.index_at(7 * number + place) for place in range(7)) for number in range(6)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len(set(passes)) > 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"name": "other"}])
def test_seed_and_name_make_other_streams(scenes, change):
    first, second = build(stream(scenes)), build(stream(scenes, **change))
    assert [content(first[p])[0] for p in range(7)] != [content(second[p])[0] for p in range(7)]


def test_the_global_generators_are_given_back(scenes):
    np.random.seed(3), random.seed(3)
    expected = np.random.random(), random.random()
    np.random.seed(3), random.seed(3)
    build(stream(scenes))[0]
    assert (np.random.random(), random.random()) == expected
    with pytest.raises(ValueError, match="inside"), seeded([1]):
        raise ValueError("inside")
    np.random.seed(3)
    assert np.random.random() == expected[0]


class GiveUp:
    """Gives every sample up whose next random number is below ``share``."""

    def __init__(self, share, only=None):
        self.share, self.only = share, only

    def __call__(self, results):
        return None if np.random.random() < self.share and self.only in (None, results["img_id"]) else results


def test_what_a_transform_gives_up_is_drawn_again_with_other_numbers(scenes):
    data = build(stream(scenes, pipeline=[GiveUp(0.4), *GEOMETRY, {"type": PackSample}]))
    for position in range(10):
        assert data[position]["data_samples"].img_id == data.dataset.coco.images[data.index_at(position)].image_id


def test_an_image_that_never_works_makes_room_for_the_next(scenes):
    data = build(stream(scenes))
    hopeless = data.dataset.coco.images[data.index_at(2)].image_id
    never = build(stream(scenes, pipeline=[GiveUp(1.1, hopeless), *GEOMETRY, {"type": PackSample}]))
    ids = [never[position]["data_samples"].img_id for position in range(7)]
    assert hopeless not in ids
    assert len(ids) == 7


def test_nothing_usable_at_all_is_said(scenes):
    data = build(stream(scenes, pipeline=[GiveUp(1.1)]))
    with pytest.raises(InputError, match="no usable crop"):
        data[0]


@pytest.fixture
def damaged(scenes, tmp_path):
    """A copy of the scenes in which the image at position 2 is cut short."""
    folder = tmp_path / "images"
    shutil.copytree(scenes.image_root, folder)
    data = build(stream(scenes))
    name = data.dataset.coco.images[data.index_at(2)].file_name
    (folder / name).write_bytes((folder / name).read_bytes()[:200])
    return folder, name


def damaged_stream(scenes, folder, share):
    config = stream(scenes)
    config["max_broken_share"] = share
    config["dataset"]["image_root"] = str(folder)
    return build(config)


def test_a_broken_image_is_named_once_and_the_next_takes_its_place(scenes, damaged, caplog):
    folder, name = damaged
    data = damaged_stream(scenes, folder, 0.2)
    whole = build(stream(scenes))
    for _ in range(2):
        for position in range(7):
            place = position + (position == 2)
            expected = whole.dataset.coco.images[whole.index_at(place)].image_id
            assert data[position]["data_samples"].img_id == expected
    (message,) = caplog.messages
    assert message.startswith(f"left out {name}: ")
    assert message.endswith("(1 of 7 images)")


def test_more_broken_images_than_allowed_end_the_run(scenes, damaged):
    folder, name = damaged
    data = damaged_stream(scenes, folder, 0.1)
    assert data[0]["data_samples"].img_id
    with pytest.raises(TooManyQuarantinedError, match=rf"1 of 7 images are broken[\s\S]*10 %[\s\S]*{name}"):
        data[2]


def test_a_wrong_setting_is_no_broken_image(scenes):
    class Wrong:
        def __call__(self, results):
            raise ConfigError("too few points per image")

    data = build(stream(scenes, pipeline=[Wrong()]))
    data.max_broken_share = 1.0
    with pytest.raises(ConfigError, match="too few points"):
        data[0]


def test_a_set_that_is_gone_through_to_its_end_is_checked_first(scenes, damaged, caplog):
    folder, name = damaged
    settings = images(scenes, image_root=str(folder))
    settings.pop("type")
    data = CheckedDataset(**settings, max_broken_share=0.2)
    assert len(data) == 6
    assert name not in [image.file_name for image in data.coco.images]
    assert any(name in message for message in caplog.messages)
    with pytest.raises(TooManyQuarantinedError, match=name):
        CheckedDataset(**settings)


def test_pairs_hold_both_streams_at_the_same_position(scenes):
    hidden = [*GEOMETRY, {"type": HideGroundTruth}, {"type": PackSample}]
    small = {"type": DropSmallInstances, "min_pixels": 16, "keep_empty": False}
    labelled = stream(scenes, part="labelled", pipeline=[*GEOMETRY, small, {"type": PackSample}])
    unlabelled = stream(scenes, name="unlabelled", part="unlabelled", pipeline=hidden)
    pairs, first, second = PairedStream(labelled, unlabelled), build(labelled), build(unlabelled)
    assert len(pairs) == 4
    for position in (0, 5, 11):
        pair = pairs[position]
        assert torch.equal(pair["inputs"]["sup"], first[position]["inputs"])
        assert torch.equal(pair["inputs"]["unsup"], second[position]["inputs"])
        truth = pair["data_samples"]["unsup"]
        assert len(truth.gt_instances) == 0
        assert len(truth.hidden_truth.labels) == len(truth.hidden_truth.masks)


def positions(*, batch_size, first_step=0, rank=0, world_size=1, count=12):
    sampler = StreamSampler(None, batch_size=batch_size)
    sampler.first_step, sampler.rank, sampler.world_size = first_step, rank, world_size
    return list(islice(sampler, count))


def test_a_resumed_sampler_goes_on_where_it_stopped():
    assert positions(batch_size=3) == list(range(12))
    assert positions(batch_size=3, first_step=2, count=6) == positions(batch_size=3)[6:]
    two = {"batch_size": 2, "rank": 1, "world_size": 3}
    assert positions(**two, first_step=4, count=4) == positions(**two)[8:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_no_position_and_leave_none_out(world_size):
    taken = [positions(batch_size=4, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(p for rank in taken for p in rank) == list(range(12 * world_size))


def test_iterating_twice_starts_at_the_first_step_again():
    sampler = StreamSampler(None, batch_size=2)
    sampler.first_step = 3
    assert list(islice(sampler, 3)) == list(islice(sampler, 3)) == [6, 7, 8]


def test_workers_change_nothing(scenes):
    data = build(stream(scenes))

    def batches(num_workers):
        loader = DataLoader(
            data,
            batch_size=2,
            sampler=StreamSampler(data, batch_size=2),
            num_workers=num_workers,
            collate_fn=pseudo_collate,
        )
        return [
            [
                content({"inputs": x, "data_samples": s})
                for x, s in zip(batch["inputs"], batch["data_samples"], strict=True)
            ]
            for batch in islice(loader, 5)
        ]

    assert batches(0) == batches(2)


def without_objects(scenes, folder, ids):
    """The settings of the labelled part, with the objects of some images made a crowd or taken away."""
    content = json.loads(scenes.annotations("train").read_text())
    first, *others = ids
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] not in others]
    for entry in content["annotations"]:
        entry["iscrowd"] = int(entry["image_id"] == first or entry["iscrowd"])
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    settings = images(scenes, part="labelled", annotation_file=str(path), split_file=str(scenes.root / "split.json"))
    settings.pop("type")
    return settings


def test_labelled_images_without_an_object_are_left_out_and_counted(scenes, tmp_path, caplog):
    labelled = json.loads((scenes.root / "split.json").read_text())["labelled"]
    data = InstanceDataset(**without_objects(scenes, tmp_path, labelled[:2]))
    assert [image.image_id for image in data.coco.images] == labelled[2:]
    assert any("2 of 3 labelled images" in message for message in caplog.messages)
    with pytest.raises(InputError, match="no labelled image has an object"):
        InstanceDataset(**without_objects(scenes, tmp_path, labelled))
