"""A random network on a few scenes: confident nonsense, the same every time."""

import json
from collections.abc import Collection
from pathlib import Path

import torch

from data_schemas.manifest import SCHEMA_VERSIONS, ImageOutcome, StoreIdentity
from data_schemas.proposals import Proposal
from jobs.networks import load_network, open_config
from jobs.store_checks import image_keys
from pipeline.data.coco import CocoSet, load_coco
from pipeline.data.splits import draw_split, save_split
from pipeline.masks import rle
from pipeline.models.weights import read_checkpoint
from pipeline.scenes.dataset import write_scenes
from pipeline.stores.proposal_store import commit_proposals
from pipeline.stores.writer import StoreWriter

CONFIGS = Path(__file__).parents[2] / "configs"
STUDENT, TEACHER = CONFIGS / "student" / "scenes_none.py", CONFIGS / "teacher" / "scenes_supervised.py"
TINY = ("batch_size=2", "val_dataloader.batch_size=2", "device=cpu")


def write_data(root: Path, *, num_train: int = 4, num_val: int = 3) -> list[str]:
    """Scenes with a split (one labelled); returns the overrides that make a config use them."""
    files = write_scenes(root, num_train=num_train, num_val=num_val, seed=5)
    coco = load_coco(files.annotations("train"), files.image_root)
    save_split(draw_split(coco, percent=25, seed=0), root / "split.json")
    return [f"data_root={root}", *TINY]


def write_library(store: Path, coco: CocoSet, *, left: Collection[int] = (), quarantined: Collection[int] = ()) -> Path:
    """Every object of every image, as a SAM without a fault would store it.

    Proposals of the images that are ``left`` are not computed yet; SAM could not do those that are ``quarantined``.
    """
    identity = StoreIdentity("proposals", SCHEMA_VERSIONS["proposals"], "d" * 64, "oracle", "0" * 64)
    with StoreWriter.create_or_open(store, identity, image_keys(coco.images), images_per_shard=1) as writer:
        for task in writer.missing().tasks:
            (image,) = task.plan.images
            if image.image_id in quarantined:
                commit_proposals(task, {}, [ImageOutcome.quarantined(image.image_id, stage="embed", reason="toy")])
            elif image.image_id not in left:
                found = [proposal_of(entry) for entry in coco.annotations[image.image_id]]
                commit_proposals(task, {image.image_id: found})
    return store


def proposal_of(entry) -> Proposal:
    height, width = entry.rle["size"]
    counts, area, box = entry.rle["counts"], rle.area(entry.rle), rle.bbox_xywh(entry.rle)
    return Proposal(counts, height, width, area, box, predicted_iou=0.9, stability_score=0.9, point_xy=(1.0, 1.0))


def class_list(root: Path) -> tuple[str, ...]:
    content = json.loads((root / "annotations" / "train.json").read_text())
    return tuple(category["name"] for category in content["categories"])


def write_student(path: Path, options: list[str], classes: tuple[str, ...] | None) -> Path:
    """A student's checkpoint whose two networks differ; both are sure of what they see, and wrong."""
    state = {}
    for seed, name in enumerate(("student", "teacher")):
        network = fresh_network(options, seed)
        state |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
    meta = {} if classes is None else {"dataset_meta": {"classes": classes}}
    torch.save({"state_dict": state, "meta": meta}, path)
    return path


def fresh_network(options: list[str], seed: int):
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    torch.manual_seed(seed)
    network = MODELS.build(open_config(TEACHER, options).model)
    torch.nn.init.normal_(network.panoptic_head.cls_embed.weight, std=1.0)
    torch.nn.init.normal_(network.panoptic_head.query_feat.weight, std=3.0)
    network.panoptic_head.cls_embed.bias.data[-1] = -4.0  # hardly ever "no object"
    return network


def weights_of(path: Path, which: str) -> dict[str, torch.Tensor]:
    state = read_checkpoint(path)["state_dict"]
    return {name.removeprefix(f"{which}."): value for name, value in state.items() if name.startswith(which)}


def plain_network(path: Path, options: list[str], which: str):
    return load_network(open_config(TEACHER, options), path, which=which)
