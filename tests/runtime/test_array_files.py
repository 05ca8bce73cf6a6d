"""The files of arrays are few, whatever the number of parameters."""

import numpy as np
import orbax.checkpoint as ocp

from dnrt_jax.runtime import array_files


def test_a_vector_of_prime_length_is_cut_into_chunks_of_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "CHUNK", 4096)
    arrays = {
        "params/kernel": np.arange(2 * 50021, dtype=np.float32).reshape(2, 50021),
        "params/bias": np.arange(5, dtype=np.float32),
        "count": np.arange(7, dtype=np.int32),
    }
    array_files.write(tmp_path, arrays)
    stored = ocp.PyTreeCheckpointer().metadata(tmp_path / "arrays").item_metadata.tree
    chunks = {dtype: vector.storage.chunk_shape for dtype, vector in stored.items()}
    assert chunks == {"float32": (1024,), "int32": (7,)}
    read = array_files.read(tmp_path, array_files.describe(arrays))
    for name, x in arrays.items():
        assert read[name].dtype == x.dtype
        np.testing.assert_array_equal(read[name], x)
