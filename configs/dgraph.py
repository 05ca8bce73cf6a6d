"""DGraph-Fin: a GCN or GraphSAGE with RAA + ARR for fraud detection on 3.7 million accounts.

    python -m dnrt_jax.main --config=configs/dgraph.py --workdir=runs/dgraph
    python -m dnrt_jax.main --config=configs/dgraph.py:graphsage --workdir=runs/dgraph_graphsage

Needs dgraphfin.npz in DATA_DIR, which must be downloaded by hand. The paper gives no protocol for
its table 5; this is that of the public baseline. --config.data.name=synthetic generates a random
graph of the same size.
Expected: the paper has a test AUC of 74.9% (GCN) and 76.7% (GraphSAGE); not run here.
Cost: see docs/graphs.md.
"""

from dnrt_jax.config import default


def get_config(model="gcn"):
    config = default("node_classification")
    config.model.name = model
    config.model.embed_dim = 128
    config.data.name = "dgraphfin"
    config.data.features = "zscore"
    config.arr.weight = 1.0
    config.arr.rule = "centroid"
    config.optim.name = "adam"
    config.optim.lr, config.optim.schedule = 0.01, "multistep"  # constant: no milestones
    config.optim.weight_decay = 5e-7
    config.optim.clip = 0.0
    config.eval.metric = "auc"
    config.train.epochs = 200
    config.train.log_steps = 1
    config.train.checkpoint_epochs = 10.0
    return config
