"""From hidden states to tokens: exit policies, KV rules, sampling, grammars and text."""
