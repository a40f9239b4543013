"""Drafts from the text: where it said the same before, and how likely it goes on as it did there."""

from __future__ import annotations

import numpy as np
import pytest

from rrt_edge.runtime.decoding.lookup import FIRST, SIZES, Lookup


def tokens(lookup: Lookup, behind: list[int], most: int) -> list[int]:
    return [guess.token for guess in lookup.guesses(behind, most)]


def searched(text: list[int], most: int) -> list[int]:
    """What follows the last place before where the last tokens stand, found by looking at every place; one that was
    right is kept."""
    place = None
    for length in range(1, len(text) + 1):
        if place is not None and text[place] == text[length - 1]:
            place += 1
            continue
        places = [
            [at for at in range(size, length) if text[at - size : at] == text[length - size : length]] for size in SIZES
        ]
        place = next((several[-1] for several in places if several), None)
    whole = list(text)
    for at in range(*(0, 0) if place is None else (place, place + most)):
        whole.append(whole[at])
    return whole[len(text) :]


@pytest.mark.parametrize("seed", range(20))
def test_it_guesses_what_followed_where_the_last_tokens_stood_last(seed: int) -> None:
    """Of texts of few tokens, read as a whole and token by token."""
    rng = np.random.default_rng(seed)
    text = rng.integers(0, 2 + seed, 40).tolist()
    growing = Lookup()
    for length in range(1, len(text)):
        expected = searched(text[:length], 5)
        whole = Lookup()
        for lookup in (growing, whole):
            lookup.follow(text[:length])
        assert tokens(growing, [], 5) == tokens(whole, [], 5) == expected


def test_drafts_are_read_on_from_and_not_remembered() -> None:
    lookup = Lookup()
    lookup.follow([1, 2, 3, 4, 5, 1])
    assert tokens(lookup, [2, 3], 2) == [4, 5] and tokens(lookup, [4], 2) == [5, 1]
    assert tokens(lookup, [], 2) == [2, 3]
    lookup.follow([1, 2, 3, 4, 5, 1, 2])
    assert tokens(lookup, [], 2) == [3, 4]


def test_a_place_that_was_right_is_kept_beside_a_later_one_that_agrees_less() -> None:
    lookup = Lookup()
    lookup.follow([1, 2, 3, 4, 5, 9, 3, 4, 8, 1, 2])
    assert tokens(lookup, [], 4) == [3, 4, 5, 9]
    lookup.follow([1, 2, 3, 4, 5, 9, 3, 4, 8, 1, 2, 3, 4])
    assert tokens(lookup, [], 2) == [5, 9]


def test_a_text_that_goes_round_goes_on() -> None:
    lookup = Lookup()
    lookup.follow([7, 1, 2, 3, 1, 2, 3])
    assert tokens(lookup, [], 8) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_nothing_is_guessed_of_what_is_new() -> None:
    lookup = Lookup()
    assert lookup.guesses([], 3) == []
    lookup.follow([1, 2, 3])
    assert lookup.guesses([], 3) == [] and lookup.guesses([4], 3) == [] and tokens(lookup, [2], 3) == [3, 2, 3]
    assert lookup.guesses([2], 0) == []


def test_chances_are_what_came_true_in_the_reply() -> None:
    """Nothing is learnt of the prompt, whether it repeats itself or not."""
    prompt = list(range(100, 150))
    copying, other = Lookup(), Lookup()
    for lookup in (copying, other):
        lookup.follow([*prompt, 100])
        assert all(guess.chance == FIRST for guess in lookup.guesses([], 8))
    history = [*prompt, 100]
    chances = []
    for token in prompt[1:41]:
        history.append(token)
        copying.follow(history)
        chances.append(copying.guesses([], 1)[0].chance)
    assert chances == sorted(chances) and chances[3] > 0.7 and chances[-1] > 0.93
    assert copying.guesses([], 8)[-1].chance >= chances[-1]
    history = [*prompt, 100]
    for token in range(30):
        history += [prompt[token], 200 + token]
        other.follow(history)
    other.follow([*history, 100])
    assert other.guesses([], 1)[0].chance < 0.1


def test_guesses_end_where_it_is_unlikely_that_all_are_right() -> None:
    lookup = Lookup()
    lookup.follow([1, 2, 3, 4, 5, 1])
    assert len(lookup.guesses([], 5, FIRST)) == 1 and lookup.guesses([], 5, FIRST + 0.01) == []
    assert len(lookup.guesses([], 5, FIRST**3)) == 3


def test_it_learns_anew_where_the_reply_changes() -> None:
    prompt, lookup = list(range(60)), Lookup()
    history = [*prompt, 0, 1]
    for token in range(2, 50):
        lookup.follow(history)
        history.append(token)
    for token in range(20):
        lookup.follow(history)
        history += [token, 100 + token]
    lookup.follow([*history, 5])
    assert lookup.guesses([], 1)[0].chance < 0.3
