"""Initial weights from which a model over overlapping k-mers learns without a plateau.

Masked k-mers overlap visible ones, and the first thing a model has to learn is to read the bases that they share off
the visible ones. From BERT's own initialization that takes thousands of steps, on a plateau of the loss: nothing tells
the model that k-mers share bases, nor which tokens are near (on plateaus while attention is learned: arXiv 2310.12956
and 2506.13688). Here k-mers that share bases start out alike, positions are sinusoids, and the heads of the first layer
start by attending to tokens a little to the left and to the right. All are ordinary weights of BERT, and trained.
"""

import math

import torch
from torch import Tensor
from transformers import BertForMaskedLM

from cmgems.config.schema import ModelConfig
from cmgems.data.alphabet import BASES
from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import SPECIAL_TOKENS, kmer_digits

SHORTEST_WAVE = 4.0
"""Period of the fastest sinusoid, in tokens; that of the slowest is twice the longest input."""

LOGITS_SD = 0.5
"""Standard deviation that the logits start with; BERT base's are 0.02 * sqrt(768) = 0.55."""


def initialize(bert: BertForMaskedLM, config: ModelConfig, tokens: Tokenization, seed: int) -> None:
    """Replace those weights of a model with random weights that `model.*_init` asks for; the others stay as they are.

    Draws from a generator of its own: with the same `seed`, two recipes that differ in these settings alone differ in
    these weights alone.
    """
    with torch.no_grad():
        if config.embedding_init == "nucleotides":
            _compose_embeddings(bert, config, tokens.k, torch.Generator().manual_seed(seed))
        if config.position_init == "sinusoidal":
            rms = config.position_scale * config.embedding_sd
            positions = bert.bert.embeddings.position_embeddings.weight
            positions.copy_(math.sqrt(2) * rms * sinusoids(*positions.shape))
        if config.attention_init == "neighbours":
            _attend_to_neighbours(bert, config, nearest_visible(tokens))


def composed_embeddings(k: int, hidden: int, share: float, random: torch.Generator) -> Tensor:
    """Embeddings [4^k, hidden] of variance 1, in which the share `share` is that of the k-mer's bases:
    sqrt(share) * sum_j B[j, base_j] / sqrt(k) + sqrt(1 - share) * noise, with B [k, 4, hidden] and the noise standard
    normal."""
    bases = torch.randn(k, len(BASES), hidden, generator=random)
    digits = torch.from_numpy(kmer_digits(k))
    composed = torch.stack([bases[place, digits[:, place]] for place in range(k)]).sum(0) / math.sqrt(k)
    noise = torch.randn(4**k, hidden, generator=random)
    return math.sqrt(share) * composed + math.sqrt(1 - share) * noise


def sinusoids(positions: int, hidden: int) -> Tensor:
    """Pairs of sine and cosine of each position [positions, hidden] (Vaswani et al. 2017, section 3.5), with periods
    from SHORTEST_WAVE to twice the number of positions; an odd last column is 0."""
    angles = torch.arange(positions)[:, None] * _frequencies(positions, hidden)
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return torch.nn.functional.pad(waves, (0, hidden - waves.shape[1]))


def _frequencies(positions: int, hidden: int) -> Tensor:
    """Radians a token of each pair of columns, float32 [hidden // 2], the fastest first."""
    pairs = hidden // 2
    exponent = torch.arange(pairs) / max(pairs - 1, 1)
    return 2 * math.pi / (SHORTEST_WAVE * (2 * positions / SHORTEST_WAVE) ** exponent)


def nearest_visible(tokens: Tokenization) -> int:
    """Return the distance, in tokens, beyond which a token is visible though its word is hidden: k of overlapping
    k-mers."""
    return max(-tokens.hiding[0], tokens.hiding[-1]) + 1


def neighbour_offsets(heads: int, reach: int) -> list[float]:
    """Distances in tokens at which the first heads start to look: on each side evenly spread up to `reach`, one more to
    the left where their number is odd. The last quarter of the heads has none: they start by looking everywhere
    alike."""
    local = heads - heads // 4
    left = -(-local // 2)
    sides = ((-1, left), (1, local - left))
    return [side * reach * (place + 1) / number for side, number in sides for place in range(number)]


def _compose_embeddings(bert: BertForMaskedLM, config: ModelConfig, k: int, random: torch.Generator) -> None:
    scale = config.embedding_scale
    words = bert.bert.embeddings.word_embeddings.weight  # that of the output projection too
    special = len(SPECIAL_TOKENS)
    words[special:] = scale * composed_embeddings(k, config.hidden, config.nucleotide_share, random)
    words[:special] *= scale / config.initializer_range
    # What the projection reads has a norm of sqrt(hidden) times this weight.
    weight = min(1.0, LOGITS_SD / (scale * math.sqrt(config.hidden)))
    bert.cls.predictions.transform.LayerNorm.weight.fill_(weight)


def _attend_to_neighbours(bert: BertForMaskedLM, config: ModelConfig, reach: int) -> None:
    """Add to the first layer's queries and keys what makes each head look at its offset: the key reads a token's
    sinusoids as they are, the query turns them by as many tokens. The fastest half of them is used."""
    attention = bert.bert.encoder.layer[0].attention.self
    size = config.hidden // config.heads
    pairs = torch.arange(size // 2) * (config.hidden // 2) // max(size, 1)
    frequencies = _frequencies(config.max_positions, config.hidden)[pairs]
    sine, cosine = 2 * pairs, 2 * pairs + 1
    rows = torch.arange(0, 2 * len(pairs), 2)
    for head, offset in enumerate(neighbour_offsets(config.heads, reach)):
        angle = frequencies * offset
        query, key = torch.zeros(2, size, config.hidden)
        key[rows, sine] = key[rows + 1, cosine] = 1
        query[rows, sine], query[rows, cosine] = angle.cos(), angle.sin()
        query[rows + 1, sine], query[rows + 1, cosine] = -angle.sin(), angle.cos()
        own = slice(head * size, (head + 1) * size)
        attention.query.weight[own] += config.attention_scale * query
        attention.key.weight[own] += config.attention_scale * key
