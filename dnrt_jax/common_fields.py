"""The config fields of all tasks: default, rule, help, and whether one may change on resume.

A duration has two fields, in epochs and in steps; steps, where set, take precedence.
"""

from dnrt_jax.fields import (
    ABOVE_0,
    FLAG,
    FRACTION,
    FROM_0,
    NAME,
    PATTERN,
    POSITIVE_FRACTION,
    RATE,
    TEXT,
    Field,
    choice,
    integer,
    numbers_from,
)

FIELDS = {
    "seed": Field(
        42, integer(0, 2**32 - 1), "random seed of parameters, data order, augmentation and dropout"
    ),
    "task": Field(
        "image_classification", NAME, "a task of dnrt_jax/tasks, or MODULE:CLASS of your own"
    ),
    "init_from": Field(
        "",
        TEXT,
        "initial weights: a .safetensors or .pth file, the folder of a run, or "
        "hf:OWNER/NAME[@REVISION] on the Hugging Face hub",
    ),
    "model.name": Field("vit_tiny_patch4_32", NAME, "a model of docs/models.md, or MODULE:CLASS"),
    "model.act": Field("raa", NAME, "activation, one of dnrt_jax.activations.names()"),
    "model.dtype": Field(
        "float32", choice("float32", "bfloat16"), "dtype of the computation; parameters are float32"
    ),
    "data.name": Field("digits", NAME, "data set; see the README, Data"),
    "data.dir": Field(
        "", TEXT, "folder of the data sets; if empty, $DATA_DIR, else ./data", free=True
    ),
    "loss.name": Field(
        "cross_entropy",
        choice("cross_entropy", "balanced_softmax"),
        "balanced_softmax adds the log class counts to the logits in training",
    ),
    "loss.label_smoothing": Field(
        0.0, RATE, "label smoothing of the cross-entropy; ARR uses the hard labels"
    ),
    "arr.weight": Field(
        20.0, FROM_0, "weight of the ARR loss, the paper's lambda; 0 turns ARR off", number=True
    ),
    "arr.momentum": Field(
        0.1, FRACTION, "weight of a new sample in its class mean, the paper's m", number=True
    ),
    "arr.rule": Field(
        "sequential",
        choice("sequential", "centroid"),
        "update of the class means; see dnrt_jax.arr.update",
    ),
    "arr.target": Field(
        "updated",
        choice("updated", "previous", "zero", "global", "permuted"),
        "what responses are pulled to (the last three are controls): dnrt_jax.arr.update",
    ),
    "arr.normalize": Field(
        "none",
        choice("none", "unit"),
        "unit: responses of zero mean and unit variance (a control): dnrt_jax.arr.normalize",
    ),
    "arr.average": Field(
        "layer", choice("layer", "width"), "average over layers; see dnrt_jax.arr.loss"
    ),
    "optim.name": Field(
        "adamw",
        choice("adamw", "adam", "sgd", "rmsprop", "lion", "lamb", "muon", "adafactor"),
        "optimizer; the first four with the semantics of PyTorch, the others with optax's",
    ),
    "optim.lr": Field(2.5e-4, ABOVE_0, "peak learning rate", number=True),
    "optim.schedule": Field(
        "cosine", choice("cosine", "step", "multistep"), "learning rate schedule"
    ),
    "optim.warmup_epochs": Field(0.0, FROM_0, "linear warm-up, in epochs"),
    "optim.warmup_steps": Field(0, integer(0), "the same, in steps"),
    "optim.warmup_lr": Field(1e-6, FROM_0, "learning rate at the first warm-up step", number=True),
    "optim.min_lr": Field(1e-5, FROM_0, "cosine: final learning rate", number=True),
    "optim.step_size": Field(30, integer(1), "step: epochs between decays"),
    "optim.milestones": Field(
        (),
        numbers_from(0, "epochs"),
        "multistep: epochs of the decays, each one epoch late as in the authors' code",
    ),
    "optim.gamma": Field(0.1, ABOVE_0, "step, multistep: factor of a decay", number=True),
    "optim.momentum": Field(0.9, RATE, "momentum of sgd and rmsprop", number=True),
    "optim.weight_decay": Field(
        0.05, FROM_0, "weight decay, applied to every parameter", number=True
    ),
    "optim.no_decay": Field(
        "", PATTERN, "regular expression of parameters without weight decay, such as scale|bias"
    ),
    "optim.layer_decay": Field(
        1.0, POSITIVE_FRACTION, "learning rate of a block relative to that of the next one"
    ),
    "optim.clip": Field(1.0, FROM_0, "maximum norm of the gradient; 0 for no clipping"),
    "train.epochs": Field(1, integer(0), "length of the run, in epochs"),
    "train.steps": Field(0, integer(0), "the same, in steps"),
    "train.batch_size": Field(256, integer(1), "samples per step, over all devices"),
    "train.accumulate": Field(1, integer(1), "micro-batches per step, to save memory"),
    "train.remat": Field(
        False,
        FLAG,
        "repeat each block's forward pass in the backward pass, to save memory",
        free=True,
    ),
    "train.ema": Field(
        0.0,
        RATE,
        "decay per step of the exponential moving average of the weights, such as 0.9998, which "
        "evaluation, prediction and export then use; 0 for none",
    ),
    "train.dispatch": Field(
        "auto",
        choice("auto", "scan", "single"),
        "scan: many steps per dispatch, with the data set in device memory; single: one step per "
        "dispatch; auto: scan on an accelerator if the data set fits a quarter of its "
        "memory, else single",
        free=True,
    ),
    "train.dispatch_steps": Field(
        16, integer(1), "maximum steps per dispatch with scan", free=True
    ),
    "train.log_steps": Field(50, integer(1), "steps between two records of the log", free=True),
    "train.on_nonfinite": Field(
        "stop",
        choice("stop", "skip"),
        "what to do when the loss or gradient is NaN or infinite",
        free=True,
    ),
    "train.max_skipped": Field(
        10, integer(1), "number of skipped steps above which the run stops", free=True
    ),
    "train.eval_epochs": Field(
        1.0,
        FROM_0,
        "epochs between evaluations, 0 for every step; the last step is always evaluated",
        free=True,
    ),
    "train.eval_steps": Field(0, integer(0), "the same, in steps", free=True),
    "train.checkpoint_epochs": Field(
        1.0, FROM_0, "epochs between checkpoints, 0 for every step", free=True
    ),
    "train.checkpoint_steps": Field(0, integer(0), "the same, in steps", free=True),
    "train.patience": Field(
        0,
        integer(0),
        "evaluations without a better eval.metric after which a run ends; 0 for no early end",
        free=True,
    ),
    "train.tracker": Field(
        "none",
        choice("none", "wandb", "mlflow"),
        "where records are written to as well: Weights & Biases or MLflow, if installed",
        free=True,
    ),
    "train.keep": Field(
        2, integer(1), "newest checkpoints to keep, in addition to the best", free=True
    ),
    "parallel.fsdp": Field(
        False, FLAG, "shard parameters, optimizer state and class means over the devices", free=True
    ),
    "parallel.members": Field(
        "auto",
        choice("auto", "together", "alone"),
        "how the members of a set train: together in one program, or alone, one after the other; "
        "auto: together on an accelerator",
        free=True,
    ),
    "parallel.member_parts": Field(
        0,
        integer(0),
        "device groups when members train together, each training its share; 0: the most that "
        "divide both members and devices",
        free=True,
    ),
    "parallel.heartbeat_seconds": Field(
        60, integer(1), "seconds without a heartbeat before a process counts as lost", free=True
    ),
    "eval.batch_size": Field(500, integer(1), "samples per evaluation step", free=True),
    "eval.metric": Field(
        "acc",
        choice("acc", "auc"),
        "metric that selects the best checkpoint; auc if the task reports it",
    ),
}
