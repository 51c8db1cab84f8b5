"""A record names the commit and the machine that it was measured at."""

import subprocess

import pytest

from apps import environment, training
from keras_prunetrain.devices import device_kind


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


def cpu_info(model, flags):
    return (
        f"processor\t: 0\nmodel name\t: {model}\nflags\t\t: fpu {flags}\n\n"
        f"processor\t: 1\nmodel name\t: {model}\nflags\t\t: fpu {flags}\n"
    )


def test_a_record_names_the_processor_and_its_instructions(
    tmp_path, monkeypatch
):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(environment, "_CPU_INFO", path)
    path.write_text(cpu_info("Fast: 3000", "avx2 avx512f amx_bf16 avx512_bf16"))
    machine = environment.environment([])["machine"]
    assert machine["cpu"] == "Fast: 3000"
    assert machine["instructions"] == [
        *("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    ]
    path.unlink()  # Other systems than Linux have no such file.
    machine = environment.environment([])["machine"]
    assert machine["cpu"] and machine["instructions"] == []


@pytest.mark.skipif(device_kind() != "cpu", reason="Not on a CPU.")
@pytest.mark.parametrize(
    ("flags", "policy", "emulated"),
    [
        ("avx2", "mixed_bfloat16", True),
        ("avx2", "mixed_float16", True),
        ("avx2", "float32", False),
        ("avx2 avx512f", "mixed_bfloat16", False),
        (None, "mixed_bfloat16", False),
    ],
)
def test_16_bits_are_emulated_without_avx512(
    tmp_path, monkeypatch, flags, policy, emulated
):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(environment, "_CPU_INFO", path)
    if flags is not None:
        path.write_text(cpu_info("A", flags))
    assert training.is_emulated(policy) is emulated
