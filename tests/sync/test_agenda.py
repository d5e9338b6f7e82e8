"""What is due beside the frames: all of it while nobody waits, one thing a round while frames come."""

from sensorium.sync.recording.agenda import Agenda


def test_all_is_done_while_no_frame_waits_and_one_thing_a_round_while_some_do() -> None:
    done: list[str] = []
    agenda = Agenda(20, lambda _: done.append("hear"), lambda _: done.append("tell"))
    agenda.step(0, is_busy=False)
    assert done == ["hear", "tell"]
    agenda.step(19, is_busy=False)
    assert done == ["hear", "tell"]
    agenda.step(20, is_busy=True)
    assert done == ["hear", "tell", "hear"]
    agenda.step(21, is_busy=True)
    assert done == ["hear", "tell", "hear", "tell"]
    agenda.step(39, is_busy=True)
    agenda.step(40, is_busy=True)
    assert done == ["hear", "tell", "hear", "tell", "hear"]
