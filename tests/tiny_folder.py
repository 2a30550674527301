"""A tiny random model with a tokenizer, as a complete Hugging Face folder."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.tiny_models import TinyModel

VOCAB_SIZE = 300
END, USER, ASSISTANT = "<end>", "<user>", "<assistant>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_tiny_folder(
    folder: Path, architecture: str = "LlamaForCausalLM", dtype: torch.dtype = torch.bfloat16, chat: bool = False
) -> Path:
    """Writes config, weights and a byte-level tokenizer that knows every character; returns the folder."""
    config = {"vocab_size": VOCAB_SIZE, "attention_bias": True, "bos_token_id": None, "eos_token_id": 0}
    TinyModel("tiny", architecture, config).save(folder, dtype)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 10,
        special_tokens=[END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["The capital of France is Paris, and the capital of Japan is Tokyo."], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return folder
