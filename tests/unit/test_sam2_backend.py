import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import CheckpointError, ConfigError, EnvironmentProblemError, InputError
from pipeline.sam import sam2_backend
from pipeline.sam.checkpoints import HUB_CHECKPOINTS, sha256_of
from pipeline.sam.interface import SamFacts
from pipeline.sam.sam2_backend import (
    SCENES_NANO,
    Sam2Backend,
    _architecture,
    build_backend,
    build_model,
    describe_backend,
    resolve_device,
)


def nano_model(seed=0, **flags):
    torch.manual_seed(seed)
    model = build_model(_architecture(SCENES_NANO))
    for name, value in flags.items():
        setattr(model, name, value)
    return model


def stock_predictor(model):
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(model, disable_torch_jit=True)
    size = model.image_size
    predictor._bb_feat_sizes = [(size // stride,) * 2 for stride in (4, 8, 16)]  # stock assumes 1024
    return predictor


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def backend():
    return Sam2Backend(nano_model(), name="random", sha256="0" * 64)


@pytest.mark.parametrize("adds_no_mem_embed", [False, True], ids=["as scenes-nano", "as SAM 2.1"])
def test_features_equal_the_stock_predictor(adds_no_mem_embed):
    """Different sizes in one batch; smaller, larger and thinner than SAM's input."""
    model = nano_model(1, directly_add_no_mem_embed=adds_no_mem_embed)
    with torch.no_grad():
        model.no_mem_embed.normal_()
    images = [photo(50, 70), photo(500, 420, 1), photo(3, 200, 2)]
    embeddings = Sam2Backend(model, name="x", sha256="0" * 64).embed(images)
    predictor = stock_predictor(model)
    for image, embedding in zip(images, embeddings, strict=True):
        predictor.set_image(image)
        assert embedding.size_hw == image.shape[:2]
        assert torch.allclose(embedding.tokens, predictor._features["image_embed"], atol=1e-5)
        for ours, stock in zip(embedding.high_resolution, predictor._features["high_res_feats"], strict=True):
            assert torch.allclose(ours, stock, atol=1e-5)


@pytest.mark.parametrize("size_hw", [(384, 384), (60, 90), (700, 500)], ids=["native", "smaller", "larger"])
@pytest.mark.parametrize("object_scores", [False, True], ids=["no object score", "object score token"])
def test_masks_equal_the_stock_predictor(size_hw, object_scores, tmp_path):
    """Three points per prompt (on, off, padding); coordinates converted as `_to_model_xy` documents."""
    text = _architecture(SCENES_NANO).read_text()
    config = tmp_path / "sam.yaml"
    config.write_text(text + ("pred_obj_scores: true\npred_obj_scores_mlp: true\n" if object_scores else ""))
    torch.manual_seed(2)
    model = build_model(config)
    backend = Sam2Backend(model, name="x", sha256="0" * 64)
    image = photo(*size_hw)
    height, width = size_hw
    pixels = torch.tensor([[[4, 7], [30, 20], [0, 0]], [[59, 59], [10, 50], [33, 3]]])  # (column, row)
    labels = torch.tensor([[1, 0, -1], [1, 1, 1]])
    ours = backend.decode_points(backend.embed([image])[0], pixels + 0.5, labels)

    predictor = stock_predictor(model)
    predictor.set_image(image)
    # Stock: index * S / W, then + 0.5. Ours: (index + 0.5) * S / W. Give stock what makes them meet.
    half = torch.tensor([0.5 - 0.5 * width / 384, 0.5 - 0.5 * height / 384])
    for prompt in range(2):
        _, iou, low = predictor.predict(
            (pixels[prompt] + half).numpy(), labels[prompt].numpy(), multimask_output=True, return_logits=True
        )
        assert ours.logits[prompt].shape == low.shape == (3, 96, 96)
        assert np.allclose(ours.logits[prompt].numpy(), low, atol=1e-4)
        assert np.allclose(ours.predicted_iou[prompt].numpy(), iou, atol=1e-5)


@pytest.mark.parametrize("size_hw", [(384, 384), (60, 90), (700, 500)], ids=["native", "smaller", "larger"])
def test_a_box_equals_the_stock_predictors_box(backend, size_hw):
    """Two boxes as points labelled 2 and 3; stock adds half an input pixel to a corner that is an edge here."""
    image = photo(*size_hw)
    height, width = size_hw
    corners = torch.tensor([[[3.0, 8.0], [41.0, 52.0]], [[0.0, 0.0], [float(width), float(height)]]])
    labels = torch.tensor([[2, 3], [2, 3]])
    ours = backend.decode_points(backend.embed([image])[0], corners, labels)
    predictor = stock_predictor(backend.model)
    predictor.set_image(image)
    for box, logits, predicted_iou in zip(corners, ours.logits, ours.predicted_iou, strict=True):
        met = box - 0.5 * torch.tensor([width, height]) / 384
        _, iou, low = predictor.predict(box=met.flatten().numpy(), multimask_output=True, return_logits=True)
        assert np.allclose(logits.numpy(), low, atol=1e-4)
        assert np.allclose(predicted_iou.numpy(), iou, atol=1e-5)
    exchanged = backend.decode_points(backend.embed([image])[0], corners.flip(1), labels)
    assert not torch.allclose(exchanged.logits, ours.logits, atol=1e-2)  # the labels tell the corners apart


@pytest.mark.parametrize("with_click", [False, True], ids=["mask alone", "mask and click"])
def test_a_mask_prompt_equals_the_stock_predictors(backend, with_click):
    """Two prompts in one call against one at a time; logits beyond 32 are cut, infinite ones too."""
    image = photo(384, 384)
    logits = 40 * torch.randn(2, 96, 96, generator=torch.Generator().manual_seed(3))
    logits[0, 5, 7], logits[1, 0, 0] = float("inf"), float("-inf")
    clicks = torch.tensor([[100.5, 33.5], [7.5, 300.5]])
    found, predicted_iou = backend.decode_with_mask(
        backend.embed([image])[0], clicks if with_click else None, logits.clone()
    )
    assert (found.shape, predicted_iou.shape) == ((2, 96, 96), (2,))
    predictor = stock_predictor(backend.model)
    predictor.set_image(image)
    for prompt in range(2):
        asked = {"mask_input": logits[prompt : prompt + 1].clamp(-32, 32).numpy()}
        if with_click:
            asked |= {"point_coords": clicks[prompt : prompt + 1].numpy() - 0.5, "point_labels": np.array([1])}
        _, iou, low = predictor.predict(**asked, multimask_output=False, return_logits=True)
        assert np.allclose(found[prompt].numpy(), low[0], atol=1e-4)
        assert np.allclose(predicted_iou[prompt].numpy(), iou[0], atol=1e-5)


def test_a_mask_prompt_of_any_size_covers_the_whole_image(backend):
    """A canonical mask is squeezed as the image is, so its halves and quarters stay where they are."""
    assert backend._to_mask_input(torch.zeros(2, 30, 500)).shape == (2, 1, 96, 96)
    halves = torch.full((1, 60, 200), -8.0)
    halves[:, :, 100:] = 8
    prompt = backend._to_mask_input(halves)[0, 0]
    assert torch.allclose(prompt[:, :47], torch.tensor(-8.0))
    assert torch.allclose(prompt[:, 49:], torch.tensor(8.0))
    fine = torch.randn(1, 96, 96)
    assert torch.equal(backend._to_mask_input(fine)[0, 0], fine[0])  # SAM's own size is left alone
    averaged = backend._to_mask_input(fine.repeat_interleave(4, 1).repeat_interleave(4, 2))
    assert abs(float(averaged.mean() - fine.mean())) < 1e-3
    checks = torch.full((1, 960, 960), 8.0)
    checks[:, ::2] = -8  # finer than the prompt: averaged, not picked
    assert backend._to_mask_input(checks).abs().max() < 1


def test_a_pixel_centre_is_the_stock_integer_click_at_native_size(backend):
    """Where image and input have one size, (c + 0.5, r + 0.5) is exactly stock's click on (c, r)."""
    image = photo(384, 384)
    ours = backend.decode_points(backend.embed([image])[0], torch.tensor([[[100.5, 33.5]]]), torch.tensor([[1]]))
    predictor = stock_predictor(backend.model)
    predictor.set_image(image)
    masks, _, low = predictor.predict(np.array([[100, 33]]), np.array([1]), return_logits=True)
    assert np.allclose(ours.logits[0].numpy(), low, atol=1e-4)
    full = backend.upsample(ours.logits[0], (384, 384)).numpy()
    assert np.allclose(full, masks, atol=1e-4)


@pytest.mark.parametrize("size_hw", [(192, 192), (960, 640)])
def test_the_difference_to_stock_clicks_is_the_documented_one(backend, size_hw):
    pixel = torch.tensor([[17.0, 40.0]])
    height, width = size_hw
    ours = backend._to_model_xy(pixel + 0.5, size_hw)
    stock = stock_predictor(backend.model)._transforms.transform_coords(pixel, normalize=True, orig_hw=size_hw)
    documented = 0.5 * (1 - torch.tensor([384 / width, 384 / height]))
    assert torch.allclose(stock - ours, documented[None], atol=1e-4)


def test_corners_and_centre_land_on_corners_and_centre_of_the_input(backend):
    points = torch.tensor([[0.0, 0.0], [640.0, 480.0], [320.0, 240.0], [2.5, 3.5]])
    placed = backend._to_model_xy(points, (480, 640)) + 0.5  # what the prompt encoder makes of it
    assert torch.allclose(placed, torch.tensor([[0, 0], [384, 384], [192, 192], [1.5, 2.8]]), atol=1e-4)


def test_a_click_gets_the_position_code_of_its_token_cell(backend):
    """The prompt encoder's code at a cell's centre equals the dense code of that cell: one frame, no shift."""
    encoder = backend.model.sam_prompt_encoder
    height, width = 100, 260
    i, j = 5, 17
    centre = torch.tensor([[[(j + 0.5) * width / 24, (i + 0.5) * height / 24]]])
    sparse, _ = encoder((backend._to_model_xy(centre, (height, width)), torch.tensor([[1]])), None, None)
    code = sparse[0, 0] - encoder.point_embeddings[1].weight[0]
    assert torch.allclose(code, encoder.get_dense_pe()[0, :, i, j], atol=1e-4)


def test_batching_prompts_changes_nothing(backend):
    embedding = backend.embed([photo(40, 30)])[0]
    points = torch.rand(9, 1, 2, generator=torch.Generator().manual_seed(0)) * 30
    labels = torch.ones(9, 1, dtype=torch.int64)
    together = backend.decode_points(embedding, points, labels)
    for i in range(9):
        alone = backend.decode_points(embedding, points[i : i + 1], labels[i : i + 1])
        assert torch.allclose(alone.logits[0], together.logits[i], atol=1e-4)
        assert torch.allclose(alone.predicted_iou[0], together.predicted_iou[i], atol=1e-5)


def test_batching_images_changes_nothing(backend):
    images = [photo(40, 30), photo(20, 50, 1)]
    for image, embedding in zip(images, backend.embed(images), strict=True):
        alone = backend.embed([image])[0]
        assert torch.allclose(alone.tokens, embedding.tokens, atol=1e-5)
    assert backend.embed([]) == []


def test_no_prompts_give_no_masks(backend):
    embedding = backend.embed([photo(40, 30)])[0]
    masks = backend.decode_points(embedding, torch.empty(0, 1, 2), torch.empty(0, 1))
    assert masks.logits.shape == (0, 3, 96, 96)
    assert masks.predicted_iou.shape == (0, 3)
    assert backend.decoder_tokens(embedding, torch.empty(0, 2)).shape == (0, 96, 24, 24)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["grey", "RGBA", "float", "no rows"],
)
def test_what_is_not_an_rgb_image_is_refused(backend, image):
    with pytest.raises(InputError, match="RGB"):
        backend.embed([image])


def test_no_gradients_and_eval_mode(backend):
    assert not backend.model.training
    masks = backend.decode_points(backend.embed([photo(8, 8)])[0], torch.ones(1, 1, 2), torch.ones(1, 1))
    assert not masks.logits.requires_grad
    assert not masks.predicted_iou.requires_grad


def test_a_stored_checkpoint_gives_the_same_backend(tmp_path):
    model = nano_model(4)
    path = tmp_path / "mine.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    loaded = build_backend(str(path), config=str(_architecture(SCENES_NANO)))
    assert loaded.sha256 == sha256_of(path)
    assert loaded.name == str(path)
    assert (loaded.grid_hw, loaded.input_hw) == ((24, 24), (384, 384))
    image = photo(20, 20)
    own = Sam2Backend(model, name="x", sha256="0" * 64)
    assert torch.equal(loaded.embed([image])[0].tokens, own.embed([image])[0].tokens)
    assert build_backend(str(path), config=SCENES_NANO, sha256=loaded.sha256).sha256 == loaded.sha256
    with pytest.raises(CheckpointError, match="not the expected file"):
        build_backend(str(path), config=SCENES_NANO, sha256="0" * 64)


def test_a_sam_is_described_as_it_is_built_and_a_published_one_without_its_file(backend, tmp_path, monkeypatch):
    save_file(backend.model.state_dict(), tmp_path / "own.safetensors")
    own = {"name_or_path": str(tmp_path / "own.safetensors"), "config": SCENES_NANO}
    for arguments in ({"name_or_path": SCENES_NANO}, own):
        built = build_backend(**arguments)
        expected = SamFacts(built.name, built.sha256, built.grid_hw)
        assert describe_backend(**arguments, device="cuda:9", precision="bf16") == expected
    monkeypatch.setattr(sam2_backend, "fetch_checkpoint", lambda _: pytest.fail("downloaded"))
    name = "sam2.1_hiera_tiny"
    assert describe_backend(name) == SamFacts(name, HUB_CHECKPOINTS[name].sha256, (64, 64))
    assert describe_backend(name, sha256="A" * 64).sha256 == "a" * 64
    for wrong in ({"device": "tpu"}, {"precision": "bf16"}, {"sha256": "abc"}):
        with pytest.raises(ConfigError):
            describe_backend(name, **wrong)
    with pytest.raises(ConfigError, match="unknown SAM"):
        describe_backend("nothing.pt")


def test_a_published_file_name_brings_its_config_and_digest(tmp_path):
    path = tmp_path / "sam2.1_hiera_tiny.pt"
    path.write_bytes(b"not the real one")
    with pytest.raises(CheckpointError) as caught:
        build_backend(str(path))
    assert HUB_CHECKPOINTS["sam2.1_hiera_tiny"].sha256 in caught.value.expected


def test_a_local_file_of_another_name_needs_a_config(tmp_path):
    path = tmp_path / "mine.pt"
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match="needs its architecture"):
        build_backend(str(path))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match=r"scenes-nano.*sam2_hiera_large"):
        build_backend("sam9")


def test_missing_embedded_weights_say_so(monkeypatch, tmp_path):
    (tmp_path / "assets").mkdir()
    shutil.copy(_architecture(SCENES_NANO), tmp_path / "assets")
    monkeypatch.setattr(sam2_backend, "files", lambda _package: tmp_path)
    with pytest.raises(CheckpointError, match="no weights"):
        build_backend(SCENES_NANO)


def test_embedded_weights_load_when_they_are_there():
    weights = _architecture(SCENES_NANO).with_suffix(".safetensors")
    if not weights.is_file():
        pytest.skip("pipeline/assets/scenes_nano.safetensors is not trained yet")
    backend = build_backend(SCENES_NANO)
    assert backend.name == SCENES_NANO
    assert all(torch.isfinite(p).all() for p in backend.model.parameters())


@pytest.mark.parametrize("name", HUB_CHECKPOINTS)
def test_published_configs_have_the_geometry_that_we_rely_on(name):
    from omegaconf import OmegaConf

    model = OmegaConf.load(_architecture(name)).model
    assert model.image_size == 1024
    assert model.directly_add_no_mem_embed
    assert model.use_high_res_features_in_sam
    assert model.pred_obj_scores


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam2_hiera_tiny", "sam2.1_hiera_tiny"])
def test_published_architectures_equal_the_stock_predictor(name):
    torch.manual_seed(0)
    backend = Sam2Backend(build_model(_architecture(name)), name=name, sha256="0" * 64)
    assert (backend.grid_hw, backend.input_hw) == ((64, 64), (1024, 1024))
    with torch.no_grad():
        backend.model.no_mem_embed.normal_()
    image = photo(1024, 1024)
    ours = backend.decode_points(backend.embed([image])[0], torch.tensor([[[100.5, 33.5]]]), torch.tensor([[1]]))
    predictor = stock_predictor(backend.model)
    predictor.set_image(image)
    _, iou, low = predictor.predict(np.array([[100, 33]]), np.array([1]), return_logits=True)
    assert np.allclose(ours.logits[0].numpy(), low, atol=1e-4)
    assert np.allclose(ours.predicted_iou[0].numpy(), iou, atol=1e-5)


def test_a_config_cannot_name_foreign_code(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text(
        f"_target_: sam2.modeling.sam2_base.SAM2Base\nx:\n  - _target_: os.mkdir\n    path: {tmp_path}/ran\n"
    )
    with pytest.raises(ConfigError, match=r"os\.mkdir"):
        build_model(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["", "[1, 2]", "a: 1", "{", "model: 3", "_target_: sam2.modeling.none.Nothing"])
def test_files_that_are_no_architecture(tmp_path, content):
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError):
        build_model(path)


def test_devices(monkeypatch):
    assert resolve_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0").index == 0
    with pytest.raises(EnvironmentProblemError, match="1 CUDA devices"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(EnvironmentProblemError, match=r"sam\.device=cpu and sam\.precision=fp32"):
        resolve_device("cuda")
    for name in ("gpu", "mps", "cuda:x", ""):
        with pytest.raises(ConfigError, match="device"):
            resolve_device(name)


def test_less_exact_products_are_for_sams_own_half_precision_alone(monkeypatch):
    backend = Sam2Backend(nano_model(), name="x", sha256="0" * 64)
    backend.precision, backend.device = "bf16", torch.device("cuda")  # as on a GPU; nothing is computed there
    monkeypatch.setattr(torch, "autocast", lambda *_args, **_options: nullcontext())
    assert torch.get_float32_matmul_precision() == "highest"
    seen = []

    def fails():
        with backend._inference():
            seen.append(torch.get_float32_matmul_precision())
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        fails()
    assert seen == ["high"]
    assert torch.get_float32_matmul_precision() == "highest"
    backend.precision = "fp32"
    with backend._inference():
        assert torch.get_float32_matmul_precision() == "highest"


def test_bf16_is_refused_on_the_cpu():
    with pytest.raises(ConfigError, match="bf16"):
        Sam2Backend(nano_model(), name="x", sha256="0" * 64, precision="bf16")
    with pytest.raises(ConfigError, match="bf16"):
        build_backend(SCENES_NANO, precision="bf16")
