"""Architectures that read text and write another, and whole generations."""

from __future__ import annotations

from zoo.decoders import GROUPED, MAMBA
from zoo.encoders import TINY, WORDS
from zoo.specimens import VOCABULARY, Specimen, both, noise, tokens

#: Of models with an encoder and a decoder.
PAIR = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}

WORD_PAIRS = tokens(7, "input_ids", "decoder_input_ids")
LONG_PAIRS = tokens(32, "input_ids", "decoder_input_ids")


ENCODER_DECODERS = [
    Specimen("BartForConditionalGeneration", PAIR, WORD_PAIRS),
    Specimen(
        "BigBirdPegasusForConditionalGeneration", PAIR | {"block_size": 4, "num_random_blocks": 1}, LONG_PAIRS
    ),
    Specimen("BlenderbotForConditionalGeneration", PAIR, WORD_PAIRS),
    Specimen(
        "FSMTForConditionalGeneration",
        PAIR | {"langs": ["en", "de"], "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY},
        WORD_PAIRS,
    ),
    Specimen(
        "LEDForConditionalGeneration", PAIR | {"attention_window": 4}, tokens(8, "input_ids", "decoder_input_ids")
    ),
    Specimen("LongT5ForConditionalGeneration", T5 | {"local_radius": 3}, WORD_PAIRS),
    Specimen("M2M100ForConditionalGeneration", PAIR, WORD_PAIRS),
    Specimen("MarianMTModel", PAIR | {"decoder_vocab_size": VOCABULARY, "decoder_start_token_id": 1}, WORD_PAIRS),
    Specimen("MBartForConditionalGeneration", PAIR, WORD_PAIRS),
    Specimen("MT5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu"}, WORD_PAIRS),
    Specimen("NllbMoeForConditionalGeneration", PAIR | {"num_experts": 4, "expert_capacity": 8}, WORD_PAIRS),
    Specimen("PegasusForConditionalGeneration", PAIR, WORD_PAIRS),
    Specimen(
        "ProphetNetForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 2,
            "num_decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
        },
        WORD_PAIRS,
    ),
    Specimen("SwitchTransformersForConditionalGeneration", T5 | {"num_experts": 4}, WORD_PAIRS),
    Specimen("T5ForConditionalGeneration", T5, WORD_PAIRS),
    Specimen("UMT5ForConditionalGeneration", T5, WORD_PAIRS),
]

#: Every layer's state and attention, which transformers collects with hooks and a context variable.
INSIDES = [
    Specimen(
        "BertModel",
        TINY | {"attn_implementation": "eager"},
        both(WORDS, output_hidden_states=True, output_attentions=True),
    ),
]

#: Whole generations, with their caches: greedy, by beams, by chance.
GENERATIONS = [
    Specimen("LlamaForCausalLM", GROUPED, both(WORDS, max_new_tokens=8), "generate"),
    Specimen(
        "Gemma3ForCausalLM",
        GROUPED | {"sliding_window": 4},
        both(WORDS, max_new_tokens=8, do_sample=True),
        "generate",
    ),
    Specimen("MambaForCausalLM", MAMBA, both(WORDS, max_new_tokens=8), "generate"),
    Specimen("BartForConditionalGeneration", PAIR, both(WORDS, max_new_tokens=8, num_beams=3), "generate"),
    Specimen(
        "T5ForConditionalGeneration",
        T5 | {"decoder_start_token_id": 0},
        both(WORDS, max_new_tokens=8, return_dict_in_generate=True, output_scores=True),
        "generate",
    ),
    Specimen(
        "WhisperForConditionalGeneration",
        PAIR
        | {
            "num_mel_bins": 8,
            "max_source_positions": 30,
            "max_target_positions": 40,
            "decoder_start_token_id": 3,
            "bos_token_id": 4,
            "eos_token_id": 2,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        both(noise(input_features=(1, 8, 60)), max_new_tokens=8),
        "generate",
    ),
]
