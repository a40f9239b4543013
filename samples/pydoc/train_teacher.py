"""Train the pydoc teacher: a small Llama that says what a standard-library function, class or method does.

    python samples/pydoc/recipe.py build/pydoc
    python samples/pydoc/train_teacher.py build/pydoc samples/pydoc/teacher

transformers' LlamaForCausalLM and Trainer, one pass over train.jsonl; a GPU is used when there is one. Started again,
it goes on from its last checkpoint (in build/pydoc/teacher-run). The result is stored in float16.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from rrt_edge.model.text import read_examples
from rrt_edge.training.data import PadCollator

VOCABULARY = 4096
CONTEXT = 512  # tokens
ATTENTION = "eager"  # on a CPU faster than sdpa at this size
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role not in ("user", "assistant") -%}
{{- raise_exception("this model knows the roles user and assistant, not " ~ message.role) -}}
{%- endif -%}
{{- "<|" ~ message.role ~ "|>" ~ message.content ~ "<|end|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|assistant|>" -}}{%- endif -%}
"""


def train_tokenizer(train_file: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the training chats."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet)
    with train_file.open(encoding="utf-8") as file:
        texts = (message["content"] for line in file for message in json.loads(line)["messages"])
        tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        model_max_length=CONTEXT,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        attn_implementation=ATTENTION,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder recipe.py wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, metavar="TEACHER", help="train this one on, with its tokenizer")
    parser.add_argument("--batch", type=int, default=32, help="chats a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    arguments = parser.parse_args()
    set_seed(0)

    train_file = arguments.data / "train.jsonl"
    if arguments.start:
        tokenizer = AutoTokenizer.from_pretrained(arguments.start)
        model = LlamaForCausalLM.from_pretrained(arguments.start, dtype=torch.float32, attn_implementation=ATTENTION)
    else:
        tokenizer = train_tokenizer(train_file)
        model = new_model(tokenizer)
    examples = read_examples(train_file, tokenizer, CONTEXT)
    tokens = sum(len(example["input_ids"]) for example in examples)
    print(f"{len(examples)} chats, {tokens} tokens, {model.num_parameters()} parameters", flush=True)

    run = arguments.data / "teacher-run"
    trainer = Trainer(
        model=model,
        train_dataset=examples,
        data_collator=PadCollator(tokenizer.pad_token_id),
        args=TrainingArguments(
            output_dir=str(run),
            num_train_epochs=1,
            per_device_train_batch_size=arguments.batch,
            learning_rate=arguments.lr,
            lr_scheduler_type="cosine",
            warmup_steps=40,
            weight_decay=0.01,
            adam_beta2=0.95,
            train_sampling_strategy="group_by_length",
            bf16=torch.cuda.is_available(),
            logging_steps=20,
            save_steps=200,
            save_total_limit=1,
            report_to="none",
            seed=0,
            dataloader_pin_memory=False,
        ),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(run)) if run.is_dir() else None)

    model.generation_config.eos_token_id = tokenizer.eos_token_id
    partial = arguments.out.with_name(arguments.out.name + ".partial")
    model.to(torch.float16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if arguments.out.exists():
        shutil.rmtree(arguments.out)
    partial.replace(arguments.out)
    print(f"saved {arguments.out}")


if __name__ == "__main__":
    main()
