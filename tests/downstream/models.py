"""Tiny language models with random weights, written as the published ones are: one function for each kind."""

import json
import random
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    EsmConfig,
    EsmForMaskedLM,
    EsmTokenizer,
    PreTrainedTokenizerFast,
)

from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import SPECIAL_TOKENS, save_tokenizer, vocabulary_size

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SIX_MERS = ["".join(bases) for bases in product("ATCG", repeat=6)]


def ours(folder: Path, k: int = 3, max_positions: int = 64, seed: int = 0) -> Path:
    """One of cmgems: overlapping k-mers, its tokenizer as cmgems writes it."""
    _save_bert(folder, vocabulary_size(k), max_positions, seed)
    save_tokenizer(folder, Tokenization(k), max_positions)
    return folder


def dnabert(folder: Path, do_lower_case: bool | None = False, max_positions: int = 64) -> Path:
    """Like DNABERT: overlapping 6-mers in a `vocab.txt`; older checkpoints do not say `do_lower_case` (None)."""
    _save_bert(folder, len(SPECIAL_TOKENS) + len(SIX_MERS), max_positions)
    tokens = [*SPECIAL_TOKENS, *SIX_MERS]
    if do_lower_case is None:
        # All that such a folder has of a tokenizer.
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
        settings = {"tokenizer_class": "BertTokenizer", "model_max_length": max_positions}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    else:
        vocabulary = {token: i for i, token in enumerate(tokens)}
        tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=do_lower_case, model_max_length=max_positions)
        tokenizer.save_pretrained(folder)
    return folder


def nucleotide_transformer(folder: Path, max_tokens: int = 64) -> Path:
    """Like the first Nucleotide Transformer: 6-mers side by side, single nucleotides beside an N and at the end.

    Its positions begin after that of the padding, and its tokenizer puts <cls> before a sequence and nothing after it.
    """
    tokens = ["<unk>", "<pad>", "<mask>", "<cls>", *SIX_MERS, "A", "T", "C", "G", "N", "<eos>", "<bos>"]
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=len(tokens),
        pad_token_id=1,
        mask_token_id=2,
        max_position_embeddings=max_tokens + 2,
        position_embedding_type="absolute",
        emb_layer_norm_before=False,
        token_dropout=True,
        **SIZE,
    )
    EsmForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tokens))
    tokenizer = EsmTokenizer(str(folder / "vocab.txt"), eos_token=None, model_max_length=max_tokens)
    tokenizer.save_pretrained(folder)
    return folder


def byte_pairs(folder: Path, max_positions: int = 64) -> Path:
    """Tokens like DNABERT-2's: pairs of nucleotides merged by how often they occur."""
    draw = random.Random(0)
    tokenizer = Tokenizer(tokenizer_models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=100, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    tokenizer.train_from_iterator(["".join(draw.choices("ACGT", k=200)) for _ in range(50)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    )
    _save_bert(folder, tokenizer.get_vocab_size(), max_positions)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = dict(zip(names, SPECIAL_TOKENS, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


NATIVE: dict[str, Callable[[Path], Path]] = {
    "ours": ours,
    "dnabert": dnabert,
    "nucleotide_transformer": nucleotide_transformer,
    "byte_pairs": byte_pairs,
}
"""The kinds that transformers runs with code of its own."""

_CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class BagConfig(PreTrainedConfig):
    model_type = "bag-of-tokens"

    def __init__(self, vocab_size=69, hidden_size=16, **settings):
        super().__init__(**settings)
        self.vocab_size, self.hidden_size = vocab_size, hidden_size


class BagForSequenceClassification(PreTrainedModel):
    config_class = BagConfig

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, (torch.nn.Embedding, torch.nn.Linear)):
            torch.nn.init.normal_(module.weight)

    def forward(self, input_ids, attention_mask, **_):
        mask = attention_mask[..., None]
        mean = (self.embeddings(input_ids) * mask).sum(1) / mask.sum(1)
        return SequenceClassifierOutput(logits=self.classifier(mean))
"""


def remote_code(folder: Path, model_type: str = "bag-of-tokens") -> Path:
    """A model whose code is in its folder, as DNABERT-2's is; `model_type` may be one that transformers knows too."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bag.py").write_text(_CODE)
    code = {"AutoConfig": "bag.BagConfig", "AutoModelForSequenceClassification": "bag.BagForSequenceClassification"}
    size = SIZE | {"vocab_size": vocabulary_size(3), "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": code} | size))
    torch.manual_seed(0)
    weights = {"embeddings.weight": torch.randn(vocabulary_size(3), 16)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(folder, Tokenization(3), 64)
    return folder


def _save_bert(folder: Path, tokens: int, max_positions: int, seed: int = 0) -> None:
    torch.manual_seed(seed)
    BertForMaskedLM(BertConfig(vocab_size=tokens, max_position_embeddings=max_positions, **SIZE)).save_pretrained(
        folder
    )
