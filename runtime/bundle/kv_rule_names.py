"""The names of the KV rules: what a token that leaves early is to the depths it skips."""

from __future__ import annotations

from typing import Literal, get_args

KVRuleName = Literal["exact", "propagate", "latest", "skip"]
KV_RULE_NAMES: tuple[KVRuleName, ...] = get_args(KVRuleName)
