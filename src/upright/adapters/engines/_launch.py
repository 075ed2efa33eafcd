"""Becomes another program, after asking the kernel to signal it when its parent dies.

Run as a script by a bare interpreter (`python -I -S _launch.py PARENT SIGNAL UID GID PROGRAM ARGUMENT…`), since code
between fork and exec isn't safe in a process with threads. UID and GID are -1 to stay who we are. A process that gives
up root keeps the one capability to pass over file permissions, or it could not reach a data directory or a wheel's
files below a private directory such as /root.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION = 0x20080522


def become(libc: ctypes.CDLL, uid: int, gid: int) -> None:
    keeps = libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if keeps:
        mask = 1 << _CAP_DAC_OVERRIDE
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
        # effective, permitted, inheritable; twice, for the low and the high 32 capabilities
        data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
        if libc.capset(header, data) == 0:
            libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def main() -> None:
    parent, signal, uid, gid = (int(value) for value in sys.argv[1:5])
    command = sys.argv[5:]
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None, use_errno=True)
        if uid >= 0:
            become(libc, uid, gid)
        # After the change of user, which clears it.
        libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0)
    elif uid >= 0:
        os.setgid(gid)
        os.setuid(uid)
    if os.getppid() != parent:  # it died before the request above
        sys.exit(125)
    try:
        os.execvpe(command[0], command, os.environ)  # noqa: S606 - the caller gives the program
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main()
