"""What a bundle holds, read and checked: its manifest, chat template, tokenizer and graphs for devices."""
