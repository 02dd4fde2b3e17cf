import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from data_schemas.proposals import check_proposal, proposal_order
from jobs.bench.stock_generator import stock_generator
from jobs.measurements.large_image import CAP_MB, measure
from pipeline.errors import ConfigError
from pipeline.masks import rle
from pipeline.sam import full_resolution
from pipeline.sam.batches import BatchSize, in_batches
from pipeline.sam.coarse_to_fine import spared
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.sam2_backend import SCENES_NANO, Sam2Backend, _architecture, build_backend, build_model
from pipeline.sam.segment_everything import distinct, point_grid, segment_everything
from pipeline.sam.small_regions import clean
from tests.fakes import FakeSam, region_at

KEEP_ALL = GeneratorSettings(
    points_per_side=6, pred_iou_threshold=0.0, stability_score_threshold=0.0, box_nms_threshold=1.0
)


def mosaic(height=120, width=160, seed=0):
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.kron(blocks, np.ones((-(-height // 6), -(-width // 8), 1), np.uint8))[:height, :width]


HIERA = {
    "_target_": "sam2.modeling.backbones.hieradet.Hiera",
    "embed_dim": 32,
    "num_heads": 1,
    "stages": [1, 2, 4],
    "q_pool": 2,
    "global_att_blocks": [4, 6],
    "window_spec": [8, 8, 8],
    "window_pos_embed_bkg_spatial_size": [8, 8],
}


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """A small SAM 2 of the package's own classes and random weights, whose masks are many, small and unlike each other.

    Attention is sharpened and one decoder channel is made a constant that pulls all logits down, so that
    about one pixel in a hundred stays above 0.
    """
    architecture = OmegaConf.load(_architecture(SCENES_NANO))
    architecture.image_encoder.trunk = HIERA
    path = tmp_path_factory.mktemp("busy") / "hiera.yaml"
    OmegaConf.save(architecture, path)
    torch.manual_seed(0)
    model = build_model(path)
    decoder = model.sam_mask_decoder
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if weight.ndim > 1:
                weight.mul_(3 if "q_proj" in name or "k_proj" in name else 2)
        model.sam_prompt_encoder.no_mask_embed.weight.zero_()
        backend = Sam2Backend(model, name="busy", sha256="0" * 64)
        points = point_grid(6, (120, 160), backend.input_hw)[:, None]
        logits = backend.decode_points(backend.embed([mosaic()])[0], points, torch.ones(36, 1)).logits
        pull = torch.quantile(logits[::4].flatten(), 0.99)
        decoder.output_upscaling[3].weight[:, 0] = 0
        decoder.output_upscaling[3].bias[0] = 10
        decoder.conv_s0.weight[0] = 0
        decoder.conv_s0.bias[0] = 0
        for head in decoder.output_hypernetworks_mlps:
            head.layers[-1].weight[0] = 0
            head.layers[-1].bias[0] = -pull / 10
    return backend


def stock_generate(model, image, settings):
    return stock_generator(model, settings, points_per_batch=5).generate(image)


def assert_same(ours, stock):
    """The same masks with the same numbers; a mask may differ in a pixel whose logit is 0 up to rounding."""
    stock = [each for each in stock if each["area"] > 0]  # stock keeps empty masks if nothing filters them
    assert len(ours) == len(stock)
    stock.sort(key=lambda each: (-each["predicted_iou"], -each["area"], each["segmentation"]["counts"]))
    left = list(stock)
    for mine in ours:
        near = [each for each in left if abs(each["predicted_iou"] - mine.predicted_iou) < 1e-5]
        twin = max(near, key=lambda each: mask_iou(each["segmentation"]["counts"], mine))
        assert mask_iou(twin["segmentation"]["counts"], mine) >= 0.999
        assert twin["stability_score"] == pytest.approx(mine.stability_score, abs=1e-3)
        x, y, width, height = twin["bbox"]  # inclusive ends: one less than COCO's
        assert np.allclose((x, y, width + 1, height + 1), mine.bbox_xywh, atol=1)
        half = 0.5 * np.array(twin["crop_box"][2:]) / 384  # what the prompt encoder adds to stock's point
        assert np.allclose(np.add(twin["point_coords"][0], half), mine.point_xy, atol=1e-3)
        left.remove(twin)


def mask_iou(counts, proposal):
    if counts == proposal.rle_counts:
        return 1.0
    size = [proposal.height, proposal.width]
    a, b = rle.decode({"size": size, "counts": counts}), rle.decode({"size": size, "counts": proposal.rle_counts})
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize(
    "settings",
    [
        replace(KEEP_ALL, stability_score_offset=0.01),
        GeneratorSettings(6, 7, 0.5, 0.1, 0.01, 0.7),
        GeneratorSettings(6, 64, 0.4, 0.9, 0.02, 0.5),
        GeneratorSettings(5, 3, 0.0, 0.5, 0.05, 0.3),
    ],
    ids=["keep all", "three filters", "strict", "small batches"],
)
@pytest.mark.parametrize("size_hw", [(120, 160), (400, 390)], ids=["smaller than the input", "larger"])
def test_proposals_equal_the_stock_generator(busy, settings, size_hw):
    image = mosaic(*size_hw)
    ours = segment_everything(busy, image, settings)
    stock = stock_generate(busy.model, image, settings)
    assert len(ours) >= 5, "nothing to compare"
    assert_same(ours, stock)


def test_the_filters_of_the_parity_test_do_filter(busy):
    """Each threshold of "three filters" removes masks: otherwise equality would say little."""
    image = mosaic()
    strict = GeneratorSettings(6, 7, 0.5, 0.1, 0.01, 0.7)
    count = len(segment_everything(busy, image, strict))
    for field in ("pred_iou_threshold", "box_nms_threshold"):
        open_one = replace(strict, **{field: getattr(KEEP_ALL, field)})
        assert len(segment_everything(busy, image, open_one)) > count, field
    stricter = replace(strict, stability_score_threshold=0.95)
    assert len(segment_everything(busy, image, stricter)) < count


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"crop_n_layers": 1},
        {"use_m2m": True},
        pytest.param({"use_m2m": True, "crop_n_layers": 1}, marks=pytest.mark.slow),
    ],
    ids=["plain", "crops", "masks given back", "both"],
)
def test_trained_weights_equal_the_stock_generator_on_a_scene(more):
    if not _architecture(SCENES_NANO).with_suffix(".safetensors").is_file():
        pytest.skip("pipeline/assets/scenes_nano.safetensors is not trained yet")
    from pipeline.scenes.cache import draw_by_index
    from pipeline.scenes.render import SceneStyle

    backend = build_backend(SCENES_NANO)
    image = draw_by_index(0, group="benchmark", style=SceneStyle(), seed=7_000_001).image
    settings = GeneratorSettings(points_per_side=8, pred_iou_threshold=0.4, stability_score_threshold=0.6, **more)
    ours = segment_everything(backend, image, settings)
    assert len(ours) >= 3
    assert_same(ours, stock_generate(backend.model, image, settings))
    if more:
        plain = segment_everything(backend, image, replace(settings, crop_n_layers=0, use_m2m=False))
        assert {each.rle_counts for each in ours} != {each.rle_counts for each in plain}


def test_on_the_fake_every_region_is_found_once():
    """Four flat quadrants: the regions are known, and so is what NMS leaves."""
    image = np.zeros((32, 40, 3), np.uint8)
    image[:16, :20], image[:16, 20:], image[16:, :20], image[16:, 20:] = 10, 20, 30, 40
    sam = FakeSam()
    found = segment_everything(sam, image, GeneratorSettings(points_per_side=4))
    assert len(found) == 4
    masks = {each.rle_counts for each in found}
    corners = [(1, 1), (39, 1), (1, 31), (39, 31)]
    assert masks == {rle.encode(region_at(image, x, y))["counts"] for x, y in corners}
    for each in found:
        check_proposal(each, height=32, width=40)
        assert each.area == 320
        assert each.bbox_xywh[2:] == (20.0, 16.0)
        assert each.predicted_iou == pytest.approx(0.95)
        assert each.stability_score == 1
        assert region_at(image, *each.point_xy)[int(each.bbox_xywh[1]), int(each.bbox_xywh[0])]


def test_order_is_deterministic_and_the_limit_keeps_the_best(busy):
    image = mosaic()
    settings = replace(KEEP_ALL, stability_score_offset=0.01)
    found = segment_everything(busy, image, settings)
    assert found == segment_everything(busy, image, settings)
    assert found == sorted(found, key=proposal_order)
    assert segment_everything(busy, image, replace(settings, max_proposals=4)) == found[:4]


def test_batch_and_chunk_sizes_change_nothing_but_rounding(busy, monkeypatch):
    image = mosaic()
    settings = GeneratorSettings(6, 64, 0.5, 0.1, 0.01, 0.7)
    whole = segment_everything(busy, image, settings)
    monkeypatch.setitem(full_resolution.MAX_VALUES, "cpu", 500)  # one mask and few cells at a time
    assert segment_everything(busy, image, settings) == whole
    small = segment_everything(busy, image, replace(settings, points_per_batch=1))
    assert len(small) == len(whole)
    for a, b in zip(small, whole, strict=True):
        assert a.predicted_iou == pytest.approx(b.predicted_iou, abs=1e-5)
        assert mask_iou(b.rle_counts, a) >= 0.999


class Counting(FakeSam):
    """Counts clicks."""

    def decode_confident(self, embedding, points_xy, labels, threshold):
        self.clicks += len(points_xy)
        return super().decode_confident(embedding, points_xy, labels, threshold)


def test_a_coarse_grid_spares_the_clicks_in_small_masks_it_found():
    """A block of four pixels between larger flat blocks: found by the fine grid in both ways, with fewer clicks."""
    image = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8), np.ones((16, 16), np.uint8))
    image[36:38, 36:38] = 255
    image = np.repeat(image[:, :, None], 3, 2)
    plain, coarse = Counting(), Counting()
    plain.clicks = coarse.clicks = 0
    settings = GeneratorSettings(points_per_side=64, pred_iou_threshold=0.9)
    expected = segment_everything(plain, image, settings)
    found = segment_everything(coarse, image, replace(settings, coarse_points_per_side=8))
    assert {each.rle_counts for each in found} == {each.rle_counts for each in expected}
    assert len(found) == 65
    assert plain.clicks == 64 * 64
    # Every block is clicked once; the fine grid clicks again only the small one, and what is not in a mask.
    assert coarse.clicks < 64 + 20


def test_large_masks_spare_no_click():
    points = torch.tensor([[1.0, 1.0], [30.0, 30.0], [63.9, 63.9], [64.0, 64.0]])
    logits = torch.full((2, 16, 16), -1.0)
    logits[0, :8, :8] = 1  # a quarter of the image: more than 4 of 64 cells
    logits[1, 12:, 12:] = 1  # a sixteenth: 4 cells
    assert spared(points, logits, (64, 64), 8).tolist() == [False, False, True, True]
    assert spared(points, logits, (64, 64), 4).tolist() == [True, True, True, True]
    assert spared(points, logits[:0], (64, 64), 8).tolist() == [False] * 4


class Crowded(Sam2Backend):
    """A device with room for a few clicks at a time."""

    def decode_confident(self, embedding, points_xy, labels, threshold):
        self.tried.append(len(points_xy))
        if len(points_xy) > 4:
            raise torch.OutOfMemoryError("no room")
        return super().decode_confident(embedding, points_xy, labels, threshold)


def test_a_full_device_halves_the_batch_and_goes_on(busy):
    crowded = Crowded(busy.model, name="x", sha256="0" * 64)
    crowded.tried = []
    settings = GeneratorSettings(6, 30, 0.5, 0.1, 0.01, 0.7)
    found = segment_everything(crowded, mosaic(), settings)
    assert crowded.tried == [30, 15, 7, *[3] * 12]
    expected = segment_everything(busy, mosaic(), settings)
    assert [each.rle_counts for each in found] == [each.rle_counts for each in expected]


def test_what_fits_is_found_once_and_kept_for_the_next_images(busy):
    crowded = Crowded(busy.model, name="x", sha256="0" * 64)
    crowded.tried = []
    settings, batch = GeneratorSettings(6, 30, 0.5, 0.1, 0.01, 0.7), BatchSize(30)
    first = segment_everything(crowded, mosaic(), settings, batch=batch)
    crowded.tried = []
    assert segment_everything(crowded, mosaic(), settings, batch=batch) == first
    assert crowded.tried == [3] * 12


def test_a_device_without_room_for_one_click_says_so():
    def compute(_):
        raise torch.OutOfMemoryError("no room at all")

    with pytest.raises(torch.OutOfMemoryError, match="at all"):
        list(in_batches(3, BatchSize(4), compute))


@pytest.mark.parametrize(
    ("layers", "factor", "crop_nms", "size_hw"),
    [(1, 1, 0.7, (120, 160)), (2, 2, 0.3, (300, 200)), (1, 2, 1.0, (120, 160))],
    ids=["one layer", "two", "no NMS"],
)
def test_crops_equal_the_stock_generator(busy, layers, factor, crop_nms, size_hw):
    settings = GeneratorSettings(
        6,
        64,
        0.5,
        0.1,
        0.01,
        0.7,
        crop_n_layers=layers,
        crop_n_points_downscale_factor=factor,
        crop_nms_threshold=crop_nms,
    )
    ours = segment_everything(busy, mosaic(*size_hw), settings)
    stock = stock_generate(busy.model, mosaic(*size_hw), settings)
    assert_same(ours, stock)
    whole = segment_everything(busy, mosaic(*size_hw), replace(settings, crop_n_layers=0))
    assert {each.rle_counts for each in ours} != {each.rle_counts for each in whole}


def test_crops_without_any_mask_are_no_error(busy):
    """SAM 2's generator raises an IndexError here."""
    assert segment_everything(busy, mosaic(), GeneratorSettings(points_per_side=3, crop_n_layers=1)) == []


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64, 3), np.uint8),
        np.full((48, 80, 3), 127, np.uint8),
        mosaic()[:1],
        mosaic()[:, :1],
        mosaic()[:1, :1],
        mosaic(700, 500),
    ],
    ids=["blank", "grey", "one row", "one column", "one pixel", "larger than the input"],
)
@pytest.mark.parametrize("settings", [GeneratorSettings(points_per_side=3), replace(KEEP_ALL, points_per_side=3)])
@pytest.mark.parametrize("min_area", [0, 9])
def test_odd_images_do_not_crash(busy, image, settings, min_area):
    settings = replace(settings, min_mask_region_area=min_area)
    for each in segment_everything(busy, image, settings):
        check_proposal(each, height=image.shape[0], width=image.shape[1])
        assert each.area > 0
        mask = rle.decode({"size": [each.height, each.width], "counts": each.rle_counts})
        assert mask.sum() == each.area
        assert rle.bbox_xywh(rle.encode(mask)) == each.bbox_xywh


def test_the_default_settings_find_nothing_in_noise_and_say_so_with_an_empty_list(busy):
    assert segment_everything(busy, mosaic(), GeneratorSettings(points_per_side=3)) == []


def test_point_grid_by_hand():
    """2 x 2 over 40 x 20 (H x W), input 10 x 10: centres at 1/4 and 3/4, plus half an input pixel (1/20)."""
    points = point_grid(2, (40, 20), (10, 10))
    assert torch.allclose(points, torch.tensor([[6.0, 12.0], [16.0, 12.0], [6.0, 32.0], [16.0, 32.0]]))
    assert point_grid(40, (4, 4), (8, 8)).max() <= 4, "a grid finer than the input stays in the image"


def test_distinct_keeps_the_better_and_of_equals_the_earlier():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30]])
    assert distinct(boxes, torch.tensor([0.8, 0.9, 0.8, 0.1]), 0.85).tolist() == [1, 3]
    assert distinct(boxes, torch.tensor([0.8, 0.8, 0.8, 0.8]), 0.95).tolist() == [0, 1, 3]
    assert distinct(boxes[:0], torch.empty(0), 0.5).tolist() == []


def test_cleaning_by_hand():
    mask = np.zeros((12, 14), bool)
    mask[1:9, 1:9] = True
    mask[4:6, 4:6] = False  # a hole of 4
    mask[10, 12] = True  # an island of 1
    cleaned, changed = clean(mask, 5)
    expected = np.zeros_like(mask)
    expected[1:9, 1:9] = True
    assert changed
    assert np.array_equal(cleaned, expected)
    assert not clean(expected, 5)[1]
    cleaned, changed = clean(mask, 4)  # the hole is no smaller than 4
    assert changed
    assert not cleaned[4, 4]
    assert not cleaned[10, 12]


def test_cleaning_keeps_the_largest_island_if_all_are_small():
    mask = np.zeros((20, 20), bool)
    mask[2, 2:4] = mask[10, 10:13] = mask[18, 2] = True
    cleaned, changed = clean(mask, 5)
    assert changed
    assert cleaned.sum() == 3
    assert cleaned[10, 10:13].all()


def test_cleaning_equals_the_reference_function():
    from sam2.utils.amg import remove_small_regions

    rng = np.random.default_rng(0)
    for _ in range(60):
        coarse = rng.random((10, 12)) < rng.uniform(0.2, 0.9)
        mask = np.kron(coarse, np.ones((2, 3), bool)) ^ (rng.random((20, 36)) < 0.02)
        if not mask.any():
            continue
        min_area = int(rng.integers(2, 40))
        filled, holes_changed = remove_small_regions(mask, min_area, mode="holes")
        expected, islands_changed = remove_small_regions(filled, min_area, mode="islands")
        cleaned, changed = clean(mask, min_area)
        assert np.array_equal(cleaned, expected)
        assert changed == (holes_changed or islands_changed)


def test_cleanup_equals_the_reference_post_processing(busy):
    """SAM 2's generator never calls its own clean-up of finished masks; here it is called as SAM 1 did."""
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    from sam2.utils.amg import MaskData, area_from_rle, coco_encode_rle, mask_to_rle_pytorch

    settings = GeneratorSettings(6, 64, 0.0, 0.1, 0.01, 0.6, crop_nms_threshold=0.5)
    before = segment_everything(busy, mosaic(), settings)
    masks = [rle.decode({"size": [120, 160], "counts": each.rle_counts}) for each in before]
    boxes = [[x, y, x + w - 1, y + h - 1] for x, y, w, h in (each.bbox_xywh for each in before)]
    data = MaskData(rles=mask_to_rle_pytorch(torch.from_numpy(np.stack(masks))), boxes=torch.tensor(boxes))
    data = SAM2AutomaticMaskGenerator.postprocess_small_regions(data, 6, 0.6)
    after = segment_everything(busy, mosaic(), replace(settings, min_mask_region_area=6))
    assert {each.rle_counts for each in after} == {coco_encode_rle(code)["counts"] for code in data["rles"]}
    assert sorted(each.area for each in after) == sorted(map(area_from_rle, data["rles"]))
    assert {each.rle_counts for each in after} != {each.rle_counts for each in before}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("points_per_side", 0),
        ("points_per_batch", 0),
        ("pred_iou_threshold", 1.1),
        ("stability_score_threshold", 2.0),
        ("stability_score_offset", -1.0),
        ("box_nms_threshold", math.nan),
        ("crop_n_layers", -1),
        ("crop_nms_threshold", 1.5),
        ("crop_overlap_ratio", 1.0),
        ("crop_n_points_downscale_factor", 0),
        ("min_mask_region_area", -1),
        ("max_proposals", 0),
        ("coarse_points_per_side", 0),
        ("coarse_points_per_side", 32),
    ],
)
def test_settings_out_of_range(field, value):
    with pytest.raises(ConfigError, match=field):
        GeneratorSettings(**{field: value})


def test_the_defaults_are_those_of_the_reference():
    import inspect

    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    stock = inspect.signature(SAM2AutomaticMaskGenerator.__init__).parameters
    ours = GeneratorSettings()
    names = {
        "points_per_side": "points_per_side",
        "points_per_batch": "points_per_batch",
        "pred_iou_threshold": "pred_iou_thresh",
        "stability_score_threshold": "stability_score_thresh",
        "stability_score_offset": "stability_score_offset",
        "box_nms_threshold": "box_nms_thresh",
        "crop_n_layers": "crop_n_layers",
        "crop_nms_threshold": "crop_nms_thresh",
        "crop_overlap_ratio": "crop_overlap_ratio",
        "crop_n_points_downscale_factor": "crop_n_points_downscale_factor",
        "min_mask_region_area": "min_mask_region_area",
        "use_m2m": "use_m2m",
    }
    assert {mine: getattr(ours, mine) for mine in names} == {mine: stock[its].default for mine, its in names.items()}
    assert {each.name for each in fields(GeneratorSettings)} - set(names) == {"max_proposals", "coarse_points_per_side"}


@pytest.mark.slow
def test_a_24_megapixel_image_takes_its_pixels_and_little_more():
    """Stock would hold every mask of a batch: 192 of 96 MB each. Ours: three copies of one channel, as floats."""
    (peak,) = measure(1)
    assert peak.masks > 3
    assert peak.more < CAP_MB == 600  # the image itself has 72
