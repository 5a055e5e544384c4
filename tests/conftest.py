"""The servers that tests share, and the check that a run leaves nothing running.

All workers of pytest-xdist use one broker, one PostgreSQL and one registry: the process that
starts the run owns their folder, the first test that asks starts the server in it (a lock makes it
one), and the owner stops them at the end, after Ctrl-C too. Names keep tests apart: each takes
``topic_prefix``.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.leftovers import MARK, end_left_over, left_over_processes
from tests.support.servers import FOLDER, Servers, is_worker, kafka_of_this_run
from tests.support.turns import in_turn

SERVERS: pytest.StashKey[Servers] = pytest.StashKey()


@pytest.fixture(scope="session")
def kafka() -> str:
    """Bootstrap servers of a real Kafka: this run's own, or what ``--kafka`` names."""
    return kafka_of_this_run()


@pytest.fixture(scope="session")
def registry_url() -> str:
    """A real schema registry, this run's own; subjects begin with a test's topic prefix."""
    from pipeline.embedded.registry import start_registry

    folder = Path(os.environ[FOLDER]) / "registry"
    return start_registry(folder, die_with_parent=not is_worker()).url


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> Iterator[str]:
    """Begins the names of a test's topics, groups and transactional ids; no other test has it."""
    prefix = f"t{uuid.uuid4().hex[:8]}."
    if "kafka" not in request.fixturenames:
        yield prefix
        return
    from tests.support.topics import delete_topics

    kafka: str = request.getfixturevalue("kafka")
    yield prefix
    # Every worker, audit and provisioning asks for all topics, and each partition costs the broker
    # memory and maps: what hundreds of tests have had would slow the rest, and end the broker.
    delete_topics(kafka, prefix)


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """SQLAlchemy URL of an empty PostgreSQL database of this worker's own."""
    from pipeline.embedded.postgres import new_database, start_postgres

    handle = start_postgres(Path(os.environ[FOLDER]) / "postgres", die_with_parent=not is_worker())
    return new_database(handle, f"t{uuid.uuid4().hex[:12]}")


@pytest.fixture
def own_postgres_url(postgres_url: str) -> str:
    """SQLAlchemy URL of an empty PostgreSQL database of this test's own."""
    from pipeline.embedded.postgres import new_database, start_postgres

    # Running already, by the fixture above: this finds it.
    handle = start_postgres(Path(os.environ[FOLDER]) / "postgres")
    return new_database(handle, f"t{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="session")
def new_books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a new ledger, for tests to copy: making its tables and guards takes longer than
    most of them."""
    from pipeline.ledger.database import open_ledger

    path = tmp_path_factory.mktemp("books") / "new.db"
    open_ledger(f"sqlite:///{path}").dispose()
    # All of it is in the file, and nothing in a log beside it.
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    return path


@pytest.fixture
def books_url(new_books: Path, tmp_path: Path) -> str:
    """SQLAlchemy URL of a new ledger of this test's own."""
    return f"sqlite:///{shutil.copy(new_books, tmp_path / 'ledger.db')}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kafka",
        default="embedded",
        metavar="embedded|docker|HOST:PORT",
        help="the broker tests run on: started here (default), from a container, or a running one",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # Hypothesis takes half a second to import, and one that only hands out tests needs none of it.
    if (
        is_worker()
        or not config.getoption("numprocesses", 0)
        or config.getoption("hypothesis_profile", None)
    ):
        from tests.support.examples import register_profiles

        register_profiles()
    # Whatever the shell says, what is compiled is kept, as in the Makefile: otherwise every process
    # that a test starts would compile the program, and pytest rewrite each of its modules, again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if is_worker():
        return
    os.environ[MARK] = uuid.uuid4().hex
    # What `timeout` and CI runners send: by default Python would end without any clean-up.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.stash[SERVERS] = servers = Servers()
    if config.option.basetemp is None:
        # Of this run alone and removed with it; pytest's own would stay, and runs would share it.
        config.option.basetemp = str(servers.folder / "tests")
    try:
        servers.use_kafka(config.getoption("--kafka"))
    except BaseException:
        servers.stop()
        raise


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Thousands of tests are made and none goes away: the collector looks at them no more."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: one that began last would be waited for alone."""
    items[:] = in_turn(items)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    servers = session.config.stash.get(SERVERS, None)
    if servers is None:
        return
    servers.stop()
    found = left_over_processes(os.environ[MARK], grace_s=5.0)
    if not found:
        return
    end_left_over(found)
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
    listed = "\n".join(f"  {process.pid}: {process.command}" for process in found)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line("")
        reporter.write_line(
            f"FAILED: processes outlived the test run and were killed:\n{listed}", red=True
        )


def pytest_unconfigure(config: pytest.Config) -> None:
    # Only when the session never ran (a usage error): otherwise the folder is gone already.
    servers = config.stash.get(SERVERS, None)
    if servers is not None and servers.folder.exists():
        servers.stop()
