"""models.line: words and files arrive together, whatever the system reads at once."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from models.line import Garbled, Gone, Line, pair


@pytest.fixture
def ends():
    ours, theirs = pair()
    other = Line(theirs)
    yield ours, other
    ours.close()
    other.close()


def test_a_file_belongs_to_the_words_it_came_with(ends):
    ours, other = ends
    made = os.memfd_create("x")
    other.tell({"begun": True})
    other.tell({"outputs": 1}, made)
    other.tell({"more": "ü"})
    os.pwrite(made, b"here", 0)
    os.close(made)
    assert ours.hear(5) == ({"begun": True}, None)
    words, file = ours.hear(5)
    assert words == {"outputs": 1}
    assert file is not None
    assert os.pread(file, 4, 0) == b"here"
    assert not os.get_inheritable(file)
    os.close(file)
    assert ours.hear(5) == ({"more": "ü"}, None)


def test_words_longer_than_a_buffer_arrive_whole(ends):
    ours, other = ends
    long = {"paths": ["x" * 100] * 20_000}
    teller = threading.Thread(target=other.tell, args=(long,))
    teller.start()
    assert ours.hear(30, most=4_000_000)[0] == long
    teller.join()


@pytest.mark.parametrize("said", [b"[1]\n", b"no words\n", b'"x"\n', b"[" * 10_000 + b"\n"])
def test_what_is_no_object_is_garbled(ends, said):
    ours, other = ends
    other._end.sendall(said)
    with pytest.raises(Garbled):
        ours.hear(5)


def test_words_without_an_end(ends):
    ours, other = ends
    other._end.sendall(b"x" * 4000)
    with pytest.raises(Garbled):
        ours.hear(5, most=3000)


def test_files_that_nobody_asked_for_are_not_collected(ends):
    ours, other = ends
    spare = os.memfd_create("x")
    for _ in range(3):
        socket.send_fds(other._end, [b" "], [spare])
    os.close(spare)
    with pytest.raises(Garbled):
        ours.hear(5)
    assert len(ours._files) == 2


def test_an_end_is_told_and_silence_is_counted(ends):
    ours, other = ends
    with pytest.raises(TimeoutError):
        ours.hear(0.05)
    other.no_more()
    with pytest.raises(Gone):
        ours.hear(5)
    ours.close()
    with pytest.raises(Gone):
        other.tell({"to": "nobody"})


def test_whether_the_other_side_is_quiet(ends):
    ours, other = ends
    assert ours.quiet()
    other.tell({"unasked": 1})
    assert not ours.quiet()
    other.tell({"more": 1})
    ours.hear(5)
    assert not ours.quiet()
    ours.hear(5)
    assert ours.quiet()
    other.close()
    with pytest.raises(Gone):
        ours.quiet()


@pytest.mark.parametrize("seconds", [0.0, -3.5])
def test_no_time_left_is_a_timeout_and_nothing_is_said(ends, seconds):
    ours, other = ends
    with pytest.raises(TimeoutError):
        ours.tell({"feeds": 1}, seconds=seconds)
    ours.tell({"next": 1})
    assert other.hear(5) == ({"next": 1}, None)
