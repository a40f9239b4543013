"""The KV rules' objects: one for each name, and what a model takes of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers import LlamaConfig, MistralConfig

import rrt_edge
from rrt_edge.model.kv_rules import KV_RULES, kv_rule
from rrt_edge.runtime.bundle.kv_rule_names import KV_RULE_NAMES
from rrt_edge.training.options import TrainOptions


def test_each_name_has_a_rule() -> None:
    assert tuple(KV_RULES) == KV_RULE_NAMES
    assert [kv_rule(name).name for name in KV_RULE_NAMES] == list(KV_RULE_NAMES)


def test_a_model_takes_the_rule_that_it_names_where_it_goes_with_its_windows() -> None:
    text = LlamaConfig(num_hidden_layers=4)
    assert rrt_edge.RecursiveConfig(text_config=text, kv_rule="latest").rule is KV_RULES["latest"]
    for name in ("forget", "last"):
        message = f"kv_rule '{name}': choose from exact, propagate, latest, skip$"
        with pytest.raises(rrt_edge.BadInputError, match=message):
            rrt_edge.RecursiveConfig(text_config=text, kv_rule=name)
        with pytest.raises(rrt_edge.BadInputError, match=f"kv-rule '{name}': choose from"):
            TrainOptions(kv_rule=name)
    sliding = MistralConfig(num_hidden_layers=4, sliding_window=8)
    for name in KV_RULE_NAMES:
        if name != "skip":
            assert rrt_edge.RecursiveConfig(text_config=sliding, kv_rule=name).rule.name == name
    with pytest.raises(rrt_edge.BadInputError, match="kv_rule skip does not go with a model whose attention slides"):
        rrt_edge.RecursiveConfig(text_config=sliding, kv_rule="skip")


def test_options_name_a_rule_without_torch() -> None:
    code = "import sys, rrt_edge.training.options; sys.exit('torch is loaded' if 'torch' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
