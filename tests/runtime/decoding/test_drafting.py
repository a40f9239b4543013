"""Which drafts are made: by what steps take and by what stood, on machines and texts that are made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from rrt_edge.runtime.decoding.drafting import Drafting
from rrt_edge.runtime.running.runner import NEVER


@dataclass
class Machine:
    """Two loops: milliseconds of a token without drafts, and of steps by their rows."""

    full: float = 20.0
    steps: tuple[float, ...] = (10.6, 14.4)

    def run(
        self, drafting: Drafting, tokens: int, stands: Callable[[float], float], certainties: np.ndarray, seed: int = 0
    ) -> float:
        """Milliseconds a token takes in a long reply, where a draft of so much certainty stands so often."""
        rng, spent, is_down = np.random.default_rng(seed), 0.0, False  # whether the token's depth 1 has run
        certainty = 0.0
        for _ in range(tokens):
            if not is_down and not drafting.pays(2):
                drafting.took(2, False, self.full)
                spent += self.full
                continue
            milliseconds = 0.0
            if not is_down:
                certainty, step = rng.choice(certainties), self.steps[0]
                drafting.stepped(1, step)
                milliseconds += step
                pays = certainty >= drafting.cutoff(1)
            rows = 1 + pays
            drafting.stepped(rows, self.steps[rows - 1])
            milliseconds += self.steps[rows - 1]
            is_down = bool(pays) and rng.random() < stands(certainty)
            if pays:
                drafting.judged(certainty, is_down)
            if is_down:
                certainty = rng.choice(certainties)
                pays = certainty >= drafting.cutoff(1)
            drafting.took(2, True, milliseconds)
            spent += milliseconds
        return spent / tokens


MIXED = np.array([0.2, 0.4, 0.6, 0.85, 0.97, 0.99])


def certain(certainty: float) -> float:
    return certainty


@pytest.mark.parametrize("seed", range(5))
def test_where_drafts_never_stand_it_is_full_depth(seed: int) -> None:
    """Within 2 % over some thousand tokens, however sure the drafts seem."""
    for steps in ((10.6, 14.4), (11.0, 13.0), (12.0, 20.0), (10.0, 19.0)):
        machine = Machine(steps=steps)
        assert machine.run(Drafting(), 4000, lambda certainty: 0.0, MIXED, seed) < 1.02 * machine.full


@pytest.mark.parametrize("seed", range(5))
def test_where_all_stand_nearly_each_token_is_drafted(seed: int) -> None:
    machine = Machine()
    assert machine.run(Drafting(), 2000, lambda certainty: 1.0, MIXED, seed) < 1.04 * machine.steps[1]


@pytest.mark.parametrize("seed", range(5))
def test_only_drafts_that_pay_are_made(seed: int) -> None:
    """Where certainties are what they say, better than to draft all, and than to draft none."""
    machine = Machine()
    chosen = machine.run(Drafting(), 4000, certain, MIXED, seed)
    single, both = machine.steps
    all_drafted = both + (1 - MIXED.mean()) * single
    assert chosen < min(all_drafted, 2 * single, machine.full)


def test_a_second_row_as_dear_as_a_first_is_not_taken() -> None:
    machine = Machine(steps=(10.6, 22.0))
    assert machine.run(Drafting(), 4000, certain, MIXED) < 1.02 * machine.full


@pytest.mark.parametrize("seed", range(5))
def test_it_recovers_where_the_text_changes(seed: int) -> None:
    machine, drafting = Machine(), Drafting()
    machine.run(drafting, 3000, lambda certainty: 0.0, MIXED, seed)
    machine.run(drafting, 3000, lambda certainty: 1.0, MIXED, seed)
    assert machine.run(drafting, 1000, lambda certainty: 1.0, MIXED, seed) < 1.06 * machine.steps[1]
    machine.run(drafting, 1000, lambda certainty: 0.0, MIXED, seed)
    assert machine.run(drafting, 3000, lambda certainty: 0.0, MIXED, seed) < 1.02 * machine.full


def test_a_disturbed_machine_does_not_mislead_it_for_long() -> None:
    """The first steps and tokens take ten times as long as they should."""
    machine, drafting = Machine(), Drafting()
    Machine(200.0, (106.0, 300.0)).run(drafting, 12, lambda certainty: 1.0, MIXED)
    machine.run(drafting, 1500, lambda certainty: 1.0, MIXED)
    assert machine.run(drafting, 1000, lambda certainty: 1.0, MIXED) < 1.06 * machine.steps[1]


def test_rows_beside_others_must_be_surer() -> None:
    """Rows come in pairs: a second costs little, the third and the fourth half of one each, a ninth as much as one."""
    drafting = Drafting()
    cutoffs = [drafting.cutoff(rows) for rows in (1, 2, 8)]
    assert cutoffs == sorted(cutoffs) and cutoffs[0] <= 0.3 and 0.7 <= cutoffs[1] <= 0.9 and cutoffs[2] == NEVER
    for rows, seconds in ((1, 1.0), (2, 1.02), (3, 2.0), (4, 2.02)):
        drafting.stepped(rows, seconds)
    assert drafting.cutoff(1) == 0.0 and drafting.cutoff(2) == NEVER and drafting.cutoff(3) == 0.0
    for rows, seconds in ((2, 2.0), (3, 2.1), (4, 4.2)):
        drafting.stepped(rows, seconds, sequences=2)  # which do not share a row's weights with each other
    assert drafting.cutoff(2, 2) == 0.0 and drafting.cutoff(3, 2) == NEVER and drafting.cutoff(2) == NEVER


def test_what_others_learnt_is_shared_and_probed() -> None:
    """A model's drafts that never stood are made seldom, whatever their certainty, and not never."""
    drafting = Drafting()
    for _ in range(200):
        for certainty in MIXED:
            drafting.judged(certainty, False)
    cutoffs = [drafting.cutoff(1) for _ in range(320)]
    assert cutoffs.count(0.0) == 10 and cutoffs.count(NEVER) == 310
