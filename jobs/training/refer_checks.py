"""What is refused before a training on sentences starts; see ``training_checks.py``, which calls it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import METRICS

from pipeline.data.referring.dataset import ReferDataset
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluation.labelling_cost import token_statistics
from pipeline.models.referring.segmentor import STRIDE

_LEAST_SIDE = 2 * STRIDE
"""At the coarsest stride one pixel would be left, which cannot be normalised over the image."""
_NOT_OF_THE_SET = ("type", "pipeline", "max_broken_share")


def sentence_network(config: Any) -> Mapping[str, Any] | None:
    """Config of the network that reads sentences, a student's or a plain one; None for a detector's config."""
    network: Mapping[str, Any] | None = (config.model.get("segmentor") or config.model).get("network")
    return network


def check_sentence_settings(config: Any, parts: Iterable[Mapping[str, Any]], *, where: str | Path) -> None:
    """Side of the square and panels of a training on sentences.

    Args:
        config: Placeholders filled.
        parts: Every dict of its training data.
        where: For messages.

    Raises:
        ConfigError: a side that does not fit the network's strides, or panels, which are of instances.
    """
    if sentence_network(config) is None:
        return
    # Of all transforms only the stretch to a square has a size.
    sides = [part["size"] for part in parts if "size" in part]
    for side in sides:
        if type(side) is not int or side < _LEAST_SIDE or side % STRIDE:
            raise ConfigError(
                "an image does not fit the network's strides",
                where=f"{where}: side",
                expected=f"a multiple of {STRIDE}, {_LEAST_SIDE} or more",
                got=side,
            )
    if config.get("panel_interval"):
        raise ConfigError(
            "there are no image panels of sentences",
            where=f"{where}: panel_interval",
            expected=0,
            got=config.panel_interval,
            fix="s4m-pipeline predict draws what a checkpoint answers",
        )


def check_sentences(config: Any, sets: Sequence[Mapping[str, Any]]) -> None:
    """Text encoder, validation sentences, metric; sentences that are too long for the encoder are counted and told.

    Args:
        config: Placeholders filled.
        sets: Configs of the data sets of sentences that are trained on.

    Raises:
        PipelineError: files that are missing or wrong, or not for the metric; a tokenizer or BERT that cannot be
            reached.
    """
    network = sentence_network(config)
    if network is None:
        return
    from pipeline.models.referring.text_encoder import TextEncoder

    encoder = TextEncoder(**network["text_encoder"])
    named = {str(each.get("part", "all")): each for each in sets}
    loader, evaluator = config.get("val_dataloader"), config.get("val_evaluator")
    if loader is not None:
        named["validation"] = loader["dataset"]
    for name, settings in named.items():
        dataset = ReferDataset(pipeline=[], **{k: v for k, v in settings.items() if k not in _NOT_OF_THE_SET})
        counted = token_statistics(
            dataset.refer_set,
            lambda text: len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"]) + 2,
            max_tokens=encoder.max_tokens,
            text=dataset.settings.text,
        )
        if counted.num_cut:
            print(
                f"{name}: {counted.num_cut} of {counted.num_sentences} sentences have more than {encoder.max_tokens} "
                f"word pieces (up to {counted.longest}) and are cut",
                flush=True,
            )
    if evaluator is not None and "files" in evaluator:
        METRICS.build(dict(evaluator))  # it reads its files and refuses what it cannot measure


def without_overwritten_weights(config: Any) -> None:
    """Where a checkpoint of the whole network is the start, its backbone needs no file of its own."""
    backbone: Any = (sentence_network(config) or {}).get("backbone")
    if backbone and config.get("init_checkpoint"):
        backbone["weights"] = None


def refuse_missing_weights(config: Any) -> None:
    """Check that the backbone's pretrained weights are there.

    Raises:
        CheckpointError: they are not.
    """
    weights = ((sentence_network(config) or {}).get("backbone") or {}).get("weights")
    if weights is not None and not Path(weights).is_file():
        raise CheckpointError(
            "the pretrained weights of the backbone are not there",
            where=weights,
            expected="the published file, such as swin_base_patch4_window12_384_22k.pth, or the same as safetensors",
            fix="download it once, and put it there or set swin_checkpoint to its path",
        )
