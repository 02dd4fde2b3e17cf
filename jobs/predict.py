"""``predict``: one image, for a person to look at: what a network finds in it, or the object that a sentence means."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray

from jobs.networks import (
    Which,
    build_transforms,
    class_names,
    detect_and_label,
    filter_of,
    load_network,
    num_classes,
    open_config,
    pack,
    validated,
)
from jobs.refer_networks import is_referring, pack_sentence, teacher_answers
from pipeline.errors import ConfigError, InputError
from pipeline.evaluation.refer_metrics import is_silence
from pipeline.images import read_image
from pipeline.scenes.contact_sheet import OUTLINE_COLOURS, draw_outlines

Pixels = NDArray[np.uint8]
_LEAST_SIDE = 640
"""Smaller images are shown enlarged, in whole multiples."""
_TINT = 0.45


@dataclass(frozen=True)
class Found:
    """An object on an image."""

    name: str
    score: float
    mask: NDArray[np.bool_]
    """[H, W], canonical."""


def run(
    config_path: Path,
    checkpoint: Path,
    image: Path,
    *,
    sentence: str | None = None,
    out: Path | None = None,
    cfg_options: Sequence[str] = (),
    network: Which | None = None,
    min_score: float = 0.5,
    overwrite: bool = False,
) -> list[Found]:
    """Do the command; see ``s4m-pipeline predict --help``.

    Args:
        config_path: Config of a teacher or student.
        checkpoint: Weights of either.
        image: A file.
        sentence: What to look for, with a network that reads sentences.
        out: Picture to write (.png or .jpg); ``<image>_predicted.png`` in the working folder where None.
        cfg_options: Overrides, ``key=value``.
        network: Network of a student's checkpoint; that which its training validates where None.
        min_score: Objects with a lower score are not shown.
        overwrite: Replace the picture.

    Returns:
        What was found, the surest first.

    Raises:
        InputError: a wrong image, checkpoint or config, or a picture in the way.
    """
    if image.is_dir():
        raise InputError(
            "an image file is wanted",
            where=image,
            expected="one picture",
            got="a folder",
            fix="name a file of it; pseudo-label labels a whole folder (pseudo_label.images)",
        )
    picture = _picture_file(out, image, overwrite=overwrite)
    config = open_config(config_path, cfg_options)
    _refuse_wrong_question(config, sentence, config_path)
    pixels = read_image(image)
    model = load_network(config, checkpoint, which=network or validated(config))
    if sentence is None:
        names = class_names(model) or tuple(f"class {label}" for label in range(num_classes(model)))
        found = [each for each in find(model, config, pixels, names) if each.score >= min_score]
    else:
        found = find_meant(model, config, pixels, sentence)
        if model.network.text_encoder.num_truncated:
            print(f"the sentence is cut: the network reads {model.network.text_encoder.max_tokens} word pieces")
    _write(picture, overlay(pixels, found))
    _print(found, sentence, min_score)
    print(f"picture: {picture}")
    return found


def find(model: object, config: Config, pixels: Pixels, names: Sequence[str]) -> list[Found]:
    """Every detection of a network with a pixel, the surest first.

    Args:
        model: From ``load_network``.
        config: From ``open_config``.
        pixels: [H, W, 3] uint8 RGB canonical.
        names: By label.
    """
    packed = pack(build_transforms(config), pixels, image_id=0)
    samples, _ = detect_and_label(model, [packed], filter_of(config))
    instances = samples[0]["pred_instances"]
    columns = zip(instances["labels"].tolist(), instances["scores"].tolist(), instances["masks"].cpu(), strict=True)
    found = [Found(names[label], score, mask.numpy().astype(bool)) for label, score, mask in columns]
    return sorted((each for each in found if each.mask.any()), key=lambda each: -each.score)


def find_meant(model: object, config: Config, pixels: Pixels, sentence: str) -> list[Found]:
    """The object that a sentence means, with the mean probability of its pixels.

    None where the network says that nothing is meant, or no pixel is.

    Args:
        model: From ``load_network``, one that reads sentences.
        config: From ``open_config``.
        pixels: [H, W, 3] uint8 RGB canonical.
        sentence: What to look for.
    """
    answers = teacher_answers(model, [pack_sentence(build_transforms(config), pixels, sentence)])
    mask = answers.masks.masks[0]
    if is_silence(mask, answers.no_target[0]) or not mask.any():
        return []
    return [Found(sentence, float(answers.masks.scores[0]), mask)]


def overlay(pixels: Pixels, found: Sequence[Found]) -> Pixels:
    """The image [H, W, 3] with every object tinted, outlined and named; small images enlarged."""
    scale = max(1, -(-_LEAST_SIDE // max(pixels.shape[:2])))
    colours = [OUTLINE_COLOURS[(place + 1) % len(OUTLINE_COLOURS)] for place in range(len(found))]
    tinted = pixels.copy()
    for each, colour in zip(found, colours, strict=True):
        tinted[each.mask] = ((1 - _TINT) * tinted[each.mask] + _TINT * np.array(colour)).astype(np.uint8)
    masks = np.stack([each.mask for each in found]) if found else np.zeros((0, *pixels.shape[:2]), bool)
    canvas = draw_outlines(tinted, masks, colours, scale=scale)
    for each, colour in zip(found, colours, strict=True):
        rows, columns = np.nonzero(each.mask)
        place = (int(columns.min()) * scale + 2, max(int(rows.min()) * scale - 4, 12))
        for shade, width in (((0, 0, 0), 3), (colour, 1)):  # a dark border, so that it reads on any ground
            text = f"{each.name} {each.score:.2f}"
            cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, shade, width, cv2.LINE_AA)
    return canvas


def _refuse_wrong_question(config: Config, sentence: str | None, where: Path) -> None:
    if is_referring(config) == (sentence is not None) and (sentence is None or sentence.strip()):
        return
    wants = "a sentence" if is_referring(config) else "no sentence"
    raise ConfigError(
        f"this network wants {wants}",
        where=where,
        expected='--sentence "the red ring on the left"' if is_referring(config) else "an image alone",
        got=sentence,
        fix="give one" if is_referring(config) else "leave --sentence out, or use a config of configs/*/refer*.py",
    )


def _picture_file(out: Path | None, image: Path, *, overwrite: bool) -> Path:
    file = out or Path(f"{image.stem}_predicted.png")
    if file.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        fix = f"--out {file.with_suffix('.png')}"
        raise ConfigError("not a picture", where="--out", expected="a .png or .jpg file", got=file, fix=fix)
    if file.exists() and not overwrite:
        raise InputError("a file is in the way", where=file, fix="another --out, or --overwrite")
    return file


def _write(file: Path, canvas: Pixels) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(file), canvas[..., ::-1]):
        raise InputError("the picture cannot be written", where=file, fix="give another --out")


def _print(found: Sequence[Found], sentence: str | None, min_score: float) -> None:
    if not found and sentence is not None:
        print(f"nothing is meant by: {sentence}")
    elif not found:
        print(f"nothing with a score of at least {min_score:g}; --min-score shows less sure ones")
    for each in found:
        rows, columns = np.nonzero(each.mask)
        box = f"x {columns.min()} to {columns.max()}, y {rows.min()} to {rows.max()}"
        print(f"{each.score:.3f}  {each.name}: {each.mask.sum()} pixels, {box}")
