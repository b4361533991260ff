"""Architectures that write text: decoders, mixtures of experts, state spaces."""

from __future__ import annotations

from zoo.encoders import TINY, WORDS
from zoo.specimens import VOCABULARY, Specimen, tokens

GROUPED = TINY | {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = GROUPED | {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
#: Of the oldest decoders.
GPT = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}

DECODERS = [
    Specimen("BioGptForCausalLM", TINY | {"pad_token_id": 1}, WORDS),
    Specimen("BloomForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2}, WORDS),
    Specimen("CohereForCausalLM", GROUPED, WORDS),
    Specimen("CodeGenForCausalLM", GPT | {"rotary_dim": 4, "n_head": 4}, WORDS),
    Specimen("CTRLModel", GPT | {"dff": 32}, WORDS),
    Specimen("FalconForCausalLM", TINY, WORDS),
    Specimen("Gemma2ForCausalLM", GROUPED | {"sliding_window": 4}, WORDS),
    Specimen("Gemma3ForCausalLM", GROUPED | {"sliding_window": 4}, WORDS),
    Specimen("GPT2LMHeadModel", GPT, WORDS),
    Specimen("GPTBigCodeForCausalLM", GPT, WORDS),
    Specimen("GPTJForCausalLM", GPT | {"rotary_dim": 4}, WORDS),
    Specimen(
        "GPTNeoForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
        },
        WORDS,
    ),
    Specimen("GPTNeoXForCausalLM", TINY, WORDS),
    Specimen("GraniteForCausalLM", GROUPED, WORDS),
    Specimen("LlamaForCausalLM", GROUPED, WORDS),
    Specimen("MistralForCausalLM", GROUPED | {"sliding_window": 4}, WORDS),
    Specimen("MptForCausalLM", {"vocab_size": VOCABULARY, "d_model": 16, "n_layers": 2, "n_heads": 2}, WORDS),
    Specimen("NemotronForCausalLM", GROUPED, WORDS),
    Specimen("Olmo2ForCausalLM", GROUPED, WORDS),
    Specimen(
        "OPTForCausalLM",
        {k: v for k, v in TINY.items() if k != "intermediate_size"} | {"ffn_dim": 32, "word_embed_proj_dim": 16},
        WORDS,
    ),
    Specimen("PersimmonForCausalLM", TINY, WORDS),
    Specimen("PhiForCausalLM", TINY, WORDS),
    Specimen("Phi3ForCausalLM", TINY | {"num_key_value_heads": 1, "pad_token_id": 0}, WORDS),
    Specimen("Qwen2ForCausalLM", GROUPED, WORDS),
    Specimen("Qwen3ForSequenceClassification", GROUPED, WORDS),
    Specimen("SmolLM3ForCausalLM", GROUPED, WORDS),
    Specimen("StableLmForCausalLM", GROUPED, WORDS),
    Specimen("Starcoder2ForCausalLM", GROUPED, WORDS),
    Specimen(
        "XGLMForCausalLM",
        {"vocab_size": VOCABULARY, "d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 32},
        WORDS,
    ),
]

EXPERT_MIXTURES = [
    Specimen(
        "DeepseekV3ForCausalLM",
        EXPERTS
        | {
            "num_key_value_heads": 2,
            "head_dim": 4,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
        WORDS,
    ),
    Specimen(
        "DbrxForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "n_layers": 2,
            "n_heads": 2,
            "attn_config": {"kv_n_heads": 1, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        },
        WORDS,
    ),
    Specimen("GptOssForCausalLM", EXPERTS | {"num_local_experts": 4, "sliding_window": 4}, WORDS),
    Specimen("GraniteMoeForCausalLM", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}, WORDS),
    Specimen("Llama4ForCausalLM", EXPERTS | {"num_local_experts": 4, "intermediate_size_mlp": 32}, WORDS),
    Specimen("MixtralForCausalLM", EXPERTS | {"num_local_experts": 4}, WORDS),
    Specimen("OlmoeForCausalLM", EXPERTS | {"num_experts": 4}, WORDS),
    Specimen("Qwen2MoeForCausalLM", EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16}, WORDS),
    Specimen("Qwen3MoeForCausalLM", EXPERTS | {"num_experts": 4}, WORDS),
]

MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 4}

STATE_SPACES = [
    Specimen("BambaForCausalLM", GROUPED | MAMBA2 | {"attn_layer_indices": [1]}, WORDS),
    Specimen(
        "FalconMambaForCausalLM",
        MAMBA,
        WORDS,
    ),
    Specimen(
        "JambaForCausalLM",
        GROUPED
        | {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_dt_rank": 2,
            "mamba_d_state": 4,
            "use_mamba_kernels": False,
        },
        WORDS,
    ),
    Specimen("Lfm2ForCausalLM", GROUPED | {"layer_types": ["conv", "full_attention"]}, WORDS),
    Specimen(
        "MambaForCausalLM",
        MAMBA,
        WORDS,
    ),
    Specimen(
        "Mamba2ForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 1,
            "state_size": 8,
            "chunk_size": 4,
        },
        WORDS,
    ),
    Specimen(
        "Qwen3NextForCausalLM",
        EXPERTS
        | {
            "num_experts": 4,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        WORDS,
    ),
    Specimen(
        "RecurrentGemmaForCausalLM",
        GROUPED | {"num_hidden_layers": 3, "lru_width": 16, "attention_window_size": 4},
        WORDS,
    ),
    Specimen(
        "RwkvForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16},
        WORDS,
    ),
    Specimen(
        "xLSTMForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "num_blocks": 2, "num_heads": 2, "qk_dim_factor": 1.0},
        tokens(8),
    ),
]
