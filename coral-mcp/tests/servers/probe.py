"""An MCP server over stdio with one tool, `try`, that tries to get out of its sandbox."""

import ctypes
import json
import mmap
import os
import socket
import subprocess
import sys
import time


def read(path):
    with open(path, "rb") as file:
        return file.read(4096).decode(errors="replace")


def write(path):
    with open(path, "w") as file:
        file.write("pwned")
    return "written"


def connect(target):
    host, port = target.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=2) as sock:
        sock.sendall(b"secret")
    return "sent"


def datagram(target):
    host, port = target.rsplit(":", 1)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.sendto(b"secret", (host, int(port)))
    return "sent"


def unix(path):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    return "connected"


def abstract(name):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect("\0" + name)
    return "connected"


def processes(_):
    return " ".join(sorted(entry for entry in os.listdir("/proc") if entry.isdigit()))


def fork_bomb(_):
    """Forks until it can't, and then counts; every child waits to be ended."""
    count = 0
    try:
        while count < 5000:
            if os.fork() == 0:
                time.sleep(600)
                os._exit(0)
            count += 1
    except OSError as error:
        return f"stopped at {count}: {error.strerror}"
    return f"{count} children"


def memory(_):
    hoard = []
    while len(hoard) < 64:
        block = mmap.mmap(-1, 1 << 28, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        hoard.append(block)
    return f"{len(hoard)} blocks"


def fill(path):
    """Writes until there is no room."""
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while written < 2048:
                file.write(b"x" * (1 << 20))
                written += 1
    except OSError as error:
        return f"stopped at {written} MiB: {error.strerror}"
    return f"{written} MiB"


def shared(_):
    """Takes memory in ways that no limit of a process counts, and tells by which it came to some."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = 1 << 26

    def anonymous():
        mmap.mmap(-1, size)

    def file_in_memory():
        os.ftruncate(os.memfd_create("hoard"), size)

    def segment():
        if libc.shmget(0, ctypes.c_size_t(size), 0o1600) < 0:
            raise OSError(ctypes.get_errno(), "")

    def zeroes():
        mmap.mmap(os.open("/dev/zero", os.O_RDWR), size)

    had = []
    for way in (anonymous, file_in_memory, segment, zeroes):
        try:
            way()
            had.append(way.__name__)
        except OSError:
            pass
    return f"had: {had}"


def daemon(seconds):
    """A child in a session of its own, so that killing its group does not reach it, which unbinds
    itself and its parent from those who would end them."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, 0, 0, 0, 0)
    child = subprocess.Popen(["sleep", seconds], start_new_session=True, preexec_fn=lambda: libc.prctl(1, 0, 0, 0, 0), stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return str(child.pid)


def syscall(number):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(int(number), 0, 0, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "done"


def unshare(flags):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(int(flags)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "done"


def exists(path):
    return str(os.path.lexists(path))


def variable(name):
    return os.environ.get(name, "unset")


def tunnel(target):
    """Through the proxy that the environment names, to the target, and tells what is answered."""
    proxy = os.environ["HTTPS_PROXY"].rsplit("/", 1)[1]
    host, port = proxy.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        said = sock.recv(4096).decode()
        if " 200 " not in said.split("\r\n")[0]:
            raise OSError(said.rsplit("\r\n", 1)[1].strip())
        sock.sendall(b"secret")
        sock.shutdown(socket.SHUT_WR)
        return sock.recv(4096).decode()


def descriptors(_):
    return " ".join(sorted(os.listdir("/proc/self/fd"), key=int))


def chmod(path):
    os.chmod(path, 0o777)
    return "changed"


def kill(pid):
    os.kill(int(pid), 9)
    return "killed"


def identity(_):
    status = {line.split(":")[0]: line.split(":")[1].strip() for line in read("/proc/self/status").splitlines() if ":" in line}
    return json.dumps({key: status.get(key) for key in ("Uid", "CapEff", "CapPrm", "NoNewPrivs", "Seccomp")})


def link(target):
    os.symlink(target, "src/link")
    return read("src/link")


TRIES = {name: value for name, value in globals().items() if callable(value)}


def main():
    for line in sys.stdin:
        message = json.loads(line)
        method, request = message.get("method"), message.get("id")
        if method == "initialize":
            result = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "probe", "version": "1"},
            }
        elif method == "tools/list":
            schema = {"type": "object", "properties": {"what": {"type": "string"}, "with": {"type": "string"}}}
            result = {"tools": [{"name": "try", "description": "Tries.", "inputSchema": schema}]}
        elif method == "tools/call":
            arguments = message["params"]["arguments"]
            try:
                said, failed = TRIES[arguments["what"]](arguments.get("with")), False
            except (OSError, MemoryError) as error:
                said, failed = f"{type(error).__name__}: {error}", True
            result = {"content": [{"type": "text", "text": said}], "isError": failed}
        elif request is not None:
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request, "error": {"code": -32601, "message": "no"}}) + "\n")
            sys.stdout.flush()
            continue
        else:
            continue
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request, "result": result}) + "\n")
        sys.stdout.flush()


main()
