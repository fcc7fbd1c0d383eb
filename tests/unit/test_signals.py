"""Ending in order."""

import os
import signal
import threading

import pytest

from pytest_vmfest.signals import end_by, held_back


def test_signals_wait_until_a_clean_up_is_done():
    """A Ctrl-C in the block takes effect behind it, and only once."""
    done = []

    def clean_up() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            done.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        clean_up()
    assert done == ["cleaned up"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_time_out_waits_too():
    """pytest-timeout's alarm does not break a clean-up off."""
    done = []

    def time_out(number, frame):
        raise TimeoutError

    def clean_up() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGALRM)
            done.append("cleaned up")

    before = signal.signal(signal.SIGALRM, time_out)
    try:
        with pytest.raises(TimeoutError):
            clean_up()
        assert done == ["cleaned up"]
        assert signal.getsignal(signal.SIGALRM) is time_out
    finally:
        signal.signal(signal.SIGALRM, before)


def test_handlers_are_put_back_after_an_error():
    """A failing clean-up leaves the handlers as they were."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="broken"), held_back():
        raise ValueError("broken")
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_are_left_alone():
    """Outside the main thread it is no error, and does nothing."""
    done = []

    def work() -> None:
        with held_back():
            done.append(end_by(lambda number: None))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(done) == 1


def test_the_first_signal_ends_and_those_after_it_are_ignored(monkeypatch):
    """SIGTERM calls once; a second one does not disturb; afterwards all is as before."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    numbers: list[int] = []
    try:
        restore = end_by(numbers.append)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert numbers == [signal.SIGTERM]
        restore()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_somebody_elses_handler_stays():
    """A signal that is ignored, as by nohup, stays ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        restore = end_by(lambda number: None)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        restore()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
