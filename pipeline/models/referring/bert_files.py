"""BERT and its vocabulary: from the model hub, from a folder, or the tiny one that is shipped. Nothing is unpickled."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError, ConfigError, EnvironmentProblemError
from pipeline.models.weights import ASSETS
from pipeline.sam.checkpoints import load_weights, verify_sha256

CONFIG_FILE, VOCABULARY_FILE = "config.json", "vocab.txt"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Looked for in this order in a folder."""
TINY = "tiny-bert"
TINY_VOCABULARY = ASSETS / "tiny_bert_vocab.txt"
TINY_SIZES: Mapping[str, int] = MappingProxyType(
    {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "max_position_embeddings": 64,
    }
)
_NOT_OURS = ("cls.", "pooler.", "embeddings.position_ids")
"""Parts of published checkpoints that no segmentation uses."""


@dataclass(frozen=True)
class HubBert:
    """One published BERT."""

    repository: str
    revision: str
    """Commit of the repository; its small files are those of this commit."""
    sha256: str
    """Of ``model.safetensors``."""


# The digest and the revision were found stated alike in several independent public projects.
HUB_BERTS: Mapping[str, HubBert] = MappingProxyType(
    {
        "bert-base-uncased": HubBert(
            "google-bert/bert-base-uncased",
            "86b5e0934494bd15c9632b12f734a8a67f723594",
            "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
        )
    }
)


@dataclass(frozen=True)
class Bert:
    """A network and the tokenizer that it was trained with."""

    model: Any
    """``transformers.BertModel`` without the pooling layer."""
    tokenizer: Any
    """``transformers.BertTokenizer``."""


def open_bert(name: str) -> Bert:
    """Build a BERT.

    Args:
        name: A key of :data:`HUB_BERTS`; a folder with ``config.json``, ``vocab.txt`` and ``model.safetensors`` (or
            ``pytorch_model.bin``, read as tensors only); or :data:`TINY`, whose weights are random.

    Raises:
        ConfigError: neither a known name nor a folder.
        CheckpointError: a file is missing, cannot be downloaded, is not the published one, or does not fit.
        EnvironmentProblemError: ``transformers`` or the hub's client is not installed.
    """
    if name == TINY:
        return Bert(_empty_model(dict(TINY_SIZES), TINY_VOCABULARY), _tokenizer(TINY_VOCABULARY, lower_case=True))
    if name in HUB_BERTS:
        return _from_files(_download(name))
    folder = Path(name)
    if not folder.is_dir():
        raise ConfigError(
            "unknown BERT",
            where="text_encoder.name",
            expected=f"a folder with {CONFIG_FILE}, {VOCABULARY_FILE} and {WEIGHT_FILES[0]}, "
            f"or one of {', '.join([*HUB_BERTS, TINY])}",
            got=name,
            fix="correct the path",
        )
    return _from_files(folder)


def _from_files(folder: Path) -> Bert:
    sizes = _read_json(folder / CONFIG_FILE)
    vocabulary = folder / VOCABULARY_FILE
    settings = folder / "tokenizer_config.json"
    lower_case = bool(_read_json(settings).get("do_lower_case", True)) if settings.is_file() else True
    model = _empty_model(sizes, vocabulary)
    weights = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), folder / WEIGHT_FILES[0])
    _load(model, load_weights(weights), weights)
    return Bert(model, _tokenizer(vocabulary, lower_case=lower_case))


def _empty_model(sizes: dict[str, Any], vocabulary: Path) -> Any:
    transformers = _transformers()
    words = _words(vocabulary)
    if sizes.setdefault("vocab_size", len(words)) < len(words):
        raise CheckpointError(
            "the vocabulary has more words than the network",
            where=vocabulary,
            expected=f"at most {sizes['vocab_size']} lines",
            got=f"{len(words)} lines",
            fix=f"put the {VOCABULARY_FILE} there that belongs to this {CONFIG_FILE}",
        )
    return transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False)


def _tokenizer(vocabulary: Path, *, lower_case: bool) -> Any:
    return _transformers().BertTokenizer(vocab=_words(vocabulary), do_lower_case=lower_case)


def _words(vocabulary: Path) -> dict[str, int]:
    """Index of every word piece, one a line."""
    if not vocabulary.is_file():
        raise CheckpointError(
            "BERT's vocabulary is missing",
            where=vocabulary,
            expected="one word piece a line",
            fix=f"put the {VOCABULARY_FILE} of the published BERT there",
        )
    words = {word: index for index, word in enumerate(vocabulary.read_text(encoding="utf-8").splitlines())}
    lacking = [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if word not in words]
    if lacking:
        raise CheckpointError("not a vocabulary of BERT", where=vocabulary, expected=f"lines {', '.join(lacking)}")
    return words


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "a file of BERT cannot be read",
            where=path,
            expected="JSON",
            got=f"{type(error).__name__}: {error}",
            fix=f"put the {path.name} of the published BERT there",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError("not a config of BERT", where=path, expected="a JSON object", got=type(content).__name__)
    return content


def _load(model: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Fill the network strictly; checkpoints of the first BERT call a norm's parameters gamma and beta."""
    renamed = {
        name.removeprefix("bert.")
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias"): value
        for name, value in weights.items()
    }
    renamed = {name: value for name, value in renamed.items() if not name.startswith(_NOT_OURS)}
    own = model.state_dict()
    missing = [name for name in own if name not in renamed]
    unknown = [name for name in renamed if name not in own]
    reshaped = [name for name in own if name in renamed and own[name].shape != renamed[name].shape]
    if missing or unknown or reshaped:
        raise CheckpointError(
            "the weights are of another BERT",
            where=where,
            expected=f"{len(own)} tensors as {CONFIG_FILE} describes them",
            got=f"missing {missing[:2]}, unknown {unknown[:2]}, other shape {reshaped[:2]}",
            fix=f"give the {CONFIG_FILE} that belongs to them",
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(renamed[name])


def _download(name: str) -> Path:
    """Folder in the hub's cache with the published files, downloaded where they are not there yet."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise EnvironmentProblemError(
            "downloading a BERT needs the huggingface_hub package", fix="pip install huggingface_hub"
        ) from error
    bert = HUB_BERTS[name]
    files = (CONFIG_FILE, VOCABULARY_FILE, WEIGHT_FILES[0])
    try:
        paths = [Path(hf_hub_download(bert.repository, file, revision=bert.revision)) for file in files]
    # The client raises its own errors, those of its HTTP library and plain OSErrors; all mean "no file".
    except Exception as error:
        raise CheckpointError(
            f"{name} cannot be downloaded",
            where=f"model hub repository {bert.repository}, revision {bert.revision}",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix=f"on a machine with network get {', '.join(files)} of that revision, put them into "
            f"checkpoints/{name}/ and give that folder instead of the name {name}",
        ) from error
    verify_sha256(paths[-1], bert.sha256)
    return paths[0].parent


def _transformers() -> Any:
    """The package; importing it takes seconds, so only who builds a BERT does."""
    try:
        import transformers
    except ImportError as error:
        raise EnvironmentProblemError(
            "BERT needs the transformers package", fix="pip install 'transformers>=5,<6'"
        ) from error
    return transformers
