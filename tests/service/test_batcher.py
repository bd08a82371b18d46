from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial

import numpy as np
import pytest

from service.batcher import Answer, Batcher
from service.errors import DeadlineUnreachable, Draining, QueueFull
from service.limits import Asked, Limits, Planned
from tests.service.echo import EchoEngine, EchoPlan, Waiting, asked, hold, image, submit
from tests.service.support import wait_until


@pytest.fixture
def plan() -> EchoPlan:
    return EchoPlan()


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
def batcher(engine: EchoEngine, plan: EchoPlan) -> Iterator[Batcher]:
    batcher = Batcher(engine, plan, max_batch=4, max_wait_s=0, max_queue=8)
    yield batcher
    engine.gate.set()
    batcher.close()


def test_submit_rows_keep_order_penalty_and_cap(batcher: Batcher, engine: EchoEngine) -> None:
    futures = hold(batcher, engine) + submit(batcher, 1, 2, 3, 4, 5, 6)
    engine.gate.set()
    answers = [future.result(10) for future in futures]
    for value, answer in enumerate(answers):
        np.testing.assert_allclose(answer.logits, [value, value / 2, value / 4])
    assert engine.batches == [1, 4, 2]
    assert engine.threads == {"inference"}


def test_submit_without_a_cap_is_an_infinite_one(batcher: Batcher, engine: EchoEngine) -> None:
    with batcher.reserve(1, asked(1)) as places:
        Waiting(places, 1).result(10)
    assert engine.caps == [np.inf]


def test_submit_answer_ranks_the_classes(batcher: Batcher) -> None:
    (future,) = submit(batcher, 1)
    answer: Answer = future.result(10)
    assert answer.ranking.tolist() == [0, 1, 2]
    powers = np.exp([1, 0.5, 0.25])
    np.testing.assert_allclose(answer.probabilities, powers / powers.sum())


def test_submit_answer_holds_its_row_and_times(batcher: Batcher) -> None:
    (future,) = submit(batcher, 1)
    answer: Answer = future.result(10)
    assert answer.widths.tolist() == [1, 1]
    assert answer.macs == 0
    assert 0 <= answer.queue_s < 10
    assert 0 < answer.inference_s < 10


def test_reserve_more_than_free_refused_whole(batcher: Batcher, engine: EchoEngine) -> None:
    hold(batcher, engine)
    waiting = submit(batcher, *range(6))
    with pytest.raises(QueueFull, match=r"6 images are waiting and 3 more .* limit of 8"):
        batcher.reserve(3, asked(1))
    assert batcher.depth == 6
    submit(batcher, 1, 2)
    engine.gate.set()
    assert all(future.result(10) for future in waiting)


def test_reserve_unused_places_given_back(batcher: Batcher) -> None:
    for _ in range(3):
        with batcher.reserve(8, asked(1)):
            assert batcher.depth == 8
    assert batcher.depth == 0


def test_places_given_back_take_their_images_out_of_the_queue_and_no_more_in(
    batcher: Batcher, engine: EchoEngine
) -> None:
    (running,) = hold(batcher, engine)
    with batcher.reserve(3, asked(1)) as places:
        given_up = [Waiting(places, value) for value in (1, 2)]
        (kept,) = submit(batcher, 3)
        assert batcher.depth == 4
    assert batcher.depth == 1
    places.submit(image(4), given_up[0].tell)
    engine.gate.set()
    assert [one.result(10).logits[0] for one in (running, kept)] == [0, 3]
    assert batcher.depth == 0
    assert not any(one.done() for one in given_up)
    assert engine.batches == [1, 1]


def test_places_of_a_running_batch_given_back_once(batcher: Batcher, engine: EchoEngine) -> None:
    engine.gate.clear()
    with batcher.reserve(2, asked(1)) as places:
        Waiting(places, 1)
        assert engine.started.wait(10)
        assert batcher.depth == 1
    assert batcher.depth == 0


def test_run_engine_error_fails_its_batch_only(batcher: Batcher) -> None:
    (broken,) = submit(batcher, float("nan"))
    with pytest.raises(ValueError, match="broken image"):
        broken.result(10)
    (good,) = submit(batcher, 1)
    assert good.result(10).logits[0] == 1


def test_run_cancelled_image_not_computed(batcher: Batcher, engine: EchoEngine) -> None:
    hold(batcher, engine)
    dropped, kept = submit(batcher, 1, 2)
    assert dropped.cancel()
    engine.gate.set()
    assert kept.result(10).logits[0] == 2
    assert engine.batches == [1, 1]


def test_run_refused_by_the_plan_not_computed(batcher: Batcher, engine: EchoEngine) -> None:
    hold(batcher, engine)
    late, good = submit(batcher, -1, 2)
    engine.gate.set()
    assert good.result(10).limits == Limits(2, 1, 0.5)
    with pytest.raises(DeadlineUnreachable):
        late.result(10)
    assert engine.batches == [1, 1]


def test_run_plan_learns_what_its_batches_cost(batcher: Batcher, plan: EchoPlan) -> None:
    submit(batcher, 3)[0].result(10)
    batcher.close()
    assert plan.learnt == [([3], [0])]


def test_run_images_are_made_when_their_batch_begins_and_only_the_broken_ones_fail(
    batcher: Batcher, engine: EchoEngine, plan: EchoPlan
) -> None:
    hold(batcher, engine)
    made = []

    def make(value: float) -> np.ndarray:
        made.append(value)
        return image(1 / value)

    found = [Waiting(batcher.reserve(1, asked(0, 0)), partial(make, v)) for v in (4, 0, 2)]
    assert made == []
    engine.gate.set()
    assert [found[n].result(10).logits[0] for n in (0, 2)] == [0.25, 0.5]
    assert isinstance(found[1].exception(10), ZeroDivisionError)
    assert made == [4, 0, 2]
    assert engine.batches[-1] == 2


def test_run_nothing_of_a_batch_can_be_made_and_the_thread_goes_on(
    batcher: Batcher, engine: EchoEngine
) -> None:
    broken = Waiting(batcher.reserve(1, asked(0, 0)), lambda: 1 / 0)
    assert isinstance(broken.exception(10), ZeroDivisionError)
    assert engine.batches == []
    assert submit(batcher, 2)[0].result(10).logits[0] == 2


def test_plan_that_breaks_fails_its_images_and_the_thread_goes_on(
    batcher: Batcher, plan: EchoPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for broken in ("plan", "learn"):
        with monkeypatch.context() as patch:
            patch.setattr(plan, broken, lambda *_: 1 / 0)
            (future,) = submit(batcher, 1)
            assert isinstance(future.exception(10), ZeroDivisionError) == (broken == "plan")
        assert submit(batcher, 2)[0].result(10).logits[0] == 2


def test_cancel_gives_its_place_back_at_once(batcher: Batcher, engine: EchoEngine) -> None:
    hold(batcher, engine)
    first, _, last = submit(batcher, 1, 2, 3)
    assert first.cancel()
    assert last.cancel()
    assert batcher.depth == 1


def test_cancel_of_all_that_waits_leaves_the_thread_alive(engine: EchoEngine) -> None:
    batcher = Batcher(engine, EchoPlan(), max_batch=4, max_wait_s=0.5, max_queue=8)
    assert submit(batcher, 1)[0].cancel()
    assert submit(batcher, 2)[0].result(10).logits[0] == 2
    batcher.close()


def test_reserve_with_a_deadline_asks_the_plan(
    batcher: Batcher, engine: EchoEngine, plan: EchoPlan
) -> None:
    hold(batcher, engine)
    submit(batcher, 1, 2)
    with batcher.reserve(2, asked(1)), batcher.reserve(3, Asked(0, 1, due=1e9)):
        pass
    ((waiting, places, busy_s),) = plan.checked
    assert (waiting, places) == (2, 5)
    assert 3 < busy_s <= 5
    with pytest.raises(DeadlineUnreachable):
        batcher.reserve(1, Asked(0, 1, due=-1))
    assert batcher.depth == 2


def test_reserve_batch_that_ended_early_is_waited_for_no_more(
    batcher: Batcher, plan: EchoPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "plan", lambda *_: Planned([Limits(1, 0, None)], 1e6))
    submit(batcher, 1)[0].result(10)

    def busy_s() -> float:
        with batcher.reserve(1, Asked(0, 1, due=1e9)):
            *_, (_, _, seconds) = plan.checked
            return seconds

    wait_until(lambda: busy_s() == 0)


def test_work_that_waits_keeps_nothing_of_its_last_batch(batcher: Batcher) -> None:
    picture, answer = image(1), Future()
    kept = weakref.ref(picture)
    with batcher.reserve(1, asked(1)) as places:
        places.submit(picture, answer.set_result)
        answer.result(10)
    del picture
    wait_until(lambda: kept() is None)


def test_reserve_refused_told_when_to_come_back(engine: EchoEngine) -> None:
    batcher = Batcher(engine, EchoPlan(), max_batch=4, max_wait_s=0, max_queue=8)
    engine.gate.clear()
    futures = submit(batcher, 0)
    time.sleep(0.3)
    engine.gate.set()
    futures[0].result(10)
    engine.started.clear()
    hold(batcher, engine)
    submit(batcher, *range(8))
    with pytest.raises(QueueFull, match=r"try again in \d s") as refused:
        batcher.reserve(1, asked(1))
    # Eight images, 0.3 s each, or some more on a busy machine.
    assert 3 <= refused.value.retry_after_s <= 6
    engine.gate.set()
    batcher.close()


def test_take_serves_what_waits_in_the_order_of_the_plan(engine: EchoEngine) -> None:
    plan = EchoPlan()

    def newest_first(waiting: list[Asked], now: float) -> Planned:
        rows = range(len(waiting))[::-1][:2]
        return Planned([Limits(waiting[row].budget, 0, None) for row in rows], 0, rows)

    plan.plan = newest_first  # type: ignore[method-assign]
    batcher = Batcher(engine, plan, max_batch=4, max_wait_s=0, max_queue=8)
    hold(batcher, engine)
    futures = submit(batcher, 5, 4, 3, 2, 1)
    engine.gate.set()
    assert [future.result(5).logits[0] for future in futures] == [5, 4, 3, 2, 1]
    assert [budgets for budgets, _ in plan.learnt][1:] == [[1, 2], [3, 4], [5]]
    assert batcher.depth == 0
    batcher.close()


def test_take_waits_for_a_full_batch(engine: EchoEngine) -> None:
    batcher = Batcher(engine, EchoPlan(), max_batch=2, max_wait_s=10, max_queue=8)
    (first,) = submit(batcher, 1)
    time.sleep(0.02)
    (second,) = submit(batcher, 2)
    assert first.result(5).logits[0] == 1
    assert second.result(5).logits[0] == 2
    assert engine.batches == [2]
    batcher.close()


def test_take_waits_no_longer_than_told(engine: EchoEngine) -> None:
    batcher = Batcher(engine, EchoPlan(), max_batch=2, max_wait_s=0.02, max_queue=8)
    (future,) = submit(batcher, 1)
    assert 0.02 <= future.result(5).queue_s < 1
    batcher.close()


def test_close_answers_what_holds_a_place(engine: EchoEngine) -> None:
    batcher = Batcher(engine, EchoPlan(), max_batch=1, max_wait_s=0, max_queue=8)
    hold(batcher, engine)
    futures = submit(batcher, 1, 2)
    with batcher.reserve(1, asked(3, 1)) as places:
        closing = threading.Thread(target=batcher.close)
        closing.start()
        engine.gate.set()
        futures[-1].result(10)
        futures.append(Waiting(places, 3))
        futures[-1].result(10)
    closing.join(10)
    assert not closing.is_alive()
    assert [future.result(0).logits[0] for future in futures] == [1, 2, 3]
    with pytest.raises(Draining):
        batcher.reserve(1, asked(1))


def test_on_batch_told_size_and_seconds(engine: EchoEngine) -> None:
    told: list[tuple[int, float]] = []
    batcher = Batcher(
        engine,
        EchoPlan(),
        max_batch=4,
        max_wait_s=0,
        max_queue=8,
        on_batch=lambda n, s: told.append((n, s)),
    )
    submit(batcher, 1)[0].result(10)
    batcher.close()
    assert [n for n, _ in told] == [1]
    assert told[0][1] > 0


def test_batches_count_those_that_were_answered(batcher: Batcher, engine: EchoEngine) -> None:
    for value in (1.0, np.nan, 2.0):
        (future,) = submit(batcher, value)
        future.exception(10)
    assert (len(engine.batches), batcher.batches) == (3, 2)


def test_image_that_hurries_waits_for_no_more(engine: EchoEngine) -> None:
    batcher = Batcher(engine, EchoPlan(), max_batch=4, max_wait_s=60, max_queue=8)
    (patient,) = submit(batcher, 1)
    hurried = Waiting(batcher.reserve(1, Asked(0, 1, due=10)), 2)
    assert [one.result(10).logits[0] for one in (patient, hurried)] == [1, 2]
    batcher.close()
