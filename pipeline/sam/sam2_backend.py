"""SAM 2 through the ``sam2`` package: the only module that knows its classes, configs and coordinates."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import functional as vision

from pipeline.errors import CheckpointError, ConfigError, EnvironmentProblemError, InputError
from pipeline.sam.checkpoints import (
    HUB_CHECKPOINTS,
    fetch_checkpoint,
    load_into,
    load_weights,
    refuse_malformed_sha256,
    verify_sha256,
)
from pipeline.sam.compiled import Compiled
from pipeline.sam.interface import ConfidentMasks, ImageEmbedding, PointMasks, Precision, SamFacts
from pipeline.sam.prompt_decoder import Decoded, PromptDecoder

SCENES_NANO = "scenes-nano"
ALLOWED_CLASSES = ("sam2.modeling.", "pipeline.sam.conv_trunk.")
"""What an architecture file may name."""
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
_MASK_PROMPT_RANGE = 32.0
"""Logits beyond are cut where a mask is a prompt, as in the stock predictor."""


class Sam2Backend:
    """A `SamBackend` on a ``sam2`` model; inference only, no gradients."""

    def __init__(
        self,
        model: Any,
        *,
        name: str,
        sha256: str,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
        compiled: bool = False,
    ) -> None:
        """Take a ``SAM2Base`` over: it is moved to ``device`` and put in eval mode.

        ``compiled`` takes the prompt decoder's transformer through ``torch.compile``, and on CUDA the image encoder.
        On CPUs the encoder and the upscaling of masks gain nothing from it (docs/benchmarks.md).
        """
        self.name = name
        self.sha256 = sha256
        self.device = resolve_device(device)
        _check_precision(precision, self.device)
        self.precision: Precision = precision
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.input_hw: tuple[int, int] = (model.image_size, model.image_size)
        self.grid_hw: tuple[int, int] = tuple(model.sam_prompt_encoder.image_embedding_size)
        with torch.no_grad():
            self._decoder = PromptDecoder(model.sam_mask_decoder, model.sam_prompt_encoder.get_dense_pe())
        self._transform: Callable[[Tensor, Tensor], Decoded] = self._decoder.attend
        if compiled:
            self._transform = Compiled(self._decoder.attend, name="SAM's prompt decoder")
            if self.device.type == "cuda":
                encoder = self.model.image_encoder
                encoder.forward = Compiled(encoder.forward, name="SAM's image encoder")

    @contextmanager
    def _inference(self) -> Iterator[None]:
        half, before = self.precision == "bf16", torch.get_float32_matmul_precision()
        if half and self.device.type == "cuda":
            # TF32 for what autocast leaves alone, as SAM 2's notebooks do; not for coordinates, nor for other networks.
            torch.set_float32_matmul_precision("high")
        try:
            with torch.no_grad(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageEmbedding]:
        """Encode RGB images [H, W, 3] uint8 of any sizes as one batch.

        Raises:
            InputError: an image has another type or shape, or no pixels.
        """
        if not images:
            return []
        with self._inference():
            pixels = torch.stack([self._preprocess(image) for image in images])
            levels = self.model.forward_image(pixels)["backbone_fpn"][-self.model.num_feature_levels :]
            tokens = levels[-1]
            if self.model.directly_add_no_mem_embed:
                # An image is a video's first frame: no memory yet. SAM 2.1 was trained with this offset.
                tokens = tokens + self.model.no_mem_embed.view(1, -1, 1, 1)
        # Clones, so that keeping one image of a batch does not keep the whole batch.
        return [
            ImageEmbedding(
                tokens=tokens[i : i + 1].clone(),
                high_resolution=tuple(level[i : i + 1].clone() for level in levels[:-1]),
                size_hw=(image.shape[0], image.shape[1]),
            )
            for i, image in enumerate(images)
        ]

    def _preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """[H, W, 3] uint8 to [3, S, S] float32: stretched (aspect not kept), ImageNet mean and deviation."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise InputError(
                "SAM takes RGB images", where="embed", expected="uint8 [H, W, 3]", got=f"{image.dtype} {image.shape}"
            )
        # Channel by channel: as floats, a large image takes 12 bytes a pixel, and twice that while it is divided.
        channels = [torch.from_numpy(np.ascontiguousarray(image[:, :, i])).to(self.device)[None] for i in range(3)]
        size = list(self.input_hw)
        pixels = torch.cat([vision.resize(each.float().div_(255), size, antialias=True) for each in channels])
        normalised: Tensor = vision.normalize(pixels, list(PIXEL_MEAN), list(PIXEL_STD))
        return normalised

    def decode_points(self, embedding: ImageEmbedding, points_xy: Tensor, labels: Tensor) -> PointMasks:
        """Three masks per prompt; see :meth:`SamBackend.decode_points`. Equals the stock decoder's multimask output."""
        decoded = self._attend(embedding, points_xy, labels)
        with self._inference():
            logits = self._decoder.masks(decoded, embedding.high_resolution)
        return PointMasks(logits.float(), self._predicted_iou(decoded))

    def decode_confident(
        self, embedding: ImageEmbedding, points_xy: Tensor, labels: Tensor, threshold: float
    ) -> ConfidentMasks:
        """Only masks with a high predicted IoU; see :meth:`SamBackend.decode_confident`."""
        decoded = self._attend(embedding, points_xy, labels)
        predicted_iou = self._predicted_iou(decoded)
        wanted = predicted_iou > threshold
        prompts = wanted.any(1).nonzero()[:, 0]
        with self._inference():
            logits = self._decoder.masks(decoded[prompts], embedding.high_resolution)
        return ConfidentMasks(logits[wanted[prompts]].float(), predicted_iou[wanted], wanted.nonzero()[:, 0])

    def decode_with_mask(
        self, embedding: ImageEmbedding, points_xy: Tensor | None, logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One mask per prompt of a mask, and a click or none; see :meth:`SamBackend.decode_with_mask`.

        Every prompt has image tokens of its own here, so nothing can be shared: the package's decoder does it.
        """
        encoder = self.model.sam_prompt_encoder
        clicks = None
        if points_xy is not None:
            points = self._to_model_xy(points_xy, embedding.size_hw)[:, None]
            clicks = points, torch.ones(points.shape[:2], dtype=torch.int32, device=self.device)
        with torch.no_grad():
            sparse, dense = encoder(points=clicks, boxes=None, masks=self._to_mask_input(logits))
        with torch.no_grad():  # not in autocast: predicted IoUs in bf16 would tie in NMS
            refined, predicted_iou, _, _ = self.model.sam_mask_decoder(
                image_embeddings=embedding.tokens.float(),
                image_pe=encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
                repeat_image=True,
                high_res_features=[level.float() for level in embedding.high_resolution],
            )
        return refined[:, 0].float(), predicted_iou[:, 0].float()

    def decoder_tokens(self, embedding: ImageEmbedding, points_xy: Tensor) -> Tensor:
        """[P, C, gh, gw] float32; see :meth:`SamBackend.decoder_tokens`.

        These are the "keys" that leave the second two-way block, before any upsampling or hypernetwork
        (S4M, section on structural distillation; Eq: S4M/self-similarity reads its rows from them).
        """
        labels = torch.ones(len(points_xy), 1, dtype=torch.int32)
        tokens = self._attend(embedding, points_xy[:, None], labels).image_tokens
        return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *self.grid_hw).float()

    def upsample(self, logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """[M, h, w] to [M, H, W] float32, bilinear, pixel edges aligned."""
        return F.interpolate(logits[:, None].float(), size_hw, mode="bilinear", align_corners=False)[:, 0]

    def _to_model_xy(self, points_xy: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Canonical pixels to what the prompt encoder takes, [..., 2] float32.

        Our (x, y) is continuous with pixel centres at +0.5, so stretching multiplies by S/W and S/H.
        The prompt encoder takes pixel *indices* and adds 0.5 itself, then divides by S: hence the -0.5.
        A click on the centre of pixel (c, r), (c + 0.5, r + 0.5) here, thus lands exactly on its centre.
        The stock predictor scales the index first and adds 0.5 after: it lands 0.5 * (1 - S/W) input
        pixels to the right of the centre, and 0.5 * (1 - S/H) below; nothing where S = W = H.
        """
        height, width = size_hw
        scale = torch.tensor([self.input_hw[1] / width, self.input_hw[0] / height], device=self.device)
        return points_xy.to(self.device, torch.float32) * scale - 0.5

    def _to_mask_input(self, logits: Tensor) -> Tensor:
        """[P, h, w] logits over the whole image to what the prompt encoder takes, [P, 1, 4gh, 4gw] float32."""
        masks = logits.to(self.device, torch.float32)[:, None].clamp(-_MASK_PROMPT_RANGE, _MASK_PROMPT_RANGE)
        size_hw = tuple(self.model.sam_prompt_encoder.mask_input_size)
        if masks.shape[-2:] == size_hw:
            return masks
        return F.interpolate(masks, size_hw, mode="bilinear", align_corners=False, antialias=True)

    def _predicted_iou(self, decoded: Decoded) -> Tensor:
        # Outside autocast: in bf16 the scores above 0.8 would take about fifty values and tie in NMS.
        with torch.no_grad():
            return self._decoder.predicted_iou(decoded).float()

    def _attend(self, embedding: ImageEmbedding, points_xy: Tensor, labels: Tensor) -> Decoded:
        """Run the two-way transformer for P prompts."""
        encoder, decoder = self.model.sam_prompt_encoder, self.model.sam_mask_decoder
        points = self._to_model_xy(points_xy, embedding.size_hw), labels.to(self.device, torch.int32)
        with torch.no_grad():  # not in autocast: coordinates rounded to bf16 would move a click by pixels
            sparse, _ = encoder(points=points, boxes=None, masks=None)
        own = [decoder.iou_token.weight, decoder.mask_tokens.weight]
        if decoder.pred_obj_scores:
            own.insert(0, decoder.obj_score_token.weight)
        with self._inference():
            tokens = torch.cat([torch.cat(own)[None].expand(len(sparse), -1, -1), sparse], 1)  # [P, T, C]
            # Without a mask prompt the dense embedding is one vector, the same for all prompts.
            image = embedding.tokens + encoder.no_mask_embed.weight.view(1, -1, 1, 1)
            return self._transform(image, tokens)


def resolve_device(device: str | torch.device) -> torch.device:
    """``cpu``, ``cuda`` or ``cuda:n``, checked to exist.

    Raises:
        EnvironmentProblemError: CUDA is asked for and not there.
        ConfigError: another or malformed name.
    """
    resolved = _parse_device(device)
    available = torch.cuda.device_count()
    if resolved.type == "cuda" and (resolved.index or 0) >= available:
        raise EnvironmentProblemError(
            "there is no such CUDA device",
            where="device",
            expected=str(device),
            got=f"{available} CUDA devices",
            fix="set sam.device=cpu and sam.precision=fp32 (--cfg-options), or install a CUDA build of torch on a "
            "machine with a GPU (s4m-pipeline doctor)",
        )
    return resolved


def _parse_device(device: str | torch.device) -> torch.device:
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = torch.device("meta")
    if resolved.type not in ("cpu", "cuda"):
        raise ConfigError(
            "unknown device",
            where="device",
            expected="cpu, cuda or cuda:n",
            got=str(device),
            fix="correct sam.device in the configuration, or give --cfg-options sam.device=cpu",
        )
    return resolved


def _check_precision(precision: Precision, device: torch.device) -> None:
    if precision == "bf16" and device.type != "cuda":
        raise ConfigError(
            "bf16 is for CUDA devices",
            where="sam.precision",
            expected="a CUDA device, or fp32",
            got=str(device),
            fix="set sam.precision=fp32 (--cfg-options)",
        )


def build_model(config: str | Path) -> Any:
    """A ``SAM2Base`` with random weights from a YAML architecture.

    Read directly, not through Hydra's global state: ``sam2``'s own loader finds only configs inside its package.

    Raises:
        ConfigError: no such file, not a SAM config, or it names a class outside :data:`ALLOWED_CLASSES`.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(config), resolve=True)
    except Exception as error:  # a missing file or whatever the YAML reader objects to
        raise ConfigError("a SAM config cannot be read", where=config, got=str(error).splitlines()[0]) from error
    tree = tree.get("model", tree) if isinstance(tree, dict) else {}
    tree = tree if isinstance(tree, dict) else {}
    # Instantiating calls what the file names: a config from elsewhere must not name os.system.
    foreign = [target for target in _targets(tree) if not target.startswith(ALLOWED_CLASSES)]
    if foreign or "_target_" not in tree:
        raise ConfigError(
            "a file is not a SAM 2 architecture",
            where=config,
            expected="_target_ of sam2.modeling classes",
            got=foreign or "no _target_",
        )
    try:
        return instantiate(OmegaConf.create(tree))
    except Exception as error:  # Hydra's own error, for whatever the named classes object to
        raise ConfigError(
            "a SAM 2 architecture cannot be built", where=config, got=str(error).splitlines()[0]
        ) from error


def _targets(tree: object) -> Iterator[str]:
    if isinstance(tree, dict):
        yield from (str(value) for key, value in tree.items() if key == "_target_")
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for child in children:
        yield from _targets(child)


def build_backend(
    name_or_path: str,
    *,
    device: str = "cpu",
    config: str | None = None,
    sha256: str | None = None,
    precision: Precision = "fp32",
    compiled: bool = False,
) -> Sam2Backend:
    """A SAM by name or from a local file.

    Args:
        name_or_path: ``scenes-nano`` (embedded), a name of :data:`HUB_CHECKPOINTS`, or a checkpoint file.
        device: ``cpu``, ``cuda`` or ``cuda:n``.
        config: architecture of a local file: a YAML path or one of the names. Needless for a file that
            keeps its published name.
        sha256: digest that the weights must have; published checkpoints have theirs built in.
        precision: ``bf16`` runs encoder and decoder in autocast on CUDA.
        compiled: through ``torch.compile``: some seconds to a minute at the first image, then quicker.

    Raises:
        CheckpointError: missing, damaged, unsafe or unfitting weights.
        ConfigError: unknown name, config or device.
        EnvironmentProblemError: the device is not there.
    """
    resolved = resolve_device(device)  # before anything is downloaded
    _check_precision(precision, resolved)
    weights_path, config_path, pinned = _locate(name_or_path, config)
    digest = verify_sha256(weights_path, sha256 or pinned)
    model = build_model(config_path)
    load_into(model, load_weights(weights_path), where=weights_path)
    return Sam2Backend(model, name=name_or_path, sha256=digest, device=resolved, precision=precision, compiled=compiled)


def describe_backend(
    name_or_path: str,
    *,
    device: str = "cpu",
    config: str | None = None,
    sha256: str | None = None,
    precision: Precision = "fp32",
) -> SamFacts:
    """What :func:`build_backend` would give for the same arguments, on a machine without its GPU.

    Of a published checkpoint nothing is downloaded: its digest is built in, its grid that of its architecture.

    Raises:
        CheckpointError: missing, damaged, unsafe or unfitting weights in a local file.
        ConfigError: unknown name, config or device.
    """
    _check_precision(precision, _parse_device(device))
    refuse_malformed_sha256(sha256)
    if name_or_path in HUB_CHECKPOINTS and config is None:
        model = build_model(published_architecture(name_or_path))
        grid_hw = tuple(model.sam_prompt_encoder.image_embedding_size)
        return SamFacts(name_or_path, (sha256 or HUB_CHECKPOINTS[name_or_path].sha256).lower(), grid_hw)
    backend = build_backend(name_or_path, config=config, sha256=sha256)
    return SamFacts(backend.name, backend.sha256, backend.grid_hw)


def _locate(name_or_path: str, config: str | None) -> tuple[Path, Path, str | None]:
    """Weights file, architecture file and built-in digest."""
    if name_or_path == SCENES_NANO:
        weights = Path(str(files("pipeline") / "assets" / "scenes_nano.safetensors"))
        if not weights.is_file():
            raise CheckpointError(
                "the embedded SAM has no weights",
                where=weights,
                fix="restore the file from the repository, or train it: python -m jobs.embedded.train_scenes_nano",
            )
        return weights, _architecture(SCENES_NANO), None
    if name_or_path in HUB_CHECKPOINTS and config is None:
        return fetch_checkpoint(name_or_path), _architecture(name_or_path), HUB_CHECKPOINTS[name_or_path].sha256
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            "unknown SAM",
            where="sam.name",
            expected=f"{SCENES_NANO}, {', '.join(HUB_CHECKPOINTS)}, or the path of a checkpoint",
            got=name_or_path,
            fix="correct sam.name in the configuration, or give --cfg-options sam.name=NAME; of a path see whether the "
            "file is there",
        )
    if config is not None:
        return path, _architecture(config), None
    published = next((name for name, entry in HUB_CHECKPOINTS.items() if entry.file_name == path.name), None)
    if published is None:
        raise ConfigError(
            "a local checkpoint needs its architecture",
            where=path,
            expected="a YAML file or one of the SAM names",
            fix=f"name it by sam.config, for instance --cfg-options sam.config={next(iter(HUB_CHECKPOINTS))}",
        )
    return path, _architecture(published), HUB_CHECKPOINTS[published].sha256


def published_architecture(name: str) -> Path:
    """The YAML of a published geometry, one of the names of :data:`HUB_CHECKPOINTS`."""
    return Path(str(files("sam2") / HUB_CHECKPOINTS[name].config))


def _architecture(name_or_path: str) -> Path:
    if name_or_path == SCENES_NANO:
        return Path(str(files("pipeline") / "assets" / "scenes_nano.yaml"))
    if name_or_path in HUB_CHECKPOINTS:
        return published_architecture(name_or_path)
    return Path(name_or_path)
