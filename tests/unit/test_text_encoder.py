"""Sentences to word pieces and features; BERT's files, and every way in which they can be wrong."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.referring import bert_files
from pipeline.models.referring.bert_files import TINY_SIZES, TINY_VOCABULARY, open_bert
from pipeline.models.referring.text_encoder import TextEncoder
from pipeline.sam.checkpoints import verify_sha256
from pipeline.scenes.cache import FAMILY_GROUPS
from pipeline.scenes.expressions import SceneObject, candidates
from pipeline.scenes.render import COLOURS


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return TextEncoder("tiny-bert", max_tokens=8).eval()


def words_of(encoder, sentence):
    indices, mask = encoder.tokenise([sentence])
    return encoder.tokenizer.convert_ids_to_tokens(indices[0][mask[0]].tolist())


def test_a_sentence_becomes_word_pieces_between_its_two_marks(encoder):
    words, mask = encoder.tokenise(["The Red star", "box"])
    assert words.shape == mask.shape == (2, 8)
    assert words_of(encoder, "The Red star") == ["[CLS]", "the", "red", "star", "[SEP]"]
    assert mask.sum(dim=1).tolist() == [5, 3]
    assert (words[~mask] == encoder.tokenizer.pad_token_id).all()


def test_a_long_sentence_keeps_its_end_mark_and_is_counted():
    encoder = TextEncoder("tiny-bert", max_tokens=6)
    assert words_of(encoder, "the second red star from the left") == ["[CLS]", "the", "second", "red", "star", "[SEP]"]
    assert encoder.num_truncated == 1
    assert words_of(encoder, "the red star left")[-1] == "[SEP]"
    assert encoder.num_truncated == 1, "four words and two marks fit"


def test_released_truncation_cuts_the_end_mark_off():
    encoder = TextEncoder("tiny-bert", max_tokens=6, keep_separator=False)
    assert words_of(encoder, "the second red star from the left") == ["[CLS]", "the", "second", "red", "star", "from"]
    assert words_of(encoder, "the red star left")[-1] == "[SEP]"
    assert encoder.num_truncated == 1


def test_every_word_of_the_grammar_is_one_piece(encoder):
    """All families, colours and rules; random objects reach every rule of the grammar."""
    rng = np.random.default_rng(0)
    families, colours = list(FAMILY_GROUPS["all"]), list(COLOURS)
    sentences, kinds = set(), set()
    for _ in range(60):
        objects = [
            SceneObject(str(rng.choice(families)), str(rng.choice(colours)), *rng.random(2), int(rng.integers(80, 900)))
            for _ in range(6)
        ]
        found = list(candidates(objects))
        sentences |= {candidate.sentence for candidate in found}
        kinds |= {candidate.kind for candidate in found}
    assert len(kinds) == 7
    words = {word for sentence in sentences for word in sentence.split()}
    assert {*families, *colours} <= words
    pieces = encoder.tokenizer(sorted(words), add_special_tokens=False)["input_ids"]
    assert [word for word, ids in zip(sorted(words), pieces, strict=True) if len(ids) != 1] == []
    assert encoder.tokenizer.unk_token_id not in {index for ids in pieces for index in ids}


def test_the_vocabulary_is_the_one_that_shipped_weights_were_trained_with():
    """A word more or less would move the meaning of all after it; new words go to the end, with new weights."""
    assert verify_sha256(TINY_VOCABULARY, None).startswith("1cb557942411c5be")


def test_features_do_not_depend_on_the_batch(encoder):
    alone = encoder(["the red star"])
    beside = encoder(["the red star", "the second blue box from the left"])
    assert alone.tokens.shape == (1, 8, encoder.num_channels)
    torch.testing.assert_close(alone.tokens[0], beside.tokens[0], rtol=1e-5, atol=1e-6)


def test_only_the_chosen_layers_train():
    encoder = TextEncoder("tiny-bert", train_layers=[1])
    encoder(["the red star"]).tokens.sum().backward()
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("bert.encoder.layer.1.") for name in trained)
    assert {name for name, p in encoder.named_parameters() if p.grad is not None} == trained
    assert all(p.requires_grad for p in TextEncoder("tiny-bert").parameters())


def test_dropout_is_off_where_bert_stays_in_evaluation_mode():
    sentences = ["the red star"]
    with_dropout, without = TextEncoder("tiny-bert").train(), TextEncoder("tiny-bert", eval_mode=True).train()
    assert not torch.equal(with_dropout(sentences).tokens, with_dropout(sentences).tokens)
    assert torch.equal(without(sentences).tokens, without(sentences).tokens)
    assert with_dropout.bert.training
    assert not without.bert.training


@pytest.mark.parametrize("layers", ["some", [2], [-1]])
def test_layers_that_bert_has_not_are_refused(layers):
    with pytest.raises(ConfigError, match="train_layers"):
        TextEncoder("tiny-bert", train_layers=layers)


@pytest.mark.parametrize("tokens", [2, 65])
def test_impossible_lengths_are_refused(tokens):
    with pytest.raises(ConfigError, match="max_tokens"):
        TextEncoder("tiny-bert", max_tokens=tokens)


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(ConfigError, match="bert-base-uncased, tiny-bert"):
        open_bert("bert-of-nobody")


@pytest.fixture
def folder(tmp_path):
    """The tiny BERT as a published folder: old names of norms, a prefix, a pooling layer and a head."""
    (tmp_path / "config.json").write_text(json.dumps(dict(TINY_SIZES) | {"vocab_size": 200, "model_type": "bert"}))
    shutil.copy(TINY_VOCABULARY, tmp_path / "vocab.txt")
    torch.manual_seed(3)
    state = open_bert("tiny-bert").model.state_dict()
    state["embeddings.word_embeddings.weight"] = torch.randn(200, 64)
    old = {
        f"bert.{name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')}": value
        for name, value in state.items()
    }
    old |= {"bert.pooler.dense.weight": torch.zeros(2), "cls.predictions.bias": torch.zeros(2)}
    save_file(old, tmp_path / "model.safetensors")
    return tmp_path, old


def test_a_local_folder_is_read_with_old_names(folder):
    path, old = folder
    own = open_bert(str(path)).model.state_dict()
    assert torch.equal(own["embeddings.LayerNorm.weight"], old["bert.embeddings.LayerNorm.gamma"])
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(own[name], old[f"bert.{name}"])
    assert not any(name.startswith("pooler") for name in own)


def test_a_pickled_file_is_read_as_tensors_only(folder):
    path, old = folder
    (path / "model.safetensors").unlink()
    torch.save(old, path / "pytorch_model.bin")
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(open_bert(str(path)).model.state_dict()[name], old[f"bert.{name}"])

    class Evil:
        def __reduce__(self):
            return print, ("run",)

    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(CheckpointError, match="safely"):
        open_bert(str(path))


def test_case_is_kept_where_the_folder_says_so(folder):
    path, _ = folder
    (path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = open_bert(str(path)).tokenizer
    assert cased("RED", add_special_tokens=False)["input_ids"] == [cased.unk_token_id]


def missing_vocabulary(path, old):
    (path / "vocab.txt").unlink()
    return r"vocab\.txt"


def missing_weights(path, old):
    (path / "model.safetensors").unlink()
    return "no such checkpoint"


def broken_config(path, old):
    (path / "config.json").write_text("{")
    return "JSON"


def missing_tensor(path, old):
    save_file({name: value for name, value in old.items() if "layer.1.output.dense.bias" not in name}, path / "x")
    (path / "x").replace(path / "model.safetensors")
    return "another BERT"


def too_many_words(path, old):
    (path / "vocab.txt").write_text(TINY_VOCABULARY.read_text() + "\n".join(f"w{i}" for i in range(200)))
    return "more words"


def no_marks(path, old):
    (path / "vocab.txt").write_text("red\nstar\n")
    return "not a vocabulary"


DAMAGE = [missing_vocabulary, missing_weights, broken_config, missing_tensor, too_many_words, no_marks]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda function: function.__name__)
def test_a_damaged_folder_is_refused(folder, damage):
    message = damage(*folder)
    with pytest.raises(CheckpointError, match=message):
        open_bert(str(folder[0]))


def test_without_a_network_the_error_says_how_to_provide_the_files(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(CheckpointError, match=r"checkpoints/bert-base-uncased/ and give that folder") as error:
        open_bert("bert-base-uncased")
    assert "model.safetensors" in str(error.value)
    assert "no route to host" in str(error.value)


def test_files_of_the_hub_are_of_one_revision_and_checked(folder, monkeypatch):
    asked = []

    def download(repository, file, *, revision):
        asked.append((repository, file, revision))
        return str(folder[0] / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(CheckpointError, match="not the expected file"):
        open_bert("bert-base-uncased")
    published = bert_files.HUB_BERTS["bert-base-uncased"]
    assert {(repository, revision) for repository, _, revision in asked} == {(published.repository, published.revision)}
    ours = bert_files.HubBert(
        published.repository, published.revision, verify_sha256(folder[0] / "model.safetensors", None)
    )
    monkeypatch.setattr(bert_files, "HUB_BERTS", {"bert-base-uncased": ours})
    assert open_bert("bert-base-uncased").model.config.vocab_size == 200
