"""Initial weights that know which k-mers share bases and which tokens are near."""

import pytest
import torch

from cmgems.config.schema import ModelConfig
from cmgems.data.alphabet import BASES
from cmgems.data.tokenization import Tokenization
from cmgems.data.tokenizer import SPECIAL_TOKENS, encode_batch, vocabulary
from cmgems.model.bert import build_model
from cmgems.model.initialization import composed_embeddings, neighbour_offsets, sinusoids

SHAPE = {"layers": 2, "hidden": 64, "intermediate": 64, "heads": 4, "dropout": 0.0, "max_positions": 64}
INITIAL = {"embedding_init": "nucleotides", "position_init": "sinusoidal", "attention_init": "neighbours"}


def model(seed=1, k=4, **settings):
    return build_model(ModelConfig(**SHAPE, **settings), Tokenization(k), seed).bert


def weights(bert):
    return {name: tensor.clone() for name, tensor in bert.state_dict().items()}


def changed(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("k", [3, 6])
def test_kmers_are_as_alike_as_the_bases_that_they_share(k):
    embeddings = composed_embeddings(k, hidden=20_000 // k, share=0.9, random=torch.Generator().manual_seed(0))
    names = vocabulary(k)[len(SPECIAL_TOKENS) :]
    assert embeddings.var().item() == pytest.approx(1, rel=0.05)
    some = [0, 1, 7, 4**k - 1, 4**k // 3]
    for one in some:
        for other in some:
            shared = sum(a == b for a, b in zip(names[one], names[other], strict=True)) / k
            expected = 1 if one == other else 0.9 * shared
            covariance = (embeddings[one] * embeddings[other]).mean().item()
            # Different vectors of nucleotides are independent, not orthogonal.
            assert covariance == pytest.approx(expected, abs=0.12)


def test_the_output_projection_is_the_composed_embedding_and_its_logits_are_small():
    bert = model(**INITIAL, embedding_scale=0.5)
    words = bert.bert.embeddings.word_embeddings.weight
    assert bert.cls.predictions.decoder.weight is words
    assert words[5:].std().item() == pytest.approx(0.5, rel=0.1)
    ids = torch.from_numpy(encode_batch(["".join(BASES) * 12], 4))
    assert 0.2 < bert(ids).logits.std().item() < 1


def test_sinusoids_tell_every_position_from_every_other():
    waves = sinusoids(positions=128, hidden=64)
    products = waves @ waves.T
    assert products.diagonal().tolist() == pytest.approx([32] * 128, rel=1e-4)
    assert (products.argmax(dim=1) == torch.arange(128)).all()
    # A function of the distance alone.
    assert products[3, 10].item() == pytest.approx(products[90, 97].item(), abs=1e-3)


def test_an_odd_width_has_a_column_without_a_wave():
    assert sinusoids(positions=8, hidden=7)[:, -1].tolist() == [0] * 8


@pytest.mark.parametrize(
    ("heads", "expected"), [(1, [-6]), (2, [-6, 6]), (4, [-3, -6, 6]), (8, [-2, -4, -6, 2, 4, 6]), (3, [-3, -6, 6])]
)
def test_three_quarters_of_the_heads_look_at_both_sides(heads, expected):
    assert neighbour_offsets(heads, 6) == expected


def test_each_head_of_the_first_layer_attends_to_its_neighbour():
    bert = model(k=6, **INITIAL, attention_scale=3)
    bert.set_attn_implementation("eager")
    ids = torch.randint(5, 4101, (1, 64), generator=torch.Generator().manual_seed(0))
    first = bert.bert(ids, output_attentions=True).attentions[0][0]
    for head, offset in zip(first, neighbour_offsets(4, 6), strict=False):
        looked_at = head[20:44].argmax(dim=1) - torch.arange(20, 44)
        assert (looked_at - offset).abs().median() <= 1
    assert first[-1].max() < 0.2  # the last one looks everywhere


def test_each_choice_changes_its_own_weights_alone():
    embeddings, head = "word_embeddings", "cls.predictions.transform.LayerNorm.weight"
    plain = weights(model())
    composed = changed(plain, weights(model(embedding_init="nucleotides")))
    assert {name for name in composed if embeddings not in name and "decoder" not in name} == {head}
    positions = changed(plain, weights(model(position_init="sinusoidal")))
    assert positions == {"bert.embeddings.position_embeddings.weight"}
    attention = changed(
        weights(model(position_init="sinusoidal")),
        weights(model(position_init="sinusoidal", attention_init="neighbours")),
    )
    prefix = "bert.encoder.layer.0.attention.self"
    assert attention == {f"{prefix}.query.weight", f"{prefix}.key.weight"}


def test_a_seed_draws_the_same_weights_every_time_and_another_one_others():
    assert not changed(weights(model(seed=1, **INITIAL)), weights(model(seed=1, **INITIAL)))
    assert "bert.embeddings.word_embeddings.weight" in changed(
        weights(model(seed=1, **INITIAL)), weights(model(seed=2, **INITIAL))
    )


def test_the_vector_of_padding_stays_zero():
    assert not model(**INITIAL).bert.embeddings.word_embeddings.weight[0].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_init": "nucleotides", "init_from": "x"}, "embedding_init: with init_from there are no weights"),
        ({"position_init": "sinusoidal", "init_from": "x"}, "position_init: with init_from"),
        ({"attention_init": "neighbours"}, "attention_init: neighbours needs position_init: sinusoidal"),
        ({"nucleotide_share": 0.5}, "nucleotide_share would change nothing: embedding_init is normal"),
        ({"position_scale": 2.0}, "position_scale would change nothing: position_init is normal"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_all_settings_written_out_are_accepted():
    config = ModelConfig(**SHAPE)
    assert ModelConfig(**config.model_dump()) == config
