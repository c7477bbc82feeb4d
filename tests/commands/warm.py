"""A Python that has imported the heavy libraries already: it runs scripts and modules in forks of itself.

`python x.py` of a documented command reaches it through `client.py`. Every command is a process of its own with its own
folder, environment and streams, as if started anew; what is saved is the import of torch and transformers: seconds.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback


def main() -> None:
    """warm.py SOCKET: listens there until it is ended."""
    _import_libraries()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(connection)
        connection.close()


def _import_libraries() -> None:
    import accelerate  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torch
    from transformers import (  # noqa: F401
        AutoModelForImageTextToText,
        AutoProcessor,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        Trainer,
    )

    torch.set_num_threads(1)


def _serve(connection: socket.socket) -> None:
    """One command: its arguments and streams from the client; the process that runs it is waited for, since it may end
    itself in any way, and its exit status goes back. It is ended where the client ends first."""
    content, streams = _receive(connection)
    child = os.fork()
    if child == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        _become(json.loads(content))
    for stream in streams:
        os.close(stream)
    while True:
        readable, _, _ = select.select([connection], [], [], 0.02)
        if readable:  # nothing more is sent: the client is gone
            os.kill(child, signal.SIGTERM)
            os._exit(1)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            connection.sendall(bytes([code if code >= 0 else 128 - code]))
            os._exit(0)


def _become(request: dict) -> None:
    """Run the command of a request in this process, and end it."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = request["python"]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)
    status = _run(request["arguments"])
    for step in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
        try:
            step()
        except (OSError, RuntimeError):
            traceback.print_exc()
    os._exit(status & 255)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """The request, after its length in eight bytes, and the three streams that came with them."""
    first, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(3 * 4))
    streams = array.array("i")
    for _, _, data in ancillary:
        streams.frombytes(data)
    content, length = b"", int.from_bytes(first, "big")
    while len(content) < length:
        content += connection.recv(length - len(content))
    return content, list(streams)


def _run(arguments: list[str]) -> int:
    """What `python ARGUMENTS` does for a script, `-m MODULE` and `-c CODE`; returns the exit status."""
    while arguments and arguments[0] in ("-u", "-S", "-E", "-I"):
        arguments = arguments[1:]
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[0] = arguments[1:], os.getcwd()
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv, sys.path[0] = list(arguments), os.path.dirname(os.path.realpath(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # what ends a process, whatever it is, is printed as Python prints it
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
