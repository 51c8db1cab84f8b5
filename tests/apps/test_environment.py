"""A record names the commit that it was measured at."""

import subprocess

from apps import environment


def git(folder, *arguments):
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    subprocess.run(
        ["git", *identity, *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def test_a_commit_whose_files_were_changed_is_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    results = tmp_path / "tools" / "results"
    results.mkdir(parents=True)
    for path in (tmp_path / "code.py", results / "run.json"):
        path.write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")

    commit = environment.environment([])["commit"]
    assert len(commit) == 40
    (results / "run.json").write_text("2")
    assert environment.environment([])["commit"] == commit
    (tmp_path / "code.py").write_text("2")
    assert environment.environment([])["commit"] == f"{commit}-dirty"
