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
        "| loaded | a living channel | folding | nested | nested difference "
        "| seconds | |",
        "| --- " + "| ---: " * 11 + "| --- |",
    ]
    for row in rows:
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else "-"
        if "parameters" not in row:
            reason = row.get("error", "not run")
            lines.append(
                f"| {row['model']} {'| ' * 8}| {nested_cells(row)} | "
                f"{seconds} | {reason} |"
            )
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
            f"{nested_cells(row)} | {seconds} | "
            f"{'' if is_right(row) else 'misses'} |"
        )
    return "\n".join(lines) + "\n"


def nested_cells(row):
    """Returns the two cells on the model as a nested backbone."""
    if "nested" not in row:
        return f"{row.get('nested_error', 'not run')} | "
    found = row["nested"]
    left = found["parameters_after"] / found["parameters"]
    size = "" if found["any_size"] else " (one size)"
    mark = " misses" if found["misses"] else ""
    return f"{left:.0%}{size} | {found['difference']:.0e}{mark}"


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
* "nested": the share that is left of a fine-tuned model, as in Keras's guide to
  transfer learning: the model without its top is nested in it, for images of
  any size, and called with `training=False`. It is frozen while a step trains
  the head, and `reconfigure` then removes nothing, although the head no longer
  reads half of the features. It is unfrozen before channels die. "(one size)"
  stands at the models that compute no image if Keras builds them for any size;
* "nested difference": the largest of all differences of that model: of the
  outputs for images of two sizes, at once and after saving and loading, of the
  gradients, and of the outputs after one more step. "misses" behind it says
  that something is not so, or that no living channel moves the outputs;
* "seconds": the time of `reconfigure` in float32, with the slots of SGD with
  momentum.

The raw numbers are in `tools/results/coverage.json`.

"""
