"""Every key there is, each with its unit and source. Other configs take this one, lock it, and override a few.

The values are the report's recipe: token conditioning, grouped-query attention, linear DDPM, AdamW.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # the run's only seed: weights, order of the data, noise

    config.data = ConfigDict()
    config.data.name = "cifar10"  # cifar10 | shapes | image_folder (configs/image_folder.py)
    config.data.data_dir = "data"  # where TFDS keeps prepared data; latents and references are kept there too
    config.data.resident = "auto"  # all images, or latents, on every device: auto (up to 1 GiB) | true | false (stream)
    config.data.root = ""  # image_folder: the folder of pictures, ROOT/CLASS/PICTURE.{png,jpg,jpeg,webp}
    config.data.image_size = placeholder(int)  # image_folder: pixels, both ways; of other data sets it is known
    config.data.skip_broken = False  # image_folder: leave out pictures that cannot be read, rather than end
    config.data.class_names = ""  # image_folder: filled in from the root, with / between two names, and kept by the run
    config.data.content = ""  # image_folder: filled in; names the prepared copy that the run has used
    config.data.flip = True  # mirror left to right with probability 1/2 (DDPM on CIFAR-10)

    config.model = ConfigDict()
    config.model.latents = False  # diffuse latents, not pixels: those of autoencoder.* (Rombach et al. 2022)
    config.model.preset = "report"  # report | demo | DiT-{S,B,L,XL}/{2,4,8}: gives each key below that is left unset
    config.model.patch_size = placeholder(int)  # pixels, or of latents as many
    config.model.width = placeholder(int)  # D, width of a token
    config.model.depth = placeholder(int)  # blocks
    config.model.num_heads = placeholder(int)  # query heads; must divide the width
    config.model.num_kv_heads = placeholder(int)  # key/value heads; must divide the query heads (Ainslie et al. 2023)
    config.model.conditioning = placeholder(str)  # token (the report) | adaln_zero (DiT)
    config.model.positions = placeholder(str)  # sin-cos frequencies: mae (10,000^-i) | grid (fitted to the image)
    config.model.mlp_ratio = 4  # width of the MLP / D (DiT)
    config.model.qk_norm = False  # queries and keys at root mean square 1, times learned scales (Esser et al. 2024)
    config.model.long_skips = False  # blocks of the second half also take their mirror's stream (Bao et al. 2023)
    config.model.class_table_width = 128  # of token conditioning: the class table's, before its MLP (the report)
    config.model.dtype = "float32"  # of matrix products and what lies between: float32 (README on TF32) | bfloat16
    config.model.remat = False  # recompute each block in the backward pass: less memory, a third more work

    config.diffusion = ConfigDict()
    config.diffusion.schedule = "linear"  # linear (DDPM) | cosine (iDDPM) | sigmoid (Chen 2023) | rectified (Liu 2023)
    config.diffusion.num_steps = 1000  # T
    config.diffusion.beta_start = 1e-4  # linear schedule (DDPM, section 4)
    config.diffusion.beta_end = 0.02
    config.diffusion.zero_terminal_snr = False  # stretch to pure noise at T-1 (Lin et al. 2023); rectified ends there
    config.diffusion.prediction = "eps"  # eps | x0 | v | velocity
    config.diffusion.timestep_sampling = "uniform"  # uniform | logit_normal (Esser et al. 2024)
    config.diffusion.logit_mean = 0.0  # of logit(t / T); above 0 asks for more noise
    config.diffusion.logit_std = 1.0
    config.diffusion.stratified_timesteps = False  # a batch's timesteps spread over their range: a steadier loss
    # of the squared error by noise: uniform | min_snr (Hang et al. 2023) | velocity (Li & He 2025)
    config.diffusion.loss_weighting = "uniform"
    config.diffusion.min_snr_gamma = 5.0  # where min_snr stops growing with the SNR (Hang et al. 2023)

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-4  # peak (the report)
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 1e-4  # the report's, on matrices alone (its code decays all)
    config.optimizer.warmup_steps = 0
    config.optimizer.schedule = "constant"  # constant | cosine (to 0 at train.steps)
    config.optimizer.clip_norm = 1.0  # global gradient norm; 0 is no clipping (DDPM's code: 1)

    config.train = ConfigDict()
    config.train.init_from = ""  # a workdir: begin with its averaged weights, where they fit (fine-tuning)
    config.train.steps = 39_000  # 200 epochs of CIFAR-10 at batch 256 (the report)
    config.train.batch_size = 256  # global, over all devices (the report: 4 GPUs x 64)
    config.train.microbatches = 1  # parts of a device's batch, one after the other: less memory, the same step
    config.train.shard_params = False  # split weights, optimizer and EMA over the devices (ZeRO-3); implies model.remat
    config.train.steps_per_call = 8  # steps in one dispatch
    config.train.label_dropout = 0.1  # share of labels replaced by "no class" (Ho & Salimans 2022); 0 bars guidance
    config.train.dropout = 0.0  # share of what attention and MLPs add that is set to 0 (Vaswani et al. 2017)
    config.train.ema_half_life = 500_000.0  # images (Karras et al. 2022)
    config.train.ema_ramp = 0.05  # half-life at most this share of the images seen (Karras et al. 2022)
    config.train.checkpoint_every = 1_000  # steps
    config.train.keep_checkpoints = 3  # the newest
    config.train.log_every = 100  # steps
    config.train.max_seconds = 0.0  # then save, and end with exit code 75; 0 is no limit
    config.train.max_bad_steps = 10  # in a row with a loss or gradient that is not finite: then the run ends
    config.train.sample_every = 5_000  # steps between sample grids in TensorBoard (DDIM, 25 steps); 0 is never

    config.sample = ConfigDict()
    config.sample.checkpoint = "newest"  # newest | best (of the evaluations in training) | its step, such as 5000
    config.sample.weights = "ema"  # ema (averaged) | raw
    config.sample.task = "generate"  # generate | interpolate (two noises) | invert | image_to_image | inpaint
    config.sample.n = 100  # images; of those given, the first n
    config.sample.batch_size = 100  # images at a time, over all devices; bounds the memory
    config.sample.labels = ""  # classes to draw, names or numbers: "cat,dog" or "3,5"; empty is all of them, in turn
    config.sample.seed = 0  # of the noise
    config.sample.sampler = "ddpm"  # ddpm | ddim | dpmpp_2m (DPM-Solver++) | heun
    config.sample.steps = 1000  # timesteps visited, 1..T
    config.sample.spacing = "linspace"  # timesteps: linspace, leading; trailing, karras, log_snr: better for dpmpp_2m
    config.sample.variance = "large"  # of ddpm: large (beta) | small (posterior) (DDPM, section 3.2)
    config.sample.eta = 0.0  # noise of ddim: 0 is none, 1 that of ddpm with small variance (Song et al. 2021)
    config.sample.guidance = 1.0  # scale of classifier-free guidance; 1 is none
    config.sample.classifier_scale = 0.0  # of guidance by the run's classifier (Dhariwal & Nichol 2021); 0 is none
    config.sample.guidance_from = 0.0  # guide only where from <= t / T <= to (Kynkaanniemi et al. 2024)
    config.sample.guidance_to = 1.0
    config.sample.images = ""  # to start from: an .npz with `images` (and `labels`), a picture, or a folder of pictures
    config.sample.mask = ""  # inpaint: a picture of the images' size, white where to draw anew
    config.sample.strength = 0.6  # image_to_image: share of the steps that is done, above 0 (hardly any) to 1 (all)
    config.sample.denoising = True  # also picture how images come about: denoising.png and denoising.gif
    config.sample.clip_x_0 = True  # keep each predicted x_0 in [-1, 1] (DDPM's code)

    config.evaluate = ConfigDict()
    config.evaluate.n = 10_000  # images, of the classes in the data's shares; published FIDs have 50,000
    config.evaluate.features = "inception"  # inception | classifier (that of --mode=train_classifier)
    config.evaluate.loss_n = 10_000  # test images, all at most, for loss_by_noise and bits_per_dim; 0 leaves them out
    config.evaluate.broken_images = "stop"  # a picture of --images DIR that cannot be read: stop | skip
    config.evaluate.every_steps = 0  # steps between small evaluations in training; 0 is never
    config.evaluate.training_n = 1_000  # images of such a small one
    config.evaluate.training_sampler = "ddim"  # its sampler; else sample.*, but EMA weights, no classifier_scale
    config.evaluate.training_steps = 50  # its timesteps, at most diffusion.num_steps
    config.evaluate.inception_path = ""  # file of Inception's weights; empty is the one that $DIT_JAX_INCEPTION names

    config.autoencoder = ConfigDict()  # --mode=train_autoencoder, before model.latents; the rest is that of training
    config.autoencoder.downsample = 4  # pixels of a side to one of the latents: 2 | 4 | 8
    config.autoencoder.channels = 4  # of the latents
    config.autoencoder.width = 32  # channels of the first stage; doubled where the size halves, up to four times this
    config.autoencoder.depth = 1  # residual blocks in each stage of the encoder; the decoder has one more
    config.autoencoder.kl_weight = 1e-6  # of the latents' KL from N(0, I) (Rombach et al. 2022); more: smoother latents
    config.autoencoder.pretrained = ""  # a safetensors file of diffusers' AutoencoderKL to take instead of training one
    config.autoencoder.steps = 10_000
    config.autoencoder.batch_size = 64  # global
    config.autoencoder.learning_rate = 1e-3  # peak of AdamW, after a warm-up; falls to 0 at the last step (cosine)
    config.autoencoder.sha256 = ""  # filled in; the weights whose latents the run has learnt

    config.classifier = ConfigDict()  # --mode=train_classifier; pace, limits and seed are those of training
    config.classifier.width = 32  # channels of the first stage, a multiple of 8; the features have four times as many
    config.classifier.depth = 1  # residual blocks in each of three stages
    config.classifier.steps = 16_000  # 41 epochs of CIFAR-10
    config.classifier.batch_size = 128  # global
    config.classifier.crop_padding = 4  # pixels that an image is moved by at most, each way (He et al. 2016); 0 is none
    config.classifier.learning_rate = 4e-3  # peak of AdamW, after a warm-up; falls to 0 at the last step (cosine)
    config.classifier.weight_decay = 0.05
    return config
