"""The callbacks that a recipe names."""

import numpy as np

import keras_prunetrain as kpt


def pruning(recipe, data):
    """Returns the callback that makes the model smaller; `None` for none.

    Args:
        recipe: A `training.Recipe`.
        data: A `data.Dataset` or `imagenet.Images`, on which scores may be
            measured.
    """
    if recipe.method in ("dense", "narrow"):
        return None
    batch = None
    if recipe.granularity is not None:
        batch = kpt.DynamicBatch(recipe.batch_size, recipe.granularity)
    common = {"batch": batch, "reconfigure": _options(recipe)}
    if recipe.method == "targetprune":
        score = recipe.score or "taylor"
        needs_data = score not in ("taylor", "magnitude", "random")
        return kpt.TargetPruneCallback(
            flops=recipe.target_flops,
            training_flops=recipe.training_flops,
            score=_random(recipe.seed) if score == "random" else score,
            scoring_data=_scoring_data(recipe, data) if needs_data else None,
            warmup=_epochs(recipe.warmup),
            decay=_epochs(recipe.decay),
            rounds=recipe.rounds,
            **common,
        )
    if recipe.method == "prunetrain":
        return kpt.PruneTrainCallback(
            penalty_ratio=recipe.penalty_ratio,
            interval=recipe.interval,
            threshold=recipe.threshold,
            finetune_epochs=recipe.finetune_epochs,
            factor=recipe.factor,
            solver=recipe.solver,
            coupled=recipe.coupled,
            **common,
        )
    return kpt.EarlyCroPCallback(
        **(
            {"sparsity": recipe.sparsity, "structured": False}
            if recipe.target_flops is None
            else {"sparsity": 1.0 - recipe.target_flops, "target": "flops"}
        ),
        scoring_data=_scoring_data(recipe, data),
        score=recipe.score or "gradient_flow",
        when=int(recipe.when) if recipe.when.isdecimal() else recipe.when,
        iterations=recipe.iterations,
        interval=recipe.iteration_interval,
        **common,
    )


def sdgp(recipe):
    """Returns a list of the callback that prunes data gradients, if any."""
    if recipe.sdgp is None:
        return []
    n, m = map(int, recipe.sdgp.split(":"))
    return [
        kpt.SDGPCallback(
            n,
            m,
            recipe.sdgp_mode,
            dense_last=recipe.sdgp_dense_last,
            seed=recipe.seed,
        )
    ]


def _options(recipe):
    """Returns the arguments of `reconfigure` that a recipe has, a dict."""
    options = {"skip": recipe.skip} if recipe.skip else {}
    multiple = recipe.channel_multiple
    if multiple is not None:
        options["channel_multiple"] = (
            int(multiple) if multiple != "auto" else "auto"
        )
    return options


def _scoring_data(recipe, data):
    """Returns batches of training images, beside those of `fit`."""
    draws = data.training_draws(recipe.seed)
    return data.drawn_batches(draws.batch(recipe.batch_size))


def _epochs(value):
    return int(value) if value >= 1 else value


def _random(seed):
    """Returns a score that another seed draws anew."""

    def random(numbering):
        return np.random.default_rng(seed).random(numbering.size)

    return random
