"""Cora: a GCN or GraphSAGE with RAA + ARR on 140 labelled papers of a citation network.

    python -m dnrt_jax.main --config=configs/cora.py --workdir=runs/cora
    python -m dnrt_jax.main --config=configs/cora.py:graphsage --workdir=runs/cora_graphsage

Needs cora.npz in DATA_DIR, in the layout of DGraph-Fin (see dnrt_jax/data/graphs.py), with the
public split. Expected: about 82% (GCN) and 81% (GraphSAGE) test accuracy. Cost: half a minute on 2
cores.
"""

from dnrt_jax.config import default


def get_config(model="gcn"):
    config = default("node_classification")
    config.model.name = model
    config.model.embed_dim = 64
    config.model.drop_rate = 0.5
    config.data.name = "cora"
    config.data.features = "rows"
    config.arr.weight = 1.0
    config.optim.name = "adam"
    config.optim.lr, config.optim.schedule = 0.01, "multistep"  # constant: no milestones
    config.optim.weight_decay = 5e-4
    config.optim.clip = 0.0
    config.train.epochs = 200
    config.train.log_steps = 10
    config.train.checkpoint_epochs = 50.0
    config.train.dispatch_steps = 10
    return config
