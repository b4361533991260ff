"""Architectures that read text: encoders."""

from __future__ import annotations

import torch
from zoo.specimens import VOCABULARY, Specimen, tokens

#: What most configs call their sizes.
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}

WORDS = tokens()


def boxes():
    """Make words of a document and where they stand in it."""
    corner = torch.arange(7).expand(2, 7) * 10
    return WORDS() | {"bbox": torch.stack([corner, corner, corner + 9, corner + 5], dim=-1)}


def entities():
    """Make words, and which of them name an entity."""
    return WORDS() | {
        "entity_ids": torch.tensor([[3, 4], [5, 6]]),
        "entity_position_ids": torch.tensor([[[1, 2, -1]] * 2] * 2),
        "entity_attention_mask": torch.ones(2, 2, dtype=torch.long),
    }


ENCODERS = [
    Specimen("AlbertModel", TINY | {"embedding_size": 8}, WORDS),
    Specimen("BertForMaskedLM", TINY, WORDS),
    Specimen("BigBirdModel", TINY | {"block_size": 4, "num_random_blocks": 1}, tokens(48)),
    Specimen("CanineModel", TINY | {"num_hash_buckets": 50, "local_transformer_stride": 8}, tokens(16)),
    Specimen("ConvBertModel", TINY | {"embedding_size": 16}, WORDS),
    Specimen("DebertaModel", TINY | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, WORDS),
    Specimen("DebertaV2ForTokenClassification", TINY | {"relative_attention": True, "conv_kernel_size": 3}, WORDS),
    Specimen(
        "DistilBertForSequenceClassification",
        {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
        WORDS,
    ),
    Specimen("ElectraForPreTraining", TINY | {"embedding_size": 8}, WORDS),
    Specimen("ErnieModel", TINY, WORDS),
    Specimen("EsmModel", TINY | {"pad_token_id": 1, "position_embedding_type": "rotary"}, WORDS),
    Specimen("FlaubertModel", {"n_words": VOCABULARY, "emb_dim": 16, "n_layers": 2, "n_heads": 2}, WORDS),
    Specimen("FNetModel", TINY | {"tpu_short_seq_length": 16}, WORDS),
    Specimen(
        "FunnelModel",
        {"vocab_size": VOCABULARY, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [1, 1]},
        tokens(8),
    ),
    Specimen("IBertModel", TINY | {"quant_mode": True}, WORDS),
    Specimen("LayoutLMModel", TINY, boxes),
    Specimen("LiltModel", TINY | {"hidden_size": 24}, boxes),
    Specimen("LongformerModel", TINY | {"attention_window": 4}, tokens(8)),
    Specimen("LukeModel", TINY | {"entity_vocab_size": 10, "entity_emb_size": 8}, entities),
    Specimen("MarkupLMModel", TINY | {"max_depth": 4, "xpath_unit_hidden_size": 8}, WORDS),
    Specimen("MegatronBertModel", TINY, WORDS),
    Specimen(
        "MobileBertModel",
        TINY | {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
        WORDS,
    ),
    Specimen("ModernBertModel", TINY | {"pad_token_id": 0, "local_attention": 4}, WORDS),
    Specimen("MPNetModel", TINY, WORDS),
    Specimen("NystromformerModel", TINY | {"num_landmarks": 4, "segment_means_seq_len": 8}, tokens(8)),
    Specimen("RemBertModel", TINY | {"input_embedding_size": 8, "output_embedding_size": 8}, WORDS),
    Specimen("RobertaForMultipleChoice", TINY, lambda: {"input_ids": WORDS()["input_ids"][None]}),
    Specimen("RoFormerModel", TINY, WORDS),
    Specimen("SplinterModel", TINY, WORDS),
    Specimen("SqueezeBertModel", TINY | {"embedding_size": 16}, WORDS),
    Specimen("XLMModel", {"n_words": VOCABULARY, "emb_dim": 16, "n_layers": 2, "n_heads": 2}, WORDS),
    Specimen(
        "XLNetModel", {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}, WORDS
    ),
    Specimen("YosoModel", TINY | {"use_expectation": True}, WORDS),
]
