"""What a pace believes: rates, offers, seconds, the ledger and the order of trials."""

from itertools import pairwise

import pytest

from specdec.pacing.chances import FIRST, KEPT, Chances
from specdec.pacing.ladder import HIGHEST_PRICE, DepthChoice, best, price, rungs
from specdec.pacing.ledger import SLACK, TRIALS, Ledger
from specdec.pacing.offers import Offers
from specdec.pacing.probing import (
    BURST,
    FIRST_REFRESH,
    FIRST_REST,
    LAST_REFRESH,
    LONGEST_REST,
    Probing,
)
from specdec.pacing.seconds import ENOUGH, WINDOW, MeasuredSeconds, Sizes


def test_rates_are_counted_over_the_steps_at_risk() -> None:
    """Two of three get to depth 2, half of them beyond: the second half never saw depth 3."""
    chances = Chances()
    for _ in range(400):
        chances.note(0, "a", 2, 2, False)
        chances.note(0, "a", 3, 2, True)
        chances.note(0, "a", 3, 0, True)
    first, second, third = chances.shared(3)
    assert first == pytest.approx(2 / 3, abs=0.05)
    assert second == pytest.approx(0.98, abs=0.02)
    assert third == pytest.approx(0, abs=0.02)


def test_what_is_not_known_is_like_the_depth_above() -> None:
    chances = Chances()
    assert chances.shared(2) == [chances.shared(1)[0]] * 2
    assert chances.shared(1)[0] > FIRST, "and worth a look"
    for _ in range(100):
        chances.note(0, "a", 1, 1, False)
    first, second = chances.shared(2)
    assert first > 0.95
    assert second > 0.95


def test_old_steps_are_forgotten() -> None:
    chances = Chances()
    for accepted in [1] * 2000 + [0] * 2000:
        chances.note(0, "a", 1, accepted, accepted == 0)
    assert chances.shared(1)[0] == pytest.approx(KEPT**2000, abs=0.02)


def test_a_request_is_judged_by_its_own_steps_the_more_there_are() -> None:
    chances = Chances()
    for _ in range(300):
        chances.note(0, "good", 2, 2, False)
        chances.note(1, "bad", 2, 0, True)
    shared = chances.shared(2)
    good, bad = (chances.expected(row, name, shared) for row, name in ((0, "good"), (1, "bad")))
    new = chances.expected(1, "new", shared)
    assert good[2] > 1.6 > new[2] > 0.5 > bad[2]
    assert good[0] == 0
    assert new == chances.expected(7, "another", shared)


def test_of_a_bad_request_nothing_is_believed_that_only_good_ones_reach() -> None:
    """Depth 2 is seen by the good alone, where all goes well."""
    chances = Chances()
    for number in range(300):
        chances.note(0, "good", 2, 2, False)
        if number < 20:
            chances.note(1, "bad", 2, 0, True)
    found = chances.expected(1, "bad", chances.shared(2))
    assert found[2] - found[1] < 0.5 * found[1]


def test_offers_are_counted_where_there_are_any() -> None:
    offers = Offers(3)
    for _ in range(200):
        offers.note(3, [0, 1, 1, 1])
        offers.note(3, [0])
    assert offers.share == pytest.approx(0.5, abs=0.02)
    assert offers.tokens(1) == pytest.approx(1)
    assert offers.tokens(3) == pytest.approx(1, abs=0.01)


def test_seconds_are_medians_on_lines() -> None:
    sizes = Sizes()
    assert sizes.at(1) is None
    sizes.note(2, 1.2)
    assert sizes.at(1) == pytest.approx(0.6), "in proportion, as long as one size is known"
    assert sizes.at(4) == pytest.approx(1.2), "and what is larger may be free"
    for _ in range(ENOUGH):
        sizes.note(2, 1.0)
        sizes.note(4, 1.5)
    assert [sizes.at(size) for size in (1, 2, 3, 4, 6)] == pytest.approx([0.75, 1, 1.25, 1.5, 2])
    for _ in range(3):
        sizes.note(2, 90.0)  # a machine that stalls
        sizes.note(2, 1.0)
    assert sizes.at(2) == 1
    for _ in range(WINDOW):
        sizes.note(2, 0.25)  # and one that changed
    assert sizes.at(2) == 0.25
    assert sizes.at(1) == pytest.approx(0.125), "no lower than in proportion"


def test_a_new_number_of_requests_is_like_the_nearest() -> None:
    measured = MeasuredSeconds()
    assert measured.read(3, 1, 0) is None
    for _ in range(ENOUGH):
        measured.note(8, 0, 1, None, 8.0)
        measured.note(2, 2, 3, 1.0, 2.0)
    assert measured.read(7, 1, 0) == 8
    assert measured.propose(1, 2) == 1
    assert (measured.num_plain(5), measured.num_plain(3)) == (ENOUGH, 0)


def test_less_is_never_more() -> None:
    """A first step that stalled is held against what took longer, and is not believed."""
    sizes = Sizes()
    sizes.note(2, 9.0)
    sizes.note(3, 1.5)
    assert [sizes.at(size) for size in (2, 3)] == [1.5, 1.5]


def test_what_was_not_tried_may_be_free_but_is_not_far() -> None:
    """What is beyond all that was tried takes no longer until it is tried; then lines say more."""
    measured = MeasuredSeconds()
    assert measured.reach == 2
    for _ in range(ENOUGH):
        measured.note(1, 0, 1, None, 1.0)
        measured.note(1, 2, 3, 0.5, 1.2)
    assert measured.reach == 4
    assert measured.read(1, 5, 0) == measured.read(1, 3, 0) == pytest.approx(1.2)
    assert measured.propose(1, 4) == pytest.approx(0.5)
    measured.note(1, 4, 5, 0.9, 1.4)
    assert measured.propose(1, 8) == pytest.approx(1.7)


def test_a_step_that_stalls_counts_as_two_at_most() -> None:
    measured = MeasuredSeconds()
    assert measured.booked(1, 2, 3, 0, 7.0) is None, "nothing is known to hold it against"
    for _ in range(ENOUGH):
        measured.note(1, 2, 3, 0.5, 1.2)
    assert measured.booked(1, 2, 3, 0, 7.0) == pytest.approx(2 * 1.7)
    assert measured.booked(1, 2, 3, 0, 1.6) == pytest.approx(1.6)


def test_the_ledger_keeps_the_floor() -> None:
    """However steps turn out, no more is lost than its share, the slack and the last step."""
    ledger = Ledger(0.02)
    for number in range(5000):
        drafts = ledger.allows(1.0)
        ledger.note(1.7 if drafts else 1.0, 1.0)
        assert ledger.lost <= 0.02 * ledger.elapsed + SLACK + 0.7, number
    assert ledger.lost > 0.015 * ledger.elapsed, "and what it allows is used"


def test_trials_have_an_account_of_their_own() -> None:
    ledger = Ledger(0.01)
    assert ledger.allows_trial(TRIALS, 1.0)
    assert not ledger.allows_trial(0.5, 1.0)
    for _ in range(60):
        ledger.note(1.0, 1.0)
    assert ledger.allows_trial(0.5, 1.0)
    assert not ledger.allows_trial(0.5, 1.0)


LOSING = [DepthChoice(0, 1.0, 1.0), DepthChoice(1, 1.1, 1.5), DepthChoice(2, 1.2, 2.0)]


def test_probes_are_short_and_rarer_and_rarer() -> None:
    probing, plain = Probing(is_measured=False), list[bool]()
    for _ in range(2000):
        rests = probing.rests(is_new=False)
        plain.append(rests or probing.choice(LOSING, LOSING[0]).depth == 0)
    places = [at for at, each in enumerate(plain) if not each]
    assert places[: 2 * BURST] == [*range(BURST), *(FIRST_REST + BURST + n for n in range(BURST))]
    gaps = [b - a for a, b in pairwise(places) if b - a > 1]
    assert gaps[:4] == [1 + (FIRST_REST << n) for n in range(4)]
    assert max(gaps) == LONGEST_REST + 1


def test_a_probe_of_many_requests_takes_two_steps() -> None:
    probing = Probing(is_measured=False)
    many = [DepthChoice(each.depth, 8 * each.tokens, 8 * each.seconds) for each in LOSING]
    assert [probing.choice(many, many[0]).depth > 0 for _ in range(3)] == [True, True, False]


def test_a_new_request_ends_a_rest_only_if_drafting_pays_for_it() -> None:
    probing = Probing(is_measured=False)
    for _ in range(BURST + 1):
        probing.choice(LOSING, LOSING[0])
    assert probing.rests(is_new=False)
    assert not probing.rests(is_new=True)
    assert probing.choice(LOSING, LOSING[0]).depth == 0
    assert probing.rests(is_new=False)
    assert probing.choice(LOSING, LOSING[2]).depth == 2
    assert not probing.rests(is_new=False)


def test_neighbours_are_tried_on_both_sides() -> None:
    probing = Probing(is_measured=False)
    found = {probing.choice(LOSING, LOSING[1]).depth for _ in range(200)}
    assert found == {1, 2}, "plain decoding is no neighbour"


CLOSE = [DepthChoice(0, 1.0, 1.0), DepthChoice(1, 1.5, 1.2)]
FAR = [DepthChoice(0, 1.0, 1.0), DepthChoice(1, 1.9, 1.2)]


def test_plain_steps_are_timed_at_first_and_now_and_then() -> None:
    probing = Probing(is_measured=True)
    assert probing.wants_plain(FAR, 0), "one at least"
    assert [probing.wants_plain(CLOSE, 1) for _ in range(4)] == [False, True] * 2
    timed = [probing.wants_plain(CLOSE, ENOUGH) for _ in range(2 * FIRST_REFRESH + 1)]
    assert [at for at, each in enumerate(timed, 1) if each] == [FIRST_REFRESH]
    many = [probing.wants_plain(CLOSE, ENOUGH) for _ in range(20 * LAST_REFRESH)]
    assert sum(many[-10 * LAST_REFRESH :]) == 10
    assert not any(Probing(False).wants_plain(CLOSE, 0) for _ in range(9))


def test_plain_steps_are_not_timed_where_drafting_wins_by_far() -> None:
    probing = Probing(is_measured=True)
    assert sum(probing.wants_plain(FAR, 1) for _ in range(4 * LAST_REFRESH)) == 4


def test_the_best_is_the_fastest_and_of_equals_the_shortest() -> None:
    assert best(LOSING).depth == 0
    assert best([DepthChoice(0, 1, 1), DepthChoice(2, 2, 2), DepthChoice(1, 1, 1)]).depth == 0
    assert rungs(8) == [1, 2, 3, 4, 6, 8]
    assert rungs(5) == [1, 2, 3, 4, 5]
    assert rungs(1) == [1]


def test_the_price_of_a_token_is_its_seconds_at_the_speed_of_now() -> None:
    """One more token costs 0.5 s each; at 2 tokens a second that is one token."""
    choices = [DepthChoice(0, 1.0, 1.0), DepthChoice(2, 1.6, 1.2), DepthChoice(4, 3.2, 1.6)]
    assert price(choices, choices[2], 1) == pytest.approx(0.2 * 2)
    assert price(choices, choices[1], 2) == pytest.approx(0.1 * 1.6 / 1.2 / 2)
    choices = [DepthChoice(0, 1.0, 1.0), DepthChoice(1, 9.0, 3.0)]
    assert price(choices, choices[1], 1) == HIGHEST_PRICE
