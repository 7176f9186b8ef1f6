"""Admission counts with what a step does beside one token: cached beginnings, accepted drafts."""

from __future__ import annotations

import time

import pytest
from engineless import FakeEngine, make_request
from toy_engine import QUANTILES

from lengthwise.scheduler.serving.engine.requests.cached_share import CachedShare
from lengthwise.scheduler.serving.wire.seal import sealed

SETTINGS = {
    "policy": "fcfs", "plan_share": 1.0, "refit_steps": 0, "profile": "tiny-cpu",
    "admission": {"mode": "shed", "max_share": 1.0},
}  # fmt: skip


def asked(prompt_tokens, quantiles=QUANTILES, **xargs):
    return {
        "xargs": sealed({"pred_quantiles": list(quantiles)} | xargs),
        "prompt_tokens": prompt_tokens,
        "max_tokens": None,
        "deadline_unix_s": time.time() + 60.0,
    }


def test_a_cached_prefix_is_not_computed_again(tiny_dir):
    """1,900 tokens by pieces of 256 take .25 s, the last of them alone a tenth."""
    fake = FakeEngine(tiny_dir, SETTINGS, prefix_caching=True)

    def verdict(prompt_tokens=1900):
        return fake.scheduler.answers.answer(
            "lengthwise_admit", asked(prompt_tokens, slo_ttft_ms=150)
        )["action"]

    assert verdict() == "shed"
    shared = [5 + i % 90 for i in range(1880)]
    for turn in range(3):
        fake.add(make_request(f"r{turn}", prompt=[*shared, *range(100 + turn, 120 + turn)]))
        fake.run()
    assert [verdict() for _ in range(6)] == ["admit"] * 6
    assert verdict(1700) == "admit"
    share = fake.scheduler.lengthwise_status()["step_time"]["cached_share"]
    assert share == pytest.approx(2 / 3 * 1872 / 1900, abs=0.02)  # whole blocks of two of three


def test_without_a_cache_nothing_is_taken_off(tiny_dir):
    fake = FakeEngine(tiny_dir, SETTINGS)
    for turn in range(3):
        fake.add(make_request(f"r{turn}", prompt=list(range(5, 1905))))
        fake.run()
    asking = asked(1900, slo_ttft_ms=150)
    assert fake.scheduler.answers.answer("lengthwise_admit", asking)["action"] == "shed"
    assert fake.scheduler.lengthwise_status()["step_time"]["cached_share"] == 0.0


def test_accepted_drafts_count_as_tokens(tiny_dir):
    """A step takes 6.6 ms, and gives 2.5 tokens: 4 ms a token can be met, and 1 ms cannot."""
    fake = FakeEngine(tiny_dir, SETTINGS)

    def verdict(tpot_ms):
        asking = asked(8, [100.0] * 12, slo_tpot_ms=tpot_ms)
        return fake.scheduler.answers.answer("lengthwise_admit", asking)["action"]

    assert verdict(4.0) == "shed"
    speed = fake.scheduler.core.tokens_per_step
    speed.draft_tokens = 3
    speed.note(250, 100)
    assert (verdict(4.0), verdict(1.0)) == ("admit", "shed")
    assert fake.scheduler.lengthwise_status()["step_time"]["tokens_per_step"] == 2.5


@pytest.mark.parametrize(
    ("noted", "asked_tokens", "expected"),
    [
        ([], 1000, 0),
        ([(1000, 900)], 1000, 900),
        ([(1000, 900)], 1, 0),
        ([(1000, 1000)], 1000, 999),  # the last token is always computed
        ([(1000, 0)] * 7 + [(1000, 900)], 1000, 0),  # one hit in eight says little
        ([(1000, 0)] * 6 + [(1000, 900)] * 2, 1000, 900),
        ([(20, 0)] * 40 + [(2000, 1900)] * 8, 2100, 1995),  # of its own size
        ([(20, 0)] * 8 + [(2000, 1900)] * 8, 25, 0),
        ([(2000, 1900)] * 8 + [(2000, 0)] * 64, 2000, 0),  # lately
        ([(0, 5), (3, -1)], 10, 0),
    ],
)
def test_the_nearest_in_size_say_what_is_cached(noted, asked_tokens, expected):
    shares = CachedShare()
    for prompt_tokens, cached in noted:
        shares.note("chat", prompt_tokens, cached)
    assert shares.expected_tokens("chat", asked_tokens) == expected
    assert shares.expected_tokens("another", asked_tokens) == 0


def test_classes_that_clients_invent_take_no_room():
    shares = CachedShare()
    for number in range(1000):
        shares.note(f"class-{number}", 100, 50)
    assert shares.expected_tokens("class-3", 100) == 50
    assert shares.expected_tokens("class-999", 100) == 50  # among the others
    assert len(shares._recent) <= 65
