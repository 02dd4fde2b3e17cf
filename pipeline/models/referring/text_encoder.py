"""Sentences to features: BERT's last hidden state."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.referring.bert_files import open_bert

EVERYTHING = "all"


@dataclass(frozen=True)
class TextFeatures:
    """B sentences, padded to one length."""

    tokens: Tensor
    """[B, T, C] float, one feature a word piece."""
    mask: Tensor
    """[B, T] bool, false where a sentence is padded."""


class TextEncoder(nn.Module):
    """BERT without its pooling layer, and its tokenizer.

    Sentences are always padded to ``max_tokens``: what a network says of one never depends on its neighbours in the
    batch. A plain module, so that initialising the network around it leaves the pretrained weights alone.
    """

    num_truncated: int
    """Sentences cut so far, repetitions counted."""

    def __init__(
        self,
        name: str,
        *,
        max_tokens: int = 20,
        keep_separator: bool = True,
        train_layers: str | Sequence[int] = EVERYTHING,
        eval_mode: bool = False,
    ) -> None:
        """Build the network and open its vocabulary.

        Args:
            name: See :func:`pipeline.models.referring.bert_files.open_bert`.
            max_tokens: Word pieces of a sentence, [CLS] and [SEP] included (SemiRES: 20); the rest is cut off.
            keep_separator: Whether a sentence that is cut still ends with [SEP]; the released code cuts it off.
            train_layers: ``all`` (the paper), or which encoder layers train while all the rest of BERT stays as it
                is: 0 to 9 in the released code, none to freeze it.
            eval_mode: Keep BERT without dropout in training too (SemiRES' burn-in).

        Raises:
            ConfigError: fewer than three tokens, or a layer that BERT does not have.
            CheckpointError, EnvironmentProblemError: see ``open_bert``.
        """
        super().__init__()
        bert = open_bert(name)
        self.bert, self.tokenizer = bert.model, bert.tokenizer
        longest = self.bert.config.max_position_embeddings
        if not 3 <= max_tokens <= longest:
            raise ConfigError(
                "no such number of tokens",
                where="text_encoder.max_tokens",
                expected=f"3 to {longest}: [CLS], a word, [SEP]; as many as BERT has positions",
                got=max_tokens,
            )
        self.max_tokens, self.keep_separator, self.eval_mode = max_tokens, keep_separator, eval_mode
        self.num_truncated = 0
        if train_layers != EVERYTHING:
            self._train_only(train_layers)

    @property
    def num_channels(self) -> int:
        """Channels of a token."""
        return int(self.bert.config.hidden_size)

    def train(self, mode: bool = True) -> "TextEncoder":
        """Switch dropout, unless BERT is to stay in evaluation mode."""
        super().train(mode and not self.eval_mode)
        return self

    def forward(self, sentences: Sequence[str]) -> TextFeatures:
        """Features of B sentences; the word pieces of one that is too long are cut and counted."""
        words, mask = self.tokenise(sentences)
        device = self.bert.embeddings.word_embeddings.weight.device
        words, mask = words.to(device), mask.to(device)
        states = self.bert(input_ids=words, attention_mask=mask).last_hidden_state
        return TextFeatures(states, mask)

    def tokenise(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Indices of word pieces [B, max_tokens] int64, and which of them are not padding [B, max_tokens] bool."""
        tokenizer = self.tokenizer
        pieces = tokenizer(list(sentences), add_special_tokens=False)["input_ids"]
        words = torch.full((len(pieces), self.max_tokens), tokenizer.pad_token_id)
        mask = torch.zeros(words.shape, dtype=torch.bool)
        for row, sentence in enumerate(pieces):
            is_cut = len(sentence) + 2 > self.max_tokens
            kept = sentence[: self.max_tokens - 2] if is_cut and self.keep_separator else sentence
            line = [tokenizer.cls_token_id, *kept, tokenizer.sep_token_id][: self.max_tokens]
            words[row, : len(line)] = torch.tensor(line)
            mask[row, : len(line)] = True
            self.num_truncated += is_cut
        return words, mask

    def _train_only(self, layers: str | Sequence[int]) -> None:
        """Freeze everything but some encoder layers: what does not train has no gradient either."""
        there = self.bert.encoder.layer
        if isinstance(layers, str) or not all(0 <= layer < len(there) for layer in layers):
            raise ConfigError(
                "which layers of BERT train?",
                where="text_encoder.train_layers",
                expected=f"{EVERYTHING!r}, or layers from 0 to {len(there) - 1}",
                got=layers,
            )
        self.bert.requires_grad_(False)
        for layer in layers:
            there[layer].requires_grad_(True)
