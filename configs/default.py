"""Defines every config key, with its unit and source. Other configs take this one, lock it, and override a few keys.

The values are the report's recipe: token conditioning, grouped-query attention, linear DDPM, AdamW.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # training's only seed: weights, data order, noise; sampling has sample.seed

    config.data = ConfigDict()
    config.data.name = "cifar10"  # cifar10 | shapes | image_folder (configs/image_folder.py)
    config.data.data_dir = "data"  # folder of the data that TFDS prepares, and of latents and references
    config.data.resident = "auto"  # all images, or latents, on every device: auto (up to 1 GiB) | true | false (stream)
    config.data.root = ""  # image_folder: the folder of pictures, ROOT/CLASS/PICTURE.{png,jpg,jpeg,webp}
    config.data.image_size = placeholder(int)  # image_folder: width and height in pixels; other data sets set it
    config.data.skip_broken = False  # image_folder: skip pictures that cannot be read, instead of stopping
    config.data.class_names = ""  # image_folder: filled in from the root, joined by /, and kept by the run
    config.data.content = ""  # image_folder: filled in with the name of the prepared copy that the run uses
    config.data.flip = True  # mirror images left to right with probability 1/2 (DDPM on CIFAR-10)

    config.model = ConfigDict()
    config.model.latents = False  # diffuse latents of the autoencoder.* below, not pixels (Rombach et al. 2022)
    config.model.preset = "report"  # report | demo | DiT-{S,B,L,XL}/{2,4,8}: sets each key below that is left unset
    config.model.patch_size = placeholder(int)  # side of a patch in pixels, or in latents
    config.model.width = placeholder(int)  # D, the width of a token
    config.model.depth = placeholder(int)  # number of blocks
    config.model.num_heads = placeholder(int)  # query heads; must divide the width
    config.model.num_kv_heads = placeholder(int)  # key/value heads; must divide the query heads (Ainslie et al. 2023)
    config.model.conditioning = placeholder(str)  # token (the report) | adaln_zero (DiT)
    config.model.positions = placeholder(str)  # sin-cos frequencies: mae (of MAE and DiT) | grid (fitted to the image)
    config.model.mlp_ratio = 4  # width of the MLP relative to D (DiT)
    config.model.qk_norm = False  # normalise queries and keys by their RMS, with learned scales (Esser et al. 2024)
    config.model.long_skips = False  # blocks of the second half also take their mirror's output (Bao et al. 2023)
    config.model.class_table_width = 128  # token conditioning: width of the class table, before its MLP (the report)
    config.model.dtype = "float32"  # of matrix products and between two of them: float32 (README on TF32) | bfloat16
    config.model.remat = False  # recompute blocks in the backward pass: less memory, a third more computation

    config.diffusion = ConfigDict()
    config.diffusion.schedule = "linear"  # linear (DDPM) | cosine (iDDPM) | sigmoid (Chen 2023) | rectified (Liu 2023)
    config.diffusion.num_steps = 1000  # T
    config.diffusion.beta_start = 1e-4  # linear schedule (DDPM, section 4)
    config.diffusion.beta_end = 0.02
    config.diffusion.zero_terminal_snr = False  # rescale to pure noise at T-1 (Lin et al. 2023); no effect on rectified
    config.diffusion.prediction = "eps"  # eps | x0 | v | velocity
    config.diffusion.timestep_sampling = "uniform"  # uniform | logit_normal (Esser et al. 2024)
    config.diffusion.logit_mean = 0.0  # mean of logit(t / T); above 0 favours higher noise levels
    config.diffusion.logit_std = 1.0
    config.diffusion.stratified_timesteps = False  # spread a batch's timesteps evenly, for a less noisy loss
    # weight of the squared error at each timestep: uniform | min_snr (Hang et al. 2023) | velocity (Li & He 2025)
    config.diffusion.loss_weighting = "uniform"
    config.diffusion.min_snr_gamma = 5.0  # cap on the SNR in min_snr (Hang et al. 2023)

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-4  # peak learning rate (the report)
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 1e-4  # the report's, but on matrices only, without the class table
    config.optimizer.warmup_steps = 0
    config.optimizer.schedule = "constant"  # constant | cosine (to 0 at train.steps)
    config.optimizer.clip_norm = 1.0  # limit on the global gradient norm; 0 disables clipping (DDPM's code: 1)

    config.train = ConfigDict()
    config.train.init_from = ""  # a workdir: start from its averaged weights, where they fit (fine-tuning)
    config.train.steps = 39_000  # 200 epochs of CIFAR-10 at batch 256 (the report)
    config.train.batch_size = 256  # global, over all devices (the report: 4 GPUs x 64)
    config.train.microbatches = 1  # split a device's batch into parts processed in turn: less memory, the same step
    config.train.shard_params = False  # shard weights, optimizer and EMA over the devices (ZeRO-3); implies model.remat
    config.train.steps_per_call = 8  # steps per dispatch
    config.train.label_dropout = 0.1  # share of labels set to "no class" (Ho & Salimans 2022); 0 rules out guidance
    config.train.dropout = 0.0  # share of the outputs of attention and MLPs that is set to 0 (Vaswani et al. 2017)
    config.train.ema_half_life = 500_000.0  # in images (Karras et al. 2022)
    config.train.ema_ramp = 0.05  # caps the half-life at this share of the images seen (Karras et al. 2022)
    config.train.checkpoint_every = 1_000  # steps
    config.train.keep_checkpoints = 3  # number of newest checkpoints kept
    config.train.log_every = 100  # steps
    config.train.max_seconds = 0.0  # after this time, save and exit with code 75; 0 is no limit
    config.train.max_bad_steps = 10  # stop after so many steps in a row with a loss or gradient that is not finite
    config.train.sample_every = 5_000  # steps between sample grids in TensorBoard (DDIM, 25 steps); 0 is never

    config.sample = ConfigDict()
    config.sample.checkpoint = "newest"  # newest | best (by the evaluations in training) | a step, such as 5000
    config.sample.weights = "ema"  # ema (averaged) | raw
    config.sample.task = "generate"  # generate | interpolate (two noises) | invert | image_to_image | inpaint
    config.sample.n = 100  # number of images; of given images, the first n are used
    config.sample.batch_size = 100  # images drawn at a time, over all devices; limits memory
    config.sample.labels = ""  # classes to draw, names or numbers: "cat,dog" or "3,5"; if empty, all in turn
    config.sample.seed = 0  # of the noise
    config.sample.sampler = "ddpm"  # ddpm | ddim | dpmpp_2m (DPM-Solver++) | heun
    config.sample.steps = 1000  # timesteps visited, 1..T
    config.sample.spacing = "linspace"  # linspace | leading | trailing | karras | log_snr; dpmpp_2m: one of the last 3
    config.sample.variance = "large"  # ddpm: large (beta) | small (posterior) (DDPM, section 3.2)
    config.sample.eta = 0.0  # ddim: noise from 0 (none) to 1 (as ddpm with small variance) (Song et al. 2021)
    config.sample.guidance = 1.0  # scale of classifier-free guidance; 1 disables it
    config.sample.classifier_scale = 0.0  # scale of classifier guidance (Dhariwal & Nichol 2021); 0 disables it
    config.sample.guidance_from = 0.0  # guide only where from <= t / T <= to (Kynkaanniemi et al. 2024)
    config.sample.guidance_to = 1.0
    config.sample.images = ""  # images to start from: an .npz (`images`, perhaps `labels`), a picture, or a folder
    config.sample.mask = ""  # inpaint: a picture, white where to draw anew; cropped and resized to fit
    config.sample.strength = 0.6  # image_to_image: share of the steps to run, from above 0 (little change) to 1
    config.sample.denoising = True  # generate: also save denoising.png and denoising.gif
    config.sample.clip_x_0 = True  # clip each predicted x_0 to [-1, 1] (DDPM's code)

    config.evaluate = ConfigDict()
    config.evaluate.n = 10_000  # images, with the data's shares of classes; published FIDs use 50,000
    config.evaluate.features = "inception"  # inception | classifier (trained by --mode=train_classifier)
    config.evaluate.loss_n = 10_000  # test images, at most all, for loss_by_noise and bits_per_dim; 0 skips both
    config.evaluate.broken_images = "stop"  # on a picture of --images DIR that cannot be read: stop | skip
    config.evaluate.every_steps = 0  # training steps between small evaluations; 0 is never
    config.evaluate.training_n = 1_000  # images in a small evaluation
    config.evaluate.training_sampler = "ddim"  # its sampler; else as sample.*, but EMA weights, no classifier_scale
    config.evaluate.training_steps = 50  # its sampler's steps, at most diffusion.num_steps
    config.evaluate.inception_path = ""  # file of Inception's weights; if empty, $DIT_JAX_INCEPTION names it

    config.autoencoder = ConfigDict()  # of --mode=train_autoencoder; pace, limits and seed are those of training
    config.autoencoder.downsample = 4  # pixels per latent along each axis: 2 | 4 | 8
    config.autoencoder.channels = 4  # channels of the latents
    config.autoencoder.width = 32  # channels of the first stage; doubles where the size halves, up to four times this
    config.autoencoder.depth = 1  # residual blocks in each stage of the encoder; the decoder has one more
    config.autoencoder.kl_weight = 1e-6  # weight of the KL from N(0, I) (Rombach et al. 2022); more: smoother latents
    config.autoencoder.pretrained = ""  # a safetensors file of diffusers' AutoencoderKL to use instead of training one
    config.autoencoder.steps = 10_000
    config.autoencoder.batch_size = 64  # global
    config.autoencoder.learning_rate = 1e-3  # peak of AdamW, after a warm-up; falls to 0 at the last step (cosine)
    config.autoencoder.sha256 = ""  # filled in: SHA-256 of the weights whose latents the run is trained on

    config.classifier = ConfigDict()  # of --mode=train_classifier; pace, limits and seed are those of training
    config.classifier.width = 32  # channels of the first stage, a multiple of 8; the features have four times as many
    config.classifier.depth = 1  # residual blocks in each of three stages
    config.classifier.steps = 16_000  # 41 epochs of CIFAR-10
    config.classifier.batch_size = 128  # global
    config.classifier.crop_padding = 4  # largest shift of an image along each axis, pixels (He et al. 2016); 0 is none
    config.classifier.learning_rate = 4e-3  # peak of AdamW, after a warm-up; falls to 0 at the last step (cosine)
    config.classifier.weight_decay = 0.05
    return config
