"""The names of the KV rules: what a token that leaves early is to the depths it skips."""

from __future__ import annotations

from typing import Literal, get_args

KVRuleName = Literal["exact", "propagate", "latest", "skip"]  # what a checkpoint is trained for
KV_RULE_NAMES: tuple[KVRuleName, ...] = get_args(KVRuleName)
RunRuleName = Literal[KVRuleName, "last"]  # what a conversation follows
RUN_RULE_NAMES: tuple[RunRuleName, ...] = get_args(RunRuleName)
LoadRule = Literal[RunRuleName, "auto"]  # what a bundle is loaded with
