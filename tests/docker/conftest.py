"""An engine, an image and a place for tests in containers; where that cannot be had, the tests are skipped.

A running engine is used as it is. Otherwise root starts one of its own, in network and mount namespaces of its own, so
that neither bridges nor firewall rules nor mounts are left, and ends it. The base image is pulled, or made with
debootstrap; it and the wheels are kept in the user's cache folder for the next time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedlearn-tests"
DEBIAN = {(3, 11): "bookworm", (3, 13): "trixie"}    # the releases with these versions of Python
PARTS = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", ".dockerignore", "fedlearn", "configs", "docker",
         "launch")


@dataclass(frozen=True)
class Engine:
    """A Docker engine: the client's name, and the environment in which it and Compose find the engine."""

    docker: str
    environ: Mapping[str, str]

    def __call__(self, *args: str, check: bool = True, timeout: float = 300) -> str:
        """Call the client and return what it says."""
        said = subprocess.run([self.docker, *args], env=self.environ, capture_output=True, text=True, timeout=timeout)
        assert said.returncode == 0 or not check, f"docker {' '.join(args)}: {said.stderr}"
        return said.stdout.strip()

    def left(self, project: str) -> list[str]:
        """Return the containers, networks and volumes of a project."""
        label = f"label=com.docker.compose.project={project}"
        return [f"{kind} {name}" for kind, extra in (("container", ["-a"]), ("network", []), ("volume", []))
                for name in self(kind, "ls", *extra, "-q", "--filter", label).split()]


def clients() -> Iterator[str]:
    """Yield clients that can build with BuildKit: it is inside those up to 22, and a plugin of the later ones."""
    for name in [*filter(None, [shutil.which("docker")]), "/usr/bin/docker"]:
        try:
            version = subprocess.run([name, "--version"], capture_output=True, text=True).stdout.split()
            plugin = subprocess.run([name, "buildx", "version"], capture_output=True).returncode == 0
        except OSError:
            continue
        if plugin or int(version[2].split(".")[0]) < 23:
            yield name


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A running engine, or one of our own."""
    docker = next(clients(), None)
    if docker is None:
        pytest.skip("no Docker client that can build (Debian: apt-get install docker.io)")
    compose = subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0
    if not compose and shutil.which("docker-compose") is None:
        pytest.skip("neither docker compose nor docker-compose is installed (Debian: apt-get install docker-compose)")
    environ = os.environ | {"DOCKER": docker, "DOCKER_BUILDKIT": "1"}
    if subprocess.run([docker, "info"], capture_output=True, env=environ).returncode == 0:
        yield Engine(docker, environ)
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("no Docker engine is running, and none can be started (that takes root, and dockerd)")
    folder = Path(tempfile.mkdtemp(prefix="fedlearn-", dir="/tmp"))    # short, for the sockets in it
    environ["DOCKER_HOST"] = f"unix://{folder / 'sock'}"
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", 'ip link set lo up && exec dockerd --bridge=none "$@"', "sh",
             "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"), "--pidfile",
             str(folder / "pid"), "--host", environ["DOCKER_HOST"]],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run([docker, "info"], capture_output=True, env=environ).returncode != 0:
            if daemon.poll() is not None or time.monotonic() > deadline:
                last = (folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
                pytest.skip(f"dockerd does not start here: {' '.join(last)[-300:]}")
            time.sleep(0.3)
        yield Engine(docker, environ)
    finally:
        daemon.terminate()      # it ends its containers and containerd
        try:
            daemon.wait(60)
        except subprocess.TimeoutExpired:
            daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def image(engine: Engine) -> Iterator[str]:
    """fedlearn's image of the present tree, built without network, in an engine."""
    with ThreadPoolExecutor(1) as aside:    # the first time each of them takes a minute or more
        waiting = aside.submit(wheelhouse)
        base = base_image(engine)
    wheels = waiting.result()
    name = f"fedlearn-test-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="fedlearn-") as folder:
        context = Path(folder)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, context / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, context / part)
        (context / "wheelhouse").mkdir()
        for wheel in wheels.iterdir():
            try:
                os.link(wheel, context / "wheelhouse" / wheel.name)
            except OSError:     # another file system
                shutil.copy(wheel, context / "wheelhouse" / wheel.name)
        built = subprocess.run([str(context / "launch/compose.sh"), "build", "--network", "none", "--quiet"], text=True,
                               env=engine.environ | {"BASE_IMAGE": base, "FEDLEARN_IMAGE": name}, capture_output=True)
        assert built.returncode == 0, built.stderr[-3000:]
    yield name
    engine("image", "rm", "--force", name, check=False)


def base_image(engine: Engine) -> str:
    """Return a base image: the engine's own, pulled, or made."""
    official = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
    if engine("image", "ls", "-q", official):
        return official
    if "DOCKER_HOST" not in engine.environ or not engine.environ["DOCKER_HOST"].startswith("unix:///tmp/fedlearn-"):
        try:
            engine("pull", "--quiet", official, timeout=120)
            return official
        except (AssertionError, subprocess.TimeoutExpired):
            pass    # no registry
    suite = DEBIAN.get(sys.version_info[:2])
    if suite is None or shutil.which("debootstrap") is None or os.geteuid() != 0:
        pytest.skip("no image registry, and no base image can be made (that takes root, debootstrap, and a Debian with "
                    "this version of Python)")
    ours = f"fedlearn-base:{suite}"
    if engine("image", "ls", "-q", ours):
        return ours
    archive = CACHE / f"base-{suite}.tar"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fedlearn-") as folder:
            include = "--include=python3,python3-venv,ca-certificates"
            made = subprocess.run(["debootstrap", "--variant=minbase", include, suite, folder], capture_output=True,
                                  text=True, timeout=600)
            if made.returncode != 0:
                pytest.skip(f"debootstrap could not make a base image: {made.stdout.strip()[-300:]}")
            shutil.rmtree(Path(folder, "var/cache/apt/archives"), ignore_errors=True)
            part = archive.with_suffix(f".{os.getpid()}")
            subprocess.run(["tar", "-C", folder, "-cf", str(part), "."], check=True)
            part.rename(archive)
    engine("import", str(archive), ours)
    return ours


def wheelhouse() -> Path:
    """Return a folder with all that the image needs, as wheels."""
    needs = subprocess.run([sys.executable, "docker/requirements.py"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout
    known = hashlib.sha256((needs + (ROOT / "constraints.txt").read_text()).encode()).hexdigest()[:12]
    folder = CACHE / f"wheels-{sys.version_info.major}.{sys.version_info.minor}-{known}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix="wheels-", dir=CACHE))
        got = subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "-w", str(part), "-c", "constraints.txt",
                              *needs.split(), "hatchling"], cwd=ROOT, capture_output=True, text=True)
        if got.returncode != 0:
            shutil.rmtree(part)
            pytest.skip(f"no wheels: {got.stderr.strip()[-300:]}")
        part.rename(folder)
    return folder


class Project:
    """A Compose project of a test: compose.sh, called as a user would, and a look into its containers."""

    def __init__(self, engine: Engine, image: str, kind: str, folder: Path) -> None:
        self.engine, self.kind, self.folder = engine, kind, folder
        self.name = f"fedlearn-test-{kind}-{os.getpid()}"
        self.environ = engine.environ | {
            "FEDLEARN_IMAGE": image, "COMPOSE_PROJECT_NAME": self.name, "FEDLEARN_TOKEN": str(folder / "secret/token")}
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, verb: str, *args: str) -> None:
        """Call compose.sh; what it says is what ``said`` returns."""
        with (self.folder / "said").open("wb") as file:
            self.running.append(subprocess.Popen([str(ROOT / "launch/compose.sh"), verb, self.kind, *args],
                                                 env=self.environ, stdout=file, stderr=subprocess.STDOUT))

    def said(self) -> str:
        """Return what compose.sh has said so far."""
        return (self.folder / "said").read_text(errors="replace")

    def finish(self, timeout: float = 400) -> str:
        """Wait for the end of compose.sh, and return what it said."""
        assert self.running[-1].wait(timeout) == 0, self.said()[-5000:]
        return self.said()

    def containers(self, service: str) -> Sequence[str]:
        """Return the ids of a service's containers, in the order of their numbers."""
        labels = [f"label=com.docker.compose.project={self.name}", f"label=com.docker.compose.service={service}"]
        made = self.engine("ps", "-a", "--format", '{{.Label "com.docker.compose.container-number"}} {{.ID}}',
                           *(word for label in labels for word in ("--filter", label))).splitlines()
        return [line.split()[1] for line in sorted(made, key=lambda line: int(line.split()[0]))]

    def ask(self, service: str, command: str) -> str:
        """Return what a shell command says in the first container of a service, or nothing where that is not there."""
        found = self.containers(service)
        return self.engine("exec", found[0], "sh", "-c", command, check=False) if found else ""

    def until(self, found: Callable[[], bool], what: str, timeout: float = 200) -> None:
        """Wait until something is found; compose.sh may end meanwhile, but not fail."""
        deadline = time.monotonic() + timeout
        while not found():
            assert self.running[-1].poll() in (None, 0), self.said()[-5000:]
            assert time.monotonic() < deadline, f"no {what} within {timeout:g} s: {self.said()[-5000:]}"
            time.sleep(0.5)

    def down(self) -> list[str]:
        """Take everything down, and return what is left."""
        mine = self.engine("ps", "-aq", "--filter", f"label=com.docker.compose.project={self.name}").split()
        mounted = "{{range .Mounts}}{{.Name}} {{end}}"      # volumes without a name of ours, too
        volumes = set(self.engine("inspect", "-f", mounted, *mine).split() if mine else [])
        for process in self.running:
            process.terminate()
            process.wait(60)
        subprocess.run([str(ROOT / "launch/compose.sh"), "down", self.kind, "--volumes"], env=self.environ, timeout=120,
                       capture_output=True)
        left = volumes & set(self.engine("volume", "ls", "-q").split())
        return self.engine.left(self.name) + [f"volume {name}" for name in sorted(left)]


@pytest.fixture
def project(request: pytest.FixtureRequest, engine: Engine, image: str, tmp_path: Path) -> Iterator[Project]:
    """A project of the kind that the test is parametrised with; nothing may be left of it."""
    project = Project(engine, image, request.param, tmp_path)
    try:
        yield project
    finally:
        left = project.down()
    assert not left, f"compose.sh down left {left}"
