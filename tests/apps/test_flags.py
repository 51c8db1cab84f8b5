"""A flag that cannot be meant is named, with what is right, at once."""

import json
import math
import types

import keras
import pytest
from absl import flags

from apps import (
    command_line,
    networks,
    recipe_flags,
    train_cifar,
    train_imagenet,
)
from tests.apps.programs import parsed

SHARED = [
    ("epochs", ["0", "-1", "10001", "1e3", "nan", "9" * 5000, ""],
     "a whole number from 1 to 10,000"),
    ("batch_size", ["0", "-128", "1000001", "12.5", "inf"],
     "a whole number from 1 to 1,000,000"),
    ("seed", ["-1", "4294967296", "1.5", "x"],
     "a whole number from 0 to 4,294,967,295"),
    ("interval", ["0", "-1", "10001"], "a whole number from 1 to 10,000"),
    ("finetune_epochs", ["-1", "10001"], "a whole number from 0 to 10,000"),
    ("granularity", ["0", "-8", "1000001"],
     "a whole number from 1 to 1,000,000"),
    ("learning_rate", ["nan", "-1", "0", "inf", "1e4", "1e-50", "1e999", "x"],
     "a number from 1e-9 to 1000"),
    ("momentum", ["nan", "-0.1", "1", "2", "inf"],
     "a number of at least 0 and below 1"),
    ("weight_decay", ["nan", "-1e-4", "inf", "2"], "a number from 0 to 1"),
    ("penalty_ratio", ["nan", "0", "1", "-0.2", "inf"],
     "a number above 0 and below 1"),
    ("factor", ["nan", "-1", "0", "inf", "101"], "a number from 1e-12 to 100"),
    ("global_clipnorm", ["nan", "-1", "0", "inf"],
     "a number above 0 and at most 1e6"),
    ("iterations", ["0", "1.5", "101"], "a whole number from 1 to 100"),
    ("iteration_interval", ["-1", "1.5"], "a whole number from 0 to 10,000"),
    ("threshold", ["nan", "-1", "inf", "101", "1e-300"],
     "0, or a number from 1e-12 to 100"),
    ("sdgp_dense_last", ["nan", "-0.1", "1", "inf"],
     "a number of at least 0 and below 1"),
    ("target_flops", ["nan", "0", "-0.5", "1.01", "inf", "half"],
     "a number above 0 and at most 1"),
]  # fmt: skip
PROGRAMS = [train_cifar, train_imagenet]


def refusal(program, *arguments):
    with pytest.raises(flags.Error) as caught:
        parsed(program, *arguments)
    return str(caught.value)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda x: x.__name__)
@pytest.mark.parametrize(
    ("name", "value", "right"),
    [(name, value, right) for name, found, right in SHARED for value in found],
)
def test_a_number_out_of_its_range_is_refused(
    program, name, value, right, tmp_path
):
    folder = tmp_path / "run"
    message = refusal(program, f"--workdir={folder}", f"--{name}={value}")
    assert message == f"flag --{name}={value}: must be {right}."
    assert not folder.exists()


@pytest.mark.parametrize(
    ("program", "flag", "right"),
    [
        (train_cifar, "--width=0", "a whole number from 1 to 1,024"),
        (train_cifar, "--width=1025", "a whole number from 1 to 1,024"),
        (train_imagenet, "--image_size=31", "a whole number from 32 to 2,048"),
        (train_imagenet, "--image_size=9999",
         "a whole number from 32 to 2,048"),
    ],
)  # fmt: skip
def test_a_size_out_of_its_range_is_refused(program, flag, right, tmp_path):
    message = refusal(program, f"--workdir={tmp_path}", flag)
    assert message == f"flag {flag}: must be {right}."


@pytest.mark.parametrize(
    "value", ["", "2", "2:", "5:4", "0:4", "1:1", "2:17", "2:4:8", "9" * 5000]
)
def test_patterns_that_are_no_n_of_m_are_refused(value, tmp_path):
    message = refusal(train_cifar, f"--workdir={tmp_path}", f"--sdgp={value}")
    assert message == (
        f"flag --sdgp={value}: must be n:m, such as 2:4, with m from 2 to 16 "
        "and n from 1 to m."
    )


@pytest.mark.parametrize(
    "flag", ["--granularity=8", "--skip=stem", "--channel_multiple=auto"]
)
def test_single_weights_take_nothing_that_is_for_channels(flag, tmp_path):
    message = refusal(
        *(train_cifar, f"--workdir={tmp_path}", "--method=earlycrop"),
        *("--sparsity=0.9", flag),
    )
    assert message.endswith(
        "Leave out --granularity, --channel_multiple, --skip."
    )


@pytest.mark.parametrize("flag", ["--sdgp_mode=mvue", "--sdgp_dense_last=0.5"])
def test_settings_of_sdgp_need_a_pattern(flag, tmp_path):
    message = refusal(train_cifar, f"--workdir={tmp_path}", flag)
    assert message.endswith("need a pattern, such as --sdgp=2:4.")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda x: x.__name__)
@pytest.mark.parametrize(
    "drops",
    ["20,half", "-1", "1.5", "20,", "20,20", "9" * 5000, "1,2,3,4,5,6,7,8,9,"
     "10,11"],
)  # fmt: skip
def test_drops_that_are_no_epochs_are_refused(program, drops, tmp_path):
    message = refusal(
        program, f"--workdir={tmp_path}", f"--learning_rate_drops={drops}"
    )
    assert message.startswith("flag --learning_rate_drops=")
    assert message.endswith(
        ": must be at most 10 different epochs, such as 91,136."
    )


@pytest.mark.parametrize(
    ("epochs", "drops"), [(1, ()), (2, (1,)), (3, (1, 2)), (40, (20, 30))]
)
def test_a_short_run_begins_with_the_whole_rate(epochs, drops, tmp_path):
    _, values = parsed(
        train_cifar, f"--workdir={tmp_path}", f"--epochs={epochs}"
    )
    assert recipe_flags.recipe(values).learning_rate_drops == drops


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda x: x.__name__)
def test_the_ends_of_the_ranges_are_taken(program, tmp_path):
    _, values = parsed(
        program,
        *(f"--workdir={tmp_path}", "--epochs=10000", "--finetune_epochs=9999"),
        *("--seed=4294967295", "--momentum=0", "--weight_decay=0"),
        *("--learning_rate=1000", "--threshold=0", "--learning_rate_drops="),
    )
    recipe = recipe_flags.recipe(values)
    assert recipe.seed == 2**32 - 1
    assert recipe.learning_rate_drops == (5000, 7500)
    assert recipe.threshold == 0
    assert recipe.granularity is None
    assert not math.isnan(recipe.weight_decay)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda x: x.__name__)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--epochs=5", "--finetune_epochs=5"],
            "flags finetune_epochs=5, epochs=5: the epochs of fine-tuning must "
            "be fewer than all epochs.",
        ),
        (
            ["--network=resnet21"],
            "flag --network=resnet21: value should be one of <",
        ),
        (["--method=sparse"], "flag --method=sparse: value should be one of <"),
        (
            ["--method=narrow"],
            "flags method=narrow, target_flops=None, training_flops=None, "
            "sparsity=None: --method=narrow needs one target, such as "
            "--target_flops=0.5.",
        ),
        (
            ["--method=targetprune"],
            "flags method=targetprune, target_flops=None, training_flops=None, "
            "sparsity=None: --method=targetprune needs one target, such as "
            "--target_flops=0.5 or --training_flops=0.5.",
        ),
        (
            ["--method=narrow", "--training_flops=0.5"],
            "flags method=narrow, target_flops=None, training_flops=0.5, "
            "sparsity=None: --method=narrow takes no --training_flops. Leave "
            "it out, or choose --method=targetprune.",
        ),
        (
            ["--method=dense", "--training_flops=0.5"],
            "flags method=dense, target_flops=None, training_flops=0.5, "
            "sparsity=None: --method=dense takes no --training_flops.",
        ),
        (
            [
                "--method=targetprune",
                "--target_flops=0.5",
                "--training_flops=0.5",
            ],
            "flags method=targetprune, target_flops=0.5, training_flops=0.5, "
            "sparsity=None: --method=targetprune needs one target",
        ),
        (
            ["--method=targetprune", "--target_flops=1"],
            "flags method=targetprune, target_flops=1.0, training_flops=None, "
            "sparsity=None: a network that is pruned has a target below 1.",
        ),
        (["--warmup=1.5"], "flag --warmup=1.5: "),
        (["--decay=0"], "flag --decay=0"),
        (
            ["--method=targetprune", "--sparsity=0.5"],
            "flags method=targetprune, target_flops=None, training_flops=None, "
            "sparsity=0.5: --method=targetprune takes no --sparsity. Leave it "
            "out, or choose --method=earlycrop.",
        ),
        (
            ["--method=earlycrop", "--target_flops=0.5", "--score=taylor"],
            "flags method=earlycrop, score=taylor: --method=earlycrop takes "
            "one of gradient_flow, snip, grasp, synflow.",
        ),
        (
            ["--method=snip"],
            "flags method=snip, target_flops=None, training_flops=None, "
            "sparsity=None: --method=snip needs one target, such as "
            "--target_flops=0.5 or --sparsity=0.5.",
        ),
        (
            ["--method=snip", "--sparsity=0.5", "--when=3"],
            "flags method=snip, score=None, when=3: --method=snip says itself "
            "by which score and when it prunes. Leave --when out, or choose "
            "--method=earlycrop.",
        ),
        (
            ["--method=crop", "--sparsity=0.5", "--score=snip"],
            "flags method=crop, score=snip, when=None: --method=crop says "
            "itself by which score and when it prunes. Leave --score out, or "
            "choose --method=earlycrop.",
        ),
        (["--sparsity=1"], "flag --sparsity=1: "),
        (["--when=late"], "flag --when=late: must be lazy, paper_code, start"),
        (["--rounds=0"], "flag --rounds=0: "),
        (
            ["--channel_multiple=0"],
            "flag --channel_multiple=0: must be auto, or a whole number from 1",
        ),
        (["--channel_multiple=fast"], "flag --channel_multiple=fast: must be"),
        (["--score=tailor"], "flag --score=tailor: value should be one of <"),
        (
            ["--method=dense", "--target_flops=0.5"],
            "flags method=dense, target_flops=0.5, training_flops=None, "
            "sparsity=None: --method=dense takes no --target_flops. Leave it "
            "out, or choose --method=targetprune or --method=narrow or "
            "--method=earlycrop.",
        ),
        (
            ["--target_flops=0.5"],
            "flags method=prunetrain, target_flops=0.5, training_flops=None, "
            "sparsity=None: --method=prunetrain takes no --target_flops.",
        ),
        (["--dataset=mnist"], "flag --dataset=mnist: value should be one of <"),
        (["--epoch=5"], "Unknown command line flag 'epoch'."),
        (
            ["--data_dir="],
            "flag --data_dir=: must be a folder. Leave it out for the default.",
        ),
        (
            ["--dense="],
            "flag --dense=: must be the folder of a finished run.",
        ),
        (
            ["--dense=/none"],
            "flag --dense=/none: must be the folder of a finished run. No "
            "finished run in /none: expected /none/result.json (No such file "
            "or directory).",
        ),
        (
            ["--initial_run="],
            "flag --initial_run=: must be the folder of a finished run.",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(program, arguments, message, tmp_path):
    found = refusal(program, f"--workdir={tmp_path / 'run'}", *arguments)
    assert found.startswith(message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda x: x.__name__)
def test_a_run_without_a_folder_is_refused(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model.keras", "result.json"):
        (tmp_path / name).write_text("mine")
    assert refusal(program) == (
        "flag --workdir=None: Flag --workdir must have a value other than None."
    )
    assert refusal(program, "--workdir=") == (
        "flag --workdir=: must be a folder that may be written, such as "
        "runs/first."
    )
    assert refusal(program, "--workdir=gs://bucket/run") == (
        "flag --workdir=gs://bucket/run: must be a folder of this machine."
    )
    assert refusal(program, "--workdir=.") == (
        "flag --workdir=.: result.json was not written by a run of this "
        "program: there is no recipe.json of a run beside it. Move it away, or "
        "choose another --workdir."
    )
    assert (tmp_path / "model.keras").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/run", "link"])
def test_a_folder_that_cannot_be_made_is_refused(place, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    path = tmp_path / place
    assert refusal(train_cifar, f"--workdir={path}") == (
        f"flag --workdir={path}: must be a folder that may be written."
    )


def test_a_file_is_no_folder_of_data(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    message = refusal(
        train_cifar, f"--workdir={tmp_path}", f"--data_dir={path}"
    )
    assert message == (
        f"flag --data_dir={path}: must be a folder. Leave it out for the "
        "default."
    )


def test_the_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command_line.folder("~/runs") == f"{tmp_path}/runs"
    assert command_line.folder(None) is None


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda x: x.__name__)
def test_words_beside_the_flags_end_the_program(program, tmp_path):
    argv, values = parsed(
        program, f"--workdir={tmp_path / 'run'}", "epochs=5", "dense"
    )
    with pytest.raises(SystemExit) as caught:
        program.main(argv, values)
    assert caught.value.code == (
        "Words beside the flags: epochs=5 dense. Every setting is a flag; "
        "--helpshort lists them."
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("network", ["resnet8", "vgg11", "vgg13"])
def test_every_network_for_cifar_has_a_width(network, tmp_path):
    _, values = parsed(
        *(train_cifar, f"--workdir={tmp_path}"),
        *(f"--network={network}", "--width=2"),
    )
    cifar = types.SimpleNamespace(image_shape=(32, 32, 3), classes=10)
    model = networks.compiled(recipe_flags.recipe(values), cifar)
    first = next(x for x in model.layers if hasattr(x, "filters"))
    assert first.filters == 2


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda x: x.__name__)
def test_a_narrow_network_needs_a_width(program, tmp_path):
    narrow = f"--workdir={tmp_path}", "--method=narrow", "--target_flops=1"
    _, values = parsed(program, *narrow, "--network=resnet56")
    assert recipe_flags.recipe(values).target_flops == 1.0
    if program is train_imagenet:  # Whose default is of keras.applications.
        assert refusal(program, *narrow) == (
            "flags method=narrow, network=ResNet50: a network of "
            "keras.applications has no width. Choose one of resnet8, "
            "resnet20, resnet32, resnet50_cifar, resnet56, vgg11, vgg13, or "
            "another method."
        )


def test_networks_are_functions_that_build_one():
    for name in networks.APPLICATIONS:
        assert callable(getattr(keras.applications, name))
    assert {"ResNet50", "MobileNet", "Xception"} <= set(networks.APPLICATIONS)
    assert "resnet50" not in networks.APPLICATIONS  # A module.


WORKERS = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    ("config", "is_known"),
    [
        (None, False),
        ("{", False),
        ("[]", False),
        (json.dumps({"cluster": WORKERS}), False),
        (
            json.dumps(
                {"cluster": WORKERS, "task": {"type": "worker", "index": 2}}
            ),
            False,
        ),
        (
            json.dumps(
                {"cluster": WORKERS, "task": {"type": "worker", "index": 1}}
            ),
            True,
        ),
    ],
)
def test_a_worker_must_know_its_cluster(
    config, is_known, tmp_path, monkeypatch
):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    arguments = f"--workdir={tmp_path}", "--strategy=multiworker"
    if is_known:
        parsed(train_imagenet, *arguments)
        return
    assert refusal(train_imagenet, *arguments) == (
        "flag --strategy=multiworker: each worker needs TF_CONFIG in its "
        'environment, such as {"cluster": {"worker": ["host1:2222", '
        '"host2:2222"]}, "task": {"type": "worker", "index": 0}}.'
    )
