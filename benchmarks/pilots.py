"""Point d of GPU_AGENDA.md: what the best recipe may gain from, one thing at a time. All of it are keys there are."""

# name -> what differs from `best` with patches of 4
PILOTS: dict[str, list[str]] = {
    "best, patch 4": [],
    "best, patch 2": ["model.patch_size=2"],
    "v, cosine schedule": ["diffusion.schedule=cosine", "diffusion.prediction=v"],
    "x_0, weighted as velocity": ["diffusion.prediction=x0", "diffusion.loss_weighting=velocity"],
    "b2 0.95": ["optimizer.b2=0.95"],
    "more noise": ["diffusion.logit_mean=0.4"],
    "uniform t": ["diffusion.timestep_sampling=uniform"],
    "learning rate x 2": ["optimizer.learning_rate=1.2e-3"],
    "learning rate / 2": ["optimizer.learning_rate=3e-4"],
    "constant learning rate": ["optimizer.schedule=constant"],
    "half-life 2% of the images": ["train.ema_ramp=0.02"],
    "no flips": ["data.flip=false"],
    "token": ["model.conditioning=token"],
    "eps, linear, min-SNR": [
        "diffusion.schedule=linear",
        "diffusion.prediction=eps",
        "diffusion.loss_weighting=min_snr",
        "sample.spacing=leading",
    ],
    "report, same images": [
        "model.conditioning=token",
        "model.positions=mae",
        "model.num_heads=8",
        "diffusion.schedule=linear",
        "diffusion.prediction=eps",
        "diffusion.timestep_sampling=uniform",
        "diffusion.stratified_timesteps=false",
        "optimizer.learning_rate=2e-4",
        "optimizer.schedule=constant",
        "optimizer.warmup_steps=0",
        "optimizer.b2=0.999",
    ],
}
