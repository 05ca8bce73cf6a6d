"""Citeseer: a GCN or GraphSAGE with RAA + ARR on 120 labelled papers of a citation network.

    python -m dnrt_jax.main --config=configs/citeseer.py --workdir=runs/citeseer
    python -m dnrt_jax.main --config=configs/citeseer.py:graphsage --workdir=runs/citeseer_graphsage

Needs citeseer.npz in DATA_DIR, in the layout of DGraph-Fin (see dnrt_jax/data/graphs.py), with the
public split. Expected: about 72% (GCN) and 70% (GraphSAGE) test accuracy. Cost: half a minute on 2
cores.
"""

from configs import cora


def get_config(model="gcn"):
    config = cora.get_config(model)
    config.data.name = "citeseer"
    return config
