"""The TPU scripts, run against a stub of gcloud that runs their commands on stand-in hosts.

A host is a folder that is $HOME of what it runs, with a clone of a small repository and stubs for
the tools that need root or a network. What cannot be tested so: gcloud itself, and gcsfuse.
"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "experiments" / "tpu"

GCLOUD = """#!{python}
import json, os, pathlib, subprocess, sys
root = pathlib.Path(os.environ["STUB"])
with open(root / "gcloud.jsonl", "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
verb = sys.argv[4]
if verb == "describe":
    states = json.loads((root / "states.json").read_text())
    print(states.pop(0))
    (root / "states.json").write_text(json.dumps(states))
if verb == "ssh":
    (command,) = [a.partition("=")[2] for a in sys.argv if a.startswith("--command=")]
    hosts = sorted((root / sys.argv[5]).iterdir())
    codes = []
    for home in hosts:
        environment = dict(os.environ, HOME=str(home))
        codes.append(subprocess.run(["bash", "-c", command], cwd=home, env=environment).returncode)
    sys.exit(max(codes))
"""
LOG = """#!{python}
import json, os, pathlib, sys
with open(pathlib.Path(os.environ["HOME"]) / "{log}", "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
sys.exit({code})
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("{python}", sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def log(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Cloud:
    """Stubs on the PATH, and hosts that look installed."""

    def __init__(self, root: Path, slices: int = 1, hosts: int = 2):
        self.root = root
        self.names = ["tpu"] if slices == 1 else [f"tpu-{k}" for k in range(slices)]
        self.hosts = [root / name / f"host{k}" for name in self.names for k in range(hosts)]
        write(root / "bin" / "gcloud", GCLOUD)
        write(root / "bin" / "sleep", "#!/bin/sh\nexit 0\n")
        for host in self.hosts:
            host.mkdir(parents=True)
        self.environment = {
            "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
            "STUB": str(root),
            "PROJECT": "some-project",
            "ZONE": "some-zone",
            "TPU_NAME": "tpu",
            "SLICES": str(slices),
            "MOUNT": "/mnt/a bucket",
        }

    def stub(self, name: str, code: int = 0) -> None:
        """A tool on the hosts that writes its arguments down."""
        write(
            self.root / "bin" / name,
            LOG.replace("{log}", "tools.jsonl").format_map({"python": "{python}", "code": code}),
        )

    def install(self) -> None:
        """What setup.sh leaves behind, with a Python that writes down how it is started."""
        for host in self.hosts:
            scripts = host / "fiberjax" / "experiments" / "tpu"
            scripts.mkdir(parents=True)
            (scripts / "host.sh").write_text((SCRIPTS / "host.sh").read_text())
            write(
                host / "fiberjax" / ".venv" / "bin" / "python",
                LOG.replace("{log}", "train.jsonl").replace("{code}", "0"),
            )

    def run(self, script: str, *arguments: str, **environment: str):
        return subprocess.run(
            ["bash", str(SCRIPTS / script), *arguments],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def calls(self) -> list[list[str]]:
        return log(self.root / "gcloud.jsonl")


@pytest.mark.parametrize("slices", [1, 2])
def test_training_starts_on_every_host_of_every_slice(tmp_path, slices):
    cloud = Cloud(tmp_path, slices)
    cloud.install()
    done = cloud.run("train.sh", "configs/quickstart.py", "first-run")
    assert done.returncode == 0, done.stderr
    assert sorted(call[4] for call in cloud.calls) == cloud.names
    for host in cloud.hosts:
        assert log(host / "train.jsonl") == [
            [
                "python",
                "experiments/train.py",
                "--distributed=on",
                "--config=configs/quickstart.py",
                "--workdir=/mnt/a bucket/runs/first-run",
                f"--config.tasks.data_dir={host}/data",
                "--config.warm_start.directory=/mnt/a bucket/warm_starts",
            ]
        ]


def test_flags_arrive_as_they_were_written(tmp_path):
    cloud = Cloud(tmp_path)
    cloud.install()
    flags = ["--config.mesh.data=4", "--config.tasks.file=a b; $HOME 'c'.jsonl"]
    assert cloud.run("train.sh", "configs/quickstart.py:gspo", "r", *flags).returncode == 0
    for host in cloud.hosts:
        (call,) = log(host / "train.jsonl")
        assert call[3] == "--config=configs/quickstart.py:gspo"
        assert call[-2:] == flags


def test_a_host_that_fails_fails_the_script(tmp_path):
    cloud = Cloud(tmp_path, slices=2)
    cloud.install()
    write(cloud.hosts[0] / "fiberjax" / ".venv" / "bin" / "python", "#!/bin/sh\nexit 3\n")
    assert cloud.run("train.sh", "configs/quickstart.py", "r").returncode == 1
    # The others were started all the same.
    assert log(cloud.hosts[-1] / "train.jsonl")


@pytest.mark.parametrize("deaf", [False, True])
def test_a_run_that_is_left_over_ends_first(tmp_path, deaf):
    """Also one that does not end when asked; a process that only has its number is left alone."""
    cloud = Cloud(tmp_path)
    cloud.install()
    (tmp_path / "bin" / "sleep").unlink()
    idle = "import signal, time; time.sleep(60)"
    if deaf:
        idle = idle.replace(";", "; signal.signal(signal.SIGTERM, signal.SIG_IGN);")
    left = subprocess.Popen([sys.executable, "-c", idle, "experiments/train.py"])
    other = subprocess.Popen([sys.executable, "-c", idle])
    try:
        for host, process in zip(cloud.hosts, (left, other), strict=True):
            (host / ".fiberjax.pid").write_text(f"{process.pid}\n")
        time.sleep(0.5)
        with subprocess.Popen(
            ["bash", str(SCRIPTS / "train.sh"), "configs/quickstart.py", "r"],
            env=cloud.environment | {"GRACE_SECONDS": "2"},
            stderr=subprocess.PIPE,
            text=True,
        ) as started:
            # By a signal; only once it is waited for can the script see it gone.
            assert left.wait(timeout=30) == -(signal.SIGKILL if deaf else signal.SIGTERM)
            assert started.wait(timeout=30) == 0
        assert other.poll() is None
        for host, process in zip(cloud.hosts, (left, other), strict=True):
            assert log(host / "train.jsonl")
            assert (host / ".fiberjax.pid").read_text() != f"{process.pid}\n"
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


def test_names_are_asked_for(tmp_path):
    done = Cloud(tmp_path).run("train.sh", "configs/quickstart.py")
    assert done.returncode != 0
    assert "usage: train.sh CONFIG RUN_NAME" in done.stderr


@pytest.mark.parametrize(
    ("slices", "spot", "expected"),
    [
        (1, "0", ["--node-id=tpu"]),
        (4, "1", ["--node-count=4", "--node-prefix=tpu", "--spot"]),
    ],
)
def test_create_waits_until_the_slice_is_there(tmp_path, slices, spot, expected):
    cloud = Cloud(tmp_path, slices)
    (tmp_path / "states.json").write_text(json.dumps(["PROVISIONING", "ACTIVE", "never asked"]))
    done = cloud.run("create.sh", SPOT=spot, ACCELERATOR="v6e-64")
    assert done.returncode == 0, done.stderr
    create, *describe = cloud.calls
    assert create[:5] == ["compute", "tpus", "queued-resources", "create", "tpu"]
    assert {"--project=some-project", "--zone=some-zone", "--accelerator-type=v6e-64"} < set(create)
    assert create[-len(expected) :] == expected
    assert len(describe) == 2


def test_create_fails_where_the_request_does(tmp_path):
    cloud = Cloud(tmp_path)
    (tmp_path / "states.json").write_text(json.dumps(["ACCEPTED", "FAILED"]))
    assert cloud.run("create.sh").returncode == 1


def test_delete_gives_everything_back(tmp_path):
    cloud = Cloud(tmp_path)
    assert cloud.run("delete.sh").returncode == 0
    (call,) = cloud.calls
    assert call[3:5] == ["delete", "tpu"]
    assert "--force" in call


def git(*arguments: str, cwd: Path) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_setup_installs_a_branch_and_again_what_it_became(tmp_path):
    cloud = Cloud(tmp_path)
    for tool in ("gcsfuse", "sudo", "curl"):
        cloud.stub(tool)
    cloud.stub("mountpoint", code=1)
    source = tmp_path / "source"
    source.mkdir()
    git("init", "-q", "-b", "main", cwd=source)
    for host in cloud.hosts:
        uv = LOG.replace("{log}", "tools.jsonl").replace("{code}", "0")
        write(host / ".local" / "bin" / "uv", uv)
    for message in ("first", "second"):
        git("commit", "-q", "--allow-empty", "-m", message, cwd=source)
        done = cloud.run("setup.sh", REPOSITORY=str(source), REVISION="main")
        assert done.returncode == 0, done.stderr
        for host in cloud.hosts:
            there = git("log", "-1", "--format=%s", cwd=host / "fiberjax")
            assert there == message
            tools = log(host / "tools.jsonl")
            assert tools[-1] == ["uv", "sync", "--locked", "--extra", "tpu", "--extra", "hf"]
            assert ["gcsfuse", "--implicit-dirs", "my-bucket", "/mnt/a bucket"] in tools
    done = cloud.run("setup.sh", REPOSITORY=str(source), REVISION="no-such-branch")
    assert done.returncode == 1


def test_no_value_is_read_as_a_command(tmp_path):
    cloud = Cloud(tmp_path)
    for tool in ("gcsfuse", "sudo", "git"):
        cloud.stub(tool)
    cloud.stub("mountpoint", code=1)
    for host in cloud.hosts:
        (host / "fiberjax").mkdir()
        uv = LOG.replace("{log}", "tools.jsonl").replace("{code}", "0")
        write(host / ".local" / "bin" / "uv", uv)
    values = {
        "MOUNT": "/mnt/it's; touch one",
        "BUCKET": 'a"b$(touch two)',
        "REPOSITORY": "--upload-pack=touch three",
        "REVISION": "v1' `touch four`\n'",
    }
    done = cloud.run("setup.sh", **values)
    assert done.returncode == 0, done.stderr
    for host in cloud.hosts:
        tools = log(host / "tools.jsonl")
        assert ["gcsfuse", "--implicit-dirs", values["BUCKET"], values["MOUNT"]] in tools
        assert ["git", "checkout", "-q", "--detach", f"origin/{values['REVISION']}"] in tools
        assert sorted(path.name for path in host.rglob("*")) == [
            *(".local", "bin", "fiberjax", "tools.jsonl", "uv"),
        ]


def test_of_the_keys_that_are_fetched_one_is_trusted(tmp_path):
    """By stubs: the fingerprint is asked for, and without it nothing is installed."""
    for code, told in (("#!/bin/sh\nexit 0\n", "do not hold GOOGLE_KEY=some-key"), (None, "")):
        root = tmp_path / (told[:2] or "found")
        cloud = Cloud(root, hosts=1)
        for tool in ("sudo", "curl", "mountpoint", "git", "lsb_release"):
            cloud.stub(tool)
        asked = '#!/bin/sh\ncase "$*" in *"--export some-key") echo key;; esac\n'
        write(root / "bin" / "gpg", code or asked)
        (cloud.hosts[0] / "fiberjax").mkdir()
        write(cloud.hosts[0] / ".local" / "bin" / "uv", "#!/bin/sh\n")
        done = cloud.run("setup.sh", REPOSITORY="some", GOOGLE_KEY="some-key")
        tools = log(cloud.hosts[0] / "tools.jsonl")
        assert (done.returncode != 0) == bool(told) and told in done.stderr, done.stderr
        installed = ["sudo", "apt-get", "install", "-q", "-y", "gcsfuse"] in tools
        assert installed == (not told)


def test_what_installs_is_of_one_version_and_known_content():
    pinned = (SCRIPTS / "uv.txt").read_text()
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", pinned)) == 2
    assert re.search(r"^uv==\d+\.\d+\.\d+ ", pinned, re.MULTILINE)
    for script in SCRIPTS.glob("*.sh"):
        assert not re.search(r"curl[^|]*\|\s*(sudo )?(ba)?sh", script.read_text()), script


def test_shellcheck_finds_nothing():
    checker = Path(sys.executable).with_name("shellcheck")
    scripts = [*sorted(SCRIPTS.glob("*.sh")), SCRIPTS.parents[1] / ".ci" / "run"]
    done = subprocess.run(
        [checker, "-x", "-P", "SCRIPTDIR", *scripts], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("address", ["", "https://example.org/some/repository"])
def test_setup_clones_the_address_of_the_project_or_asks_for_one(tmp_path, address):
    cloud = Cloud(tmp_path)
    scripts = tmp_path / "clone" / "experiments" / "tpu"
    shutil.copytree(SCRIPTS, scripts)
    pyproject = f'[tool.fiberjax]\nrepository = "{address}"\n'
    (tmp_path / "clone" / "pyproject.toml").write_text(pyproject)
    for tool in ("gcsfuse", "sudo", "curl", "mountpoint", "git"):
        cloud.stub(tool)
    for host in cloud.hosts:
        uv = LOG.replace("{log}", "tools.jsonl").replace("{code}", "0")
        write(host / ".local" / "bin" / "uv", uv)
    done = cloud.run(str(scripts / "setup.sh"))
    if address:
        for host in cloud.hosts:
            assert ["git", "clone", "-q", "--", address, "fiberjax"] in log(host / "tools.jsonl")
    else:
        assert done.returncode == 1 and cloud.calls == []
        assert done.stderr == (
            "REPOSITORY is not set: the address of the repository that every host clones\n"
        )
