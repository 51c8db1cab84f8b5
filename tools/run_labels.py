"""What tables and rows of docs/results.md are called, by a run's recipe."""

import json

from recorded_recipes import DEFAULTS, EXPONENT, value, was_exact, wider


def title(recipe):
    """Returns what trainings of one recipe, but for the method, are called."""
    drops = ", ".join(map(str, value(recipe, "learning_rate_drops")))
    optimizer = value(recipe, "optimizer")
    return (
        f"{_epochs(recipe)}, {optimizer} at "
        f"{recipe['learning_rate']:g}, divided by 10 at {drops}, "
        f"{recipe['dtype_policy']}"
    )


def training(recipe):
    """Returns what a recipe trains: network, images, epochs, optimizer."""
    optimizer = value(recipe, "optimizer")
    usual = optimizer == DEFAULTS["optimizer"]
    return _epochs(recipe) + ("" if usual else f", {optimizer}")


def _epochs(recipe):
    return f"{_network(recipe)}, {recipe['epochs']} epochs"


def _network(recipe):
    size = value(recipe, "image_size")
    pixels = f" of {size}x{size} pixels" if size else ""
    width = wider(recipe)
    network = recipe["network"] + (f" of width {width}" if width else "")
    return f"{network} on {recipe['dataset']}{pixels}"


def label(recipe, is_widest):
    """Returns what a row is called: the callback, as it is written in code.

    Args:
        recipe: Dict, the recipe of a run.
        is_widest: Whether no dense run beside it has a wider network.
    """
    method = recipe["method"]
    if method == "dense":
        name = "dense" if is_widest else f"narrow, width {recipe['width']}"
    elif method == "narrow":
        name = f"narrow, {recipe['target_flops']:.0%} of the FLOPs"
    else:
        callback, arguments = {
            "prunetrain": ("PruneTrainCallback", _lasso),
            "targetprune": ("TargetPruneCallback", _target),
        }.get(method, ("EarlyCroPCallback", _early_crop))
        words = [*arguments(recipe), *_batch(recipe)]
        name = f"`{callback}({', '.join(words)})`"
    if EXPONENT in recipe:
        name += f", by score / cost^{recipe[EXPONENT]}"
    if recipe.get("sdgp"):
        n, m = recipe["sdgp"].split(":")
        words = [n, m, f'"{recipe["sdgp_mode"]}"']
        if recipe["sdgp_dense_last"]:
            words.append(f"dense_last={recipe['sdgp_dense_last']}")
        name += f", `SDGPCallback({', '.join(words)})`"
    if recipe.get("initial_run"):
        name += ", from trained weights"
    return name


def _others(recipe, *names):
    """Yields the arguments that are not the app's defaults, as code."""
    for name in names:
        found = value(recipe, name)
        if found != DEFAULTS[name]:
            if isinstance(found, float) and found >= 1:
                found = int(found)  # A number of epochs, not a fraction.
            quoted = isinstance(found, str)
            yield f'{name}="{found}"' if quoted else f"{name}={found}"


def _lasso(recipe):
    if recipe.get("factor") is None:
        yield f"penalty_ratio={recipe['penalty_ratio']}"
    else:
        yield f"factor={recipe['factor']:g}"
    yield f"interval={recipe['interval']}"
    yield from _others(recipe, "solver", "coupled")
    if recipe["finetune_epochs"]:
        yield f"finetune_epochs={recipe['finetune_epochs']}"
    yield from _reconfigure(recipe, 1)


def _target(recipe):
    if recipe["target_flops"] is not None:
        yield f"flops={recipe['target_flops']}"
    yield from _others(recipe, "training_flops", "warmup", "decay", "rounds")
    if recipe["score"] not in (None, "taylor"):
        yield f'score="{recipe["score"]}"'
    yield from _reconfigure(recipe, "auto")


def _early_crop(recipe):
    if recipe["target_flops"] is None:
        yield f"{recipe['sparsity']}, structured=False"
    else:
        yield f'{1 - recipe["target_flops"]:.3g}, target="flops"'
    score = recipe["score"] or "gradient_flow"
    yield f'score="{score}", when="{recipe["when"]}"'
    yield from _others(recipe, "iterations")
    if recipe.get("iteration_interval"):
        yield f"interval={recipe['iteration_interval']}"
    yield from _reconfigure(recipe, 1)


def _reconfigure(recipe, default):
    """Yields the options of `reconfigure` that a run had, if it had any."""
    options = {}
    multiple = recipe.get("channel_multiple") or str(default)
    if was_exact(recipe):
        multiple = "1"
    if multiple != str(default):
        options["channel_multiple"] = (
            multiple if multiple == "auto" else int(multiple)
        )
    if recipe.get("skip"):
        options["skip"] = list(recipe["skip"])
    if options:
        yield f"reconfigure={json.dumps(options)}"


def _batch(recipe):
    if recipe.get("granularity") is not None:
        size, granularity = recipe["batch_size"], recipe["granularity"]
        yield f"batch=DynamicBatch({size}, {granularity})"
