"""The peer does the same work: with our weights in it, it gives our output. Needs requirements-peers.txt."""

import jax
import numpy as np
import pytest

from benchmarks import commands

torch = pytest.importorskip("torch")


def test_the_peer_is_the_same_network():
    from benchmarks.torch_dit import TorchDiT

    sizes = dict(patch_size=4, width=32, depth=2, num_heads=4, num_kv_heads=2, mlp_ratio=4, class_table_width=8)
    made = commands.experiment("configs/default.py", [f"model.{key}={value}" for key, value in sizes.items()])
    params = made.init_params()["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.normal(0, 0.1, p.shape).astype(np.float32), params)
    peer = TorchDiT(image_shape=(32, 32, 3), num_classes=10, **sizes)
    modules = {
        "patch": peer.patch,
        "final": peer.final,
        "time/Dense_0": peer.time[0],
        "time/Dense_1": peer.time[2],
        "label/Embed_0": peer.table,
        "label/Dense_0": peer.label[0],
        "label/Dense_1": peer.label[2],
    }
    for i, block in enumerate(peer.blocks):
        modules |= {f"block_{i}/attention/qkv": block.qkv, f"block_{i}/attention/out": block.out}
        modules |= {f"block_{i}/mlp/Dense_0": block.mlp[0], f"block_{i}/mlp/Dense_1": block.mlp[2]}
    with torch.no_grad():
        for path, module in modules.items():
            leaf = params
            for name in path.split("/"):
                leaf = leaf[name]
            if "embedding" in leaf:
                module.weight.copy_(torch.from_numpy(leaf["embedding"]))
            else:
                module.weight.copy_(torch.from_numpy(leaf["kernel"].T.copy()))
                module.bias.copy_(torch.from_numpy(leaf["bias"]))
        from dit_jax.models.embeddings import position_table

        peer.positions.copy_(torch.from_numpy(position_table(8, 8, 32)))
    x = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
    t, labels = np.array([0, 500, 999], np.int32), np.array([1, 10, 3], np.int32)
    ours = np.asarray(made.apply({"params": params}, x, t, labels))
    theirs = peer(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t), torch.from_numpy(labels).long())
    np.testing.assert_allclose(theirs.permute(0, 2, 3, 1).detach().numpy(), ours, atol=2e-5, rtol=1e-4)
    assert sum(p.numel() for p in peer.parameters()) == sum(p.size for p in jax.tree.leaves(params))
