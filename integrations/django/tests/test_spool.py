"""The spool: files that survive the process, belong to one process at a time, and are never lost or made up."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from error_logging.spool import Spool, SpoolFull, SpoolUnusable, prepare

HOLD = """
import os, sys
from pathlib import Path
from error_logging.spool import Spool
spool = Spool(Path(sys.argv[1]), "shop", max_files=100)
for name in sys.argv[2:]:
    spool.put(name, name.encode())
print(spool.directory, flush=True)
sys.stdin.read()
"""
AS_NOBODY = """
import os, sys
from pathlib import Path
from error_logging.spool import Spool, SpoolUnusable
if os.geteuid() == 0:  # whom no permission stops
    os.chown(sys.argv[1], 65534, 65534)
    os.setgid(65534)
    os.setuid(65534)
try:
    Spool(Path(sys.argv[1]), "shop", max_files=100)
except SpoolUnusable as unusable:
    print(unusable)
"""
LIMITED = """
import resource, sys
from pathlib import Path
from error_logging.spool import Spool
spool = Spool(Path(sys.argv[1]), "shop", max_files=100)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
try:
    spool.put("large", b"x" * 1000)
except OSError as error:
    print(type(error).__name__, sorted(entry.name for entry in spool.directory.iterdir()))
spool.put("small", b"x" * 10)
print(spool.read("small").decode())
"""


def run(code: str, root: Path) -> str:
    return subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True).stdout


class Process:
    """Another process of the application, with events in the spool."""

    def __init__(self, root: Path, *names: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(root), *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.popen.stdout is not None
        self.directory = Path(self.popen.stdout.readline().strip())

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "events"


@pytest.fixture
def spool(root: Path) -> Iterator[Spool]:
    made = Spool(root, "shop", max_files=100)
    yield made
    made.close()


@pytest.fixture
def other(root: Path) -> Iterator[Process]:
    process = Process(root, "one", "two")
    yield process
    process.kill()


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file or link, and not what it points to, belongs to another user; without root, so does all that is there."""
    if os.geteuid() == 0:
        os.lchown(path, 65534, 65534)
    else:
        now = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: now + 1)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_may_read_it(spool: Spool, root: Path) -> None:
    os.umask(previous := os.umask(0))
    try:
        os.umask(0)
        spool.put("event", b"{}")
        spool.refuse("event", "no")
    finally:
        os.umask(previous)
    assert mode(root) == mode(spool.directory) == mode(root / "refused") == 0o700
    files = [path for path in root.rglob("*") if path.is_file()]
    assert {mode(path) for path in files} == {0o600}
    assert len(files) == 4  # the lock, the event, its copy and the reason


def test_what_is_put_can_be_read_until_it_is_removed(spool: Spool) -> None:
    spool.put("event", b"payload")
    assert spool.read("event") == b"payload"
    assert spool.holds("event")
    spool.remove("event")
    assert not spool.holds("event")
    spool.remove("event")  # twice is no harm


def test_a_reader_never_sees_half_a_file(spool: Spool) -> None:
    """Written aside, then renamed: whatever the moment, a .json file is whole."""
    stop = threading.Event()
    torn: list[int] = []

    def look() -> None:
        while not stop.is_set():
            for path in spool.directory.glob("*.json"):
                try:
                    size = path.stat().st_size
                except FileNotFoundError:
                    continue
                if size != 200_000:
                    torn.append(size)

    looking = threading.Thread(target=look)
    looking.start()
    for index in range(50):
        spool.put(f"e{index}", b"x" * 200_000)
        spool.remove(f"e{index}")
    stop.set()
    looking.join()
    assert torn == []


def test_it_takes_no_more_than_it_may(root: Path) -> None:
    spool = Spool(root, "shop", max_files=3)
    for index in range(3):
        spool.put(f"e{index}", b"x")
    with pytest.raises(SpoolFull, match="holds 3 events"):
        spool.put("e3", b"x")
    spool.remove("e0")
    spool.put("e3", b"x")
    spool.close()


def test_the_bound_is_for_all_processes_together(root: Path, other: Process) -> None:
    spool = Spool(root, "shop", max_files=3)
    spool.adopt()
    spool.put("three", b"x")
    with pytest.raises(SpoolFull):
        spool.put("four", b"x")
    spool.close()


def test_the_bound_holds_when_many_threads_write(root: Path) -> None:
    spool = Spool(root, "shop", max_files=10_000)

    def write(number: int) -> None:
        for index in range(100):
            spool.put(f"{number}-{index}", b"x")
            spool.remove(f"{number}-{index}")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    spool.max_files = 1
    spool.put("last", b"x")
    with pytest.raises(SpoolFull):
        spool.put("more", b"x")
    spool.close()


def test_a_living_process_keeps_its_events(spool: Spool, other: Process) -> None:
    assert spool.adopt() == []
    assert spool.holds("one")
    with pytest.raises(FileNotFoundError):
        spool.read("one")


def test_what_a_killed_process_left_is_taken_over_once(spool: Spool, root: Path, other: Process) -> None:
    other.kill()
    assert spool.adopt() == ["one", "two"]
    assert spool.read("one") == b"one"
    assert not other.directory.exists()
    assert spool.adopt() == []
    second = Spool(root, "shop", max_files=100)
    assert second.adopt() == []
    second.close()


def test_two_processes_never_adopt_the_same_event(root: Path) -> None:
    for number in range(5):
        Process(root, *(f"{number}-{index}" for index in range(20))).kill()
    spools = [Spool(root, "shop", max_files=1000) for _ in range(4)]
    adopted: list[str] = []
    start = threading.Barrier(4)

    def adopt(spool: Spool) -> None:
        start.wait()
        adopted.extend(spool.adopt())

    threads = [threading.Thread(target=adopt, args=(spool,)) for spool in spools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rest = spools[0].adopt()
    assert sorted(adopted + rest) == sorted(f"{number}-{index}" for number in range(5) for index in range(20))
    for spool in spools:
        spool.close()


def test_a_process_that_ends_in_peace_leaves_what_is_undone(root: Path) -> None:
    ended = Spool(root, "shop", max_files=100)
    ended.put("event", b"x")
    ended.close()
    spool = Spool(root, "shop", max_files=100)
    assert spool.adopt() == ["event"]
    spool.remove("event")
    spool.close()
    assert list(root.iterdir()) == []


def test_events_of_another_database_are_left_alone(spool: Spool, root: Path) -> None:
    tests = Spool(root, "test_shop", max_files=100)
    tests.put("event", b"x")
    tests.close()
    assert spool.adopt() == []
    assert not spool.holds("event")


def test_torn_files_are_collected_with_their_process(spool: Spool, other: Process) -> None:
    (other.directory / ".three.json.tmp").write_bytes(b'{"eve')
    other.kill()
    assert spool.adopt() == ["one", "two"]
    assert not other.directory.exists()


def test_foreign_files_are_no_events_and_stay(spool: Spool, root: Path, other: Process) -> None:
    (root / "notes.txt").write_text("keep me")
    (root / "p-elsewhere").mkdir()
    (other.directory / "README").write_text("keep me too")
    other.kill()
    assert spool.adopt() == ["one", "two"]
    assert (root / "notes.txt").read_text() == "keep me"
    assert (other.directory / "README").exists()
    assert spool.adopt() == []


def test_nobody_else_can_slip_events_in(spool: Spool, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forged = root / f"{spool.directory.name[:11]}{'0' * 32}"
    forged.mkdir()
    (forged / "lock").touch()
    (forged / "evil.json").write_bytes(b"{}")
    give_away(forged, monkeypatch)
    assert spool.adopt() == []
    assert not spool.holds("evil")


def test_a_directory_whose_lock_was_tidied_away_is_still_taken_over(spool: Spool, other: Process) -> None:
    """systemd-tmpfiles removes files that nobody has touched for days, a lock among them."""
    other.kill()
    (other.directory / "lock").unlink()
    assert spool.adopt() == []  # perhaps it is being born
    old = time.time() - 7200
    os.utime(other.directory, (old, old))
    assert spool.adopt() == ["one", "two"]


def test_a_living_process_keeps_its_lock_from_looking_old(spool: Spool) -> None:
    lock = spool.directory / "lock"
    old = time.time() - 864_000
    os.utime(lock, (old, old))
    spool.adopt()
    assert lock.stat().st_mtime > time.time() - 3600


def test_what_died_while_it_was_born_is_collected_later(spool: Spool, root: Path) -> None:
    unborn = root / ".new-1234"
    unborn.mkdir()
    (unborn / "lock").touch()
    spool.adopt()
    assert unborn.exists()
    old = time.time() - 7200
    os.utime(unborn, (old, old))
    spool.adopt()
    assert not unborn.exists()


def test_it_goes_on_after_its_directory_was_removed(spool: Spool, root: Path) -> None:
    spool.put("before", b"x")
    shutil.rmtree(root)
    spool.put("after", b"y")
    assert spool.read("after") == b"y"
    assert mode(spool.directory) == 0o700


def test_threads_that_find_the_directory_removed_agree_on_the_new_one(spool: Spool, root: Path) -> None:
    for attempt in range(10):
        shutil.rmtree(root)
        start = threading.Barrier(8)

        def write(name: str, start: threading.Barrier = start) -> None:
            start.wait()
            spool.put(name, b"x")

        names = [f"{attempt}-{index}" for index in range(8)]
        threads = [threading.Thread(target=write, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [spool.read(name) for name in names] == [b"x"] * 8


def test_a_full_disk_leaves_nothing_half_written(root: Path) -> None:
    told = run(LIMITED, root)
    assert told.splitlines() == ["OSError ['lock']", "x" * 10]


def test_a_directory_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    give_away(shared, monkeypatch)
    with pytest.raises(SpoolUnusable, match="belongs to another user"):
        prepare(shared)


def test_a_directory_that_everyone_may_write_is_not_used(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(SpoolUnusable, match="writable by everyone"):
        Spool(shared, "shop", max_files=1)
    shared.chmod(0o1777)  # like /tmp: nobody can remove another's files
    Spool(shared, "shop", max_files=1).close()


def test_a_link_that_another_user_planted_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    planted = tmp_path / "spool"
    planted.symlink_to(mine)
    prepare(planted)  # of one's own it is a choice
    give_away(planted, monkeypatch)
    with pytest.raises(SpoolUnusable, match="a link of another"):
        prepare(planted)


def test_a_directory_that_is_not_writable_says_so() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as outer:  # pytest's own admits nobody else
        Path(outer).chmod(0o755)
        closed = Path(outer) / "closed"
        closed.mkdir(mode=0o555)
        told = run(AS_NOBODY, closed)
    assert "is not writable" in told


def test_a_file_in_its_place_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpoolUnusable, match=r"File exists|Not a directory"):
        Spool(tmp_path / "file" / "spool", "shop", max_files=1)


def test_a_forked_child_leaves_its_parents_events_alone(spool: Spool, root: Path) -> None:
    spool.put("event", b"x")
    child = os.fork()
    if child == 0:
        spool.forget()
        mine = Spool(root, "shop", max_files=100)
        os._exit(0 if mine.adopt() == [] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert spool.read("event") == b"x"


def test_the_refused_are_kept_with_the_reason_and_are_bounded(root: Path) -> None:
    spool = Spool(root, "shop", max_files=2)
    for name in ("one", "two", "three"):
        spool.put(name, b"payload")
        spool.refuse(name, f"{name} is malformed")
        spool.remove(name)
    assert (root / "refused" / "one.json").read_bytes() == b"payload"
    assert (root / "refused" / "two.txt").read_text() == "two is malformed"
    assert not (root / "refused" / "three.json").exists()
    spool.close()


def test_fsync_is_a_choice_that_changes_nothing_else(root: Path) -> None:
    spool = Spool(root, "shop", max_files=10, fsync=True)
    spool.put("event", b"payload")
    assert spool.read("event") == b"payload"
    spool.close()
