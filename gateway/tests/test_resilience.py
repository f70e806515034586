"""The breaker and the retry budget alone."""

from gateway.resilience import RETRY_RESERVE, Breaker, RetryBudget


def test_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(threshold=3, shortest=1.0, longest=4.0)
    for outcome in (breaker.failed, breaker.failed):
        outcome(0.0)
    breaker.succeeded()
    breaker.failed(0.0)
    breaker.failed(0.0)
    assert breaker.admits(0.0)
    breaker.failed(0.0)
    assert breaker.is_open
    assert not breaker.admits(0.5)
    assert breaker.retry_after(0.5) == 0.5


def test_open_breaker_lets_one_probe_through_at_growing_intervals() -> None:
    breaker, now, admitted = Breaker(threshold=1, shortest=1.0, longest=4.0), 0.0, []
    breaker.failed(now)
    while now < 20:
        now += 0.25
        if breaker.admits(now):
            admitted.append(now)
            assert not breaker.admits(now)
            breaker.failed(now)
    assert admitted == [1.0, 3.0, 7.0, 11.0, 15.0, 19.0]
    breaker.succeeded()
    assert [breaker.admits(now) for _ in range(3)] == [True] * 3


def test_probe_that_is_never_decided_does_not_block_the_next() -> None:
    breaker = Breaker(threshold=1, shortest=1.0, longest=4.0)
    breaker.failed(0.0)
    assert breaker.admits(1.0)
    assert breaker.admits(2.0)


def test_retry_budget_is_one_in_ten_beyond_its_reserve() -> None:
    budget = RetryBudget()
    assert sum(budget.withdraw() for _ in range(100)) == RETRY_RESERVE
    for _ in range(1000):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(100)) in (RETRY_RESERVE, RETRY_RESERVE - 1)
    for _ in range(21):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(100)) in (2, 3)
