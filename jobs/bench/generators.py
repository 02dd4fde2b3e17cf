"""Benches of segment everything, against the package's own generator on the same weights and images."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from data_schemas.proposals import Proposal
from jobs.bench.cases import Case
from jobs.bench.stock_generator import assert_same_codes, assert_same_masks, our_codes, stock_generator
from jobs.config_files import load_config
from pipeline.errors import EnvironmentProblemError
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.interface import Precision
from pipeline.sam.sam2_backend import Sam2Backend, build_backend, build_model, published_architecture
from pipeline.sam.segment_everything import point_grid, segment_everything
from pipeline.scenes.cache import draw_by_index
from pipeline.scenes.render import SceneStyle

SEED = 7_200_000
"""Of the scenes; neither the benchmark's nor the trainings'."""
_SIZES = ((192, 192), (480, 640), (1080, 1920))


def generator_cpu_nano(_: Path) -> list[Case]:
    """Segment everything with the embedded SAM on a scene at three sizes: image in, encoded masks out."""
    config = load_config(Path(__file__).parents[2] / "configs/sam/scenes.py", [])
    backend, settings = build_backend("scenes-nano"), GeneratorSettings(**config.proposals)
    return [
        case
        for size_hw in _SIZES
        for case in generator_cases(backend, scene(size_hw), settings, points_per_batch=(64, 256))
    ]


def generator_cpu_tiny(_: Path) -> list[Case]:
    """The same at SAM 2.1 tiny's geometry, random weights, 16 x 16 clicks."""
    backend = random_backend("sam2.1_hiera_tiny", device="cpu")
    image = scene((480, 640))
    settings = lenient_settings(backend, image, points_per_side=16)
    return list(generator_cases(backend, image, settings, points_per_batch=(64, 16)))


def generator_compiled(_: Path) -> Iterator[Case]:
    """What ``sam.compile`` saves on this machine's CPU once the first image is done; its first image is not counted."""
    config = load_config(Path(__file__).parents[2] / "configs/sam/scenes.py", [])
    image = scene((480, 640))
    nano, tiny = build_backend("scenes-nano"), random_backend("sam2.1_hiera_tiny", device="cpu")
    for name, plain, settings in (
        ("scenes-nano", nano, GeneratorSettings(**config.proposals)),
        ("sam2.1_hiera_tiny, random", tiny, lenient_settings(tiny, image, points_per_side=16)),
    ):
        yield Case(
            ours=partial(segment_everything, _compiled(plain), image, settings),
            other=partial(segment_everything, plain, image, settings),
            other_name="the same, not compiled",
            sizes={"sam": name, "image": f"{image.shape[0]} x {image.shape[1]}", "clicks": settings.points_per_side**2},
            check=_same_proposals,
        )


def generator_gpu_large(_: Path) -> Iterable[Case]:
    """SAM 2.1 large's geometry on one GPU at three sizes, both ways in bf16 with TF32, 32 x 32 clicks.

    Then both ways compiled: ours with ``sam.compile``, the stock generator with the encoder that this compiles.

    Raises:
        EnvironmentProblemError: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise EnvironmentProblemError("generator_gpu_large needs a CUDA device", fix="run it on a machine with a GPU")
    torch.set_float32_matmul_precision("high")  # TF32 for what is not in bf16
    return _gpu_cases(random_backend("sam2.1_hiera_large", device="cuda"))


def _gpu_cases(backend: Sam2Backend) -> Iterator[Case]:
    for compiled in (False, True):
        if compiled:
            backend = _compiled(backend)
        for size_hw in ((480, 640), (1080, 1920), (1500, 2250)):
            yield from generator_cases(
                backend,
                scene(size_hw),
                lenient_settings(backend, scene(size_hw), points_per_side=32),
                points_per_batch=(64, 256, 1024),
                more={"compiled": True} if compiled else {},
            )


def _compiled(backend: Sam2Backend) -> Sam2Backend:
    """The same model; on CUDA the one that is given shares the compiled encoder from here on."""
    return Sam2Backend(
        backend.model,
        name=backend.name,
        sha256=backend.sha256,
        device=backend.device,
        precision=backend.precision,
        compiled=True,
    )


def generator_cases(
    backend: Sam2Backend,
    image: NDArray[np.uint8],
    settings: GeneratorSettings,
    *,
    points_per_batch: Sequence[int],
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Case]:
    """Ours against the stock generator, once for each of its batch sizes; ``more`` is told beside the sizes."""
    sizes = {"image": f"{image.shape[0]} x {image.shape[1]}", "clicks": settings.points_per_side**2, **more}
    for batch in points_per_batch:
        stock = stock_generator(backend.model, settings, points_per_batch=batch)
        yield Case(
            ours=partial(segment_everything, backend, image, settings),
            other=partial(_in_precision, backend, partial(stock.generate, image)),
            other_name=f"SAM2AutomaticMaskGenerator, {batch} points a batch",
            sizes=sizes,
            # In half precision no two ways give the same masks; jobs/measurements/parity.py says how near they are.
            check=assert_same_masks if backend.precision == "fp32" else _both_found_some,
        )


def _in_precision(backend: Sam2Backend, generate: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    with torch.autocast(backend.device.type, dtype=torch.bfloat16, enabled=backend.precision == "bf16"):
        return generate()


def _same_proposals(ours: Sequence[Proposal], others: Sequence[Proposal]) -> None:
    assert_same_codes(our_codes(ours), our_codes(others))


def _both_found_some(ours: Sequence[Any], stock: Sequence[Any]) -> None:
    assert len(ours) > 0
    assert len(stock) > 0


def scene(size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """A generated scene, [H, W, 3] uint8, enlarged to a size."""
    image = draw_by_index(0, group="benchmark", style=SceneStyle(), seed=SEED).image
    return np.asarray(cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def random_backend(name: str, *, device: str, seed: int = 0) -> Sam2Backend:
    """A published geometry with random weights, whose masks are not pure noise.

    Random transposed convolutions give every pixel of a token another value; their kernels are averaged here, so
    that masks are as smooth as tokens.
    """
    torch.manual_seed(seed)
    model = build_model(published_architecture(name))
    with torch.no_grad():
        for layer in (model.sam_mask_decoder.output_upscaling[0], model.sam_mask_decoder.output_upscaling[3]):
            layer.weight.copy_(layer.weight.mean((2, 3), keepdim=True).expand_as(layer.weight))
    precision: Precision = "bf16" if device == "cuda" else "fp32"
    return Sam2Backend(model, name=f"{name}, random", sha256="0" * 64, device=device, precision=precision)


def lenient_settings(
    backend: Sam2Backend, image: NDArray[np.uint8], *, points_per_side: int, confident: float = 0.45
) -> GeneratorSettings:
    """Settings under which random weights leave as many masks as trained ones do.

    Some 45 % of the masks are confident. All of those are kept, also where their boxes overlap: random masks reach
    over the whole image, so NMS would leave one, and encoding would cost nothing.
    """
    points = point_grid(4, image.shape[:2], backend.input_hw)[:, None]
    masks = backend.decode_points(backend.embed([image])[0], points, torch.ones(len(points), 1, dtype=torch.int32))
    return GeneratorSettings(
        points_per_side=points_per_side,
        pred_iou_threshold=float(torch.quantile(masks.predicted_iou.cpu(), 1 - confident)),
        stability_score_threshold=0.0,
        stability_score_offset=0.25 * float(masks.logits.std()),
        box_nms_threshold=1.0,
    )


BENCHES: Mapping[str, Callable[[Path], Iterable[Case]]] = {
    "generator_cpu_nano": generator_cpu_nano,
    "generator_cpu_tiny": generator_cpu_tiny,
    "generator_compiled": generator_compiled,
    "generator_gpu_large": generator_gpu_large,
}
