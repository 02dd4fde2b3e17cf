"""SAM 2 checkpoint files: where they come from, whether they are the right ones, and how to read them safely."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError, ConfigError, EnvironmentProblemError

VIDEO_ONLY = (
    "memory_attention.",
    "memory_encoder.",
    "maskmem_tpos_enc",
    "mask_downsample.",
    "no_mem_embed",
    "no_mem_pos_enc",
    "no_obj_embed_spatial",
    "no_obj_ptr",
    "obj_ptr_proj.",
    "obj_ptr_tpos_proj.",
)
"""Parameters that only tracking through a video uses; a checkpoint for images may leave them out."""


@dataclass(frozen=True)
class HubCheckpoint:
    """One published checkpoint."""

    repository: str
    """Repository on the model hub."""
    file_name: str
    config: str
    """Path of the architecture inside the ``sam2`` package."""
    sha256: str


def _published(version: str, size: str, letter: str, sha256: str) -> HubCheckpoint:
    return HubCheckpoint(
        repository=f"facebook/{version}-hiera-{size.replace('_', '-')}",
        file_name=f"{version}_hiera_{size}.pt",
        config=f"configs/{version}/{version}_hiera_{letter}.yaml",
        sha256=sha256,
    )


# The digests are those of the files as first published; each was found stated alike in several
# independent public projects, so a mirror or a man in the middle cannot slip in another file.
HUB_CHECKPOINTS: Mapping[str, HubCheckpoint] = MappingProxyType(
    {
        f"{version}_hiera_{size}": _published(version, size, letter, sha256)
        for version, size, letter, sha256 in (
            ("sam2.1", "tiny", "t", "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
            ("sam2.1", "small", "s", "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
            ("sam2.1", "base_plus", "b+", "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
            ("sam2.1", "large", "l", "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
            ("sam2", "tiny", "t", "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125"),
            ("sam2", "small", "s", "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3"),
            ("sam2", "base_plus", "b+", "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071"),
            ("sam2", "large", "l", "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b"),
        )
    }
)


def sha256_of(path: str | Path) -> str:
    """Hex digest of a file, read in pieces of 1 MiB.

    Raises:
        CheckpointError: the file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise CheckpointError(
            "a checkpoint cannot be read",
            where=path,
            expected="a readable .pt or .safetensors file",
            got=error.strerror,
            fix="check the path and its permissions",
        ) from error
    return digest.hexdigest()


def refuse_malformed_sha256(expected: str | None) -> None:
    """Raise ConfigError unless ``expected`` is None or 64 hexadecimal digits."""
    if expected is not None and (len(expected) != 64 or set(expected.lower()) - set("0123456789abcdef")):
        raise ConfigError(
            "a sha256 has 64 hexadecimal digits", where="sam.sha256", got=expected, fix="correct sam.sha256"
        )


def verify_sha256(path: str | Path, expected: str | None) -> str:
    """Digest of ``path``; with ``expected`` also a promise that it is that one.

    Raises:
        CheckpointError: the file is missing, or has another digest.
        ConfigError: ``expected`` is not 64 hexadecimal digits.
    """
    refuse_malformed_sha256(expected)
    found = sha256_of(path)
    if expected is not None and found != expected.lower():
        raise CheckpointError(
            "a checkpoint is not the expected file",
            where=path,
            expected=f"sha256 {expected.lower()}",
            got=f"sha256 {found}",
            fix="delete it and get it again; if you mean this file, give its own digest: "
            f"--cfg-options sam.sha256={found}",
        )
    return found


def fetch_checkpoint(name: str) -> Path:
    """Path of a published checkpoint in the hub's cache, downloaded if it is not there. Not yet verified.

    Raises:
        ConfigError: ``name`` is not in :data:`HUB_CHECKPOINTS`.
        CheckpointError: it is not in the cache and cannot be downloaded.
        EnvironmentProblemError: the hub's client is not installed.
    """
    if name not in HUB_CHECKPOINTS:
        raise ConfigError("unknown SAM", where="sam.name", expected=", ".join(HUB_CHECKPOINTS), got=name)
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise EnvironmentProblemError(
            "downloading a SAM needs the huggingface_hub package", fix="pip install huggingface_hub"
        ) from error
    wanted = HUB_CHECKPOINTS[name]
    try:
        return Path(hf_hub_download(wanted.repository, wanted.file_name))
    # The client raises its own errors, those of its HTTP library and plain OSErrors; all mean "no file".
    except Exception as error:
        raise CheckpointError(
            f"{name} cannot be downloaded",
            where=f"model hub repository {wanted.repository}, file {wanted.file_name}",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix=f"on a machine with network get {wanted.file_name}, put it at checkpoints/{wanted.file_name} "
            f"and use that path instead of the name {name}",
        ) from error


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """State dict of a ``.safetensors`` file or of a ``.pt`` / ``.pth`` file, on the CPU.

    A pickle is only read as tensors (``weights_only``); nothing in it is ever run.

    Raises:
        CheckpointError: not a checkpoint, damaged, or it holds something other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError("there is no such checkpoint", where=path, fix="check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # Bytes that are no checkpoint can fail in any way inside the readers; none of them is a bug of ours.
    except Exception as error:
        raise CheckpointError(
            "a file is not a checkpoint that can be loaded safely",
            where=path,
            expected="safetensors, or a torch file that holds tensors and plain containers only",
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            fix="get the published file again, or save the bare state dict as .safetensors",
        ) from error
    return _state_dict(loaded, path)


def _state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    weights = loaded.get("model", loaded) if isinstance(loaded, Mapping) else None
    is_state_dict = (
        isinstance(weights, Mapping)
        and len(weights) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items())
    )
    if not is_state_dict:
        raise CheckpointError(
            "a torch file holds no state dict",
            where=path,
            expected='a mapping of names to tensors, bare or under "model"',
            got=type(loaded).__name__,
            fix="export the SAM's state dict",
        )
    return dict(weights)  # type: ignore[arg-type]


def load_into(model: nn.Module, weights: Mapping[str, Tensor], *, where: str | Path) -> None:
    """Fill ``model``; every name and shape must fit. Parameters for video alone may be absent.

    Half-precision weights are widened to the model's type.

    Raises:
        CheckpointError: a name is missing, unknown, or has another shape.
    """
    own = model.state_dict()
    optional = tuple(name for name in VIDEO_ONLY if not (name == "no_mem_embed" and _adds_no_mem_embed(model)))
    missing = [name for name in own if name not in weights and not name.startswith(optional)]
    unknown = [name for name in weights if name not in own]
    reshaped = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if missing or unknown or reshaped:
        raise CheckpointError(
            "a checkpoint does not fit the SAM's config",
            where=where,
            expected=f"{len(own)} tensors of {type(model).__name__}",
            got=f"missing {_some(missing)}; unknown {_some(unknown)}; other shape {_some(reshaped)}",
            fix="give the config that belongs to this checkpoint",
        )
    model.load_state_dict(dict(weights), strict=False)


def _adds_no_mem_embed(model: nn.Module) -> bool:
    return bool(getattr(model, "directly_add_no_mem_embed", False))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "none"
