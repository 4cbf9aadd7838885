"""Memory of the activations: what the forward pass keeps for the backward pass, and what both need for a moment.

Counted from what torch's operators save, for BERT with fused attention, which torch has on all the GPU kinds known
here: queries, keys, values, output, one float a head, and the padding mask as numbers, but no attention weights. The
head's activations are of the masked tokens only. tests/test_plan.py compares this with the bytes that torch allocates
on a CPU.
"""

from dataclasses import dataclass
from typing import Literal

from transformers import BertConfig

Arithmetic = Literal["fp32", "16-bit", "autocast"]
"""fp32 throughout; 16 bit throughout (DeepSpeed in bf16 and fp16); fp32 weights and residual stream, and matrix
products in 16 bit (DDP in bf16 and fp16)."""

_STATISTICS = 8  # bytes a token: mean and inverse deviation of a LayerNorm, in fp32


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes on a GPU for one micro-batch."""

    kept: int
    """Kept from the forward pass for the backward pass."""
    peak: int
    """The most that is there at any time, `kept` included."""


def activations(
    bert: BertConfig,
    rows: int,
    width: int,
    masked: int,
    arithmetic: Arithmetic,
    checkpointing: bool,
) -> Activations:
    """Activations of `rows` windows of `width` tokens, padding included, of which `masked` are masked."""
    hidden, inner, vocabulary = bert.hidden_size, bert.intermediate_size, bert.vocab_size
    tokens = rows * width
    number = 4 if arithmetic == "fp32" else 2  # bytes, in matrix products
    stream = 2 if arithmetic == "16-bit" else 4  # bytes, in the residual stream
    dropped = hidden if bert.hidden_dropout_prob else 0  # a byte an entry of dropout's mask

    # Inputs of the projections: those of keys and values, of queries, of attention's and of both feed-forward
    # projections. The first three are one, which autocast converts for each of them.
    shared = (2 if arithmetic == "autocast" else 1) * number * hidden + 2 * number * hidden  # and keys and values
    queries = number * hidden if arithmetic == "autocast" else 0
    attention = number * hidden + 4 * bert.num_attention_heads + width * number
    norms = 2 * (stream * hidden + _STATISTICS)
    own = queries + attention + number * (2 * hidden + 2 * inner) + norms + 2 * dropped
    layer = tokens * (shared + own)
    # The last layer makes keys and values of all tokens, and the rest for the masked ones alone, which it copies.
    copies = number * hidden + (0 if arithmetic == "autocast" else number * hidden)
    last = tokens * shared + masked * (own + copies)
    embeddings = tokens * (stream * hidden + _STATISTICS + dropped)
    head = masked * (4 * number * hidden + 4 * vocabulary + _STATISTICS)  # log-probabilities are fp32

    others = bert.num_hidden_layers - 1
    if checkpointing:  # the input of each layer but the last, and the padding mask, one byte an entry
        kept = others * tokens * stream * hidden + tokens * width + last + embeddings + head
        recomputed = layer
    else:
        kept = others * layer + last + embeddings + head
        recomputed = 0
    # The head's forward pass: the logits in their precision and in fp32. Its backward pass: two gradients of the logits
    # in fp32.
    logits = 4 if arithmetic == "fp32" else 6
    at_head = max(masked * logits * vocabulary, masked * 8 * vocabulary)
    # The backward pass of the layer before the last, whose activations are gone, and the head's: gradients of the
    # residual stream, of its normalisation, of the wide feed-forward activations, and of a matrix of these, before it
    # is added up.
    at_layer = recomputed - head - last + tokens * (2 * stream * hidden + number * inner) + number * hidden * inner
    # That of the last layer: gradients of keys, of values, and of the residual stream by each of them.
    at_last = tokens * (2 * number + 2 * stream) * hidden - head - masked * own
    return Activations(kept, kept + max(at_head, at_layer if others else 0, at_last))
