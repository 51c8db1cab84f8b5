"""The flags of methods with a target: how small, when, and by which score."""

from absl import flags

from apps import command_line

# The methods that are EarlyCroP before the first step, and their scores.
_AT_THE_START = {
    "crop": "gradient_flow",
    "snip": "snip",
    "grasp": "grasp",
    "synflow": "synflow",
}
# The targets that a method may have, of which it needs one.
TARGETS = {
    "targetprune": ("target_flops", "training_flops"),
    "narrow": ("target_flops",),
    "earlycrop": ("target_flops", "sparsity"),
    **dict.fromkeys(_AT_THE_START, ("target_flops", "sparsity")),
}
# Scores that are measured on batches of data.
_ON_DATA = tuple(_AT_THE_START.values())
_MOST_EPOCHS = 10_000


def define(values):
    """Defines the flags of all methods that have a target."""
    command_line.real(
        *("target_flops", None),
        "Inference FLOPs of the network at the end, a fraction of those at "
        "full width. A narrow network is as wide as they allow.",
        "a number above 0 and at most 1",
        lambda target: 0 < target <= 1,
        values,
    )
    command_line.real(
        *("training_flops", None),
        "FLOPs of all epochs, a fraction of those of dense training: the "
        "target of --method=targetprune in the place of --target_flops.",
        "a number above 0 and below 1",
        lambda target: 0 < target < 1,
        values,
    )
    command_line.real(
        *("sparsity", None),
        "The part of the weights of kernels that --method=earlycrop sets to "
        "zero one by one, in the place of --target_flops.",
        "a number above 0 and below 1",
        lambda sparsity: 0 < sparsity < 1,
        values,
    )
    flags.register_multi_flags_validator(
        ["method", "target_flops", "training_flops", "sparsity"],
        _has_its_target,
        flag_values=values,
    )
    _define_rounds(values)
    _define_score(values)
    _define_iterations(values)


def _define_rounds(values):
    for name, default, text in (
        ("warmup", 0.05, "Before the first channels shrink"),
        ("decay", 0.1, "Until the last ones are cut"),
    ):
        command_line.real(
            *(name, default),
            f"{text}: epochs, or a fraction of them below 1.",
            "a whole number of epochs, or a fraction above 0 and below 1",
            lambda value: value > 0 and (value < 1 or value == int(value)),
            values,
        )
    command_line.integer(
        *("rounds", 4, 1, 100, "Cuts on the way to the target."),
        flag_values=values,
    )


def _define_score(values):
    flags.DEFINE_enum(
        *("score", None, ["taylor", "magnitude", "random", *_ON_DATA]),
        "How much a channel matters. Without this flag: taylor, or "
        "gradient_flow with --method=earlycrop.",
        flag_values=values,
    )
    flags.register_multi_flags_validator(
        ["method", "score"],
        lambda found: (
            found["method"] != "earlycrop"
            or found["score"] in (None, *_ON_DATA)
        ),
        f"--method=earlycrop takes one of {', '.join(_ON_DATA)}.",
        flag_values=values,
    )
    flags.DEFINE_string(
        *("when", None),
        "When --method=earlycrop prunes: lazy, paper_code, start, or the "
        "number of epochs before. Without this flag: lazy.",
        flag_values=values,
    )
    flags.register_validator(
        "when",
        lambda when: (
            when in (None, "lazy", "paper_code", "start")
            or (when.isdecimal() and 0 < int(when) <= _MOST_EPOCHS)
        ),
        "must be lazy, paper_code, start, or a number of epochs.",
        flag_values=values,
    )
    flags.register_multi_flags_validator(
        ["method", "score", "when"], _is_said_once, flag_values=values
    )


def _define_iterations(values):
    command_line.integer(
        *("iterations", 1, 1, 100),
        "Cuts of --method=earlycrop, each by a score that is measured anew.",
        flag_values=values,
    )
    command_line.integer(
        *("iteration_interval", 0, 0, _MOST_EPOCHS),
        "Epochs between these cuts; 0 for all at one moment.",
        flag_values=values,
    )


def _is_said_once(found):
    """Whether a method that names its score and moment has no other."""
    method = found["method"]
    if method in _AT_THE_START:
        for name in ("score", "when"):
            if found[name] is not None:
                _no(
                    f"--method={method} says itself by which score and when "
                    f"it prunes. Leave --{name} out, or choose "
                    "--method=earlycrop."
                )
    return True


def resolved(values):
    """Returns the score and the moment that the flags mean, a dict."""
    score = _AT_THE_START.get(values.method)
    if score is not None:
        return {"score": score, "when": "start"}
    return {"score": values.score, "when": values.when or "lazy"}


def _has_its_target(found):
    """Whether a method has the one target that it needs, and no other."""
    method = found["method"]
    allowed = TARGETS.get(method, ())
    names = {name for names in TARGETS.values() for name in names}
    given = [name for name in sorted(names) if found[name] is not None]
    for name in given:
        if name not in allowed:
            others = [
                x
                for x, names in TARGETS.items()
                if name in names and x not in _AT_THE_START
            ]
            _no(
                f"--method={method} takes no --{name}. Leave it out, or choose "
                f"{' or '.join(f'--method={x}' for x in others)}."
            )
    if allowed and len(given) != 1:
        _no(
            f"--method={method} needs one target, such as "
            f"{' or '.join(f'--{x}=0.5' for x in allowed)}."
        )
    if method != "narrow" and found["target_flops"] == 1:
        _no("a network that is pruned has a target below 1.")
    return True


def _no(message):
    raise flags.ValidationError(message)
