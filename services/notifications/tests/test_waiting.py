"""The queue and the event of a socket: as asyncio's, for one waiter."""

import asyncio

from notifications.waiting import Flag, Inbox


async def test_flag_lets_go_on_whoever_waits_and_whoever_comes() -> None:
    flag = Flag()
    waiting = [asyncio.create_task(flag.wait()) for _ in range(2)]
    await asyncio.sleep(0)

    flag.set()
    await asyncio.gather(*waiting)
    await flag.wait()
    assert flag.is_set()


async def test_flag_that_is_cleared_before_the_waiter_ran_goes_on_waiting() -> None:
    flag = Flag(is_set=True)
    flag.clear()
    waiting = asyncio.create_task(flag.wait())
    await asyncio.sleep(0)
    flag.set()
    flag.clear()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    flag.set()
    await waiting


async def test_waiter_that_gives_up_ends_nobody_elses_wait() -> None:
    flag = Flag()
    impatient, patient = (asyncio.create_task(flag.wait()) for _ in range(2))
    await asyncio.sleep(0)

    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    flag.set()
    await patient


async def test_inbox_hands_out_in_order_what_came_before_and_comes_later() -> None:
    inbox = Inbox[int]()
    inbox.put_nowait(1)
    inbox.put_nowait(2)
    assert not inbox.empty()
    assert [await inbox.get(), await inbox.get()] == [1, 2]
    assert inbox.empty()

    later = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put_nowait(3)
    assert await later == 3


async def test_whoever_takes_from_a_full_inbox_lets_others_run_each_time() -> None:
    inbox = Inbox[int]()
    turns: list[str] = []

    async def take_all() -> None:
        while not inbox.empty():
            turns.append(f"took {await inbox.get()}")

    async def other() -> None:
        while len(turns) < 4:
            turns.append("other")
            await asyncio.sleep(0)

    inbox.put_nowait(1)
    inbox.put_nowait(2)
    await asyncio.gather(take_all(), other())
    assert turns == ["other", "took 1", "other", "took 2"]
