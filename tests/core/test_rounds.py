"""Threads that work in rounds."""

from core.rounds import Rounds


class Failing(Rounds):
    NAME, EVERY_S, FAILED = "failing", 0.0, "this one failed"
    begun = 0

    def _round(self) -> None:
        self.begun += 1
        if self.begun == 3:
            self.stop()
        raise ValueError("no")


def test_what_goes_wrong_in_a_round_is_logged_and_the_next_one_begun(caplog):
    thread = Failing()
    thread.start()
    thread.join(10)
    assert (thread.name, thread.daemon, thread.begun) == ("pullwake-failing", True, 3)
    assert [(each.name, each.message) for each in caplog.records] == [
        (__name__, "this one failed")
    ] * 3


def test_none_is_begun_once_it_is_stopped():
    thread = Failing()
    thread.stop()
    thread.run()
    assert thread.begun == 0
