"""A handful of small scenes with a split, for tests that train."""

from pathlib import Path

from pipeline.data.coco import load_coco
from pipeline.data.splits import draw_split, save_split
from pipeline.scenes.dataset import SceneFiles, write_scenes
from pipeline.scenes.render import SceneStyle


def small_scenes(
    root: Path, *, num_train: int = 8, num_val: int = 2, size: int = 64, percent: float = 50, seed: int = 5
) -> SceneFiles:
    """Scenes of ``size`` pixels and ``split.json`` beside them."""
    style = SceneStyle(size=size, num_instances=(2, 4), radius_share=(0.12, 0.2), num_clutter=(0, 2))
    files = write_scenes(root, num_train=num_train, num_val=num_val, seed=seed, style=style)
    coco = load_coco(files.annotations("train"), files.image_root)
    save_split(draw_split(coco, percent=percent, seed=0), files.root / "split.json")
    return files
