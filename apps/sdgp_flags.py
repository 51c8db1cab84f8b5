"""The flags of pruned data gradients, which every method may have."""

from absl import flags

from apps import command_line


def define(values):
    """Defines `--sdgp` and the flags that belong to it."""
    flags.DEFINE_string(
        "sdgp",
        None,
        "Data gradients of which n of every m consecutive channels are kept, "
        "such as 2:4, with any method: an emulation, which saves no time.",
        flag_values=values,
    )
    flags.register_validator(
        "sdgp",
        is_pattern,
        "must be n:m, such as 2:4, with m from 2 to 16 and n from 1 to m.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "sdgp_mode",
        "rescaled",
        ["rescaled", "magnitude", "mvue", "random", "random_biased"],
        "How --sdgp chooses channels.",
        flag_values=values,
    )
    command_line.real(
        *("sdgp_dense_last", 0.0),
        "Share of the epochs, at the end, without --sdgp.",
        "a number of at least 0 and below 1",
        lambda share: 0 <= share < 1,
        values,
    )
    flags.register_multi_flags_validator(
        ["sdgp", "sdgp_mode", "sdgp_dense_last"],
        lambda found: (
            found["sdgp"] is not None
            or all(
                found[name] == values[name].default
                for name in ("sdgp_mode", "sdgp_dense_last")
            )
        ),
        "--sdgp_mode and --sdgp_dense_last need a pattern, such as --sdgp=2:4.",
        flag_values=values,
    )


def is_pattern(text):
    """Whether `text` is n:m, or `None` for no SDGP."""
    if text is None:
        return True
    n, _, m = text.partition(":")
    # Longer ones are none, and none that Python would read.
    if not all(x.isdecimal() and len(x) < 3 for x in (n, m)):
        return False
    return 1 <= int(n) <= int(m) <= 16 and int(m) >= 2
