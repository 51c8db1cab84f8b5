"""The table of docs/coverage.md on the models of `keras.applications`."""

from masked_trial import misses


def is_right(row):
    """Whether a row has all that is claimed."""
    return row["flops_agree"] and not misses(row)


def page_of(rows, page):
    """Returns `page` with the table of `rows`.

    The section of `tools/program_table.py` stays.
    """
    _, heading, programs = page.partition("\n## Programs\n")
    return _INTRODUCTION + table(rows) + heading + programs


def table(rows):
    """Returns the rows as a Markdown table."""
    lines = [
        "| model | parameters | after | outputs | gradients | next step "
        "| loaded | a living channel | folding | seconds | |",
        "| --- " + "| ---: " * 9 + "| --- |",
    ]
    for row in rows:
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else "-"
        if "parameters" not in row:
            reason = row.get("error", "not run")
            lines.append(f"| {row['model']} {'| ' * 8}| {seconds} | {reason} |")
            continue
        left = row["parameters_after"] / row["parameters"]
        differences = (
            f"{row[f'{name}_difference']:.0e}"
            for name in ("output", "gradient", "next_step", "loaded")
        )
        lines.append(
            f"| {row['model']} | {row['parameters']:,} | {left:.0%} | "
            f"{' | '.join(differences)} | "
            f"{row['living_channel_difference']:.0e} | "
            f"{row['parameters_folded'] / row['parameters']:.0%} | "
            f"{seconds} | "
            f"{'' if is_right(row) else 'misses'} |"
        )
    return "\n".join(lines) + "\n"


_INTRODUCTION = """\
# What `reconfigure` was checked on

`make coverage` checks every function of `keras.applications` in float64. A
model gets random weights that carry a signal. A random half of its removable
channels is set to zero, both where these channels are computed and where they
are read. The smaller model that `reconfigure` returns is compared with this
model:

* "after": the share of the parameters that is left;
* "outputs", "next step", "loaded": the largest difference of the outputs, in
  standard deviations of the outputs, at once, after one more step of SGD with
  momentum, and after saving and loading;
* "gradients": the largest difference of the gradients, relative to the norm of
  each weight's gradient;
* "a living channel": how far the output moves if one channel that is not zero
  is cut as well (the most of five), which shows that the comparison can fail;
* "folding": the share of the parameters that `fold=True` leaves if the same
  channels are zero only where they are computed (without `fold`, all stay);
* "seconds": the time of `reconfigure` in float32, with the slots of SGD with
  momentum.

The raw numbers are in `tools/results/coverage.json`.

"""
