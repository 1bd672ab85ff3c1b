"""Repositories whose files come, go and are not what somebody took them for, while a server watches."""

import os
import shutil
import subprocess

import requests
from harness import XGBOOST
from test_drain import eventually

SERVE = ["--http-port", "{http}", "--grpc-port", "{grpc}"]
POLL = ["--model-control-mode", "poll", "--repository-poll-secs", "1"]


def logged(server, *words):
    """Lines of the log that have all of them."""
    return [line for line in server.log.read_text(errors="replace").splitlines() if all(word in line for word in words)]


def index(server):
    """State and reason of each model."""
    entries = requests.post(f"{server.url}/v2/repository/index", timeout=10).json()
    return {each["name"]: (each.get("state", ""), each.get("reason", "")) for each in entries}


def answers(server, name, example):
    return requests.post(f"{server.url}/v2/models/{name}/infer", json=example.request, timeout=10).status_code == 200


def test_one_model_whose_file_is_missing_serves_on(start, tmp_path, iris):
    """With its version's directory left, which a repository would have for a model."""
    shutil.copytree(iris.directory / "1", tmp_path / "one" / "1")
    file = tmp_path / "one" / "1" / iris.model_file.name
    server = start("serve", "--model-dir", tmp_path / "one", "--model-name", "x", *SERVE, *POLL)
    file.rename(tmp_path / "aside")
    eventually(lambda: index(server)["x"][1], "a reason", server)
    assert list(index(server)) == ["x"] and index(server)["x"][0] == "READY"
    assert answers(server, "x", iris)
    (tmp_path / "aside").rename(file)
    eventually(lambda: index(server) == {"x": ("READY", "")}, "as before", server)
    assert not logged(server, "gone from the repository")


def test_names_that_two_repositories_have_are_watched(start, tmp_path, iris):
    for name in ("one", "other"):
        shutil.copytree(iris.directory, tmp_path / name / "m")
    roots = ["--model-repository", tmp_path / "one", "--model-repository", tmp_path / "other"]
    server = start("serve", *roots, *SERVE, *POLL, ready=False)
    eventually(lambda: logged(server, "no model serves"), "logged", server)
    shutil.rmtree(tmp_path / "other" / "m")
    eventually(lambda: index(server)["m"] == ("READY", ""), "ready", server)
    shutil.copytree(iris.directory, tmp_path / "other" / "m")
    eventually(lambda: "not unique" in index(server)["m"][1], "told", server)
    assert index(server)["m"][0] == "READY" and answers(server, "m", iris)


def test_what_is_passed_over_is_told_once_whenever_it_comes(start, own_repository, tmp_path, iris):
    server = start("serve", "--model-repository", own_repository, *SERVE, *POLL)
    shutil.copytree(iris.directory, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", own_repository / "linked")
    (own_repository / "iris" / "01").mkdir()
    eventually(lambda: logged(server, "linked", "symbolic link"), "logged", server)
    eventually(lambda: logged(server, "'01' is no version"), "logged", server)
    shutil.copytree(iris.directory, own_repository / "late")
    eventually(lambda: index(server).get("late") == ("READY", ""), "loaded", server)
    assert len(logged(server, "linked", "symbolic link")) == 1
    assert len(logged(server, "'01' is no version")) == 1
    assert len(logged(server, "model ready")) == len(XGBOOST) + 1, "nothing was loaded again for it"


def test_a_link_says_so_when_it_is_loaded(own_server, own_repository, tmp_path, iris):
    shutil.copytree(iris.directory, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", own_repository / "linked")
    reply = requests.post(f"{own_server.url}/v2/repository/models/linked/load", json={}, timeout=10)
    assert reply.status_code == 503 and "symbolic link" in reply.text, reply.text
    assert str(own_repository) not in reply.text


def test_a_load_without_the_repository_says_that_it_is_not_there(own_server, own_repository, tmp_path, iris):
    own_repository.rename(tmp_path / "elsewhere")
    reply = requests.post(f"{own_server.url}/v2/repository/models/iris/load", json={}, timeout=10)
    assert reply.status_code == 503 and "the model repository is not there" in reply.text, reply.text
    assert str(own_repository) not in reply.text
    assert answers(own_server, "iris", iris)
    assert index(own_server)["iris"] == ("READY", "the model repository is not there")
    eventually(lambda: logged(own_server, "not there", str(own_repository)), "logged", own_server)


def test_a_repository_that_is_a_model_says_how_to_serve_it(start, binary, tmp_path, iris):
    shutil.copytree(iris.directory / "1", tmp_path / "one")
    server = start(tmp_path / "one", *SERVE)
    eventually(lambda: logged(server, "no model serves", str(tmp_path / "one")), "logged", server)
    assert logged(server, "WARN", f"--model-dir {tmp_path / 'one'}")
    assert subprocess.run([binary, "validate", tmp_path / "one"], capture_output=True, check=False).returncode == 0
