"""``s4m-pipeline export``: a trained network as a plain mmdet config and weights, for use without this project."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.networks import Which, class_names, file_sha256, load_network, open_config, validated
from jobs.plain_config import plain_config
from jobs.progress import say
from jobs.refer_networks import is_referring
from pipeline.errors import CheckpointError, ConfigError, InputError, PipelineError
from pipeline.full_disk import told_if_full

CONFIG, WEIGHTS = "config.py", "weights.pth"
TOLERANCE = 1e-5
"""Difference of outputs, relative to the largest, that counts as none."""
_PROBE_HW = (96, 128)


def run(
    config_path: Path,
    checkpoint: Path,
    out_dir: Path,
    *,
    cfg_options: Sequence[str] = (),
    network: Which | None = None,
    overwrite: bool = False,
) -> None:
    """Do the command; see ``s4m-pipeline export --help``.

    Args:
        config_path: Config of a teacher's or student's training.
        checkpoint: Of that training.
        out_dir: Gets config.py and weights.pth, each complete or not at all.
        cfg_options: Overrides, ``key=value``.
        network: Which of a student's checkpoint; by default that which its training validates.
        overwrite: Replace an earlier export.

    Raises:
        ConfigError: the network has parts that mmdet does not have.
        CheckpointError: no checkpoint of this network, or one that does not name its classes.
        InputError: the folder is not empty.
    """
    _refuse_full(out_dir, overwrite=overwrite)
    if checkpoint.suffix == ".json":
        raise CheckpointError("a results file has no network", where=checkpoint, fix="give the checkpoint itself")
    config = open_config(config_path, cfg_options)
    if is_referring(config):
        raise ConfigError(
            "networks that read sentences cannot be exported: mmdet has none",
            where=config_path,
            expected="a config of instance segmentation",
            fix="s4m-pipeline predict or pseudo-label asks them; the checkpoint's state_dict holds plain tensors",
        )
    config.device = "cpu"
    which = network or validated(config)
    ours = load_network(config, checkpoint, which=which)
    names = class_names(ours)
    if names is None:
        raise CheckpointError(
            "the checkpoint does not name its classes, and labels without names are of no use elsewhere",
            where=checkpoint,
            expected="meta.dataset_meta.classes",
            fix="give a checkpoint of train-teacher or train-student, which has them",
        )
    plain = plain_config(config, names, where=config_path)
    theirs = _build(plain, where=config_path)
    weights = _plain_weights(ours, theirs, where=checkpoint)
    theirs.load_state_dict(weights)
    refuse_difference(ours, theirs)
    out_dir.mkdir(parents=True, exist_ok=True)
    _write(plain, weights, names, out_dir, f"{checkpoint} ({which}), sha256 {file_sha256(checkpoint)[:16]}")
    say(f"{len(weights)} tensors, {len(names)} classes: {out_dir / CONFIG}, {out_dir / WEIGHTS}")


def _refuse_full(folder: Path, *, overwrite: bool) -> None:
    """Only what an export wrote is ever replaced."""
    if folder.exists() and not folder.is_dir():
        raise InputError("a folder is wanted", where=folder, got="a file", fix="choose another OUT_DIR")
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if there - {CONFIG, WEIGHTS} or (there and not overwrite):
        raise InputError(
            "the folder is not empty",
            where=folder,
            got=", ".join(sorted(there)[:5]),
            fix="choose another OUT_DIR" + (", or --overwrite" if not there - {CONFIG, WEIGHTS} else ""),
        )


def _build(plain: Mapping[str, Any], *, where: Path) -> Any:
    """The network of the exported config, as mmdet's registry makes it."""
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    try:
        return MODELS.build(ConfigDict(plain["model"])).eval()
    except Exception as error:  # whatever a config may lead to
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ConfigError("mmdet cannot build the exported network", where=where, got=got) from error


def _plain_weights(ours: Any, theirs: Any, *, where: Path) -> dict[str, Any]:
    """State dict for the plain network. Modules that only a loss of ours uses stand beside it and are left out.

    Raises:
        CheckpointError: tensors inside of the network that mmdet's has not, or the other way round.
    """
    have, wanted = ours.state_dict(), theirs.state_dict()
    inside = {name.split(".", 1)[0] for name in wanted}
    surplus = [name for name in have if name not in wanted and name.split(".", 1)[0] in inside]
    lacking = [name for name in wanted if name not in have or have[name].shape != wanted[name].shape]
    if surplus or lacking:
        raise CheckpointError(
            "this network is not one of mmdet's",
            where=where,
            expected=f"the {len(wanted)} tensors of {type(theirs).__name__}",
            got=f"surplus {surplus[:3]}, lacking or of other shape {lacking[:3]}",
        )
    return {name: have[name].detach().cpu().clone() for name in wanted}


def refuse_difference(ours: Any, theirs: Any) -> None:
    """Give both networks one random image, each in its order of channels.

    Raises:
        PipelineError: they do not say the same: a part of ours changes the outputs and has no counterpart.
    """
    import torch
    from mmdet.structures import DetDataSample

    image = torch.randint(0, 256, (3, *_PROBE_HW), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    outputs = []
    for model, pixels in ((ours, image), (theirs, image.flip(0))):
        sample = DetDataSample(metainfo={"img_shape": _PROBE_HW, "ori_shape": _PROBE_HW})
        batch = model.data_preprocessor({"inputs": [pixels], "data_samples": [sample]}, False)
        with torch.no_grad():
            classes, masks = model(batch["inputs"], batch["data_samples"], mode="tensor")
        outputs.append((classes[-1], masks[-1]))
    worst = max(float((a - b).abs().max() / a.abs().max().clamp(min=1)) for a, b in zip(*outputs, strict=True))
    if not worst <= TOLERANCE:
        raise PipelineError(
            "the exported network does not say what the trained one says",
            where="one random image",
            expected=f"a relative difference of at most {TOLERANCE:g}",
            got=f"{worst:.3g}",
            fix="the config has a part that changes outputs and that mmdet lacks: this network cannot be exported",
        )


def _write(
    plain: Mapping[str, Any], weights: Mapping[str, Any], names: Sequence[str], folder: Path, source: str
) -> None:
    import torch
    from mmengine.config import Config

    contents: dict[str, Any] = {"state_dict": dict(weights), "meta": {"dataset_meta": {"classes": tuple(names)}}}
    for name in (WEIGHTS, CONFIG):  # weights first: a config alone would look complete
        partial = folder / f"{name}.{os.getpid()}.partial"
        try:
            with told_if_full(folder / name):
                if name == WEIGHTS:
                    torch.save(contents, partial)
                else:
                    partial.write_text(f"# Made by s4m-pipeline export of {source}.\n{Config(dict(plain)).pretty_text}")
            partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)
